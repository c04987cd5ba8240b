"""The loops of `across_views`: points of one view, looked up in the maps of others.

Letters: V views, H W pixels, N points, O other views.
"""

import numpy as np

from da3gs.compiling import loop

# Sums of three channels of [0, 1] this far apart are no ratio to speak of.
BLACK = np.float32(0.1)


@loop
def looked_up(point, projection, height, width):
    """Row and column of the pixel that a point falls into, and its z-depth there; -1 outside of the picture.

    Args:
        point: [3].
        projection: [3, 4] homogeneous pixel (times z-depth) from homogeneous point.
    """
    u = projection[0, 0] * point[0] + projection[0, 1] * point[1] + projection[0, 2] * point[2] + projection[0, 3]
    v = projection[1, 0] * point[0] + projection[1, 1] * point[1] + projection[1, 2] * point[2] + projection[1, 3]
    z = projection[2, 0] * point[0] + projection[2, 1] * point[1] + projection[2, 2] * point[2] + projection[2, 3]
    # In this order a point at or behind the camera, infinite or not a number is outside too.
    if z > 0 and u >= 0 and v >= 0 and u < width * z and v < height * z:
        # The quotient may round up to the border.
        return min(int(v / z), height - 1), min(int(u / z), width - 1), z
    return -1, -1, z


@loop
def count_views(points, others, projections, nearest, farthest, surest, tolerance, against, agreeing, refuted):
    """How many views see through each point, how many agree with it, and whether one surely sees through it.

    Args:
        points: [N, 3].
        others, projections: [O] and [O, 3, 4].
        nearest, farthest: [V, H, W] depth around each pixel; nearest is infinite and farthest 0 where it is unknown.
        surest: [V, H, W] nearest confirmed depth around confirmed pixels; 0 elsewhere.
        tolerance: Relative.
        against, agreeing, refuted: [N] written.
    """
    height, width = nearest.shape[1:]
    for n in range(len(points)):
        against[n], agreeing[n], refuted[n] = 0, 0, False
        for k in range(len(others)):
            row, column, z = looked_up(points[n], projections[k], height, width)
            if row < 0 or farthest[others[k], row, column] <= 0:
                continue
            beyond, before = z * (1 + tolerance), z * (1 - tolerance)
            if nearest[others[k], row, column] > beyond:
                against[n] += 1
            elif farthest[others[k], row, column] >= before:
                agreeing[n] += 1
            if surest[others[k], row, column] > beyond:
                refuted[n] = True


@loop
def mark_beaten(points, view, score, others, projections, depth, candidates, scores, tolerance, beaten):
    """Which candidates of one view show a surface that a candidate of another view shows better.

    Args:
        points: [N, 3], N = H W in row order.
        view: Whose they are; of equal scores the view that comes first wins.
        score: [N].
        others, projections: [O] and [O, 3, 4].
        depth, candidates, scores: [V, H, W].
        tolerance: Relative, of depth, up to which two views show the same surface.
        beaten: [N] written.
    """
    _, height, width = depth.shape
    for n in range(len(points)):
        beaten[n] = False
        if not candidates[view, n // width, n % width]:
            continue
        for k in range(len(others)):
            other = others[k]
            row, column, z = looked_up(points[n], projections[k], height, width)
            if row < 0 or not candidates[other, row, column] or abs(z / depth[other, row, column] - 1) >= tolerance:
                continue
            theirs = scores[other, row, column]
            if theirs > score[n] or (theirs == score[n] and other < view):
                beaten[n] = True
                break


@loop
def mark_covered(points, waiting, others, projections, depth, accepted, tolerance, covered):
    """Which of the waiting points show a surface that an accepted pixel of another view, or one beside it, shows.

    Args:
        points, waiting: [N, 3] and [N].
        others, projections: [O] and [O, 3, 4].
        depth, accepted: [V, H, W].
        tolerance: As above.
        covered: [N] written where waiting.
    """
    _, height, width = depth.shape
    for n in range(len(points)):
        if not waiting[n]:
            continue
        covered[n] = False
        for k in range(len(others)):
            other = others[k]
            row, column, z = looked_up(points[n], projections[k], height, width)
            if row < 0 or abs(z / depth[other, row, column] - 1) >= tolerance:
                continue
            if np.any(accepted[other, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]):
                covered[n] = True
                break


@loop
def find_places(points, projection, depth, confirmed, tolerance, places):
    """Where another view shows each point: an index of its pixels in row order, -1 where it does not.

    Args:
        points, projection: [N, 3] and [3, 4].
        depth, confirmed: [H, W] of the other view.
        tolerance: Relative, of depth, up to which it shows the point.
        places: [N] written.
    """
    height, width = depth.shape
    for n in range(len(points)):
        row, column, z = looked_up(points[n], projection, height, width)
        shown = row >= 0 and confirmed[row, column] and abs(z / depth[row, column] - 1) < tolerance
        places[n] = row * width + column if shown else -1


@loop
def sum_over_views(points, others, projections, images, depth, tolerance, total, count):
    """Add to each point the colours in which other views show it, and to its count how many do.

    Views in which it is less than half or more than twice as bright show something else, or were exposed wrongly.

    Args:
        points: [N, 3].
        others, projections: [O] and [O, 3, 4].
        images, depth: [V, H, W, 3] and [V, H, W].
        tolerance: Relative, of depth, up to which a view shows the point.
        total, count: [N, 3] and [N], added to; total starts as the point's own colour.
    """
    height, width = depth.shape[1:]
    for n in range(len(points)):
        own = total[n, 0] + total[n, 1] + total[n, 2]
        for k in range(len(others)):
            other = others[k]
            row, column, z = looked_up(points[n], projections[k], height, width)
            if row < 0 or abs(z / depth[other, row, column] - 1) >= tolerance:
                continue
            theirs = images[other, row, column, 0] + images[other, row, column, 1] + images[other, row, column, 2]
            if theirs > 2 * own + BLACK or own > 2 * theirs + BLACK:
                continue
            count[n] += 1
            for channel in range(3):
                total[n, channel] += images[other, row, column, channel]
