"""Things to put into scenes, each a few solids in its own frame. x is the width, y the depth (front at -y), z up."""

import math

from da3gs.data.synthetic.builder import Place, Real, SceneBuilder


def table(b: SceneBuilder, p: Place, width: Real, depth: Real, height: Real) -> Real:
    """Top and legs; returns the height of the top."""
    top = b.material(("wood", "wood", "marble", "plaster"), tint=b.tone(0.6, 1.1))
    leg = b.material(("wood", "metal"), tint=b.tone())
    thick = b.between(0.015, 0.035)
    p.box((0, 0, height - thick), (width / 2, depth / 2, thick), top)
    style = b.rng.random()
    thin = b.eased(0.035, 0.018)
    if style < 0.6:
        for sx in (-1, 1):
            for sy in (-1, 1):
                at = (sx * (width / 2 - 0.06), sy * (depth / 2 - 0.06), (height - 2 * thick) / 2)
                p.box(at, (thin, thin, (height - 2 * thick) / 2), leg)
    elif style < 0.8:
        for sx in (-1, 1):
            half_height = height / 2 - thick
            p.box((sx * (width / 2 - 0.08), 0, half_height), (0.03, depth / 2 - 0.05, half_height), leg)
    else:
        p.column((0, 0, 0), 0.25 * min(width, depth), 0.04, leg)
        p.column((0, 0, 0.04), 0.04, height - 2 * thick - 0.04, leg)
    p.focus((0, 0, height))
    return height


def chair(b: SceneBuilder, p: Place) -> None:
    wood, seat = b.material(("wood", "metal"), tint=b.tone()), b.material(("fabric", "wood"))
    high, half = b.between(0.42, 0.48), b.between(0.19, 0.23)
    p.box((0, 0, high), (half, half, 0.025), seat)
    for sx in (-1, 1):
        p.box((sx * (half - 0.02), -half + 0.02, high / 2 - 0.012), (0.016, 0.016, high / 2 - 0.013), wood)
        p.box((sx * (half - 0.02), half - 0.02, 0.45), (0.016, 0.016, 0.45), wood)
    p.box((0, half - 0.02, high + 0.35), (half, 0.014, b.between(0.06, 0.14)), seat if b.chance(0.5) else wood)


def armchair(b: SceneBuilder, p: Place, width: Real = 0.85) -> None:
    """Also a sofa, when wide."""
    cloth = b.material(("fabric", "fabric", "plaster"), tint=b.tone(0.3, 1.0))
    seat, arm = b.between(0.38, 0.44), b.between(0.07, 0.12)
    p.box((0, -0.05, seat / 2 + 0.03), (width / 2 - arm, 0.38, seat / 2 - 0.03), cloth)
    p.box((0, 0.34, 0.42), (width / 2, 0.1, 0.4), cloth)
    for s in (-1, 1):
        p.box((s * (width / 2 - arm), -0.05, 0.3), (arm, 0.4, 0.28), cloth)
    pillow = b.material(("fabric", "leaves", "carpet"), size=0.5)
    for _ in range(b.rng.randrange(0, 1 + math.ceil(width))):
        x = b.between(-0.5, 0.5) * (width - 4 * arm)
        p.box((x, 0.14, seat + 0.19), (0.2, 0.06, 0.19), pillow, yaw=b.between(-0.3, 0.3), pitch=b.between(-0.5, -0.2))
    p.focus((0, 0, 0.6))


def bookcase(b: SceneBuilder, p: Place, width: Real, height: Real, depth: Real = 0.3) -> None:
    """Boards with rows of books and objects between them."""
    wood, levels = b.material(("wood", "plaster"), tint=b.tone(0.4, 1.1)), max(2, round(height / 0.38))
    p.box((0, depth / 2 - 0.01, height / 2), (width / 2, 0.01, height / 2), wood)
    for s in (-1, 1):
        p.box((s * (width / 2 - 0.012), 0, height / 2), (0.012, depth / 2, height / 2), wood)
    step = height / levels
    for level in range(levels + 1):
        z = min(max(level * step, 0.012), height - 0.012)
        p.box((0, 0, z), (width / 2 - 0.024, depth / 2 - 0.01, 0.012), wood)
    for level in range(levels):
        base = level * step + 0.012
        if b.chance(0.75):
            half = b.between(0.3, 0.48) * width
            tall = 0.5 * step * b.between(0.7, 0.9)
            books = b.material("spines", fit=(2 * half if half < 0.5 else half, 4 * tall), tint=b.tone(0.7, 1.2))
            x = b.between(-1, 1) * (width / 2 - half - 0.03)
            b.uv_offsets[books] = (b.rng.random(), 0.25)  # the upper of the tile's two rows
            p.box((x, 0.02, base + tall), (half, depth / 2 - 0.06, tall), books)
        else:
            ornament(b, p, (b.between(-0.3, 0.3) * width, 0, base), step * 0.7)
    p.focus((0, -depth / 2, height * 0.6))


def ornament(b: SceneBuilder, p: Place, at, height: Real) -> None:
    """A vase, bowl, ball, bottle, box or framed card of about this height standing at a point."""
    x, y, z = at
    surface = b.material(
        ("marble", "metal", "leaves", "wood", "photo", "tiles", "carpet"), size=0.4, tint=b.tone(0.4, 1.2)
    )
    kind, r = b.rng.randrange(6), height * b.between(0.25, 0.42)
    if kind == 0:
        p.column((x, y, z), r * 0.6, height * 0.25, surface, top=1.35)
        p.ball((x, y, z + height * 0.45), (r, r, height * 0.32), surface)
        p.column((x, y, z + height * 0.6), r * 0.5, height * 0.4, surface, top=0.8)
    elif kind == 1:
        p.column((x, y, z), r * 0.7, height * 0.6, surface)
        p.column((x, y, z + height * 0.6), r * 0.7, height * 0.16, surface, top=0.4)
        p.column((x, y, z + height * 0.75), r * 0.26, height * 0.25, surface)
    elif kind == 2:
        p.ball((x, y, z + r), (r, r, r), surface)
    elif kind == 3:
        p.column((x, y, z), r * 0.55, height * 0.45, surface, top=b.between(1.2, 1.8))
    elif kind == 4:
        w, t = r * b.between(0.7, 1.3), r * b.between(0.3, 1.0)
        p.box((x, y, z + height * 0.4), (w, t, height * 0.4), surface, yaw=b.between(0, 3))
    else:
        card = b.material(("photo", "text"), fit=(1.4 * height * 0.8, height * 0.8))
        p.box(
            (x, y, z + height * 0.4),
            (0.7 * height * 0.8, 0.012, height * 0.4),
            card,
            yaw=b.between(-0.5, 0.5),
            pitch=-0.15,
        )


def stack(b: SceneBuilder, p: Place, at, count: int) -> None:
    """A pile of books or magazines."""
    x, y, z = at
    for _ in range(count):
        thick = b.between(0.008, 0.025)
        cover = b.material(("text", "photo", "leaves"), fit=(0.3, 0.22), tint=b.tone(0.6, 1.1))
        p.box((x, y, z + thick), (b.between(0.1, 0.15), b.between(0.08, 0.11), thick), cover, yaw=b.between(-0.6, 0.6))
        z += 2 * thick


def plant(b: SceneBuilder, p: Place, height: Real) -> None:
    """A pot, a stem, and clumps of leaves."""
    pot, green = (
        b.material(("tiles", "concrete", "brick", "metal"), size=0.4),
        b.material("foliage", size=b.between(0.5, 1)),
    )
    r = height * b.between(0.12, 0.18)
    p.column((0, 0, 0), r, height * 0.25, pot, top=b.between(1.1, 1.4))
    p.column((0, 0, height * 0.25), 0.02 * height, height * 0.45, b.material("bark", size=0.3))
    for _ in range(b.rng.randrange(2, 5)):
        turn, out = b.between(0, 6.3), b.between(0.0, 0.16) * height
        radii = tuple(height * b.between(0.12, 0.24) for _ in range(3))
        p.ball((out * math.cos(turn), out * math.sin(turn), height * b.between(0.55, 0.82)), radii, green)


def floor_lamp(b: SceneBuilder, p: Place) -> None:
    metal = b.material("metal", tint=b.tone(0.2, 1.0))
    shade = b.material(("fabric", "plaster"), emission=b.between(0.2, 0.9))
    tall = b.between(1.3, 1.7)
    p.column((0, 0, 0), 0.16, 0.03, metal)
    p.column((0, 0, 0.03), b.eased(0.025, 0.012), tall - 0.3, metal)
    p.column((0, 0, tall - 0.28), b.between(0.16, 0.24), 0.28, shade, top=0.65)


def picture(b: SceneBuilder, p: Place, width: Real, height: Real, kinds=("photo", "photo", "text", "leaves")) -> None:
    """A framed picture centred on the place's origin, facing -y."""
    frame = b.material(("wood", "metal", "plaster"), tint=b.tone(0.15, 1.1))
    art = b.material(kinds, fit=(width, height), tint=(1.0, 1.0, 1.0), shine=0.1)
    border = b.between(0.02, 0.06)
    p.box((0, 0.0, 0), (width / 2 + border, 0.018, height / 2 + border), frame)
    p.box((0, -0.01, 0), (width / 2, 0.012, height / 2), art)


def cabinet(b: SceneBuilder, p: Place, width: Real, depth: Real, height: Real) -> None:
    """A body with doors, handles and a worktop."""
    body = b.material(("wood", "plaster", "metal"), tint=b.tone(0.5, 1.1))
    top = b.material(("marble", "wood", "concrete", "tiles"))
    handle = b.material("metal", tint=(0.6, 0.6, 0.6))
    p.box((0, 0.015, (height - 0.04) / 2 + 0.02), (width / 2, depth / 2 - 0.015, (height - 0.04) / 2 - 0.02), body)
    p.box((0, 0, height - 0.02), (width / 2 + 0.01, depth / 2 + 0.01, 0.02), top)
    doors = max(1, round(width / 0.55))
    for door in range(doors):
        x = (door + 0.5) / doors * width - width / 2
        p.box((x, -depth / 2 + 0.012, height / 2), (width / doors / 2 - 0.012, 0.012, height / 2 - 0.07), body)
        p.box((x + width / doors / 2 - 0.07, -depth / 2 - 0.015, height * 0.7), (0.008, 0.014, 0.07), handle)


def crate(b: SceneBuilder, p: Place, size: Real, z: Real = 0.0) -> None:
    kind = b.pick(("wood", "wood", "text", "metal", "leaves"))
    body = b.material(kind, fit=(2 * size, 2 * size) if kind == "text" else None, tint=b.tone(0.5, 1.1))
    height = size * b.between(0.6, 1.0)
    p.box((0, 0, z + height), (size * b.between(0.75, 1.2), size * b.between(0.75, 1.2), height), body)


def barrel(b: SceneBuilder, p: Place, radius: Real) -> None:
    body = b.material(("metal", "wood"), tint=b.tone(0.3, 1.2))
    tall = radius * b.between(2.4, 3.2)
    p.column((0, 0, 0), radius, tall, body)
    rim = b.material("metal")
    for level in (0.02, 0.5, 0.95):
        p.column((0, 0, level * tall), radius * 1.03, 0.03 * tall, rim)


def tree(b: SceneBuilder, p: Place, height: Real) -> None:
    trunk, green = (
        b.material("bark", turned=True),
        b.material("foliage", size=b.between(1.2, 2.2), tint=b.tone(0.5, 1.1)),
    )
    if b.chance(0.3):  # a conifer: pointed domes one above the other
        p.column((0, 0, -0.2), 0.035 * height, 0.35 * height, trunk)
        for level in range(3):
            p.column(
                (0, 0, height * (0.15 + 0.24 * level)), height * (0.24 - 0.05 * level), height * 0.38, green, top=0.0
            )
        return
    p.column((0, 0, -0.2), 0.04 * height, 0.65 * height, trunk, top=0.6)
    for _ in range(b.rng.randrange(3, 6)):
        turn, out = b.between(0, 6.3), b.between(0.03, 0.2) * height
        radii = tuple(height * b.between(0.16, 0.27) for _ in range(3))
        p.ball((out * math.cos(turn), out * math.sin(turn), height * b.between(0.58, 0.86)), radii, green)


def bush(b: SceneBuilder, p: Place, size: Real) -> None:
    green = b.material("foliage", size=b.between(0.7, 1.5), tint=b.tone(0.5, 1.2))
    for _ in range(b.rng.randrange(1, 4)):
        at = (b.between(-0.5, 0.5) * size, b.between(-0.5, 0.5) * size, size * b.between(0.1, 0.4))
        p.ball(at, tuple(size * b.between(0.5, 0.9) for _ in range(3)), green)


def rock(b: SceneBuilder, p: Place, size: Real) -> None:
    stone = b.material(("concrete", "gravel", "marble", "cobble"), size=size)
    p.ball((0, 0, 0.15 * size), tuple(size * b.between(0.45, 0.9) for _ in range(3)), stone, yaw=b.between(0, 3))
    if b.chance(0.5):
        p.box(
            (0.4 * size, 0, 0.1 * size),
            (0.4 * size, 0.3 * size, 0.3 * size),
            stone,
            yaw=1.0,
            pitch=b.between(-0.6, 0.6),
        )


def house(b: SceneBuilder, p: Place, width: Real, depth: Real, height: Real, *, shop: bool = False) -> None:
    """A block with a facade, a ledge and a roof or a cornice."""
    storey_width = max(1, round(width / 9)) * 9.0
    facade = b.material("facade", fit=(storey_width, b.pick((6.0, 7.5, 9.0))), tint=b.tone(0.6, 1.2))
    trim = b.material(("plaster", "concrete", "wood"), tint=b.tone(0.4, 1.1))
    p.box((0, 0, height / 2 - 0.5), (width / 2, depth / 2, height / 2 + 0.5), facade)
    p.box((0, 0, height + 0.12), (width / 2 + 0.25, depth / 2 + 0.25, 0.12), trim)
    if shop:
        sign = b.material("text", fit=(width * 0.6, 0.9), tint=b.tone(0.5, 1.3))
        p.box((0, -depth / 2 - 0.06, 2.9), (width * 0.3, 0.06, 0.35), sign)
        glass = b.material("photo", fit=(width * 0.7, 2.0), tint=(0.5, 0.55, 0.6), shine=0.8)
        p.box((0, -depth / 2, 1.25), (width * 0.35, 0.03, 1.05), glass)
        if b.chance(0.6):
            awning = b.material("fabric", size=2.0)
            p.box((0, -depth / 2 - 0.55, 2.35), (width * 0.36, 0.6, 0.03), awning, pitch=0.35)
    else:
        door = b.material(("wood", "metal"), tint=b.tone(0.3, 1.1))
        p.box((b.between(-0.25, 0.25) * width, -depth / 2, 1.05), (0.5, 0.05, 1.05), door)


def car(b: SceneBuilder, p: Place) -> None:
    """A body, a cabin with dark windows, and four wheels."""
    hue = [b.between(0.05, 0.9) ** 2 for _ in range(3)] if b.chance(0.6) else [b.between(0.05, 1.0)] * 3
    paint = b.material("plaster", tint=tuple(hue), size=3.0, shine=0.6)
    dark = b.material("metal", tint=(0.05, 0.06, 0.07), shine=0.9)
    rubber = b.material("concrete", tint=(0.05, 0.05, 0.05))
    length, wide = b.between(1.9, 2.3), b.between(0.8, 0.92)
    p.box((0, 0, 0.58), (length, wide, 0.26), paint)
    if b.chance(0.5):
        p.dome((-0.15, 0, 0.83), (length * 0.62, wide * 0.93, 0.55), dark)
        p.dome((-0.15, 0, 1.15), (length * 0.45, wide * 0.75, 0.26), paint)
    else:
        p.box((-0.2, 0, 1.06), (length * 0.5, wide * 0.9, 0.24), dark)
        p.box((-0.2, 0, 1.32), (length * 0.45, wide * 0.86, 0.04), paint)
    for end, tint in ((-1, (0.8, 0.05, 0.05)), (1, (1.2, 1.2, 1.1))):
        for side in (-1, 1):
            p.box(
                (end * length, side * wide * 0.75, 0.66), (0.02, 0.1, 0.06), b.material("plaster", tint=tint, shine=0.5)
            )
    for sx in (-0.62, 0.62):
        for sy in (-1, 1):
            p.ball((sx * length, sy * (wide - 0.06), 0.33), (0.33, 0.12, 0.33), rubber)


def bench(b: SceneBuilder, p: Place, length: Real = 1.6) -> None:
    wood, iron = b.material("wood", turned=False), b.material(("metal", "concrete"), tint=b.tone(0.2, 0.8))
    for y in (-0.14, 0.0, 0.14):
        p.box((0, y, 0.45), (length / 2, 0.055, 0.02), wood)
    p.box((0, 0.24, 0.72), (length / 2, 0.02, 0.14), wood, pitch=-0.2)
    for s in (-1, 1):
        p.box((s * length * 0.38, 0, 0.21), (0.03, 0.2, 0.21), iron)


def street_lamp(b: SceneBuilder, p: Place, height: Real) -> None:
    iron = b.material("metal", tint=b.tone(0.1, 0.6))
    p.column((0, 0, 0), 0.11, 0.5, iron, top=0.7)
    p.column((0, 0, 0.4), b.eased(0.06, 0.035), height - 0.4, iron, top=0.7)
    p.ball((0, 0, height), (0.18, 0.18, 0.22), b.material("plaster", emission=0.6))


def fence(b: SceneBuilder, p: Place, length: Real, height: Real = 0.9) -> None:
    wood = b.material("wood", tint=b.tone(0.4, 1.3), turned=True)
    for level in (0.35, 0.8):
        p.box((0, 0, height * level), (length / 2, 0.02, 0.04), wood)
    posts = max(2, round(length / b.eased(0.5, 0.3)))
    for post in range(posts):
        p.box(
            ((post + 0.5) / posts * length - length / 2, 0.03, height / 2 - 0.1), (0.045, 0.015, height / 2 + 0.1), wood
        )


def statue(b: SceneBuilder, p: Place, height: Real) -> None:
    """A bust, or blocks and rings of one material set upon each other, on a plinth."""
    stone = b.material(("marble", "concrete", "metal", "bark"), tint=b.tone(0.5, 1.2))
    base, r = 0.42 * height, 0.16 * height
    p.box((0, 0, base / 2), (r, r, base / 2), b.material(("plaster", "concrete", "marble", "wood")))
    p.box((0, 0, base + 0.02), (1.15 * r, 1.15 * r, 0.02), stone)
    if b.chance(0.5):
        p.column((0, 0, base), 0.8 * r, 0.16 * height, stone, top=1.25)
        p.ball((0, 0, base + 0.2 * height), (1.75 * r, 0.85 * r, 0.11 * height), stone)
        p.column((0, 0, base + 0.26 * height), 0.4 * r, 0.12 * height, stone)
        p.ball((0, -0.1 * r, base + 0.45 * height), (0.62 * r, 0.75 * r, 0.12 * height), stone)
        p.ball((0, -0.75 * r, base + 0.43 * height), (0.14 * r, 0.25 * r, 0.035 * height), stone)
    else:
        z = base
        while z < 0.9 * height:
            tall, wide = b.between(0.06, 0.18) * height, r * b.between(0.4, 1.5)
            if b.chance(0.7):
                half = (wide, r * b.between(0.25, 0.7), tall / 2)
                p.box(
                    (b.between(-0.4, 0.4) * r, 0, z + tall / 2),
                    half,
                    stone,
                    yaw=b.between(0, 3),
                    pitch=b.between(-0.2, 0.2),
                )
            else:
                p.column((0, 0, z), 0.7 * wide, tall, stone, top=b.between(0.4, 1.3))
            z += 0.9 * tall
    p.focus((0, 0, 0.65 * height))
