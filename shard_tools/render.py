"""The picture and the exact depth of a room, by casting a ray through every pixel.

Pure. The camera is that of `recipe`; light comes from one lamp with soft shadows, and from everywhere, less so in
corners. Arrays of rays have shape (N,), one of float64 for each of u, y and v.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_tools import recipe
from shard_tools.furniture import Cuboid, turn
from shard_tools.rooms import Room
from shard_tools.textures import Array

SUPERSAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))

Vectors = tuple[Array, Array, Array]


@dataclass(frozen=True)
class _Hits:
    """Where rays end: `z` metres along the optical axis, `body` (-1 the room, else index of furniture), `axis` 0..2."""

    z: Array
    body: NDArray[np.int64]
    axis: NDArray[np.int64]


def _rays(room: Room, size: int, dx: float, dy: float) -> Vectors:
    """Directions (u, y, v) with z component 1, float64 (S·S,), through pixel centres shifted by (dx, dy) pixels."""
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid((middle + dx / size - 0.5), (recipe.HORIZON - middle - dy / size))
    across, along = turn(x.ravel() / recipe.FOCAL_LENGTH, np.ones(size * size), room.yaw)
    return across, y.ravel() / recipe.FOCAL_LENGTH, along


def _entry(cuboid: Cuboid, start: Vectors, ray: Vectors) -> tuple[Array, Array, NDArray[np.int64]]:
    """Parameters at which rays enter and leave a cuboid (entry > exit: missed), and the axis of the face entered."""
    origin = cuboid.local(*start)
    across, along = turn(ray[0], ray[2], cuboid.angle)
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


def _cast(room: Room, ray: Vectors) -> _Hits:
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


def _eye(count: int) -> Vectors:
    zero = np.zeros(count)
    return zero, np.full(count, recipe.CAMERA_HEIGHT_METRES), zero


def depth_map(room: Room, size: int) -> Array:
    """Exact distance along the optical axis at the centres of pixels, metres, float64 (S, S)."""
    return _cast(room, _rays(room, size, 0, 0)).z.reshape(size, size)


def picture(room: Room, size: int) -> NDArray[np.uint8]:
    """The room in colour with 2 × 2 samples a pixel, RGB uint8 (S, S, 3)."""
    light = np.mean([_shade(room, _rays(room, size, dx, dy), size) for dx, dy in SUPERSAMPLES], axis=0)
    light *= room.exposure
    light = light / (1 + 0.25 * light) * 1.25
    colour = np.clip(light, 0, 1) ** (1 / 2.2)
    return np.asarray(np.rint(colour * 255), np.uint8).reshape(size, size, 3)


def _shade(room: Room, ray: Vectors, size: int) -> Array:
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
                across, along = turn(ray[0][at], ray[2][at], cuboid.angle)
                towards = -np.sign((across, ray[1][at], along)[axis])
                own = [np.zeros(len(at)) for _ in range(3)]
                own[axis] = towards
                normal[0, at], normal[2, at] = turn(own[0], own[2], -cuboid.angle)
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
        light = np.maximum(cosine, 0) * 1.6 / (1 + squared / 4)
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
