"""Procedural rooms: what stands in them, and their picture and exact depth by ray casting.

Pure. Everything is a cuboid that may be turned about the vertical: the room, seen from inside, and the furniture.
Room coordinates are metres: u to the right along the back wall, y up from the floor, v towards the back wall; the
origin is the floor below the camera. The camera of `recipe` is level and looks along z, turned by `yaw` from v.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from shard_tools import recipe
from shard_tools.permutation import derive_key
from shard_tools.textures import (
    Array,
    Doors,
    Panel,
    Picture,
    Plain,
    Planks,
    Shelves,
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

DEEPEST_METRES = 0.97 * recipe.FAR_METRES
SUPERSAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))


@dataclass(frozen=True)
class Cuboid:
    """A box standing at (u, v), turned by `turn` radians; `textures` for the faces across u, y and v."""

    u: float
    v: float
    turn: float
    half_width: float
    bottom: float
    top: float
    half_length: float
    textures: tuple[Texture, Texture, Texture]
    piece: int
    """Which piece of furniture it is a part of."""

    def local(self, u: Array, y: Array, v: Array) -> tuple[Array, Array, Array]:
        """Coordinates from the middle of the cuboid, along its own axes."""
        across, along = _turn(u - self.u, v - self.v, self.turn)
        return across, y - (self.bottom + self.top) / 2, along

    @property
    def half(self) -> tuple[float, float, float]:
        """Half the extent along the cuboid's own axes."""
        return self.half_width, (self.top - self.bottom) / 2, self.half_length


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


def _turn(x: Array, z: Array, angle: float) -> tuple[Array, Array]:
    """The vector (x, z) seen from axes turned by `angle`."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * z, cosine * z - sine * x


def _distance(room_yaw: float, u: float, v: float) -> float:
    """z of a point in room coordinates."""
    return v * math.cos(room_yaw) + u * math.sin(room_yaw)


def make_room(seed: int, number: int) -> Room:
    """Room `number` of a data set; the same for the same arguments, for ever different for others."""
    random = Random(derive_key("room", seed, number))
    while True:
        yaw = random.uniform(-0.55, 0.55) if random.random() < 0.7 else 0.0
        corners = [
            _turn(np.array(x * CLEAR_METRES / recipe.FOCAL_LENGTH), np.array(CLEAR_METRES), yaw) for x in (-0.5, 0.5)
        ]
        left = min(0.0, *(float(u) for u, _ in corners)) - random.uniform(0.1, 2.2)
        right = max(0.0, *(float(u) for u, _ in corners)) + random.uniform(0.1, 2.2)
        back = max(float(v) for _, v in corners) + random.uniform(0.3, 5.5)
        if max(_distance(yaw, left, back), _distance(yaw, right, back)) < DEEPEST_METRES:
            break
    height = random.uniform(2.3, 3.2)
    wall = _wall(random)
    skirting = hsv(random.random(), 0.1, random.choice((0.95, 0.9, 0.25)))
    thickness = random.uniform(0.06, 0.14)

    def finish(width: float, start: float) -> Texture:
        texture = wall if random.random() < 0.75 else _wall(random)
        texture = Split(_solid(skirting), texture, skirting, thickness, 0.01)
        return _decorate(random, texture, start, width, height)

    faces = (
        finish(back, 0.0),
        finish(back, 0.0),
        _floor(random),
        Plain(hsv(random.random(), 0.03, random.uniform(0.85, 1.0)), random.getrandbits(30), 0.03),
        finish(right - left, left),
    )
    lamp = Lamp(
        u=random.uniform(max(left + 0.4, -2), min(right - 0.4, 2)),
        y=height - 0.12,
        v=random.uniform(0.6, max(0.8, back - 1.0)),
        radius=random.uniform(0.15, 0.4),
        colour=hsv(random.choice((0.08, 0.1, 0.58)), random.uniform(0, 0.2), 1.0),
        ambient=random.uniform(0.3, 0.5),
    )
    furniture = _furnish(random, yaw, left, right, back, height)
    return Room(yaw, left, right, back, height, faces, furniture, lamp, random.uniform(0.42, 0.62))


def _solid(colour: Array) -> Texture:
    return Plain(colour, 0, 0.0)


def _floor(random: Random) -> Texture:
    key = random.getrandbits(30)
    kind = random.random()
    if kind < 0.45:
        planks = Planks(wood_colour(random), key, random.uniform(0.1, 0.24), random.uniform(0.9, 2.0), 0.35)
        if random.random() < 0.4:
            return _Turned(planks)
        return planks
    if kind < 0.75:
        stone = hsv(random.random(), random.uniform(0.0, 0.2), random.uniform(0.45, 0.9))
        other = stone * random.choice((1.0, 1.0, 0.45, 0.75))
        side = random.uniform(0.3, 0.7)
        return Tiles(stone, other, stone * random.choice((0.5, 1.15)), key, side, side)
    return Plain(fabric_colour(random), key, random.uniform(0.15, 0.4), random.uniform(0.1, 0.5))


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
    if kind < 0.5:
        return Plain(colour, key, random.uniform(0.03, 0.12), random.uniform(0.2, 0.8))
    if kind < 0.65:
        return Stripes(colour, np.clip(colour * random.uniform(0.8, 1.1), 0, 1), random.uniform(0.2, 0.6))
    if kind < 0.78:
        brick = hsv(random.uniform(0.0, 0.08), random.uniform(0.1, 0.6), random.uniform(0.5, 0.9))
        return Tiles(brick, brick * 0.9, np.full(3, 0.75), key, 0.28, 0.1, 0.5)
    white = hsv(0.1, 0.05, random.uniform(0.85, 0.97))
    lower: Texture = Tiles(white, white, white * 0.8, key, random.uniform(0.15, 0.5), 5.0)
    if random.random() < 0.5:
        lower = Plain(paint_colour(random), key, 0.05)
    return Split(lower, Plain(colour, key + 1, 0.05), white, random.uniform(0.8, 1.2), 0.05)


def _decorate(random: Random, wall: Texture, start: float, width: float, height: float) -> Texture:
    """Hang windows, pictures or a door on a wall that spans [start, start + width] along its u."""
    texture, at = wall, start + random.uniform(0.2, 1.0)
    while True:
        kind = random.random()
        frame = hsv(0.09, random.choice((0.05, 0.5)), random.choice((0.95, 0.3, 0.6)))
        key = random.getrandbits(30)
        if kind < 0.4:
            wide, tall, bottom = random.uniform(0.9, 1.9), random.uniform(1.0, 1.4), random.uniform(0.7, 1.0)
            sky = Sky(frame, key, wide / random.choice((2, 3)), tall / random.choice((1, 2)), tall * random.uniform(0, 0.5))
            inside, border = sky, 0.07
        elif kind < 0.75:
            wide, tall, bottom = random.uniform(0.4, 1.2), random.uniform(0.4, 0.9), random.uniform(1.1, 1.5)
            colours = np.stack([fabric_colour(random) for _ in range(3)])
            inside, border = Picture(colours, key, random.uniform(0.2, 0.5)), random.uniform(0.02, 0.06)
        elif kind < 0.85:
            wide, tall, bottom = random.uniform(0.8, 1.0), 2.05, 0.0
            inside, border = Doors(Plain(wood_colour(random), key, 0.1), wide - 0.16, 1.0), 0.08
        else:
            at += random.uniform(0.8, 2.0)
            continue
        tall = min(tall, height - bottom - 0.15)
        if at + wide > start + width - 0.1:
            return texture
        texture = Panel(texture, inside, frame, border, at, bottom, wide, tall)
        at += wide + random.uniform(0.3, 1.8)


def _furnish(random: Random, yaw: float, left: float, right: float, back: float, height: float) -> tuple[Cuboid, ...]:
    """Furniture along the walls and in the room, none of it nearer than `CLEAR_METRES` nor inside another."""
    parts: list[Cuboid] = []
    taken: list[tuple[float, float, float]] = []
    wanted = random.choice((1, 2, 3, 3, 4, 5))
    for piece in range(wanted):
        width, depth, tall, build = _piece(random, height)
        for _ in range(12):
            against = random.random()
            if against < 0.45:
                u, v, turn = random.uniform(left + width / 2, right - width / 2), back - depth / 2 - 0.03, 0.0
            elif against < 0.8:
                side = random.choice((-1, 1))
                u = (left + depth / 2 + 0.03) if side < 0 else (right - depth / 2 - 0.03)
                v, turn = random.uniform(1, max(1.1, back - width / 2)), side * math.pi / 2
            else:
                u, v = random.uniform(left, right), random.uniform(1, back)
                turn = random.uniform(-math.pi, math.pi)
            reach = math.hypot(width, depth) / 2
            corners = []
            for x, z in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                du, dv = _turn(np.array(x * width / 2), np.array(z * depth / 2), -turn)
                corners.append((u + float(du), v + float(dv)))
            inside = all(left <= cu <= right and cv <= back for cu, cv in corners)
            clear = min(_distance(yaw, *corner) for corner in corners) > CLEAR_METRES
            across = float(_turn(np.array(u), np.array(v), -yaw)[0])
            visible = abs(across) < 0.55 * _distance(yaw, u, v) / recipe.FOCAL_LENGTH
            free = all(math.hypot(u - tu, v - tv) > 0.75 * (reach + tr) for tu, tv, tr in taken)
            if inside and clear and visible and free:
                taken.append((u, v, reach))
                parts += [_place(part, u, v, turn, piece) for part in build]
                break
    return tuple(parts)


def _place(part: Cuboid, u: float, v: float, turn: float, piece: int) -> Cuboid:
    du, dv = _turn(np.array(part.u), np.array(part.v), -turn)
    return Cuboid(
        u + float(du),
        v + float(dv),
        turn + part.turn,
        part.half_width,
        part.bottom,
        part.top,
        part.half_length,
        part.textures,
        piece,
    )


def _part(
    u: float, v: float, width: float, length: float, bottom: float, top: float, texture: Texture, front: Texture | None = None
) -> Cuboid:
    """A part of a piece whose middle is (0, 0) and whose front looks towards -v."""
    return Cuboid(u, v, 0.0, width / 2, bottom, top, length / 2, (texture, texture, front or texture), 0)


def _piece(random: Random, room_height: float) -> tuple[float, float, float, list[Cuboid]]:
    """Width, depth and height in metres, and the parts, of a random piece of furniture."""
    key = random.getrandbits(30)
    colour = wood_colour(random)
    wood = Plain(colour, key, 0.15, 0.15)
    cloth = Plain(fabric_colour(random), key, 0.2, 0.12)
    match random.choice(("table", "sofa", "bookcase", "cupboard", "bed", "boxes", "pillar", "bench")):
        case "table":
            w, d, h = random.uniform(0.8, 1.7), random.uniform(0.6, 0.9), random.uniform(0.65, 0.8)
            legs = [
                _part(x * (w / 2 - 0.06), z * (d / 2 - 0.06), 0.07, 0.07, 0, h, wood) for x in (-1, 1) for z in (-1, 1)
            ]
            return w, d, h, [_part(0, 0, w, d, h - 0.06, h, wood), *legs]
        case "sofa":
            w, d, h = random.uniform(1.2, 2.0), random.uniform(0.8, 0.95), random.uniform(0.75, 0.95)
            arms = [_part(x * (w / 2 - 0.1), 0, 0.2, d, 0.05, 0.6, cloth) for x in (-1, 1)]
            seats = [
                _part(x * (w - 0.4) / 4, -0.1, (w - 0.4) / 2 - 0.02, d - 0.2, 0.1, 0.44, cloth) for x in (-1, 1)
            ]
            return w, d, h, [*seats, _part(0, d / 2 - 0.11, w, 0.22, 0.05, h, cloth), *arms]
        case "bookcase":
            w, d, h = random.uniform(0.7, 1.6), random.uniform(0.28, 0.4), random.uniform(1.2, min(2.1, room_height))
            spacing = random.uniform(0.28, 0.4)
            return w, d, h, [_part(0, 0, w, d, 0, h, wood, Shelves(colour, key, spacing))]
        case "cupboard":
            w, d, h = random.uniform(0.7, 1.5), random.uniform(0.4, 0.6), random.uniform(0.7, 2.0)
            front = Doors(wood, w / random.choice((1, 2, 2, 3)), h / random.choice((1, 2, 3)))
            return w, d, h, [_part(0, 0, w, d, 0, h, wood, front)]
        case "bed":
            w, d = random.uniform(1.0, 1.6), 2.0
            return (
                w,
                d,
                0.9,
                [
                    _part(0, 0, w, d, 0.1, 0.35, wood),
                    _part(0, -0.03, w - 0.06, d - 0.12, 0.35, 0.55, cloth),
                    _part(0, d / 2 - 0.04, w, 0.08, 0, 0.95, wood),
                    _part(0, d / 2 - 0.35, w * 0.7, 0.4, 0.55, 0.68, Plain(hsv(0, 0, 0.92), key, 0.05)),
                ],
            )
        case "boxes":
            board = Plain(hsv(0.09, random.uniform(0.2, 0.5), random.uniform(0.5, 0.8)), key, 0.1)
            w, d, h = random.uniform(0.4, 0.8), random.uniform(0.4, 0.8), random.uniform(0.35, 0.7)
            parts = [_part(0, 0, w, d, 0, h, board)]
            if random.random() < 0.6:
                upper = _part(0, 0, w * 0.7, d * 0.7, h, h + random.uniform(0.2, 0.5), board)
                parts.append(_place(upper, 0, 0, random.uniform(-0.5, 0.5), 0))
            return w, d, h, parts
        case "pillar":
            side = random.uniform(0.25, 0.5)
            paint = Plain(paint_colour(random), key, 0.05)
            return side, side, room_height, [_part(0, 0, side, side, 0, room_height - 0.001, paint)]
        case _:
            w, d, h = random.uniform(0.9, 1.6), random.uniform(0.3, 0.45), random.uniform(0.4, 0.5)
            ends = [_part(x * (w / 2 - 0.05), 0, 0.06, d - 0.04, 0, h, wood) for x in (-1, 1)]
            return w, d, h, [_part(0, 0, w, d, h - 0.06, h, wood), *ends]


@dataclass(frozen=True)
class _Hits:
    """Where rays end: `z` metres along the optical axis, `body` (-1 the room, else index of furniture), `axis` 0..2."""

    z: Array
    body: NDArray[np.int64]
    axis: NDArray[np.int64]


def _rays(room: Room, size: int, dx: float, dy: float) -> tuple[Array, Array, Array]:
    """Directions (u, y, v) with z component 1, float64 (S·S,), through pixel centres shifted by (dx, dy) pixels."""
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid((middle + dx / size - 0.5), (recipe.HORIZON - middle - dy / size))
    across, along = _turn(x.ravel() / recipe.FOCAL_LENGTH, np.ones(size * size), room.yaw)
    return across, y.ravel() / recipe.FOCAL_LENGTH, along


def _entry(cuboid: Cuboid, start: tuple[Array, Array, Array], ray: tuple[Array, Array, Array]) -> tuple[Array, Array, NDArray[np.int64]]:
    """Parameters at which rays enter and leave a cuboid (entry > exit: missed), and the axis of the face entered."""
    origin = cuboid.local(*start)
    across, along = _turn(ray[0], ray[2], cuboid.turn)
    enter = np.full(ray[0].shape, -np.inf)
    leave = np.full(ray[0].shape, np.inf)
    axis = np.zeros(ray[0].shape, np.int64)
    for index, (o, d, half) in enumerate(zip(origin, (across, ray[1], along), cuboid.half, strict=True)):
        inverse = 1 / np.where(d == 0, 1e-12, d)
        near = (-np.copysign(half, inverse) - o) * inverse
        far = (np.copysign(half, inverse) - o) * inverse
        axis = np.where(near > enter, index, axis)
        enter = np.maximum(enter, near)
        leave = np.minimum(leave, far)
    return enter, leave, axis


def _cast(room: Room, ray: tuple[Array, Array, Array]) -> _Hits:
    """Follow rays from the camera to the first surface."""
    u, y, v = (np.where(d == 0, 1e-12, d) for d in ray)
    exits = np.stack(
        [
            np.where(u > 0, room.right, room.left) / u,
            (np.where(y > 0, room.height, 0.0) - recipe.CAMERA_HEIGHT_METRES) / y,
            np.where(v > 0, room.back / v, np.inf),
        ]
    )
    axis = np.argmin(exits, axis=0)
    z = exits[axis, np.arange(len(u))]
    body = np.full(len(u), -1, np.int64)
    eye = _eye(len(u))
    for index, cuboid in enumerate(room.furniture):
        enter, leave, face = _entry(cuboid, eye, ray)
        hit = (enter < leave) & (enter > 0) & (enter < z)
        z = np.where(hit, enter, z)
        axis = np.where(hit, face, axis)
        body = np.where(hit, index, body)
    return _Hits(z, body, axis)


def _eye(count: int) -> tuple[Array, Array, Array]:
    zero = np.zeros(count)
    return zero, np.full(count, recipe.CAMERA_HEIGHT_METRES), zero


def depth_map(room: Room, size: int) -> Array:
    """Exact distance along the optical axis at the centres of pixels, metres, float64 (S, S)."""
    return _cast(room, _rays(room, size, 0, 0)).z.reshape(size, size)


def picture(room: Room, size: int) -> NDArray[np.uint8]:
    """The room in colour with 2 × 2 samples a pixel, RGB uint8 (S, S, 3)."""
    light = np.mean([_shade(room, _rays(room, size, dx, dy), size) for dx, dy in SUPERSAMPLES], axis=0)
    light *= room.exposure**2.2 / np.mean(light)
    light = light / (1 + 0.25 * light) * 1.25
    colour = np.clip(light, 0, 1) ** (1 / 2.2)
    return np.asarray(np.rint(colour * 255), np.uint8).reshape(size, size, 3)


def _shade(room: Room, ray: tuple[Array, Array, Array], size: int) -> Array:
    """Linear light that comes back along rays, float64 (N, 3)."""
    hits = _cast(room, ray)
    u, y, v = ray[0] * hits.z, recipe.CAMERA_HEIGHT_METRES + ray[1] * hits.z, ray[2] * hits.z
    length = np.sqrt(ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2)
    albedo = np.empty((len(u), 3))
    normal = np.zeros((3, len(u)))
    for body in range(-1, len(room.furniture)):
        for axis in range(3):
            at = np.flatnonzero((hits.body == body) & (hits.axis == axis))
            if not len(at):
                continue
            if body < 0:
                towards = -np.sign(ray[axis][at])
                normal[axis, at] = towards
                groups = [(at[towards == sign], sign) for sign in (-1.0, 1.0)]
            else:
                cuboid = room.furniture[body]
                across, along = _turn(ray[0][at], ray[2][at], cuboid.turn)
                towards = -np.sign((across, ray[1][at], along)[axis])
                own = [np.zeros(len(at)) for _ in range(3)]
                own[axis] = towards
                normal[0, at], normal[2, at] = _turn(own[0], own[2], -cuboid.turn)
                normal[1, at] = own[1]
                groups = [(at, 0.0)]
            facing = np.abs(normal[0, at] * ray[0][at] + normal[1, at] * ray[1][at] + normal[2, at] * ray[2][at])
            blur = np.zeros(len(u))
            blur[at] = 0.6 * hits.z[at] / (2 * size * recipe.FOCAL_LENGTH) / np.maximum(facing / length[at], 0.1)
            for where, sign in groups:
                if len(where):
                    albedo[where] = _texture(room, body, axis, sign, u[where], y[where], v[where], blur[where])
    lit = _lamp_light(room, hits, normal, u, y, v)
    open_sky = _openness(room, hits, u, y, v)
    up = 0.85 + 0.15 * normal[1]
    light = room.lamp.colour * lit[:, None] * (1 - room.lamp.ambient) + (room.lamp.ambient * up * open_sky)[:, None]
    return np.asarray(albedo**2.2 * light)


def _texture(room: Room, body: int, axis: int, sign: float, u: Array, y: Array, v: Array, blur: Array) -> Array:
    """Albedo of points on one face; `sign` tells which of the room's two faces across `axis`."""
    if body < 0:
        left, right, floor, ceiling, back = room.faces
        if axis == 0:
            return (left if sign > 0 else right)(v, y, blur)
        if axis == 1:
            return (floor if sign > 0 else ceiling)(u, v, blur)
        return back(u, y, blur)
    cuboid = room.furniture[body]
    across, _, along = cuboid.local(u, y, v)
    place = ((along, y), (across, along), (across, y))[axis]
    return cuboid.textures[axis](place[0] + cuboid.half_width, place[1], blur)


def _lamp_light(room: Room, hits: _Hits, normal: Array, u: Array, y: Array, v: Array) -> Array:
    """Light from the lamp, with soft shadows: four points of it are seen or hidden by furniture."""
    lamp, total = room.lamp, np.zeros(len(u))
    for du, dv in ((-1, -0.4), (1, 0.4), (-0.4, 1), (0.4, -1)):
        to = (lamp.u + du * lamp.radius - u, lamp.y - y, lamp.v + dv * lamp.radius - v)
        squared = to[0] ** 2 + to[1] ** 2 + to[2] ** 2
        cosine = (normal[0] * to[0] + normal[1] * to[1] + normal[2] * to[2]) / np.sqrt(squared)
        light = np.maximum(cosine, 0) * 1.6 / (1 + squared / 6)
        at = np.flatnonzero(light > 0)
        start = tuple(p[at] + 1e-4 * n[at] for p, n in zip((u, y, v), normal, strict=True))
        ray = tuple(d[at] for d in to)
        seen = np.ones(len(at), bool)
        for cuboid in room.furniture:
            enter, leave, _ = _entry(cuboid, (start[0], start[1], start[2]), (ray[0], ray[1], ray[2]))
            seen &= ~((enter < leave) & (leave > 0) & (enter < 1))
        total[at] += light[at] * seen
    return total / 4 + np.where((hits.body < 0) & (hits.axis == 1) & (normal[1] < 0), 0.25, 0.0)


def _openness(room: Room, hits: _Hits, u: Array, y: Array, v: Array) -> Array:
    """How much of the room's diffuse light reaches a point, 0..1: less in corners and beside furniture."""
    openness = np.ones(len(u))
    own = hits.body < 0
    for distance in (u - room.left, room.right - u, y, room.height - y, room.back - v):
        openness *= np.where(own & (distance < 1e-6), 1.0, 1 - 0.4 * np.exp(-np.maximum(distance, 0) / 0.3))
    for index, cuboid in enumerate(room.furniture):
        local = cuboid.local(u, y, v)
        outside = [np.maximum(np.abs(p) - half, 0) for p, half in zip(local, cuboid.half, strict=True)]
        gap = np.sqrt(outside[0] ** 2 + outside[1] ** 2 + outside[2] ** 2)
        openness *= np.where(hits.body == index, 1.0, 1 - 0.5 * np.exp(-gap / 0.15))
    return openness
