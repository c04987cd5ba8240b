"""Loops of the plane sweep: how well two pictures match at every depth, and the smoothest surface through the matches.

Letters: H W pixels of the reference view, D hypotheses of inverse depth.
"""

import numpy as np

from da3gs.compiling import loop

# Contrast (variance of grey values in [0, 1]) below which a window tells nothing.
_FLAT = 3e-4


@loop
def window_sums(values, radius, out):
    """Sums over square windows, clipped at the borders."""
    height, width = values.shape
    column = np.zeros(width, np.float32)
    for row in range(-radius, height):
        enters, leaves = row + radius, row - radius - 1
        if enters < height:
            for x in range(width):
                column[x] += values[enters, x]
        if row < 0:
            continue
        if leaves >= 0:
            for x in range(width):
                column[x] -= values[leaves, x]
        total = np.float32(0)
        for x in range(min(radius, width)):
            total += column[x]
        for x in range(width):
            if x + radius < width:
                total += column[x + radius]
            if x - radius - 1 >= 0:
                total -= column[x - radius - 1]
            out[row, x] = total


@loop
def match_source(reference, source, matrix, shift, base, offsets, radius, lowest, second):
    """Carry one source into the reference view at every hypothesis; keep the two lowest costs of all sources so far.

    The pixel p = (u, v, 1) of the reference at inverse depth w shows what the source has at  matrix p + shift w.
    Costs are 1 - ZNCC of windows of grey values, clipped to [0, 1]; where the source shows nothing they stay.

    Args:
        reference: [H, W] grey values; source: of any size.
        matrix: K_source R K_reference^-1, [3, 3]; shift: K_source t, [3].
        base, offsets: Inverse depth of hypothesis d is base[y, x] + offsets[d].
        radius: Of the windows, pixels.
        lowest, second: [D, H, W], changed in place; infinite at first.
    """
    height, width = reference.shape
    source_height, source_width = source.shape
    warped = np.empty((height, width), np.float32)
    inside = np.empty((height, width), np.bool_)
    product = np.empty((height, width), np.float32)
    count = np.empty((height, width), np.float32)
    mean_r, mean_rr = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    sum_s, sum_ss = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    sum_rs = np.empty((height, width), np.float32)
    window_sums(np.ones_like(reference), radius, count)
    window_sums(reference, radius, mean_r)
    window_sums(reference * reference, radius, mean_rr)
    for d in range(len(offsets)):
        for y in range(height):
            v = np.float32(y + 0.5)
            for x in range(width):
                u = np.float32(x + 0.5)
                inverse = base[y, x] + offsets[d]
                z = matrix[2, 0] * u + matrix[2, 1] * v + matrix[2, 2] + shift[2] * inverse
                if not (z > 1e-6 and inverse > 0):
                    inside[y, x], warped[y, x] = False, np.float32(0)
                    continue
                px = (matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2] + shift[0] * inverse) / z - np.float32(0.5)
                py = (matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2] + shift[1] * inverse) / z - np.float32(0.5)
                inside[y, x] = px > -0.5 and py > -0.5 and px < source_width - 0.5 and py < source_height - 0.5
                px = min(max(px, np.float32(0)), np.float32(source_width - 1))
                py = min(max(py, np.float32(0)), np.float32(source_height - 1))
                left, top = min(int(px), source_width - 2), min(int(py), source_height - 2)
                fx, fy = px - np.float32(left), py - np.float32(top)
                upper = source[top, left] + fx * (source[top, left + 1] - source[top, left])
                lower = source[top + 1, left] + fx * (source[top + 1, left + 1] - source[top + 1, left])
                warped[y, x] = upper + fy * (lower - upper)
        for y in range(height):
            for x in range(width):
                product[y, x] = reference[y, x] * warped[y, x]
        window_sums(warped, radius, sum_s)
        window_sums(product, radius, sum_rs)
        for y in range(height):
            for x in range(width):
                product[y, x] = warped[y, x] * warped[y, x]
        window_sums(product, radius, sum_ss)
        for y in range(height):
            for x in range(width):
                if not inside[y, x]:
                    continue
                n = np.float32(1) / count[y, x]
                r, s = mean_r[y, x] * n, sum_s[y, x] * n
                spread_r = max(mean_rr[y, x] * n - r * r, np.float32(0))
                spread_s = max(sum_ss[y, x] * n - s * s, np.float32(0))
                together = sum_rs[y, x] * n - r * s
                cost = np.float32(1) - together / (np.sqrt(spread_r * spread_s) + np.float32(_FLAT))
                cost = min(max(cost, np.float32(0)), np.float32(1))
                if cost < lowest[d, y, x]:
                    second[d, y, x] = lowest[d, y, x]
                    lowest[d, y, x] = cost
                elif cost < second[d, y, x]:
                    second[d, y, x] = cost


@loop
def semi_global(cost, image, small_step, large_step, total):
    """Sum over four directions of the cheapest paths to every hypothesis (Hirschmüller 2008, semi-global matching).

    Args:
        cost: [H, W, D].
        image: [H, W] grey values; a jump of the surface is cheaper where they jump.
        small_step, large_step: Price of a change by one hypothesis, and by more.
        total: [H, W, D], written.
    """
    height, width, depths = cost.shape
    total[:] = 0
    before, here = np.zeros(depths, np.float32), np.zeros(depths, np.float32)
    for direction in range(4):
        lines, length = (height, width) if direction < 2 else (width, height)
        for line in range(lines):
            for place in range(length):
                along = place if direction % 2 == 0 else length - 1 - place
                y, x = (line, along) if direction < 2 else (along, line)
                if place == 0:
                    for d in range(depths):
                        here[d] = cost[y, x, d]
                else:
                    back = 1 if direction % 2 == 1 else -1
                    last_y, last_x = (y, x + back) if direction < 2 else (y + back, x)
                    edge = abs(image[y, x] - image[last_y, last_x])
                    jump = max(small_step * np.float32(1.5), large_step / (1 + np.float32(20) * edge))
                    cheapest = before[0]
                    for d in range(1, depths):
                        cheapest = min(cheapest, before[d])
                    for d in range(depths):
                        best = min(before[d], cheapest + jump)
                        if d > 0:
                            best = min(best, before[d - 1] + small_step)
                        if d + 1 < depths:
                            best = min(best, before[d + 1] + small_step)
                        here[d] = cost[y, x, d] + best - cheapest
                for d in range(depths):
                    total[y, x, d] += here[d]
                    before[d] = here[d]
