"""The figures of docs/metrics.md in NumPy: plain formulas in float64 over a whole set at once, and nothing shared."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def figures(predicted: Array, logits: Array, depth: Array, mask: Array) -> dict[str, float]:
    """All of them; each array (N, H, W)."""
    depth_figures = {**pixel_figures(predicted, depth), **structure_figures(predicted, depth)}
    boundary = {"mask_boundary_f1": boundary_f1(logits > 0, mask > 0.5)}
    return {**depth_figures, **relative_figures(predicted, depth), **mask_figures(logits, mask), **boundary}


def pixel_figures(predicted: Array, depth: Array) -> dict[str, float]:
    error = predicted - depth
    mse, variance = np.mean(error**2), np.var(depth)
    return {
        "depth_mse": mse,
        "depth_rmse": np.sqrt(mse),
        "depth_mae": np.mean(np.abs(error)),
        "depth_smooth_l1": np.mean(np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)),
        "depth_variance": variance,
        "depth_r2": 1 - mse / variance if variance else float(mse == 0),
    }


def structure_figures(predicted: Array, depth: Array) -> dict[str, float]:
    found: dict[str, float] = {
        "depth_gradient": sum(
            float(np.mean(np.abs(np.diff(predicted, axis=axis) - np.diff(depth, axis=axis))))
            for axis in (1, 2)
            if depth.shape[axis] > 1
        )
    }
    return found if min(depth.shape[1:]) < 11 else found | {"depth_ssim": float(np.mean(ssim(predicted, depth, 1.0)))}


def ssim(a: Array, b: Array, data_range: float) -> Array:
    """Wang et al. (2004), equations 13 to 16, one window after the other."""
    axis = np.arange(11) - 5
    line = np.exp(-(axis**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    windows_a, windows_b = (np.lib.stride_tricks.sliding_window_view(x, (11, 11), axis=(1, 2)) for x in (a, b))
    mean_a, mean_b = ((x * weights).sum((-1, -2)) for x in (windows_a, windows_b))
    away_a, away_b = windows_a - mean_a[..., None, None], windows_b - mean_b[..., None, None]
    variance_a, variance_b, covariance = (
        (x * y * weights).sum((-1, -2)) for x, y in ((away_a, away_a), (away_b, away_b), (away_a, away_b))
    )
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found: Array = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return found


def relative_figures(predicted: Array, depth: Array) -> dict[str, float]:
    valid = depth.astype(np.float32) > np.float32(4 / 255)
    share = {"depth_valid": valid.mean()}
    if not valid.any():
        return share
    true, said = depth[valid], predicted[valid]
    floored = np.maximum(said, 4 / 255)
    ratio = np.maximum(floored / true, true / floored)
    spreads = [
        np.std(np.log(np.maximum(p[v], 4 / 255)) - np.log(t[v]))
        for p, t, v in zip(predicted, depth, valid, strict=True)
        if v.any()
    ]
    return share | {
        "depth_abs_rel": np.mean(np.abs(said - true) / true),
        "depth_sq_rel": np.mean((said - true) ** 2 / true),
        "depth_rmse_log": np.sqrt(np.mean((np.log(floored) - np.log(true)) ** 2)),
        "depth_log10": np.mean(np.abs(np.log10(floored) - np.log10(true))),
        "depth_silog": np.mean(spreads),
        "depth_delta1": np.mean(ratio < 1.25),
        "depth_delta2": np.mean(ratio < 1.25**2),
        "depth_delta3": np.mean(ratio < 1.25**3),
        "depth_floored": np.mean(said < 4 / 255),
    }


def mask_figures(logits: Array, mask: Array) -> dict[str, float]:
    probability = 1 / (1 + np.exp(-logits))
    claimed, true = probability > 0.5, mask > 0.5
    right = claimed & true
    nothing = not claimed.any() and not true.any()

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float(nothing)

    return {
        "mask_bce": np.mean(-mask * np.log(probability) - (1 - mask) * np.log1p(-probability)),
        "mask_mse": np.mean((probability - mask) ** 2),
        "mask_smooth_l1": np.mean((probability - mask) ** 2 / 2),
        "mask_iou": share(right.sum(), (claimed | true).sum()),
        "mask_f1": share(2 * right.sum(), claimed.sum() + true.sum()),
        "mask_precision": share(right.sum(), claimed.sum()),
        "mask_recall": share(right.sum(), true.sum()),
        "mask_accuracy": np.mean(claimed == true),
        "mask_coverage": true.mean(),
    }


def boundary_f1(claimed: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Every boundary pixel against every other, one by one."""
    height, width = true.shape[1:]
    tolerance = max(1, round(0.0075 * np.hypot(height, width)))
    right = said = found = there = 0
    for one, other in zip(claimed, true, strict=True):
        ours, theirs = boundary(one), boundary(other)
        said, there = said + len(ours), there + len(theirs)
        right += near(ours, theirs, tolerance)
        found += near(theirs, ours, tolerance)
    if not said or not there:
        return float(said == there)
    precision, recall = right / said, found / there
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    height, width = mask.shape
    return [
        (y, x)
        for y, x in zip(*np.nonzero(mask), strict=True)
        if any(
            0 <= y + dy < height and 0 <= x + dx < width and not mask[y + dy, x + dx]
            for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1))
        )
    ]


def near(pixels: list[tuple[int, int]], others: list[tuple[int, int]], tolerance: int) -> int:
    return sum(any(max(abs(y - v), abs(x - u)) <= tolerance for v, u in others) for y, x in pixels)
