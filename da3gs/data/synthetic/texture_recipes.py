"""Tileable textures drawn from a seed: the materials that rooms, streets and gardens are made of.

Every recipe returns colour [S, S, 3] in [0, 1] (display values) and relief [S, S] in units of its own choosing, both
periodic in both axes. What carries over from such pictures to photographs is their statistics: power-law spectra
(Field 1987), occlusion edges at all scales (dead leaves; Lee, Mumford & Huang 2001; Baradad et al. 2021), and the
regular structure of what people make.
"""

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator
Real = float | int
SIZE = 256


def noise(rng: Rng, exponent: Real = 2.0, stretch: tuple[Real, Real] = (1.0, 1.0), lowest: Real = 1.0) -> np.ndarray:
    """Periodic Gaussian noise [S, S], zero mean, unit variance, amplitude spectrum 1 / f^(exponent / 2).

    Args:
        stretch: Grain length along x and y relative to isotropic noise (8, 1: streaks along x).
        lowest: Frequencies below it (cycles per tile) are left out, which hides the repetition of the tile.
    """
    fy = np.fft.fftfreq(SIZE)[:, None] * SIZE * stretch[1]
    fx = np.fft.rfftfreq(SIZE)[None] * SIZE * stretch[0]
    f = np.sqrt(fx**2 + fy**2)
    amplitude = np.where(f >= lowest, np.maximum(f, 1.0) ** (-exponent / 2), 0.0)
    amplitude[0, 0] = 0.0
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
    field = np.fft.irfft2(white * amplitude, s=(SIZE, SIZE))
    return field / (field.std() + 1e-12)


def color(rng: Rng, hue: tuple[Real, Real], saturation: tuple[Real, Real], value: tuple[Real, Real]) -> np.ndarray:
    """A colour [3] drawn from ranges of hue (wraps around 1), saturation and value."""
    return np.array(colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value)))


def any_color(rng: Rng) -> np.ndarray:
    """A colour as things have them: mostly muted, warm or blue more often than green or violet."""
    hue = rng.choice([rng.normal(0.08, 0.05), rng.normal(0.58, 0.06), rng.uniform(0, 1)], p=[0.45, 0.2, 0.35])
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, 0.85 * rng.random() ** 1.6, rng.uniform(0.15, 0.95)))


def shaded(base: np.ndarray, field: np.ndarray, strength: Real) -> np.ndarray:
    """Base colour(s) brightened and darkened by a field."""
    return base * (1 + strength * field)[..., None]


def ramp(colors: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Colours [C, 3] interpolated at positions field [S, S] in [0, 1]."""
    stops = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(field, stops, colors[:, i]) for i in range(3)], -1)


def unit(field: np.ndarray) -> np.ndarray:
    """A zero-mean field squashed into [0, 1]."""
    return 0.5 + 0.5 * np.tanh(0.8 * field)


def wrapped(x: Real, y: Real, reach: Real) -> list[tuple[Real, Real]]:
    """The copies of a place, one tile apart, from which a shape of this reach touches the tile: for drawing across its
    border."""
    columns = [x + shift for shift in (-SIZE, 0, SIZE) if -reach < x + shift < SIZE + reach]
    rows = [y + shift for shift in (-SIZE, 0, SIZE) if -reach < y + shift < SIZE + reach]
    return [(column, row) for column in columns for row in rows]


# ---------------------------------------------------------------------------------------------------- organic


def leaves(rng: Rng, palette: np.ndarray | None = None, radii: tuple[Real, Real] = (4, 60), count: int = 500):
    """Dead leaves: opaque discs, ellipses and polygons whose radii follow r^-3, as objects in photographs do."""
    palette = np.array([any_color(rng) for _ in range(7)]) if palette is None else palette
    canvas = np.ones((SIZE, SIZE, 3), np.float32) * palette[0].astype(np.float32)
    relief = np.zeros((SIZE, SIZE), np.float32)
    quantile = rng.random(count)
    sizes = radii[0] / np.sqrt(1 - quantile * (1 - (radii[0] / radii[1]) ** 2))
    sizes = sizes[np.argsort(-sizes + rng.normal(0, 0.3 * radii[1], count))]
    polygonal = rng.random() < 0.5
    for radius in sizes:
        tint = np.clip(palette[rng.integers(len(palette))] * rng.uniform(0.65, 1.25) + rng.normal(0, 0.03, 3), 0, 1)
        height = float(rng.uniform(0, 1))
        corners = rng.integers(3, 7)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        aspect, turn = rng.uniform(0.4, 1.0), rng.uniform(0, 360)

        for x, y in wrapped(*rng.uniform(0, SIZE, 2), radius):
            if polygonal:
                corner = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], -1)
                corner = corner.round().astype(np.int32)
                cv2.fillPoly(canvas, [corner], tint.tolist(), cv2.LINE_AA)
                cv2.fillPoly(relief, [corner], height, cv2.LINE_AA)
            else:
                axes = (max(1, int(radius)), max(1, int(radius * aspect)))
                cv2.ellipse(canvas, (int(x), int(y)), axes, turn, 0, 360, tint.tolist(), -1, cv2.LINE_AA)
                cv2.ellipse(relief, (int(x), int(y)), axes, turn, 0, 360, height, -1, cv2.LINE_AA)
    return shaded(canvas, noise(rng, 1.2), rng.uniform(0.03, 0.12)), 0.6 * relief + 0.1 * noise(rng, 1.5)


def foliage(rng: Rng):
    hue = rng.uniform(0.18, 0.36)
    palette = np.array([color(rng, (hue - 0.05, hue + 0.05), (0.35, 0.8), (0.12, 0.6)) for _ in range(8)])
    palette[0] *= 0.4
    canvas, relief = leaves(rng, palette, (3, 9), 1500)
    return shaded(canvas, noise(rng, 2.5), 0.22), 2.0 * relief


def grass(rng: Rng):
    """Short strokes, darker between the blades, over patches of dry and fresh."""
    hue = rng.uniform(0.17, 0.30)
    fresh, dry = (
        color(rng, (hue, hue + 0.03), (0.4, 0.7), (0.25, 0.5)),
        color(rng, (0.10, 0.15), (0.3, 0.5), (0.4, 0.6)),
    )
    canvas = ramp(np.stack([fresh, dry]), np.clip(0.35 + 0.25 * noise(rng, 2.5), 0, 1)).astype(np.float32)
    depth = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(2200):
        x, y = rng.uniform(0, SIZE, 2)
        angle, length = rng.normal(-1.57, 0.7), rng.uniform(5, 13)
        tone = canvas[int(y), int(x)] * rng.uniform(0.55, 1.35)
        tip = (np.cos(angle) * length, np.sin(angle) * length)
        height = float(rng.random())

        for column, row in wrapped(x, y, 14):
            ends = (int(column), int(row)), (int(column + tip[0]), int(row + tip[1]))
            cv2.line(canvas, *ends, tone.tolist(), 1, cv2.LINE_AA)
            cv2.line(depth, *ends, height, 1, cv2.LINE_AA)
    return canvas, 1.5 * depth


def gravel(rng: Rng):
    hue = rng.uniform(0.04, 0.13)
    palette = np.array([color(rng, (hue - 0.03, hue + 0.03), (0.03, 0.3), (0.25, 0.75)) for _ in range(8)])
    canvas, relief = leaves(rng, palette, (2, 8), 2200)
    return canvas, 2.0 * relief


def bark(rng: Rng):
    base = color(rng, (0.04, 0.1), (0.2, 0.5), (0.25, 0.5))
    ridges = -np.abs(noise(rng, 2.2, (4, 1), 2) + 0.6 * noise(rng, 1.5, (2, 1)))
    return shaded(base, 0.6 + ridges, 0.45), 2.0 * ridges


# ---------------------------------------------------------------------------------------------------- mineral


def plaster(rng: Rng):
    base = color(rng, (0.02, 0.6), (0.0, 0.22), (0.6, 0.9))
    grain = noise(rng, 0.8)
    stains = noise(rng, 3.0)
    return shaded(shaded(base, stains, 0.03), grain, rng.uniform(0.015, 0.05)), 0.25 * grain + 0.4 * noise(rng, 2)


def concrete(rng: Rng):
    base = color(rng, (0.05, 0.6), (0.0, 0.15), (0.35, 0.7))
    blotches, grain = noise(rng, 2.6), noise(rng, 1.0)
    pores = (noise(rng, 1.0, lowest=12) > 2.2).astype(float)
    cracks = np.exp(-np.abs(noise(rng, 3.2)) * rng.uniform(20, 60)) * (rng.random() < 0.5)
    tone = 0.12 * blotches + 0.05 * grain - 0.3 * pores - 0.5 * cracks
    return shaded(base, tone, 1.0), 0.4 * grain - 1.5 * pores - 2.0 * cracks


def marble(rng: Rng):
    colors = np.array([color(rng, (0, 1), (0.0, 0.25), value) for value in ((0.25, 0.5), (0.7, 0.85), (0.85, 0.98))])
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    wave = 2 * np.pi * (rng.integers(1, 3) * x + rng.integers(1, 3) * y) / SIZE
    veins = 1 - np.abs(np.sin(wave + 1.3 * noise(rng, 4.4)))
    return ramp(colors[::-1], veins**4 * 0.8 + 0.1 * unit(noise(rng, 2))), np.zeros((SIZE, SIZE))


def cells(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periodic Voronoi cells: (distance to the nearest seed, to the second nearest, index of the nearest), in px."""
    side = int(np.sqrt(count))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    seeds = (grid + 0.5 + rng.uniform(-0.38, 0.38, grid.shape)) * (SIZE / side)
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    seeds = seeds.astype(np.float32)
    gap_x = np.abs(axis[:, None] - seeds[:, 0])
    gap_y = np.abs(axis[:, None] - seeds[:, 1])
    gap_x, gap_y = np.minimum(gap_x, SIZE - gap_x), np.minimum(gap_y, SIZE - gap_y)
    squared = (gap_y**2)[:, None] + (gap_x**2)[None]
    order = np.argpartition(squared, 1, -1)[..., :2]
    near = np.sqrt(np.take_along_axis(squared, order, -1))
    swap = near[..., 0] > near[..., 1]
    return near.min(-1), near.max(-1), np.where(swap, order[..., 1], order[..., 0])


def cobble(rng: Rng):
    """Paving stones or dry masonry: Voronoi cells with dark joints."""
    first, second, index = cells(rng, int(rng.choice([36, 64, 100])))
    tones = np.array([color(rng, (0.03, 0.12), (0.02, 0.25), (0.35, 0.75)) for _ in range(12)])
    stone = np.clip((second - first) / rng.uniform(3, 7), 0, 1)
    body = shaded(tones[index % 12], noise(rng, 1.6), 0.1)
    joint = color(rng, (0.05, 0.2), (0.1, 0.3), (0.12, 0.35))
    return body * stone[..., None] + joint * (1 - stone)[..., None], 2.5 * stone + 0.25 * noise(rng, 1.6)


def grid_cells(columns: int, rows: int, stagger: Real):
    """A running bond: distance to the nearest joint in px [S, S] and the cell index (row, column)."""
    y, x = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")
    row = np.floor(y * rows / SIZE).astype(int)
    u = x * columns / SIZE + stagger * (row % 2)
    column = np.floor(u).astype(int) % columns
    fu, fv = u % 1.0, (y * rows / SIZE) % 1.0
    edge = np.minimum(np.minimum(fu, 1 - fu) * SIZE / columns, np.minimum(fv, 1 - fv) * SIZE / rows)
    return edge, row, column, fu, fv


def brick(rng: Rng, rows: int | None = None):
    rows = rows or int(rng.choice([12, 16, 20]))
    edge, row, column, _, _ = grid_cells(rows // 3, rows, 0.5)
    base = color(rng, (0.0, 0.08), (0.15, 0.65), (0.35, 0.75))
    tones = base * rng.uniform(0.7, 1.25, (rows, SIZE, 1)) + rng.normal(0, 0.02, (rows, SIZE, 3))
    face = shaded(tones[row, column], noise(rng, 1.3), 0.1)
    solid = np.clip((edge + 0.5 * noise(rng, 2.0) - 0.6) / 1.5, 0, 1)
    mortar = shaded(color(rng, (0.05, 0.12), (0.02, 0.15), (0.5, 0.8)), noise(rng, 1.0), 0.08)
    return face * solid[..., None] + mortar * (1 - solid)[..., None], 2.0 * solid + 0.3 * noise(rng, 1.2)


def tiles(rng: Rng):
    count = int(rng.choice([4, 6, 8]))
    edge, row, column, fu, fv = grid_cells(count, count, 0.5 * (rng.random() < 0.2))
    pair = np.stack([any_color(rng) * 0.5 + 0.4, color(rng, (0, 1), (0, 0.2), (0.75, 0.95))])
    checked = rng.random() < 0.5
    which = (row + column) % 2 if checked else np.ones_like(row)
    face = pair[which] * rng.uniform(0.93, 1.05, (count, count, 1))[row, column]
    if rng.random() < 0.4:  # an ornament in every tile
        radius = np.hypot(fu - 0.5, fv - 0.5)
        star = np.cos(rng.integers(3, 9) * np.arctan2(fv - 0.5, fu - 0.5)) * 0.12 + rng.uniform(0.2, 0.35)
        face = np.where((radius < star)[..., None], any_color(rng) * 0.7, face)
    solid = np.clip((edge - 1.0) / 1.2, 0, 1)
    face = shaded(face, noise(rng, 2.2), 0.03)
    return face * solid[..., None] + 0.45 * (1 - solid)[..., None], 1.5 * solid


# ---------------------------------------------------------------------------------------------------- made by people


def wood(rng: Rng):
    """Boards with grain and knots along x."""
    boards = int(rng.choice([1, 4, 6, 8]))
    base = color(rng, (0.05, 0.11), (0.25, 0.7), (0.3, 0.85))
    edge, row, _, _, _ = grid_cells(1, boards, 0)
    shift = rng.integers(0, SIZE, boards)[row[:, 0]]
    columns = (np.arange(SIZE)[None] + shift[:, None]) % SIZE
    warp = np.take_along_axis(noise(rng, 2.8, (3, 1)), columns, 1)
    y = np.arange(SIZE)[:, None]
    rings = np.sin(2 * np.pi * rng.integers(8, 20) * y / SIZE + rng.uniform(1.5, 4.0) * warp)
    fibre = np.take_along_axis(noise(rng, 1.2, (14, 1)), columns, 1)
    tone = 0.10 * rings + 0.08 * fibre + rng.uniform(-0.13, 0.13, boards)[row]
    gap = np.clip(edge / 1.6, 0, 1) if boards > 1 else 1.0
    gaps = np.broadcast_to(gap, (SIZE, SIZE))
    if boards > 1:
        y_edge = np.minimum((y * boards / SIZE) % 1.0, 1 - (y * boards / SIZE) % 1.0) * SIZE / boards
        gaps = np.clip(y_edge / 1.6, 0, 1) * np.ones((1, SIZE))
    return shaded(base, tone, 1.0) * (0.35 + 0.65 * gaps)[..., None], 1.0 * gaps + 0.15 * fibre


def fabric(rng: Rng):
    """Stripes, checks or plain cloth with a visible weave."""
    y, x = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    stops = int(rng.choice([8, 16, 32]))
    bands = np.array([any_color(rng) for _ in range(4)])[rng.integers(0, 4, stops)]
    along, across = bands[x * stops // SIZE], bands[y * stops // SIZE]
    style = rng.random()
    body = (
        along if style < 0.35 else 0.5 * (along + across) if style < 0.7 else np.broadcast_to(bands[0], (SIZE, SIZE, 3))
    )
    weave = np.sin(2 * np.pi * x * 64 / SIZE) * np.sin(2 * np.pi * y * 64 / SIZE)
    return shaded(body, 0.10 * weave + 0.06 * noise(rng, 1.5) + 0.05 * noise(rng, 3), 1.0), 0.5 * weave + 0.5 * noise(
        rng, 2.4
    )


def carpet(rng: Rng):
    """A mirrored ornament with a pile."""
    palette = np.array([any_color(rng) * 0.8 for _ in range(5)])
    field = noise(rng, 5.0, lowest=2)
    quarter = field[: SIZE // 2, : SIZE // 2]
    mirrored = np.block([[quarter, quarter[:, ::-1]], [quarter[::-1], quarter[::-1, ::-1]]])
    steps = np.clip(((np.tanh(mirrored) + 1) * 2.5).astype(int), 0, 4)
    pile = noise(rng, 0.4)
    return shaded(palette[steps], pile, 0.12), 0.4 * pile


def metal(rng: Rng):
    base = color(rng, (0.5, 0.7), (0.0, 0.12), (0.45, 0.75)) if rng.random() < 0.6 else any_color(rng)
    brushed = noise(rng, 0.8, (20, 1))
    rust = np.clip(noise(rng, 2.4) - rng.uniform(0.8, 2.5), 0, 1)[..., None]
    body = shaded(base, brushed, 0.05) * (1 - rust) + shaded(np.array([0.42, 0.22, 0.1]), noise(rng, 1.2), 0.2) * rust
    return body, 0.05 * brushed + 0.5 * rust[..., 0]


def text(rng: Rng):
    """Paper or a sign: lines of glyph-like strokes, a headline, a box."""
    paper, ink = color(rng, (0, 1), (0, 0.25), (0.75, 0.97)), color(rng, (0, 1), (0, 0.8), (0.05, 0.35))
    if rng.random() < 0.35:
        paper, ink = ink, paper
    canvas = np.ones((SIZE, SIZE, 3), np.float32) * paper.astype(np.float32)
    y = 10
    while y < SIZE - 10:
        height = int(rng.choice([7, 9, 12, 28], p=[0.4, 0.3, 0.2, 0.1]))
        x = 12
        while x < SIZE - 12 - height and y + height < SIZE - 6:
            if rng.random() < 0.16:
                x += height
            for _ in range(rng.integers(1, 4)):
                ends = (rng.integers(0, 3, (2, 2)) / 2 * np.array([height * 0.55, height])).astype(int)
                first, second = (tuple(int(v) for v in end + np.array((x, y))) for end in ends)
                cv2.line(canvas, first, second, ink.tolist(), max(1, height // 7), cv2.LINE_AA)
            x += int(height * 0.8)
        y += int(height * 1.6)
    for _ in range(rng.integers(0, 3)):
        corner = rng.integers(10, SIZE - 90, 2)
        far = corner + rng.integers(30, 80, 2)
        cv2.rectangle(canvas, tuple(map(int, corner)), tuple(map(int, far)), any_color(rng).tolist(), -1)
    return shaded(canvas, noise(rng, 2.0), 0.02), np.zeros((SIZE, SIZE))


def spines(rng: Rng):
    """A row of book spines, two shelves a tile."""
    canvas = np.zeros((SIZE, SIZE, 3), np.float32)
    relief = np.zeros((SIZE, SIZE), np.float32)
    for top in (0, SIZE // 2):
        x = 0
        while x < SIZE:
            width = int(rng.integers(7, 24))
            tone, height = any_color(rng) * 0.85, int(rng.integers(84, 120))
            low, high = top + SIZE // 2 - height, top + SIZE // 2 - 1
            cv2.rectangle(canvas, (x, low), (x + width - 2, high), tone.tolist(), -1)
            cv2.rectangle(relief, (x, low), (x + width - 2, high), float(rng.uniform(0.6, 1.0)), -1)
            for _ in range(rng.integers(1, 4)):
                band = int(rng.integers(low + 4, high - 14))
                thickness = int(rng.integers(1, 12))
                cv2.rectangle(canvas, (x + 1, band), (x + width - 3, band + thickness), any_color(rng).tolist(), -1)
            x += width
    return shaded(canvas, noise(rng, 1.2), 0.06), 3.0 * relief


def painting(rng: Rng):
    """A landscape-like picture: sky, hill lines, blobs; stands in for photographs when none are given."""
    y = np.linspace(0, 1, SIZE)[:, None] * np.ones((1, SIZE))
    x = np.arange(SIZE)
    canvas = ramp(np.array([any_color(rng), any_color(rng) * 0.5 + 0.5]), np.clip(1.4 * y, 0, 1))
    canvas = shaded(canvas, noise(rng, 2.8), 0.12)
    for level in np.sort(rng.uniform(0.3, 0.95, rng.integers(2, 6))):
        line = level + 0.06 * noise(rng, 4.2)[0] + 0.04 * np.sin(2 * np.pi * x / SIZE + rng.uniform(0, 6))
        below = y > line[None]
        canvas = np.where(below[..., None], shaded(any_color(rng) * rng.uniform(0.4, 1), noise(rng, 1.8), 0.16), canvas)
    canvas = np.ascontiguousarray(canvas, np.float32)
    for _ in range(rng.integers(0, 14)):
        axes = (int(rng.integers(3, 30)), int(rng.integers(3, 30)))
        center = tuple(int(v) for v in rng.integers(30, SIZE - 30, 2))
        cv2.ellipse(canvas, center, axes, rng.uniform(0, 180), 0, 360, any_color(rng).tolist(), -1, cv2.LINE_AA)
    return shaded(canvas, noise(rng, 1.2), 0.06), 0.2 * noise(rng, 1.0)


def facade(rng: Rng):
    """Storeys of windows in a wall."""
    columns, rows = int(rng.choice([3, 4, 5])), int(rng.choice([2, 3, 4]))
    _, row, column, fu, fv = grid_cells(columns, rows, 0)
    wall, relief = brick(rng, 60) if rng.random() < 0.4 else plaster(rng)
    wall = wall * color(rng, (0, 0.15), (0, 0.5), (0.7, 1.1))
    half_width, half_height = rng.uniform(0.18, 0.34), rng.uniform(0.22, 0.36)
    du, dv = np.abs(fu - 0.5) / half_width, np.abs(fv - 0.5) / half_height
    pane, frame = (du < 0.85) & (dv < 0.88), (du < 1.05) & (dv < 1.05)
    bars = (np.abs(fu - 0.5) < 0.015) | (np.abs(fv - 0.42) < 0.015)
    glass = ramp(np.array([[0.55, 0.65, 0.75], [0.08, 0.1, 0.13]]), np.clip(fv + 0.25 * noise(rng, 2.5), 0, 1))
    glass = glass * rng.uniform(0.4, 1.3, (rows, columns, 1))[row, column]
    canvas = np.where(frame[..., None], color(rng, (0, 1), (0, 0.3), (0.3, 0.95)), wall)
    canvas = np.where((pane & ~bars)[..., None], glass, canvas)
    ledge = (fv > 0.95)[..., None]
    return canvas * (1 - 0.25 * ledge), np.where(frame, -1.0, 0.4 * relief) - 3.0 * (pane & ~bars)


RECIPES: dict[str, Callable[[Rng], tuple[np.ndarray, np.ndarray]]] = {
    "plaster": plaster,
    "concrete": concrete,
    "marble": marble,
    "cobble": cobble,
    "brick": brick,
    "tiles": tiles,
    "wood": wood,
    "fabric": fabric,
    "carpet": carpet,
    "metal": metal,
    "leaves": leaves,
    "foliage": foliage,
    "grass": grass,
    "gravel": gravel,
    "bark": bark,
    "text": text,
    "spines": spines,
    "photo": painting,
    "facade": facade,
}
