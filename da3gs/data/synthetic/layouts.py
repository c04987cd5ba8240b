"""Where things go: one function per style, each telling a scene from the ground up."""

import math
from collections.abc import Callable

import torch

from da3gs.data.synthetic import furniture as put
from da3gs.data.synthetic.backdrops import Ground, Room
from da3gs.data.synthetic.builder import Light, Real, SceneBuilder, Sky, WindowGlow

SUN_DISTANCE_M = 80.0


# ---------------------------------------------------------------------------------------------------- rooms


def living_room(b: SceneBuilder) -> None:
    width, depth, _ = shell(
        b, (4.2, 7.0), (4.0, 6.0), floors=("wood", "tiles", "carpet"), walls=("plaster", "plaster", "fabric")
    )
    rug(b, width * 0.25, depth * 0.25)
    seats = b.rng.randrange(1, 3)
    for side in range(seats):
        yaw = side * math.pi + b.between(-0.2, 0.2)
        at = -depth / 2 + 0.6 if side == 0 else depth / 2 - 0.6
        x = b.between(-0.2, 0.2) * width
        put.armchair(b, b.place(x, -at, yaw=yaw), b.pick((0.85, 1.5, 1.9)))
        b.occupy(x, -at, 1.0)
    middle = b.place(b.between(-0.3, 0.3), b.between(-0.3, 0.3), yaw=b.between(-0.3, 0.3))
    b.occupy(middle.x, middle.y, 0.7)
    top = put.table(b, middle, b.between(0.7, 1.2), b.between(0.5, 0.7), b.between(0.36, 0.5))
    dress_table(b, middle, 0.35, 0.2, top, b.rng.randrange(1, 4))
    along_walls(b, width, depth, b.rng.randrange(2, 4), ("bookcase", "cabinet", "plant", "lamp", "plant"))
    pictures(b, width, depth, round(b.eased(4, 2)))


def office(b: SceneBuilder) -> None:
    width, depth, _ = shell(
        b, (4.0, 7.5), (3.6, 6.0), floors=("carpet", "fabric", "wood", "concrete"), walls=("plaster", "concrete")
    )
    for _ in range(b.rng.randrange(1, 3)):
        spot = b.free_spot(0.9, (-width / 2 + 0.9, width / 2 - 0.9, -depth / 2 + 0.9, depth / 2 - 0.9))
        if spot is None:
            continue
        desk = b.place(*spot, yaw=b.pick((0, math.pi / 2, math.pi)) + b.between(-0.1, 0.1))
        top = put.table(b, desk, b.between(1.2, 1.7), b.between(0.6, 0.8), 0.73)
        screen = b.material(("photo", "text", "photo"), fit=(0.6, 0.36), tint=(1, 1, 1), emission=0.4)
        dark = b.material("metal", tint=(0.08, 0.08, 0.09))
        desk.box((0, 0.15, top + 0.3), (0.3, 0.012, 0.18), screen)
        desk.box((0, 0.17, top + 0.15), (0.04, 0.01, 0.15), dark)
        desk.box((0, 0.15, top + 0.008), (0.12, 0.09, 0.008), dark)
        put.stack(b, desk, (0.45, -0.05, top), b.rng.randrange(1, 5))
        put.ornament(b, desk, (-0.45, 0.05, top), 0.18)
        put.chair(
            b, b.place(*desk.world((b.between(-0.2, 0.2), -0.6, 0))[:2], yaw=desk.yaw + math.pi + b.between(-0.5, 0.5))
        )
    along_walls(b, width, depth, b.rng.randrange(2, 4), ("bookcase", "cabinet", "plant", "crate"))
    pictures(b, width, depth, round(b.eased(4, 2)), kinds=("text", "photo", "text"))


def kitchen(b: SceneBuilder) -> None:
    width, depth, height = shell(
        b, (3.4, 5.5), (3.2, 4.8), floors=("tiles", "wood", "tiles"), walls=("plaster", "tiles", "brick")
    )
    run = b.between(0.55, 0.8) * width
    worktop = b.place(b.between(-0.5, 0.5) * (width - run), depth / 2 - 0.31)
    put.cabinet(b, worktop, run, 0.6, 0.9)
    for _ in range(b.rng.randrange(2, 5)):
        put.ornament(b, worktop, (b.between(-0.42, 0.42) * run, b.between(-0.1, 0.15), 0.9), b.between(0.15, 0.35))
    put.cabinet(b, b.place(worktop.x, depth / 2 - 0.17, height - 1.0), run * b.between(0.5, 0.9), 0.33, 0.65)
    fridge = b.place(-worktop.x * 1.2, -depth / 2 + 0.35, yaw=math.pi)
    put.cabinet(b, fridge, 0.65, 0.62, b.between(1.5, 1.95))
    b.occupy(worktop.x, worktop.y, run / 2)
    b.occupy(fridge.x, fridge.y, 0.5)
    middle = b.place(b.between(-0.5, 0.5), b.between(-0.5, 0.0), yaw=b.between(-0.4, 0.4))
    b.occupy(middle.x, middle.y, 0.8)
    top = put.table(b, middle, b.between(0.9, 1.5), b.between(0.7, 0.9), 0.74)
    dress_table(b, middle, 0.4, 0.28, top, b.rng.randrange(2, 5))
    for side in range(b.rng.randrange(1, 4)):
        x, y, _ = middle.world((b.between(-0.3, 0.3), 0.75 * (-1) ** side, 0))
        put.chair(b, b.place(x, y, yaw=middle.yaw + math.pi * (side % 2 == 0) + b.between(-0.4, 0.4)))
    pictures(b, width, depth, 2)


def workshop(b: SceneBuilder) -> None:
    width, depth, height = shell(
        b,
        (5.5, 10.0),
        (5.0, 8.0),
        floors=("concrete", "concrete", "cobble"),
        walls=("brick", "concrete", "metal"),
        tall=(3.0, 4.2),
    )
    region = (-width / 2 + 0.8, width / 2 - 0.8, -depth / 2 + 0.8, depth / 2 - 0.8)
    for _ in range(round(b.eased(5, 11))):
        spot = b.free_spot(0.75, region)
        if spot is None:
            continue
        p = b.place(*spot, yaw=b.between(0, 3))
        what = b.rng.random()
        if what < 0.5:
            size = b.between(0.3, 0.55)
            put.crate(b, p, size)
            if b.chance(0.4):
                put.crate(b, p, size * 0.6, 2 * size)
        elif what < 0.75:
            put.barrel(b, p, b.between(0.25, 0.35))
        else:
            top = put.table(b, p, 1.3, 0.7, 0.85)
            dress_table(b, p, 0.4, 0.2, top, 3)
        p.focus((0, 0, 0.5))
    pipe = b.material("metal", tint=b.tone(0.2, 1.0))
    for _ in range(b.rng.randrange(1, 4)):
        line = b.place(0, b.between(-0.45, 0.45) * depth, height - b.between(0.2, 0.5), yaw=b.pick((0, math.pi / 2)))
        line.box((0, 0, 0), (width * 0.6, 0.05, 0.05), pipe)
    for x in (-width * 0.25, width * 0.25):
        b.place(x, depth / 2 - 0.15).box(
            (0, 0, height / 2), (0.15, 0.15, height / 2), b.material(("concrete", "brick", "metal"))
        )
    along_walls(b, width, depth, 2, ("bookcase", "cabinet", "crate"))
    pictures(b, width, depth, 2, kinds=("text", "leaves"))


def tabletop(b: SceneBuilder) -> None:
    """A close look at a table full of things."""
    width, depth, _ = shell(
        b, (3.0, 5.0), (3.0, 5.0), floors=("wood", "carpet", "tiles"), walls=("plaster", "brick", "fabric", "wood")
    )
    desk = b.place(b.between(-0.3, 0.3), b.between(-0.3, 0.3), yaw=b.between(0, 3))
    half_width, half_depth = b.between(0.45, 0.7), b.between(0.35, 0.5)
    top = put.table(b, desk, 2 * half_width, 2 * half_depth, b.between(0.6, 0.75))
    cloth = b.material(("fabric", "leaves", "carpet", "wood", "text"), size=b.between(0.5, 1.5))
    if b.chance(0.6):
        desk.box(
            (0, 0, top + 0.003), (half_width * b.between(0.5, 0.95), half_depth * b.between(0.5, 0.95), 0.003), cloth
        )
    dress_table(b, desk, half_width * 0.85, half_depth * 0.85, top + 0.006, round(b.eased(6, 11)), (0.12, 0.35))
    desk.focus((0, 0, top + 0.1))
    b.focus[:] = b.focus[-1:]
    along_walls(b, width, depth, 2, ("bookcase", "plant", "cabinet"))
    b.focus[1:] = []
    pictures(b, width, depth, 3)
    low, high = top + 0.15, top + 0.9
    b.stage = ((desk.x - 1.4, desk.y - 1.4, low), (desk.x + 1.4, desk.y + 1.4, high))
    clip_stage(b)
    b.scale = 1.1


def gallery(b: SceneBuilder) -> None:
    width, depth, height = shell(
        b, (5.0, 9.0), (5.0, 8.0), floors=("wood", "marble", "concrete"), walls=("plaster",), tall=(3.0, 4.0)
    )
    region = (-width / 2 + 1.0, width / 2 - 1.0, -depth / 2 + 1.0, depth / 2 - 1.0)
    for _ in range(round(b.eased(3, 6))):
        spot = b.free_spot(1.0, region)
        if spot:
            put.statue(b, b.place(*spot, yaw=b.between(0, 3)), b.between(1.4, 2.2))
    if b.chance(0.7):
        spot = b.free_spot(0.9, region)
        if spot:
            put.bench(b, b.place(*spot, yaw=b.pick((0.0, math.pi / 2))))
    pictures(b, width, depth, round(b.eased(9, 5)), size=(0.7, 1.8), kinds=("photo", "leaves", "photo", "marble"))
    rail = b.material(("wood", "plaster"), tint=b.tone())
    for side in (-1, 1):
        b.place(0, side * (depth / 2 - 0.02)).box((0, 0, 0.06), (width / 2, 0.02, 0.06), rail)
    b.place(0, 0, height - 0.1).box((0, 0, 0), (width * 0.3, 0.04, 0.03), rail)


# ---------------------------------------------------------------------------------------------------- open air


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


# ---------------------------------------------------------------------------------------------------- parts of rooms


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


# ---------------------------------------------------------------------------------------------------- parts of open air


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


def daylight(b: SceneBuilder, level: Real, azimuth: Real, elevation: Real) -> Sky:
    low_sun = max(0.0, 0.6 - elevation)
    blue = b.between(0.0, 1.0)
    zenith = (0.55 - 0.37 * blue, 0.62 - 0.22 * blue, 0.72 + 0.13 * blue)
    horizon = (0.85 + 0.3 * low_sun, 0.88 - 0.1 * low_sun, 0.95 - 0.4 * low_sun)
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    return Sky(
        zenith=tuple(1.25 * level * c for c in zenith),
        horizon=tuple(1.25 * level * c for c in horizon),
        sun_direction=direction,
        sun_color=(1.0, 0.95 - 0.35 * low_sun, 0.86 - 0.7 * low_sun),
        clouds=b.between(0.0, 1.0),
        cloud_shift=(b.rng.random(), b.rng.random()),
        haze=b.between(0.0, 0.004) if b.chance(0.8) else b.between(0.004, 0.02),
    )


def add_sun(b: SceneBuilder, strength: Real, radius: Real) -> None:
    position = tuple(SUN_DISTANCE_M * c for c in b.sky.sun_direction)
    b.lights.append(Light(position, tuple(strength * c for c in b.sky.sun_color), radius, sun=True))


TRAIN_LAYOUTS: dict[str, Callable[[SceneBuilder], None]] = {
    "living_room": living_room,
    "office": office,
    "kitchen": kitchen,
    "workshop": workshop,
    "tabletop": tabletop,
    "street": street,
    "garden": garden,
    "ruins": ruins,
}
HELD_OUT_LAYOUTS: dict[str, Callable[[SceneBuilder], None]] = {"gallery": gallery, "plaza": plaza}
