"""Colours of surfaces as functions of the place on them: planks, tiles, carpet, plaster, stripes, windows, pictures.

Pure. A texture maps `u`, `v` (metres along the surface, float64 (N,)) and `blur` (metres that one sample covers, the
same shape) to RGB, float64 (N, 3) in [0, 1]. `blur` fades whatever is finer than a sample, so nothing flickers.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Texture = Callable[[Array, Array, Array], Array]


def hsv(hue: float, saturation: float, value: float) -> Array:
    """RGB in [0, 1], shape (3,); all three arguments in [0, 1], the hue wraps."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def wood_colour(random: Random) -> Array:
    """From pale birch to dark walnut."""
    return hsv(random.uniform(0.05, 0.11), random.uniform(0.3, 0.65), random.uniform(0.3, 0.85))


def paint_colour(random: Random) -> Array:
    """Mostly pale, sometimes strong."""
    if random.random() < 0.85:
        return hsv(random.random(), random.uniform(0.02, 0.3), random.uniform(0.75, 0.97))
    return hsv(random.random(), random.uniform(0.25, 0.5), random.uniform(0.6, 0.85))


def fabric_colour(random: Random) -> Array:
    """Anything but glaring."""
    return hsv(random.random(), random.uniform(0.1, 0.7), random.uniform(0.2, 0.8))


def cell_hash(i: Array, j: Array, key: int) -> Array:
    """A number in [0, 1) for every cell (i, j) of an endless grid of integers."""
    h = i.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    h ^= j.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77) + np.uint32(key & 0xFFFFFFFF)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return h / 2.0**32


def value_noise(u: Array, v: Array, key: int) -> Array:
    """Smooth noise in [0, 1) with features of size 1."""
    i, j = np.floor(u), np.floor(v)
    x, y = u - i, v - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    near = cell_hash(i, j, key) * (1 - x) + cell_hash(i + 1, j, key) * x
    far = cell_hash(i, j + 1, key) * (1 - x) + cell_hash(i + 1, j + 1, key) * x
    return near * (1 - y) + far * y


def line_cover(x: Array, period: float, width: float, blur: Array) -> Array:
    """How much of [x - blur/2, x + blur/2] lies on lines of `width` around the multiples of `period`: 0..1."""

    def covered(at: Array) -> Array:
        shifted = at / period + width / period / 2
        whole = np.floor(shifted)
        return whole * width + np.minimum((shifted - whole) * period, width)

    span = np.maximum(blur, 1e-6)
    return (covered(x + span / 2) - covered(x - span / 2)) / span


def _fade(feature: float, blur: Array) -> Array:
    """1 where a sample is much smaller than `feature` metres, 0 where it is as large."""
    return np.clip(1.5 - blur / feature, 0, 1)


def _tint(colour: Array, factor: Array) -> Array:
    return np.clip(colour[..., :] * factor[:, None], 0, 1)


def _mix(base: Array, over: Array, share: Array) -> Array:
    return base + (over - base) * share[:, None]


@dataclass(frozen=True)
class Plain:
    """One colour with faint large and small irregularities: plaster, paint, lacquer, cloth."""

    colour: Array
    key: int
    roughness: float = 0.06
    grain: float = 0.3
    """Size of the irregularities in metres."""

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        large = value_noise(u / self.grain, v / self.grain, self.key) - 0.5
        small = (value_noise(u / self.grain * 9, v / self.grain * 9, self.key + 1) - 0.5) * _fade(self.grain / 9, blur)
        return _tint(self.colour, 1 + self.roughness * (large + small))


@dataclass(frozen=True)
class Planks:
    """Boards along v with a tint each, grain along them, and dark joints."""

    colour: Array
    key: int
    width: float
    length: float
    contrast: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        board = np.floor(u / self.width)
        shifted = v + cell_hash(board, board * 0, self.key) * self.length
        tint = cell_hash(board, np.floor(shifted / self.length), self.key + 1) - 0.5
        grain = (value_noise(u * 60, v * 3, self.key + 2) - 0.5) * _fade(0.03, blur)
        rgb = _tint(self.colour, 1 + self.contrast * tint * _fade(self.width, blur / 2) + 0.2 * grain)
        joints = line_cover(u, self.width, 0.008, blur) + line_cover(shifted, self.length, 0.008, blur)
        return _mix(rgb, self.colour * 0.3, np.clip(joints, 0, 1))


@dataclass(frozen=True)
class Tiles:
    """Squares or bricks of two colours in turn, with joints; `offset` shifts every second row by a part of a tile."""

    colour: Array
    other: Array
    joint: Array
    key: int
    width: float
    height: float
    offset: float = 0.0

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        row = np.floor(v / self.height)
        shifted = u + (row % 2) * self.offset * self.width
        column = np.floor(shifted / self.width)
        sharp = _fade(self.width, blur / 2)
        second = ((row + column) % 2) * sharp + 0.5 * (1 - sharp)
        tint = 0.14 * (cell_hash(column, row, self.key) - 0.5) * sharp
        rgb = _tint(_mix(np.broadcast_to(self.colour, (len(u), 3)), self.other, second), 1 + tint)
        joints = line_cover(shifted, self.width, 0.014, blur) + line_cover(v, self.height, 0.014, blur)
        return _mix(rgb, self.joint, np.clip(joints, 0, 1))


@dataclass(frozen=True)
class Stripes:
    """Upright stripes of two colours."""

    colour: Array
    other: Array
    period: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        share = line_cover(u, self.period, self.period / 2, blur)
        return _mix(np.broadcast_to(self.colour, (len(u), 3)), self.other, share)


@dataclass(frozen=True)
class Split:
    """`lower` up to `height` metres (v), `upper` above it, and a ledge between them."""

    lower: Texture
    upper: Texture
    ledge: Array
    height: float
    thickness: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        rgb = np.where((v < self.height)[:, None], self.lower(u, v, blur), self.upper(u, v, blur))
        return np.where((np.abs(v - self.height) < self.thickness / 2)[:, None], self.ledge, rgb)


@dataclass(frozen=True)
class Panel:
    """A framed rectangle on a surface: `inside` is given u, v from the rectangle's left and lower edge."""

    under: Texture
    inside: Texture
    frame: Array
    border: float
    left: float
    bottom: float
    width: float
    height: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        rgb = np.array(self.under(u, v, blur))
        x, y = u - self.left, v - self.bottom
        distance = np.minimum(np.minimum(x, self.width - x), np.minimum(y, self.height - y))
        hit = distance >= 0
        rgb[hit] = self.frame
        hit = distance >= self.border
        rgb[hit] = self.inside(x[hit], y[hit], blur[hit])
        return rgb


@dataclass(frozen=True)
class Sky:
    """What a window shows: a bright sky over a hazy green, behind glazing bars."""

    bars: Array
    key: int
    pane_width: float
    pane_height: float
    horizon: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        skyline = self.horizon + 0.25 * (value_noise(u * 4, u * 0, self.key) - 0.5)
        clouds = value_noise(u * 2, v * 5, self.key + 1)[:, None]
        sky = np.array([0.75, 0.87, 1.0]) * (1 - 0.4 * clouds) + 0.4 * clouds
        leaves = np.array([0.45, 0.56, 0.36]) * (0.8 + 0.5 * value_noise(u * 12, v * 12, self.key + 2)[:, None])
        rgb = np.where((v > skyline)[:, None], sky, leaves)
        bars = line_cover(u, self.pane_width, 0.05, blur) + line_cover(v, self.pane_height, 0.05, blur)
        return _mix(rgb, self.bars, np.clip(bars, 0, 1))


@dataclass(frozen=True)
class Picture:
    """An abstract painting: areas of three colours."""

    colours: Array
    key: int
    scale: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        level = value_noise(u / self.scale, v / self.scale, self.key)
        level = level + 0.4 * value_noise(u / self.scale * 3, v / self.scale * 3, self.key + 1)
        return self.colours[np.clip((level * 2.2).astype(np.int64), 0, 2)]


@dataclass(frozen=True)
class Shelves:
    """The front of a bookcase: backs of books in rows between boards."""

    wood: Array
    key: int
    spacing: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        row = np.floor(v / self.spacing)
        book = np.floor((u + 5 * row) / 0.055)
        hue = cell_hash(book, row, self.key)
        value = 0.25 + 0.6 * cell_hash(book, row, self.key + 1)
        phase = hue[:, None] + np.array([0.0, 1 / 3, 2 / 3])
        rgb = value[:, None] * (0.7 + 0.3 * np.cos(2 * np.pi * phase))
        rgb = np.where((v % self.spacing > self.spacing * (0.6 + 0.3 * hue))[:, None], self.wood * 0.3, rgb)
        return _mix(rgb, self.wood, line_cover(v, self.spacing, 0.05, blur))


@dataclass(frozen=True)
class Doors:
    """The front of a cupboard or a chest of drawers: fields with a dark gap around and a knob each."""

    wood: Texture
    width: float
    height: float

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        gaps = line_cover(u, self.width, 0.015, blur) + line_cover(v, self.height, 0.015, blur)
        rgb = self.wood(u, v, blur)
        rgb = _mix(rgb, rgb * 0.3, np.clip(gaps, 0, 1))
        x, y = (u % self.width) - self.width / 2, (v % self.height) - self.height * 0.7
        return np.where((np.hypot(x, y) < 0.025)[:, None], np.array([0.75, 0.7, 0.6]), rgb)
