"""From shards to weights: order, read, decode, model, loss, loop, checkpoint, report. Never reads loose files."""
