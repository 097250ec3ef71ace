"""Procedural rooms: their shape, surfaces, furniture and lamp, drawn by lot.

Pure; what a room looks like is the business of `render`. Everything is a cuboid that may be turned about the
vertical: the room, seen from inside, and the furniture. Room coordinates are metres: u to the right along the back
wall, y up from the floor, v towards the back wall; the origin is the floor below the camera. The camera of `recipe` is
level and looks along z, turned by `yaw` from v.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np

from shard_tools import recipe
from shard_tools.furniture import Cuboid, Piece, random_piece, turn
from shard_tools.permutation import derive_key
from shard_tools.textures import (
    Array,
    Doors,
    Panel,
    Picture,
    Plain,
    Planks,
    Sky,
    Split,
    Stripes,
    Texture,
    Tiles,
    fabric_colour,
    hsv,
    paint_colour,
    wood_colour,
)

CLEAR_METRES = recipe.floor_distance(recipe.base_line(recipe.SIZES[-1])) + 0.15
"""Nothing of a room is nearer (along z) inside the picture, so every placed object stands free on the floor."""

DEEPEST_METRES = 0.95 * recipe.FAR_METRES


@dataclass(frozen=True)
class Lamp:
    """A square light of side 2 × `radius` under the ceiling."""

    u: float
    y: float
    v: float
    radius: float
    colour: Array
    ambient: float
    """Share of the light that comes from everywhere."""


@dataclass(frozen=True)
class Room:
    """A room as the camera meets it; `faces` are the textures of left, right, floor, ceiling and back wall."""

    yaw: float
    left: float
    right: float
    back: float
    height: float
    faces: tuple[Texture, Texture, Texture, Texture, Texture]
    furniture: tuple[Cuboid, ...]
    lamp: Lamp
    exposure: float
    """What light is multiplied by in the picture."""


def _distance(room_yaw: float, u: float, v: float) -> float:
    """z of a point in room coordinates."""
    return v * math.cos(room_yaw) + u * math.sin(room_yaw)


def make_room(seed: int, number: int) -> Room:
    """Room `number` of a data set; the same for the same arguments, for ever different for others."""
    random = Random(derive_key("room", seed, number))
    while True:
        yaw = random.uniform(-0.35, 0.35) if random.random() < 0.6 else 0.0
        corners = [turn(x * CLEAR_METRES / recipe.FOCAL_LENGTH, CLEAR_METRES, yaw) for x in (-0.5, 0.5)]
        left = min(0.0, *(u for u, _ in corners)) - random.uniform(0.1, 2.2)
        right = max(0.0, *(u for u, _ in corners)) + random.uniform(0.1, 2.2)
        back = max(v for _, v in corners) + random.uniform(0.3, 5.0)
        if max(_distance(yaw, left, back), _distance(yaw, right, back)) < DEEPEST_METRES:
            break
    height = random.uniform(2.55, 2.75)
    wall = _wall(random)
    skirting = hsv(random.random(), 0.05, random.choice((0.95, 0.9)))
    thickness = random.uniform(0.06, 0.14)

    def finish(width: float, start: float) -> Texture:
        texture = wall if random.random() < 0.75 else _wall(random)
        texture = Split(_solid(skirting), texture, skirting, thickness, 0.01)
        return _decorate(random, texture, start, width, height)

    faces = (
        finish(back, 0.0),
        finish(back, 0.0),
        _floor(random),
        Plain(hsv(random.random(), 0.02, random.uniform(0.93, 0.98)), random.getrandbits(30), 0.03),
        finish(right - left, left),
    )
    lamp = Lamp(
        u=random.uniform(max(left + 0.4, -0.6), min(right - 0.4, 0.6)),
        y=height - 0.12,
        v=random.uniform(0.6, 1.6),
        radius=random.uniform(0.15, 0.4),
        colour=hsv(random.choice((0.08, 0.1, 0.58)), random.uniform(0, 0.2), 1.0),
        ambient=random.uniform(0.2, 0.3),
    )
    furniture = _furnish(random, yaw, left, right, back)
    return Room(yaw, left, right, back, height, faces, furniture, lamp, random.uniform(1.4, 1.8))


def _solid(colour: Array) -> Texture:
    return Plain(colour, 0, 0.0)


def _floor(random: Random) -> Texture:
    key = random.getrandbits(30)
    kind = random.random()
    if kind < 0.45:
        planks = Planks(wood_colour(random) * 0.8, key, random.uniform(0.1, 0.24), random.uniform(0.9, 2.0), 0.35)
        if random.random() < 0.4:
            return _Turned(planks)
        return planks
    if kind < 0.75:
        stone = hsv(random.random(), random.uniform(0.0, 0.15), random.uniform(0.35, 0.65))
        other = stone * random.choice((1.0, 1.0, 0.45, 0.75))
        side = random.uniform(0.3, 0.7)
        return Tiles(stone, other, stone * random.choice((0.5, 1.15)), key, side, side)
    pile = hsv(random.random(), random.uniform(0.1, 0.5), random.uniform(0.25, 0.5))
    return Plain(pile, key, random.uniform(0.15, 0.4), random.uniform(0.1, 0.5))


@dataclass(frozen=True)
class _Turned:
    """A texture turned by a quarter."""

    texture: Texture

    def __call__(self, u: Array, v: Array, blur: Array) -> Array:
        return self.texture(v, u, blur)


def _wall(random: Random) -> Texture:
    key = random.getrandbits(30)
    colour = paint_colour(random)
    kind = random.random()
    if kind < 0.6:
        return Plain(colour, key, random.uniform(0.03, 0.12), random.uniform(0.2, 0.8))
    if kind < 0.75:
        return Stripes(colour, np.clip(colour * random.uniform(0.8, 1.1), 0, 1), random.uniform(0.2, 0.6))
    if kind < 0.87:
        brick = hsv(random.uniform(0.0, 0.08), random.uniform(0.1, 0.6), random.uniform(0.5, 0.9))
        return Tiles(brick, brick * 0.9, np.full(3, 0.75), key, 0.28, 0.1, 0.5)
    white = hsv(0.1, 0.05, random.uniform(0.85, 0.97))
    lower: Texture = Tiles(white, white, white * 0.8, key, random.uniform(0.15, 0.5), 5.0)
    if random.random() < 0.5:
        lower = Plain(paint_colour(random), key, 0.05)
    return Split(lower, Plain(colour, key + 1, 0.05), white, random.uniform(0.8, 1.2), 0.05)


def _decorate(random: Random, wall: Texture, start: float, width: float, height: float) -> Texture:
    """Hang windows, pictures or doors on a wall that spans [start, start + width] along its u."""
    texture, at = wall, start + random.uniform(0.2, 1.0)
    while True:
        inside, frame, border, bottom, wide, tall = _decoration(random)
        if at + wide > start + width - 0.1:
            return texture
        texture = Panel(texture, inside, frame, border, at, bottom, wide, min(tall, height - bottom - 0.15))
        at += wide + random.choice((random.uniform(0.3, 1.8), random.uniform(1.0, 3.0)))


def _decoration(random: Random) -> tuple[Texture, Array, float, float, float, float]:
    """What hangs on a wall: its texture, colour and width of the frame, lower edge, width and height in metres."""
    kind, key = random.random(), random.getrandbits(30)
    frame = hsv(0.09, random.choice((0.05, 0.5)), random.choice((0.95, 0.3, 0.6)))
    if kind < 0.45:
        wide, tall = random.uniform(0.9, 1.9), random.uniform(1.0, 1.4)
        panes = wide / random.choice((2, 3)), tall / random.choice((1, 2))
        return Sky(frame, key, *panes, tall * random.uniform(0, 0.5)), frame, 0.07, random.uniform(0.7, 1.0), wide, tall
    if kind < 0.88:
        wide, tall = random.uniform(0.4, 1.2), random.uniform(0.4, 0.9)
        colours = np.stack([fabric_colour(random) for _ in range(3)])
        painting = Picture(colours, key, random.uniform(0.2, 0.5))
        return painting, frame, random.uniform(0.02, 0.06), random.uniform(1.1, 1.5), wide, tall
    wide = random.uniform(0.8, 1.0)
    return Doors(Plain(wood_colour(random), key, 0.1), wide - 0.16, 1.0), frame, 0.08, 0.0, wide, 2.05


def _furnish(random: Random, yaw: float, left: float, right: float, back: float) -> tuple[Cuboid, ...]:
    """Furniture along the walls and in the room, none of it nearer than `CLEAR_METRES` nor inside another."""
    parts: list[Cuboid] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(random.choice((1, 2, 2, 3, 4))):
        piece = random_piece(random)
        reach = math.hypot(piece.width, piece.depth) / 2
        for _ in range(12):
            u, v, angle = _spot(random, piece, left, right, back)
            corners = piece.base(u, v, angle)
            inside = all(left <= cu <= right and cv <= back for cu, cv in corners)
            clear = min(_distance(yaw, *corner) for corner in corners) > CLEAR_METRES
            across, _ = turn(u, v, -yaw)
            visible = abs(across) < 0.55 * _distance(yaw, u, v) / recipe.FOCAL_LENGTH
            free = all(math.hypot(u - tu, v - tv) > 0.75 * (reach + tr) for tu, tv, tr in taken)
            if inside and clear and visible and free:
                taken.append((u, v, reach))
                parts += piece.placed(u, v, angle)
                break
    return tuple(parts)


def _spot(random: Random, piece: Piece, left: float, right: float, back: float) -> tuple[float, float, float]:
    """u, v and angle of a place to try: with the back to a wall, or anywhere."""
    kind, gap = random.random(), piece.depth / 2 + 0.03
    if kind < 0.45:
        return random.uniform(left + piece.width / 2, right - piece.width / 2), back - gap, 0.0
    if kind < 0.8:
        side = random.choice((-1, 1))
        return (left + gap if side < 0 else right - gap), random.uniform(1, back), -side * math.pi / 2
    return random.uniform(left, right), random.uniform(1, back), random.uniform(-math.pi, math.pi)
