"""Layouts in the open air: one function per style, each telling a place from the ground up."""

import math

import torch

from da3gs.data.synthetic import furniture as put
from da3gs.data.synthetic.backdrops import Ground
from da3gs.data.synthetic.builder import Real, SceneBuilder
from da3gs.data.synthetic.daylight import add_sun, daylight
from da3gs.data.synthetic.room_parts import dress_table


def street(b: SceneBuilder) -> None:
    land(b, ("concrete", "cobble", "gravel"), waves=0, radius=70.0)
    half, length = b.between(3.5, 6.0), b.between(9, 13)
    pavement = b.material(("concrete", "tiles", "cobble"), size=1.2)
    for side in (-1, 1):
        b.place(0, side * (half + 1.2)).box((0, 0, 0.0), (60, 1.5, 0.12), pavement)
        x = -length
        while x < length:
            wide = b.between(4.5, 9)
            deep, tall = b.between(5, 8), b.between(5, 11)
            if b.chance(0.9):
                lot = b.place(x + wide / 2, side * (half + 2.7 + deep / 2), yaw=0.0 if side > 0 else math.pi)
                put.house(b, lot, wide - b.between(0, 0.4), deep, tall, shop=b.chance(0.45))
                lot.focus((0, -deep / 2, 2.0))
            x += wide
    end = b.place(b.pick((-1, 1)) * (length + b.between(8, 16)), 0, yaw=math.pi / 2)
    put.house(b, end, 14, 6, b.between(6, 10))
    line = b.material("plaster", tint=(1.1, 1.1, 1.05))
    for dash in range(-3, 4):
        b.place(dash * 3.2, 0, 0.0).box((0, 0, 0.004), (0.8, 0.07, 0.006), line)
    for _ in range(round(b.eased(2, 4))):
        spot = b.free_spot(2.4, (-length, length, -half + 1.2, half - 1.2))
        if spot:
            p = b.place(spot[0], math.copysign(half - 1.1, spot[1]))
            put.car(b, p)
            p.focus((0, 0, 0.8))
    for _ in range(round(b.eased(3, 6))):
        p = b.place(b.between(-length, length), b.pick((-1, 1)) * (half + 0.5), 0.1)
        b.pick((lambda p=p: put.street_lamp(b, p, b.between(3.5, 5)), lambda p=p: put.tree(b, p, b.between(4, 6)),
                lambda p=p: put.bench(b, p), lambda p=p: put.barrel(b, p, 0.28)))()  # fmt: skip
    skyline(b, 7, 24, 40)
    b.stage = ((-length * 0.7, -half - 1.5, 1.2), (length * 0.7, half + 1.5, 3.0))
    b.scale = 7.0


def garden(b: SceneBuilder) -> None:
    land(b, ("grass", "grass", "gravel"), waves=3, radius=45.0)
    lot = b.place(b.between(-2, 2), b.between(7.5, 10))
    put.house(b, lot, b.between(6, 10), 5, b.between(3.2, 6))
    lot.focus((0, -2.5, 1.5))
    b.occupy(lot.x, lot.y, 5)
    path = b.material(("cobble", "concrete", "brick", "wood"), size=0.8)
    for step in range(b.rng.randrange(4, 8)):
        x, y = b.between(-0.25, 0.25), 4.0 - 1.1 * step
        b.place(lot.x * (1 - step / 8) + x, y).box((0, 0, 0.0), (0.4, 0.32, 0.05), path, yaw=b.between(-0.3, 0.3))
    for _ in range(round(b.eased(9, 16))):
        spot = b.free_spot(1.0, (-7, 7, -7, 6))
        if spot is None:
            continue
        p = b.place(*spot, yaw=b.between(0, 6.3))
        what = b.rng.random()
        if what < 0.25:
            put.tree(b, p, b.between(2.2, 5.0))
        elif what < 0.5:
            put.bush(b, p, b.between(0.4, 0.9))
        elif what < 0.65:
            put.rock(b, p, b.between(0.3, 0.9))
        elif what < 0.8:
            pot = b.material(("brick", "tiles", "concrete"), size=0.5)
            p.column((0, 0, 0), 0.28, 0.45, pot, top=1.25)
            p.ball((0, 0, 0.62), (0.36, 0.36, 0.3), b.material(("foliage", "leaves"), size=0.6))
        elif what < 0.9:
            put.bench(b, p)
        else:
            top = put.table(b, p, 1.2, 0.8, 0.72)
            dress_table(b, p, 0.4, 0.25, top, 2)
        p.focus((0, 0, 0.6))
    for side in (-1, 1):
        put.fence(b, b.place(side * 8.5, 0, yaw=math.pi / 2), 13)
    skyline(b, b.rng.randrange(5, 10), 14, 24)
    b.stage = ((-6.5, -7.5, 0.8), (6.5, 4.5, 2.4))
    b.scale = 5.0


def ruins(b: SceneBuilder) -> None:
    """Blocks, drums and balls of all sizes on rolling ground: no everyday order to rely on."""
    land(b, ("grass", "gravel", "cobble", "leaves", "concrete"), waves=4, radius=40.0)
    stone = [
        b.material(("concrete", "cobble", "brick", "marble", "leaves", "photo", "text", "bark", "carpet"))
        for _ in range(8)
    ]
    for _ in range(round(b.eased(12, 26))):
        size = 0.3 + 1.1 * b.rng.random() ** 2
        spot = b.free_spot(size, (-6, 6, -6, 6))
        if spot is None:
            continue
        p, what, surface = b.place(*spot, yaw=b.between(0, 3)), b.rng.random(), b.pick(stone)
        if what < 0.35:
            p.box(
                (0, 0, 0.4 * size),
                tuple(size * b.between(0.3, 0.8) for _ in range(3)),
                surface,
                pitch=b.between(-0.5, 0.5) * b.difficulty,
            )
        elif what < 0.6:
            p.column(
                (0, 0, -0.2), size * b.between(0.2, 0.5), size * b.between(1, 3.2), surface, top=b.between(0.6, 1.0)
            )
        elif what < 0.75:
            p.ball(
                (0, 0, 0.4 * size), tuple(size * b.between(0.4, 0.7) for _ in range(3)), surface, yaw=b.between(0, 3)
            )
        elif what < 0.85:
            p.dome((0, 0, -0.1), (size * 0.8, size * b.between(0.5, 0.8), size), surface)
        else:  # a gate
            tall, wide = 1.2 * size + 0.8, 0.5 * size + 0.4
            for s in (-1, 1):
                p.box((s * wide, 0, tall / 2), (0.14, 0.14, tall / 2), surface)
            p.box((0, 0, tall + 0.12), (wide + 0.25, 0.18, 0.14), surface)
        p.focus((0, 0, 0.5 * size))
    for turn in range(7):
        angle = turn * 0.9 + b.between(0, 0.5)
        p = b.place(11 * math.cos(angle), 11 * math.sin(angle), yaw=angle + math.pi / 2)
        if b.chance(0.6):
            p.box((0, 0, 1.2), (b.between(2, 4), 0.4, b.between(1, 2.4)), b.pick(stone))
        else:
            put.tree(b, p, b.between(4, 8))
    skyline(b, 5, 17, 28)
    b.stage = ((-5.5, -5.5, 0.8), (5.5, 5.5, 2.6))
    b.scale = 4.5


def plaza(b: SceneBuilder) -> None:
    land(b, ("cobble", "tiles", "marble", "concrete"), waves=0, radius=60.0)
    basin = b.material(("marble", "concrete", "cobble"))
    middle = b.place(0, 0)
    middle.column((0, 0, 0), b.between(1.4, 2.2), 0.45, basin)
    middle.column((0, 0, 0.45), 0.3, 1.0, basin, top=0.7)
    middle.column((0, 0, 1.45), 0.5, 0.25, basin, top=1.6)
    put.statue(b, b.place(0, 0, 1.7), b.between(1.2, 2.0))
    b.occupy(0, 0, 2.6)
    columns = b.rng.randrange(5, 10)
    shaft = b.material(("marble", "concrete", "plaster"))
    for index in range(columns):
        angle = math.pi * index / columns + b.between(-0.02, 0.02)
        p = b.place(6.5 * math.cos(angle), 6.5 * math.sin(angle), yaw=angle)
        p.box((0, 0, 0.15), (0.38, 0.38, 0.15), shaft)
        p.column((0, 0, 0.3), 0.26, 3.0, shaft, top=0.85)
        p.box((0, 0, 3.4), (0.4, 0.4, 0.1), shaft)
        b.occupy(p.x, p.y, 0.6)
    for turn in range(7):
        angle = turn * 2 * math.pi / 7 + b.between(-0.15, 0.15)
        p = b.place(15 * math.cos(angle), 15 * math.sin(angle), yaw=angle - math.pi / 2)
        put.house(b, p, b.between(8, 12), 5, b.between(6, 12), shop=b.chance(0.6))
    for _ in range(round(b.eased(3, 7))):
        spot = b.free_spot(0.8, (-6, 6, -7, 5))
        if spot:
            p = b.place(*spot, yaw=b.between(0, 6.3))
            b.pick(
                (lambda p=p: put.bench(b, p), lambda p=p: put.street_lamp(b, p, 3.2), lambda p=p: put.tree(b, p, 3.0))
            )()
            p.focus((0, 0, 0.6))
    b.stage = ((-6.0, -7.0, 1.0), (6.0, 5.5, 2.8))
    b.scale = 6.0


def land(b: SceneBuilder, kinds, *, waves: int, radius: Real) -> None:
    """Ground, sky and sun."""
    material = b.material(kinds, size=b.between(0.9, 1.6), tint=b.tone(0.6, 1.1))
    for _ in range(waves):
        length, turn = b.between(5, 14), b.between(0, 2 * math.pi)
        vector = (2 * math.pi / length * math.cos(turn), 2 * math.pi / length * math.sin(turn))
        b.waves.append((b.between(0.01, 0.022) * length, vector, b.between(0, 2 * math.pi)))
    b.backdrop = Ground(
        torch.tensor([amplitude for amplitude, _, _ in b.waves]),
        torch.tensor([vector for _, vector, _ in b.waves]).reshape(-1, 2),
        torch.tensor([phase for _, _, phase in b.waves]),
        radius,
        torch.tensor([material]),
    )
    clear = b.rng.random()
    b.sky = daylight(b, b.between(0.45, 0.75), azimuth=b.between(0, 2 * math.pi), elevation=b.between(0.3, 1.1))
    if clear > 0.25:
        add_sun(b, b.between(1.2, 2.6), radius=b.between(0.4, 1.2))
        level = b.between(0.35, 0.6)
    else:  # overcast: a large faint sun and an even sky
        add_sun(b, b.between(0.1, 0.4), radius=8.0)
        level = b.between(0.8, 1.0)
    mean = [0.5 * (z + h) for z, h in zip(b.sky.zenith, b.sky.horizon, strict=True)]
    b.ambient_up = tuple(level * (0.5 * m + 0.45) for m in mean)
    b.ambient_down = tuple(0.45 * level * c for c in (0.95, 0.9, 0.8))


def skyline(b: SceneBuilder, count: int, near: Real, far: Real) -> None:
    """Large things far away on all sides: blocks, trees, hills."""
    for turn in range(count):
        angle, distance = 2 * math.pi * (turn + b.between(-0.3, 0.3)) / count, b.between(near, far)
        p = b.place(distance * math.cos(angle), distance * math.sin(angle), yaw=angle - math.pi / 2)
        kind = b.rng.random()
        if kind < 0.4:
            put.house(b, p, b.between(8, 18), 6, b.between(4, 0.5 * near))
        elif kind < 0.7:
            put.tree(b, p, b.between(0.3, 0.5) * near)
        else:
            green = b.material(("foliage", "grass", "gravel", "concrete"), size=4.0)
            p.dome(
                (0, 0, -0.5),
                (b.between(0.4, 0.9) * near, b.between(0.3, 0.5) * near, b.between(0.15, 0.35) * near),
                green,
            )
