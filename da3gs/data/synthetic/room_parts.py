"""What rooms have in common: the shell with its windows and light, and ways to fill tables, walls and corners."""

import math

import torch

from da3gs.data.synthetic import furniture as put
from da3gs.data.synthetic.backdrops import Room
from da3gs.data.synthetic.builder import Light, Real, SceneBuilder, WindowGlow
from da3gs.data.synthetic.daylight import add_sun, daylight


def shell(b: SceneBuilder, widths, depths, *, floors, walls, tall=(2.4, 3.1)) -> tuple[Real, Real, Real]:
    """Floor, walls, ceiling, windows and light; returns (width, depth, height) in metres."""
    width, depth, height = b.between(*widths), b.between(*depths), b.between(*tall)
    surfaces = [
        b.material(floors, tint=b.tone(0.5, 1.0)),
        b.material(walls, tint=b.tone(0.7, 1.1), shine=0.0),
        b.material(("plaster", "plaster", "wood"), tint=b.tone(0.9, 1.1), shine=0.0),
    ]
    low, high = (-width / 2, -depth / 2, 0.0), (width / 2, depth / 2, height)
    openings = [window(b, wall, low, high) for wall in b.rng.sample(range(4), b.rng.randrange(1, 3))]
    b.backdrop = Room(
        torch.tensor(low), torch.tensor(high), torch.tensor(openings).reshape(-1, 5), torch.tensor(surfaces)
    )
    room_light(b, low, high, openings)
    skirting = b.material(("wood", "plaster"), tint=b.tone(0.4, 1.2))
    for s in (-1, 1):
        b.place(0, s * (depth / 2 - 0.008)).box((0, 0, 0.05), (width / 2, 0.008, 0.05), skirting)
        b.place(s * (width / 2 - 0.008), 0).box((0, 0, 0.05), (0.008, depth / 2, 0.05), skirting)
    b.stage = ((low[0], low[1], 0.6), (high[0], high[1], height - 0.45))
    clip_stage(b)
    b.focus += [(0.0, 0.0, 0.7), (b.between(-0.3, 0.3) * width, b.between(-0.3, 0.3) * depth, 1.0)]
    b.scale = 0.45 * math.hypot(width, depth)
    return width, depth, height


def window(b: SceneBuilder, wall: int, low, high) -> list[float]:
    """An opening with a frame and a sill; returns the row of `Room.openings`."""
    along = 1 if wall < 2 else 0
    extent, height = high[along], high[2]
    half_width, sill, head = b.between(0.4, 0.9), b.between(0.3, 1.0), height - b.between(0.25, 0.5)
    middle = b.between(-1, 1) * (extent - half_width - 0.3)
    sign = -1 if wall % 2 == 0 else 1
    x, y = (sign * high[0], middle) if wall < 2 else (middle, sign * high[1])
    p = b.place(x, y, 0.0, yaw=math.pi / 2 if wall < 2 else 0.0)
    wood = b.material(("plaster", "wood"), tint=b.tone(0.5, 1.2))
    tall, thick = (head - sill) / 2, b.eased(0.035, 0.02)
    center = (sill + head) / 2
    for s in (-1, 1):
        p.box((s * half_width, 0, center), (thick, 0.05, tall), wood)
    p.box((0, 0, head), (half_width, 0.05, thick), wood)
    p.box((0, 0, sill), (half_width + 0.06, 0.12, 0.025), wood)
    if b.chance(0.8):
        p.box((0, 0, center), (0.018, 0.03, tall), wood)
    if b.chance(0.6):
        p.box((0, 0, center + 0.2 * tall), (half_width, 0.03, 0.018), wood)
    if b.chance(0.4):
        cloth = b.material("fabric", turned=False)
        for s in (-1, 1):
            p.box(
                (s * (half_width + 0.15), -sign * 0.09 * (1 if wall >= 2 else -1), head / 2 + 0.1),
                (0.16, 0.03, head / 2 + 0.05),
                cloth,
            )
    return [float(wall), middle - half_width, middle + half_width, sill, head]


def room_light(b: SceneBuilder, low, high, openings) -> None:
    """A lamp under the ceiling, daylight through the windows, or both, and the light that walls throw back."""
    day = b.between(0.25, 1.0) if b.chance(0.75) else 0.03
    lamp = b.between(0.6, 1.0) if day < 0.31 else b.between(0.0, 0.5)
    warm = (1.0, b.between(0.72, 0.92), b.between(0.45, 0.8))
    cool = (b.between(0.75, 0.95), b.between(0.85, 0.97), 1.0)
    strength = 1.3 * lamp * (high[0] * high[1] + 4)
    if lamp > 0.1:
        x, y = b.between(-0.35, 0.35) * high[0], b.between(-0.35, 0.35) * high[1]
        b.lights.append(Light((x, y, high[2] - 0.22), tuple(strength * c / 3 for c in warm), b.between(0.05, 0.2)))
        bulb = b.material("plaster", tint=warm, emission=1.5)
        b.place(x, y, high[2]).ball((0, 0, -0.08), (0.12, 0.12, 0.06), bulb)
    wall, first, last, sill, head = openings[0]
    outward = {0: math.pi, 1: 0.0, 2: -math.pi / 2, 3: math.pi / 2}[int(wall)]
    b.sky = daylight(b, day, azimuth=outward + b.between(-0.8, 0.8), elevation=b.between(0.25, 0.85))
    if day > 0.3 and (not b.lights or b.chance(0.6)):
        add_sun(b, 2.6 * day, radius=b.between(0.3, 0.8))
    for wall, first, last, sill, head in openings:
        middle, center = (first + last) / 2, (sill + head) / 2
        face = {0: (low[0], middle), 1: (high[0], middle), 2: (middle, low[1]), 3: (middle, high[1])}[int(wall)]
        normal = {0: (1, 0), 1: (-1, 0), 2: (0, 1), 3: (0, -1)}[int(wall)]
        area = (last - first) * (head - sill)
        color = tuple(1.1 * day * c for c in cool)
        b.glows.append(WindowGlow((*face, center), (*(float(n) for n in normal), 0.0), area, color))
    level = 0.10 + 0.22 * day + 0.16 * lamp
    bounce = [0.5 * (warm[i] * lamp + cool[i] * day) / max(lamp + day, 0.1) + 0.5 for i in range(3)]
    b.ambient_up = tuple(level * c for c in bounce)
    b.ambient_down = tuple(
        level * b.between(0.65, 0.8) * c * tint for c, tint in zip(bounce, (1.0, 0.95, 0.88), strict=True)
    )


def rug(b: SceneBuilder, half_width: Real, half_depth: Real) -> None:
    cloth = b.material(("carpet", "fabric", "leaves"), fit=(2 * half_width, 2 * half_depth))
    b.place(0, 0, yaw=b.between(-0.2, 0.2)).box((0, 0, 0.006), (half_width, half_depth, 0.006), cloth)


def dress_table(b: SceneBuilder, p, half_width, half_depth, top, count, sizes=(0.1, 0.28)) -> None:
    taken: list[tuple[Real, Real, Real]] = []
    for _ in range(count):
        size = b.between(*sizes)
        for _ in range(8):
            x, y = b.between(-half_width, half_width), b.between(-half_depth, half_depth)
            if all(math.hypot(x - a, y - c) > 0.35 * (size + s) for a, c, s in taken):
                taken.append((x, y, size))
                if b.chance(0.2):
                    put.stack(b, p, (x, y, top), b.rng.randrange(1, 5))
                else:
                    put.ornament(b, p, (x, y, top), size)
                break


def along_walls(b: SceneBuilder, width, depth, count, kinds) -> None:
    for _ in range(count):
        wall, size = b.rng.randrange(4), b.between(0.6, 1.3)
        half = (depth if wall < 2 else width) / 2
        inset = 0.3
        for _ in range(12):
            at = b.between(-1, 1) * (half - size / 2 - 0.2)
            x, y, yaw = {
                0: (-width / 2 + inset, at, math.pi / 2),
                1: (width / 2 - inset, at, -math.pi / 2),
                2: (at, -depth / 2 + inset, math.pi),
                3: (at, depth / 2 - inset, 0.0),
            }[wall]
            if all(math.hypot(x - a, y - c) > size / 2 + r for a, c, r in b.taken):
                break
        else:
            continue
        b.occupy(x, y, size / 2)
        p, kind = b.place(x, y, yaw=yaw), b.pick(kinds)
        if kind == "bookcase":
            put.bookcase(b, p, size, b.between(0.9, 2.0))
        elif kind == "cabinet":
            put.cabinet(b, p, size, 0.5, b.between(0.6, 1.0))
            put.ornament(b, p, (b.between(-0.2, 0.2), 0, p_top(p)), 0.3)
        elif kind == "plant":
            put.plant(b, p, b.between(0.7, 1.5))
        elif kind == "lamp":
            put.floor_lamp(b, p)
        else:
            put.crate(b, p, b.between(0.2, 0.3))


def p_top(p) -> Real:
    """Height of the highest box of an object, in its own frame."""
    rows = [row for row in p.builder.boxes if row[19] == p.object_id]
    return max(row[2] + row[14] for row in rows) - p.z


def pictures(b: SceneBuilder, width, depth, count, size=(0.4, 1.1), kinds=("photo", "photo", "text", "leaves")) -> None:
    """Pictures on the walls, clear of windows and of each other."""
    hung = [(int(row[0]), float(row[1]) - 0.3, float(row[2]) + 0.3) for row in b.backdrop.openings]
    for _ in range(count):
        for _ in range(10):
            wall, wide = b.rng.randrange(4), b.between(*size)
            half = (depth if wall < 2 else width) / 2
            at = b.between(-1, 1) * (half - wide / 2 - 0.1)
            low, high = at - wide / 2 - 0.1, at + wide / 2 + 0.1
            if all(w != wall or high < first or low > last for w, first, last in hung):
                break
        else:
            continue
        hung.append((wall, low, high))
        x, y, yaw = {
            0: (-width / 2 + 0.02, at, math.pi / 2),
            1: (width / 2 - 0.02, at, -math.pi / 2),
            2: (at, -depth / 2 + 0.02, math.pi),
            3: (at, depth / 2 - 0.02, 0.0),
        }[wall]
        put.picture(b, b.place(x, y, b.between(1.3, 1.7), yaw), wide, wide * b.between(0.6, 1.3), kinds)


def clip_stage(b: SceneBuilder, margin: Real = 0.35) -> None:
    low, high = b.backdrop.low.tolist(), b.backdrop.high.tolist()
    b.stage = (
        tuple(max(s, edge + margin) for s, edge in zip(b.stage[0], low, strict=True)),
        tuple(min(s, edge - margin) for s, edge in zip(b.stage[1], high, strict=True)),
    )
