"""A curve of bounded size, made from any number of points. Pure arithmetic; never reads files."""

from bisect import bisect_left
from dataclasses import dataclass

MAX_POINTS = 240
"""A curve keeps at most this many points: about two drawn pixels each."""


@dataclass(frozen=True)
class Points:
    """A thinned curve: x, rising; per point the mean y and the lowest and highest y that went into it."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def at(self, x: float) -> float:
        """Return y at x, by linear interpolation, the nearest end's outside; NaN where there are no points."""
        if not self.x:
            return float("nan")
        right = bisect_left(self.x, x)
        if right == len(self.x) or right == 0:
            return self.y[min(right, len(self.x) - 1)]
        x0, x1 = self.x[right - 1], self.x[right]
        y0, y1 = self.y[right - 1], self.y[right]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    def with_ends(self, first: tuple[float, float], last: tuple[float, float]) -> "Points":
        """Return the curve with the exact ends (x, y) that thinning has averaged away, where they lie outside it."""
        before = [first] if not self.x or first[0] < self.x[0] else []
        after = [last] if self.x and last[0] > self.x[-1] else []

        def join(values: tuple[float, ...], axis: int) -> tuple[float, ...]:
            return (*(end[axis] for end in before), *values, *(end[axis] for end in after))

        return Points(join(self.x, 0), join(self.y, 1), join(self.low, 1), join(self.high, 1))


@dataclass
class _Bucket:
    first_x: float
    last_x: float
    sum_x: float
    sum_y: float
    low: float
    high: float
    count: int = 1

    def take(self, other: "_Bucket") -> None:
        self.last_x = other.last_x
        self.sum_x += other.sum_x
        self.sum_y += other.sum_y
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.count += other.count

    def cut(self, x: float) -> None:
        """Forget the share of its points at or after x, taking them as evenly spread; first_x < x <= last_x."""
        mean = self.sum_y / self.count
        self.count = max(1, int(self.count * (x - self.first_x) / (self.last_x - self.first_x)))
        self.sum_x = self.count * (self.first_x + x) / 2
        self.sum_y = self.count * mean
        self.last_x = x


class Curve:
    """Takes points one by one; holds bucketed means, twice as coarse whenever there are more than `max_points`.

    A point at or before the last x means that a resumed run does those steps again: what it replaces is
    forgotten (to within one bucket). A bucket with a value that is not finite is not finite itself.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._bucket_size = 1
        self._buckets: list[_Bucket] = []
        self._last_x = float("-inf")

    def add(self, x: float, y: float) -> None:
        """Take one point; x is finite, y may be anything."""
        if x <= self._last_x:
            while self._buckets and self._buckets[-1].first_x >= x:
                self._buckets.pop()
            if self._buckets and self._buckets[-1].last_x >= x:
                self._buckets[-1].cut(x)
        self._last_x = x
        point = _Bucket(x, x, x, y, y, y)
        if self._buckets and self._buckets[-1].count < self._bucket_size:
            self._buckets[-1].take(point)
            return
        self._buckets.append(point)
        if len(self._buckets) > self._max_points:
            self._halve()

    def points(self) -> Points:
        """Return the curve so far, at most `max_points` points."""
        return Points(
            x=tuple(bucket.sum_x / bucket.count for bucket in self._buckets),
            y=tuple(bucket.sum_y / bucket.count for bucket in self._buckets),
            low=tuple(bucket.low for bucket in self._buckets),
            high=tuple(bucket.high for bucket in self._buckets),
        )

    def _halve(self) -> None:
        for left, right in zip(self._buckets[::2], self._buckets[1::2], strict=False):
            left.take(right)
        self._buckets = self._buckets[::2]
        self._bucket_size *= 2
