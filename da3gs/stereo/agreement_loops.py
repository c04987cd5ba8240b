"""The loops of `agreement`: the surface of one view, held against those of others.

Letters: V views, H W pixels, O other views.
"""

import numpy as np

from da3gs.compiling import loop


@loop
def count_agreeing(view, others, matrices, shifts, depth, tolerance, slack, clearly, agreeing, against):
    """How many other views agree with the depth of a pixel, and how many see through it.

    Args:
        view: Whose pixels they are.
        others, matrices, shifts: [O], [O, 3, 3], [O, 3]: matrix p + shift / z is the homogeneous place of pixel p.
        depth: [V, H, W].
        tolerance: Relative difference of inverse depth up to which views agree, or
        slack: the difference itself, where that is more.
        clearly: A view that sees through a point does so by this many tolerances.
        agreeing, against: [H, W] written.
    """
    _, height, width = depth.shape
    for row in range(height):
        for column in range(width):
            own = depth[view, row, column]
            x, y = np.float32(column + 0.5), np.float32(row + 0.5)
            agreeing[row, column], against[row, column] = 0, 0
            for k in range(len(others)):
                M, s = matrices[k], shifts[k]
                z = own * (M[2, 0] * x + M[2, 1] * y + M[2, 2]) + s[2]
                u = own * (M[0, 0] * x + M[0, 1] * y + M[0, 2]) + s[0]
                v = own * (M[1, 0] * x + M[1, 1] * y + M[1, 2]) + s[1]
                if not (z > 0 and u >= 0 and v >= 0 and u < width * z and v < height * z):
                    continue
                # The quotient may round up to the border.
                nearer = z / depth[others[k], min(int(v / z), height - 1), min(int(u / z), width - 1)] - 1
                bound = max(slack * z, tolerance)
                if abs(nearer) < bound:
                    agreeing[row, column] += 1
                elif nearer < -clearly * bound:
                    against[row, column] += 1


@loop
def mean_of_views(view, others, matrices, shifts, depth, confirmed, tolerance, smooth, out):
    """Geometric mean of a view's confirmed depth and what the confirmed depth of others makes of it.

    Args:
        view: Whose rays they are.
        others, matrices, shifts: [O], [O, 3, 3], [O, 3]: matrix p + shift / z is the homogeneous place of pixel p.
        depth, confirmed: [V, H, W].
        tolerance: Relative difference up to which another view has a say.
        smooth: Relative range of the four depths around a place up to which they are interpolated.
        out: [H, W] written; the view's own depth where no other has a say.
    """
    _, height, width = depth.shape
    for row in range(height):
        for column in range(width):
            own = depth[view, row, column]
            x, y = np.float32(column + 0.5), np.float32(row + 0.5)
            total, weight, said = 0.0, 0, False
            if confirmed[view, row, column]:
                weight = 1  # the logarithm of own / own is 0
            for k in range(len(others)):
                M, s = matrices[k], shifts[k]
                z = own * (M[2, 0] * x + M[2, 1] * y + M[2, 2]) + s[2]
                if not z > 0:
                    continue
                u = (own * (M[0, 0] * x + M[0, 1] * y + M[0, 2]) + s[0]) / z - np.float32(0.5)
                v = (own * (M[1, 0] * x + M[1, 1] * y + M[1, 2]) + s[1]) / z - np.float32(0.5)
                if not (u >= 0 and v >= 0 and u < width - 1 and v < height - 1):
                    continue
                left, top = int(u), int(v)
                right, down = u - left, v - top
                other = others[k]
                if not (
                    confirmed[other, top, left]
                    and confirmed[other, top, left + 1]
                    and confirmed[other, top + 1, left]
                    and confirmed[other, top + 1, left + 1]
                ):
                    continue
                a, b = depth[other, top, left], depth[other, top, left + 1]
                c, d = depth[other, top + 1, left], depth[other, top + 1, left + 1]
                if max(a, b, c, d) > min(a, b, c, d) * (1 + smooth):
                    continue
                theirs = 1 / ((1 - down) * ((1 - right) / a + right / b) + down * ((1 - right) / c + right / d))
                # Along the own ray z of the other view is linear in depth: where does it reach their surface?
                ratio = (theirs - s[2]) / (z - s[2])
                if ratio < 1 + tolerance and ratio * (1 + tolerance) > 1:
                    total += np.log(ratio)
                    weight += 1
                    said = True
            out[row, column] = own * np.exp(total / weight) if said else own
