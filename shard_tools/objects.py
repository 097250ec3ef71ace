"""Procedural objects with alpha: vases, lamps, chairs, people and others, drawn from shaded parts.

Pure. An object is drawn in a unit square, x from -0.5 to 0.5 and y from 0 (the floor) to 1, on a raster several times
finer than the pictures that it is scaled to, so that its edges come out antialiased.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shard_tools.permutation import derive_key, permutation
from shard_tools.textures import Array, cell_hash, fabric_colour, hsv, value_noise, wood_colour

LIGHT = np.array([-0.45, 0.6, 0.66])
"""Direction towards the light: from the upper left, in front."""

OVERSAMPLING = 4

Profile = Sequence[tuple[float, float]]


class Canvas:
    """A square raster; `rgb` float64 (C, C, 3) in [0, 1], `opaque` bool (C, C), `x` and `y` float64 (C, C)."""

    def __init__(self, side: int, key: int) -> None:
        middle = (np.arange(side) + 0.5) / side
        self.x, self.y = np.meshgrid(middle - 0.5, 1 - middle)
        self.rgb = np.zeros((side, side, 3))
        self.opaque = np.zeros((side, side), bool)
        self.key = key

    def paint(self, where: NDArray[np.bool_], colour: Array, shade: Array | float, roughness: float = 0.15) -> None:
        """Cover `where` with `colour`, (3,) or (C, C, 3), times `shade`, which is 1 in full light."""
        grain = 1 + roughness * (value_noise(self.x * 90, self.y * 90, self.key) - 0.5)
        grain += roughness * (value_noise(self.x * 14, self.y * 14, self.key + 1) - 0.5)
        self.rgb[where] = np.clip(colour * (shade * grain)[..., None], 0, 1)[where]
        self.opaque |= where

    def turned(self, profile: Profile, colour: Array, *, x: float = 0.0, gloss: float = 0.2, bands: int = 0) -> None:
        """A solid of revolution about the upright line at `x`; `profile` lists (y, radius), rising smoothly."""
        heights, radii = np.array(profile).T
        radius = np.interp(self.y, heights, radii)
        slope = (np.interp(self.y + 0.005, heights, radii) - np.interp(self.y - 0.005, heights, radii)) / 0.01
        across = (self.x - x) / np.maximum(radius, 1e-9)
        where = (np.abs(across) < 1) & (self.y >= heights[0]) & (self.y <= heights[-1])
        front = np.sqrt(np.maximum(1 - across**2, 0))
        steep = np.sqrt(1 + slope**2)
        if bands:
            ring = np.floor((self.y - heights[0]) / (heights[-1] - heights[0]) * bands)
            colour = colour * np.where(ring % 2 == 0, 1.0, 0.55)[..., None]
        self.paint(where, colour, _lit(across / steep, -slope / steep, front / steep, gloss))

    def ball(self, x: float, y: float, rx: float, ry: float, colour: Array, gloss: float = 0.2) -> None:
        """An ellipsoid about (x, y)."""
        nx, ny = (self.x - x) / rx, (self.y - y) / ry
        inside = nx**2 + ny**2
        self.paint(inside < 1, colour, _lit(nx, ny, np.sqrt(np.maximum(1 - inside, 0)), gloss))

    def limb(self, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float, colour: Array) -> None:
        """A rounded rod whose radius goes from r0 to r1."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = np.hypot(dx, dy)
        along = np.clip(((self.x - start[0]) * dx + (self.y - start[1]) * dy) / length**2, 0, 1)
        radius = r0 + (r1 - r0) * along
        nx = (self.x - start[0] - along * dx) / radius
        ny = (self.y - start[1] - along * dy) / radius
        inside = nx**2 + ny**2
        self.paint(inside < 1, colour, _lit(nx, ny, np.sqrt(np.maximum(1 - inside, 0)), 0.05))

    def plate(self, corners: Sequence[tuple[float, float]], colour: Array, shade: float, planks: int = 0) -> None:
        """A flat convex face; `planks` boards across it, from the edge 0-1 to the edge 3-2 of four corners."""
        where = np.ones_like(self.opaque)
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, [*corners[1:], corners[0]], strict=True))
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
            where &= ((b[0] - a[0]) * (self.y - a[1]) - (b[1] - a[1]) * (self.x - a[0])) * np.sign(area) >= 0
        light = np.full_like(self.x, shade) * (0.92 + 0.16 * self.y)
        if planks:
            a, b, d = corners[0], corners[1], corners[3]
            det = (b[0] - a[0]) * (d[1] - a[1]) - (b[1] - a[1]) * (d[0] - a[0])
            share = ((b[0] - a[0]) * (self.y - a[1]) - (b[1] - a[1]) * (self.x - a[0])) / det * planks
            light *= 0.85 + 0.3 * cell_hash(np.floor(share), np.zeros_like(share), self.key + 2)
            light *= np.where(share % 1 < 0.07, 0.45, 1.0)
        self.paint(where, colour, light)


def _lit(nx: Array, ny: Array, nz: Array, gloss: float) -> Array:
    """Diffuse and glossy light on a surface whose unit normal is (nx, ny, nz), z towards the viewer."""
    facing = np.maximum(nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2], 0)
    return np.asarray(0.38 + 0.68 * facing + gloss * 2 * facing**24)


def _curve(points: Profile, samples: int = 48) -> Profile:
    """A smooth profile through points (y, radius), by Catmull-Rom."""
    heights, radii = (np.array(values) for values in zip(*points, strict=True))
    slopes = np.gradient(radii, heights)
    curve = []
    for i in range(len(points) - 1):
        step = heights[i + 1] - heights[i]
        for t in np.linspace(0, 1, samples, endpoint=i == len(points) - 2):
            radius = (
                (1 + 2 * t) * (1 - t) ** 2 * radii[i]
                + t * (1 - t) ** 2 * step * slopes[i]
                + t**2 * (3 - 2 * t) * radii[i + 1]
                - t**2 * (1 - t) * step * slopes[i + 1]
            )
            curve.append((float(heights[i] + t * step), float(radius)))
    return curve


def _vase(canvas: Canvas, random: Random) -> None:
    belly, neck, lip = random.uniform(0.2, 0.34), random.uniform(0.06, 0.12), random.uniform(0.1, 0.18)
    colour = hsv(random.random(), random.uniform(0.3, 0.8), random.uniform(0.4, 0.9))
    at = random.uniform(0.3, 0.5)
    profile = [(0.0, belly * 0.5), (at, belly), (0.8, neck), (1.0, lip)]
    canvas.turned(_curve(profile), colour, gloss=0.4, bands=random.choice((0, 7, 11)))


def _lamp(canvas: Canvas, random: Random) -> None:
    metal = hsv(0.1, random.uniform(0, 0.4), random.uniform(0.2, 0.7))
    shade = hsv(random.random(), random.uniform(0.1, 0.5), 0.95)
    low, wide, top = random.uniform(0.62, 0.72), random.uniform(0.18, 0.26), random.uniform(0.08, 0.16)
    canvas.turned([(0.0, 0.16), (0.025, 0.15), (0.045, 0.03)], metal)
    canvas.turned([(0.03, 0.018), (0.9, 0.018)], metal, gloss=0.5)
    canvas.turned([(low, wide), (1.0, top)], shade, gloss=0.0)


def _ball(canvas: Canvas, random: Random) -> None:
    colour = hsv(random.random(), random.uniform(0.5, 0.9), random.uniform(0.6, 0.95))
    other = np.array([0.95, 0.94, 0.9])
    phase = random.uniform(0, 3)
    tilt = canvas.x * 0.8 + (canvas.y - 0.5) * 0.6
    depth = np.sqrt(np.maximum(0.25 - canvas.x**2 - (canvas.y - 0.5) ** 2, 1e-9))
    sector = np.floor(np.arctan2(tilt, depth) * 1.6 + phase) % 2
    canvas.ball(0, 0.5, 0.499, 0.499, np.where(sector[..., None] > 0, colour, other), 0.5)


def _plant(canvas: Canvas, random: Random) -> None:
    for _ in range(random.randint(22, 34)):
        angle, reach = random.uniform(-1.25, 1.25), random.uniform(0.25, 0.6)
        green = hsv(random.uniform(0.22, 0.38), random.uniform(0.5, 0.8), random.uniform(0.3, 0.7))
        tip = (float(np.sin(angle)) * reach * 0.75, 0.34 + float(np.cos(angle)) * reach)
        middle = (tip[0] * 0.45, 0.3 + (tip[1] - 0.3) * 0.62)
        canvas.limb((0, 0.28), middle, 0.012, 0.03, green)
        canvas.limb(middle, tip, 0.032, 0.004, green)
    pot = hsv(random.uniform(0.02, 0.1), random.uniform(0.1, 0.7), random.uniform(0.45, 0.9))
    canvas.turned([(0.0, 0.12), (0.26, 0.17)], pot)
    canvas.turned([(0.25, 0.19), (0.31, 0.19)], pot, gloss=0.1)


def _crate(canvas: Canvas, random: Random) -> None:
    colour = wood_colour(random)
    edge, rise = random.uniform(-0.05, 0.2), random.uniform(0.1, 0.16)
    tall, planks = random.uniform(0.55, 0.75), random.randint(3, 5)
    left, right = (-0.49, rise), (0.49, rise * 0.8)
    front = (edge, 0.0)
    up = [(x, y + tall) for x, y in (left, front, right)]
    back = (left[0] + right[0] - edge, left[1] + right[1] + tall)
    canvas.plate([left, front, up[1], up[0]], colour, 1.0, planks)
    canvas.plate([front, right, up[2], up[1]], colour, 0.62, planks)
    canvas.plate([up[0], up[1], up[2], back], colour, 1.15, planks)


def _chair(canvas: Canvas, random: Random) -> None:
    wood, cloth = wood_colour(random) * 0.9, fabric_colour(random)
    seat, width, skew = random.uniform(0.4, 0.48), random.uniform(0.2, 0.26), random.uniform(0.08, 0.14)
    for x, foot in ((-width + skew, 0.1), (width + skew, 0.1)):
        canvas.limb((x, foot), (x, 0.97), 0.018, 0.018, wood * 0.8)
    canvas.plate([(-width + skew, 0.6), (width + skew, 0.6), (width + skew, 0.97), (-width + skew, 0.97)], cloth, 0.95)
    for x in (-width - skew + 0.03, width - skew):
        canvas.limb((x, 0.018), (x, seat), 0.02, 0.022, wood)
    corners = [
        (-width - skew, seat),
        (width - skew + 0.02, seat),
        (width + skew + 0.02, seat + 0.1),
        (-width + skew - 0.02, seat + 0.1),
    ]
    canvas.plate(corners, cloth, 1.15)
    canvas.plate([(-width - skew, seat - 0.05), (width - skew + 0.02, seat - 0.05), corners[1], corners[0]], wood, 0.8)


def _person(canvas: Canvas, random: Random) -> None:
    skin = hsv(0.07, random.uniform(0.25, 0.6), random.uniform(0.35, 0.95))
    shirt, trousers = fabric_colour(random), fabric_colour(random) * 0.7
    hair = hsv(0.08, random.uniform(0.1, 0.7), random.uniform(0.08, 0.6))
    stride, swing = random.uniform(0.03, 0.1), random.uniform(0.02, 0.14)
    for side in (-1, 1):
        foot = (side * stride, 0.03)
        canvas.limb((side * 0.045, 0.5), (side * stride, 0.27), 0.058, 0.043, trousers)
        canvas.limb((side * stride, 0.27), foot, 0.043, 0.03, trousers)
        canvas.limb((foot[0], 0.024), (foot[0] + 0.055, 0.022), 0.024, 0.021, hair * 0.5)
    for side in (-1, 1):
        elbow = (side * (0.13 + swing * 0.4), 0.62)
        canvas.limb((side * 0.1, 0.79), elbow, 0.036, 0.03, shirt * 0.9)
        canvas.limb(elbow, (side * (0.1 + swing), 0.48), 0.028, 0.02, skin)
    canvas.turned(
        _curve([(0.46, 0.1), (0.56, 0.088), (0.72, 0.125), (0.83, 0.07)]),
        shirt,
        gloss=0.0,
        bands=random.choice((0, 0, 9)),
    )
    canvas.limb((0, 0.8), (0, 0.87), 0.032, 0.03, skin)
    canvas.ball(0, 0.93, 0.056, 0.07, hair, 0.1)
    canvas.ball(0.008, 0.912, 0.047, 0.056, skin, 0.05)


def _cone(canvas: Canvas, random: Random) -> None:
    colour = hsv(random.uniform(0.02, 0.12), 0.9, 0.95)
    canvas.turned([(0.0, 0.32), (0.045, 0.32)], colour * 0.8)
    canvas.turned([(0.04, 0.24), (1.0, 0.04)], colour)
    white = np.array([0.95, 0.95, 0.95])
    for low in (0.3, 0.6):
        radii = [0.24 - 0.2 * (y - 0.04) / 0.96 for y in (low, low + 0.14)]
        canvas.turned([(low, radii[0]), (low + 0.14, radii[1])], white)


def _barrel(canvas: Canvas, random: Random) -> None:
    colour, bulge = wood_colour(random), random.uniform(0.33, 0.4)
    profile = _curve([(0.0, bulge * 0.8), (0.5, bulge), (1.0, bulge * 0.8)])
    staves = np.floor(np.arcsin(np.clip(canvas.x / bulge, -1, 1)) * 5)
    canvas.turned(profile, colour * (0.8 + 0.35 * cell_hash(staves, staves * 0, canvas.key))[..., None], gloss=0.05)
    iron = hsv(0.6, 0.05, 0.35)
    for low in (0.08, 0.3, 0.64, 0.86):
        hoop = [(y, r + 0.006) for y, r in profile if low <= y <= low + 0.06]
        canvas.turned(hoop, iron, gloss=0.4)


def _stool(canvas: Canvas, random: Random) -> None:
    wood, cloth = wood_colour(random), fabric_colour(random)
    wide = random.uniform(0.24, 0.34)
    for x in (0.0, -0.85, 0.85):
        canvas.limb((x * wide, 0.02 if x else 0.05), (x * wide * 0.6, 0.85), 0.024, 0.026, wood)
    canvas.limb((-0.62 * wide, 0.35), (0.62 * wide, 0.35), 0.016, 0.016, wood * 0.8)
    canvas.turned(_curve([(0.82, wide * 0.94), (0.88, wide), (0.97, wide * 0.97), (1.0, wide * 0.8)]), cloth)


def _suitcase(canvas: Canvas, random: Random) -> None:
    colour, dark = fabric_colour(random), np.array([0.12, 0.12, 0.13])
    wide, side = random.uniform(0.24, 0.3), random.uniform(0.08, 0.13)
    for x in (-0.1, 0.1):
        canvas.limb((x, 0.7), (x, 0.98), 0.012, 0.012, dark * 3)
    canvas.limb((-0.1, 0.98), (0.1, 0.98), 0.018, 0.018, dark)
    for x in (-wide + 0.05, wide - 0.03, wide + side - 0.04):
        canvas.ball(x, 0.03, 0.03, 0.03, dark)
    canvas.plate([(-wide, 0.045), (wide, 0.045), (wide, 0.76), (-wide, 0.76)], colour, 0.95, random.choice((0, 6, 9)))
    canvas.plate([(wide, 0.045), (wide + side, 0.085), (wide + side, 0.8), (wide, 0.76)], colour, 0.6)
    canvas.plate([(-wide, 0.76), (wide, 0.76), (wide + side, 0.8), (-wide + side, 0.8)], colour, 1.2)


def _cactus(canvas: Canvas, random: Random) -> None:
    green = hsv(random.uniform(0.27, 0.4), random.uniform(0.4, 0.7), random.uniform(0.35, 0.65))
    low, high = random.uniform(0.45, 0.55), random.uniform(0.6, 0.7)
    for side, start in ((-1, low), (1, high)):
        elbow = (side * random.uniform(0.2, 0.27), start)
        canvas.limb((0, start), elbow, 0.055, 0.055, green)
        canvas.limb(elbow, (elbow[0], start + random.uniform(0.14, 0.24)), 0.055, 0.05, green)
    ribs = 0.75 + 0.25 * np.cos(canvas.x * 180)
    canvas.limb((0, 0.25), (0, 0.91), 0.1, 0.09, green * ribs[..., None])
    canvas.turned([(0.0, 0.13), (0.24, 0.17)], hsv(random.random(), 0.5, 0.7))
    canvas.turned([(0.23, 0.185), (0.29, 0.185)], hsv(0.06, 0.4, 0.6))


KINDS: tuple[Callable[[Canvas, Random], None], ...] = (
    _vase,
    _lamp,
    _ball,
    _plant,
    _crate,
    _chair,
    _person,
    _cone,
    _barrel,
    _stool,
    _suitcase,
    _cactus,
)


def draw_object(seed: int, number: int, size: int) -> Image.Image:
    """Object `number` (from 1) of a data set, for pictures of `size` pixels: RGBA, cropped to what is visible of it.

    The same for the same arguments; other numbers and seeds give other objects, the first twelve all of other kinds.
    """
    key = derive_key("object", seed, number)
    round_, place = divmod(number - 1, len(KINDS))
    kind = KINDS[permutation(len(KINDS), "kinds", seed, round_)[place]]
    canvas = Canvas(OVERSAMPLING * size * 5 // 8, key)
    kind(canvas, Random(key))
    rgba = np.dstack([np.rint(canvas.rgb * 255), canvas.opaque * 255]).astype(np.uint8)
    image = Image.fromarray(rgba, "RGBA")
    return image.crop(image.getchannel("A").getbbox())
