"""The images of a tuple: what they are called, and how large they may be."""

COMPONENTS = ("bg", "fgbg", "depth", "mask")
"""The images of a tuple, in the order in which a shard holds them."""

BACKGROUND = "bg"
"""The one that many tuples share."""

GRAY_COMPONENTS = ("depth", "mask")
"""Those that are read as one channel."""

MAX_PIXELS = 2**27
"""Of one image; more are taken for damage or a bomb."""
