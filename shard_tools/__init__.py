"""From a tree of images to WebDataset shards: find, plan, pack, index. Never trains and never imports torch."""
