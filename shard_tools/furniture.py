"""Pieces of furniture as groups of upright cuboids, and the geometry of such a cuboid.

Pure. A piece is built about the origin with its front towards -v, and then moved to its place in a room.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from shard_tools.textures import Array, Doors, Plain, Shelves, Texture, fabric_colour, hsv, wood_colour

Coordinate = TypeVar("Coordinate", float, Array)


def turn(x: Coordinate, z: Coordinate, angle: float) -> tuple[Coordinate, Coordinate]:
    """The vector (x, z) as coordinates along axes that are turned by `angle` radians from those of x and z."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * z, cosine * z - sine * x


@dataclass(frozen=True)
class Cuboid:
    """A box standing at (u, v), turned by `angle` radians; `textures` for the faces across u, y and v."""

    u: float
    v: float
    angle: float
    half_width: float
    bottom: float
    top: float
    half_length: float
    textures: tuple[Texture, Texture, Texture]

    def local(self, u: Array, y: Array, v: Array) -> tuple[Array, Array, Array]:
        """Coordinates from the middle of the cuboid, along its own axes."""
        across, along = turn(u - self.u, v - self.v, self.angle)
        return across, y - (self.bottom + self.top) / 2, along

    @property
    def half(self) -> tuple[float, float, float]:
        """Half the extent along the cuboid's own axes."""
        return self.half_width, (self.top - self.bottom) / 2, self.half_length


@dataclass(frozen=True)
class Piece:
    """A piece of furniture about the origin, front towards -v; `width` and `depth` in metres are those of its base."""

    width: float
    depth: float
    parts: tuple[Cuboid, ...]

    def base(self, u: float, v: float, angle: float) -> list[tuple[float, float]]:
        """The four corners of the piece's base when it stands at (u, v), turned by `angle`."""
        x, z = self.width / 2, self.depth / 2
        turned = [turn(*corner, -angle) for corner in ((-x, -z), (-x, z), (x, -z), (x, z))]
        return [(u + du, v + dv) for du, dv in turned]

    def placed(self, u: float, v: float, angle: float) -> list[Cuboid]:
        """The parts of the piece when it stands at (u, v), turned by `angle`."""
        moved = []
        for part in self.parts:
            du, dv = turn(part.u, part.v, -angle)
            moved.append(replace(part, u=u + du, v=v + dv, angle=angle + part.angle))
        return moved


def random_piece(random: Random) -> Piece:
    """Any piece; all are lower than a room."""
    return random.choice(_KINDS)(random)


def _part(
    u: float,
    v: float,
    width: float,
    depth: float,
    bottom: float,
    top: float,
    texture: Texture,
    front: Texture | None = None,
) -> Cuboid:
    return Cuboid(u, v, 0.0, width / 2, bottom, top, depth / 2, (texture, texture, front or texture))


def _wood(random: Random) -> Plain:
    return Plain(wood_colour(random), random.getrandbits(30), 0.15, 0.15)


def _cloth(random: Random) -> Plain:
    return Plain(fabric_colour(random), random.getrandbits(30), 0.2, 0.12)


def _table(random: Random) -> Piece:
    wood, width, depth = _wood(random), random.uniform(0.8, 1.7), random.uniform(0.6, 0.9)
    height = random.uniform(0.65, 0.8)
    x, z = width / 2 - 0.06, depth / 2 - 0.06
    legs = [_part(u, v, 0.07, 0.07, 0, height - 0.06, wood) for u in (-x, x) for v in (-z, z)]
    return Piece(width, depth, (_part(0, 0, width, depth, height - 0.06, height, wood), *legs))


def _bench(random: Random) -> Piece:
    wood, width, depth = _wood(random), random.uniform(0.9, 1.6), random.uniform(0.3, 0.45)
    height = random.uniform(0.4, 0.5)
    ends = [_part(u, 0, 0.06, depth - 0.04, 0, height - 0.06, wood) for u in (0.05 - width / 2, width / 2 - 0.05)]
    return Piece(width, depth, (_part(0, 0, width, depth, height - 0.06, height, wood), *ends))


def _sofa(random: Random) -> Piece:
    cloth, width, depth = _cloth(random), random.uniform(1.2, 2.0), random.uniform(0.8, 0.95)
    back = _part(0, depth / 2 - 0.11, width, 0.22, 0.05, random.uniform(0.75, 0.95), cloth)
    arms = [_part(u, 0, 0.2, depth, 0.05, 0.6, cloth) for u in (0.1 - width / 2, width / 2 - 0.1)]
    seat = (width - 0.4) / 2
    seats = [_part(u, -0.1, seat - 0.02, depth - 0.2, 0.1, 0.44, cloth) for u in (-seat / 2, seat / 2)]
    return Piece(width, depth, (back, *arms, *seats))


def _bookcase(random: Random) -> Piece:
    wood, width, depth = _wood(random), random.uniform(0.7, 1.6), random.uniform(0.28, 0.4)
    shelves = Shelves(wood.colour, wood.key, random.uniform(0.28, 0.4))
    return Piece(width, depth, (_part(0, 0, width, depth, 0, random.uniform(1.2, 2.1), wood, shelves),))


def _cupboard(random: Random) -> Piece:
    wood, width, depth = _wood(random), random.uniform(0.7, 1.5), random.uniform(0.4, 0.6)
    height = random.uniform(0.7, 2.0)
    front = Doors(wood, width / random.choice((1, 2, 2, 3)), height / random.choice((1, 2, 3)))
    return Piece(width, depth, (_part(0, 0, width, depth, 0, height, wood, front),))


def _bed(random: Random) -> Piece:
    wood, cloth, width, depth = _wood(random), _cloth(random), random.uniform(1.0, 1.6), 2.0
    linen = Plain(hsv(0, 0, 0.92), wood.key, 0.05)
    parts = (
        _part(0, 0, width, depth, 0.1, 0.35, wood),
        _part(0, -0.03, width - 0.06, depth - 0.12, 0.35, 0.55, cloth),
        _part(0, depth / 2 - 0.04, width, 0.08, 0, 0.95, wood),
        _part(0, depth / 2 - 0.35, width * 0.7, 0.4, 0.55, 0.68, linen),
    )
    return Piece(width, depth, parts)


def _boxes(random: Random) -> Piece:
    board = Plain(hsv(0.09, random.uniform(0.2, 0.5), random.uniform(0.5, 0.8)), random.getrandbits(30), 0.1)
    width, depth, height = random.uniform(0.4, 0.8), random.uniform(0.4, 0.8), random.uniform(0.35, 0.7)
    upper = _part(0, 0, width * 0.7, depth * 0.7, height, height + random.uniform(0.2, 0.5), board)
    return Piece(
        width,
        depth,
        (_part(0, 0, width, depth, 0, height, board), replace(upper, angle=random.uniform(-0.5, 0.5))),
    )


_KINDS: tuple[Callable[[Random], Piece], ...] = (
    _table,
    _bench,
    _sofa,
    _bookcase,
    _cupboard,
    _bed,
    _boxes,
)
