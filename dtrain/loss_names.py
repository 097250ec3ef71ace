"""What each loss is called in a configuration. A table; imports nothing heavy and computes nothing."""

DEPTH_LOSSES: tuple[str, ...] = ("l1", "mse", "smooth_l1", "ssim", "gradient", "silog", "smoothness")
MASK_LOSSES: tuple[str, ...] = ("bce", "l1", "mse", "smooth_l1", "ssim", "gradient", "dice")

SMALLEST_SIDE = {"ssim": 11, "gradient": 2, "smoothness": 2}
"""Pixels that a side of the prediction must have for these losses; the others take any size."""
