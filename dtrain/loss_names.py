"""What each loss is called in a configuration. A table; imports nothing heavy and computes nothing."""

DEPTH_LOSSES: tuple[str, ...] = ("l1", "mse", "smooth_l1", "ssim", "gradient", "silog", "smoothness")
MASK_LOSSES: tuple[str, ...] = ("bce", "l1", "mse", "smooth_l1", "ssim", "gradient", "dice")

_FIGURES = {"ssim": "ssim_loss", "silog": "silog_loss", "dice": "dice_loss"}
"""Figures of these names in an evaluation are other ones: 1 − SSIM here is SSIM there."""


def figure_name(task: str, loss: str) -> str:
    """What a term of the loss is called in what a training logs: depth_mse, mask_dice_loss."""
    return f"{task}_{_FIGURES.get(loss, loss)}"


SMALLEST_SIDE = {"ssim": 11, "gradient": 2, "smoothness": 2}
"""Pixels that a side of the prediction must have for these losses; the others take any size."""
