"""Layouts indoors: one function per style, each telling a room from the shell to the pictures on its walls."""

import math

from da3gs.data.synthetic import furniture as put
from da3gs.data.synthetic.builder import SceneBuilder
from da3gs.data.synthetic.room_parts import along_walls, clip_stage, dress_table, pictures, rug, shell


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
