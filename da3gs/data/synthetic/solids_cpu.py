"""The methods of `Solids` as compiled loops for the CPU: the results of the tensor versions, about ten times faster.

Arrays are C-contiguous float32 / int64. Letters: P solids, G groups, R rays of a group, N points.
"""

import math

import numpy as np

from da3gs.compiling import loop

_TINY = np.float32(1e-9)
_INF = np.float32(np.inf)
# As `solids.POLAR`.
_POLAR = np.float32(0.75)


@loop
def _in_cone(apex, directions, slack, center, radius, candidates):
    """Solids whose bounding sphere reaches into the cone around `directions` [3, R]; returns their number."""
    rays = directions.shape[1]
    ax = ay = az = np.float32(0.0)
    for r in range(rays):
        x, y, z = directions[0, r], directions[1, r], directions[2, r]
        inverse = np.float32(1.0) / max(math.sqrt(x * x + y * y + z * z), np.float32(1e-12))
        ax += x * inverse
        ay += y * inverse
        az += z * inverse
    inverse = np.float32(1.0) / max(math.sqrt(ax * ax + ay * ay + az * az), np.float32(1e-12))
    ax, ay, az = ax * inverse, ay * inverse, az * inverse
    cosine = np.float32(1.0)
    for r in range(rays):
        x, y, z = directions[0, r], directions[1, r], directions[2, r]
        length = max(math.sqrt(x * x + y * y + z * z), np.float32(1e-12))
        cosine = min(cosine, (x * ax + y * ay + z * az) / length)
    sine = math.sqrt(max(np.float32(0.0), np.float32(1.0) - cosine * cosine)) + np.float32(1e-3)
    count = 0
    for p in range(len(center)):
        x, y, z = center[p, 0] - apex[0], center[p, 1] - apex[1], center[p, 2] - apex[2]
        along = x * ax + y * ay + z * az
        across = math.sqrt(max(np.float32(0.0), x * x + y * y + z * z - along * along))
        reach = radius[p] + slack
        if cosine < np.float32(0.1) or (across * cosine - along * sine <= reach and along > -reach):
            candidates[count] = p
            count += 1
    return count


@loop
def _interval(is_box, ox, oy, oz, dx, dy, dz, hx, hy, hz, g, b, k):
    """Parameter interval inside one solid of a ray in its local frame (metres)."""
    if is_box:
        dx, dy, dz = dx + _TINY, dy + _TINY, dz + _TINY
        ix, iy, iz = np.float32(1.0) / dx, np.float32(1.0) / dy, np.float32(1.0) / dz
        mx, my, mz = -ox * ix, -oy * iy, -oz * iz
        ex, ey, ez = hx * abs(ix), hy * abs(iy), hz * abs(iz)
        return max(mx - ex, my - ey, mz - ez), min(mx + ex, my + ey, mz + ez)
    ox, oy, oz = ox / hx, oy / hy, oz / hz
    dx, dy, dz = dx / hx, dy / hy, dz / hz + _TINY
    a2 = dx * dx + dy * dy + g * dz * dz + np.float32(1e-20)
    a1 = ox * dx + oy * dy + (g * oz + np.float32(0.5) * b) * dz
    a0 = ox * ox + oy * oy + (g * oz + b) * oz - k
    discriminant = a1 * a1 - a2 * a0
    if discriminant <= np.float32(0.0):
        return _INF, -_INF
    # The root without cancellation, q / A, and the other one from the product of both, C / q.
    root = math.sqrt(max(discriminant, np.float32(1e-30)))
    q = root - a1 if a1 < np.float32(0.0) else -(a1 + root)
    first, second = q / a2, a0 / q
    inverse = np.float32(1.0) / dz
    middle, extent = -oz * inverse, abs(inverse)
    return max(min(first, second), middle - extent), min(max(first, second), middle + extent)


@loop
def nearest(origins, directions, boxes, center, axes, half, quadric, radius, t, index):
    """See `Solids.nearest`; origins [G, 3]."""
    groups, _, rays = directions.shape
    candidates = np.empty(len(center), np.int64)
    local = np.empty((len(center), 3), np.float32)
    for group in range(groups):
        origin = origins[group]
        count = _in_cone(origin, directions[group], np.float32(0.0), center, radius, candidates)
        for c in range(count):
            p = candidates[c]
            for i in range(3):
                local[c, i] = (
                    axes[p, i, 0] * (origin[0] - center[p, 0])
                    + axes[p, i, 1] * (origin[1] - center[p, 1])
                    + axes[p, i, 2] * (origin[2] - center[p, 2])
                )
        for r in range(rays):
            dx, dy, dz = directions[group, 0, r], directions[group, 1, r], directions[group, 2, r]
            squared = dx * dx + dy * dy + dz * dz
            best, which = _INF, -1
            for c in range(count):
                p = candidates[c]
                vx, vy, vz = center[p, 0] - origin[0], center[p, 1] - origin[1], center[p, 2] - origin[2]
                along = vx * dx + vy * dy + vz * dz
                outside = vx * vx + vy * vy + vz * vz - radius[p] * radius[p]
                # The ray misses the bounding sphere, with a little room for rounding.
                if along * along < squared * outside * np.float32(0.999) or (along < 0 and outside > 0):
                    continue
                a = axes[p]
                near, far = _interval(
                    p < boxes, local[c, 0], local[c, 1], local[c, 2],
                    a[0, 0] * dx + a[0, 1] * dy + a[0, 2] * dz,
                    a[1, 0] * dx + a[1, 1] * dy + a[1, 2] * dz,
                    a[2, 0] * dx + a[2, 1] * dy + a[2, 2] * dz,
                    half[p, 0], half[p, 1], half[p, 2], quadric[p, 0], quadric[p, 1], quadric[p, 2],
                )  # fmt: skip
                if near <= far and np.float32(0.0) < near < best:
                    best, which = near, p
            t[group, r], index[group, r] = best, which


@loop
def blocked(points, targets, target_radius, boxes, center, axes, half, quadric, radius, result):
    """See `Solids.blocked`."""
    groups, _, rays = points.shape
    candidates = np.empty(len(center), np.int64)
    backward = np.empty((3, rays), np.float32)
    apex = np.empty(3, np.float32)
    for group in range(groups):
        for i in range(3):
            total = np.float32(0.0)
            for r in range(rays):
                backward[i, r] = points[group, i, r] - targets[group, i, r]
                total += targets[group, i, r]
            apex[i] = total / np.float32(rays)
        count = _in_cone(apex, backward, target_radius, center, radius, candidates)
        for r in range(rays):
            px, py, pz = points[group, 0, r], points[group, 1, r], points[group, 2, r]
            dx, dy, dz = -backward[0, r], -backward[1, r], -backward[2, r]
            squared = dx * dx + dy * dy + dz * dz
            hit = False
            for c in range(count):
                p = candidates[c]
                vx, vy, vz = center[p, 0] - px, center[p, 1] - py, center[p, 2] - pz
                along = vx * dx + vy * dy + vz * dz
                outside = vx * vx + vy * vy + vz * vz - radius[p] * radius[p]
                if along * along < squared * outside * np.float32(0.999) or (along < 0 and outside > 0):
                    continue
                a = axes[p]
                near, far = _interval(
                    p < boxes,
                    -(a[0, 0] * vx + a[0, 1] * vy + a[0, 2] * vz),
                    -(a[1, 0] * vx + a[1, 1] * vy + a[1, 2] * vz),
                    -(a[2, 0] * vx + a[2, 1] * vy + a[2, 2] * vz),
                    a[0, 0] * dx + a[0, 1] * dy + a[0, 2] * dz,
                    a[1, 0] * dx + a[1, 1] * dy + a[1, 2] * dz,
                    a[2, 0] * dx + a[2, 1] * dy + a[2, 2] * dz,
                    half[p, 0], half[p, 1], half[p, 2], quadric[p, 0], quadric[p, 1], quadric[p, 2],
                )  # fmt: skip
                if near < far and far > np.float32(0.0) and near < np.float32(1.0):
                    hit = True
                    if c > 0:  # what blocks one ray likely blocks the next
                        candidates[c], candidates[0] = candidates[0], p
                    break
            result[group, r] = hit


@loop
def clearance(points, reach, boxes, center, axes, half, quadric, radius, result):
    """See `Solids.clearance`."""
    groups, _, rays = points.shape
    candidates = np.empty(len(center), np.int64)
    for group in range(groups):
        middle = points[group, :, 0].copy()
        for i in range(3):
            middle[i] = points[group, i].mean()
        spread = np.float32(0.0)
        for r in range(rays):
            x, y, z = points[group, 0, r] - middle[0], points[group, 1, r] - middle[1], points[group, 2, r] - middle[2]
            spread = max(spread, x * x + y * y + z * z)
        spread = math.sqrt(spread)
        count = 0
        for p in range(len(center)):
            x, y, z = center[p, 0] - middle[0], center[p, 1] - middle[1], center[p, 2] - middle[2]
            bound = radius[p] + spread + reach
            if x * x + y * y + z * z <= bound * bound:
                candidates[count] = p
                count += 1
        for r in range(rays):
            best = reach
            for c in range(count):
                p = candidates[c]
                x, y, z = (
                    points[group, 0, r] - center[p, 0],
                    points[group, 1, r] - center[p, 1],
                    points[group, 2, r] - center[p, 2],
                )
                outside_ball = math.sqrt(x * x + y * y + z * z) - radius[p]
                if outside_ball >= best:
                    continue
                a = axes[p]
                lx = a[0, 0] * x + a[0, 1] * y + a[0, 2] * z
                ly = a[1, 0] * x + a[1, 1] * y + a[1, 2] * z
                lz = a[2, 0] * x + a[2, 1] * y + a[2, 2] * z
                hx, hy, hz = half[p, 0], half[p, 1], half[p, 2]
                if p < boxes:
                    distance = max(abs(lx) - hx, abs(ly) - hy, abs(lz) - hz)
                else:
                    lx, ly, lz = lx / hx, ly / hy, lz / hz
                    g, b, k = quadric[p, 0], quadric[p, 1], quadric[p, 2]
                    level = lx * lx + ly * ly + (g * lz + b) * lz + (np.float32(1.0) - k)
                    level = math.sqrt(max(np.float32(0.0), level))
                    gx, gy, gz = lx / hx, ly / hy, (g * lz + np.float32(0.5) * b) / hz
                    slope = max(math.sqrt(gx * gx + gy * gy + gz * gz), np.float32(1e-6))
                    distance = max((level - np.float32(1.0)) * level / slope, (abs(lz) - np.float32(1.0)) * hz)
                best = min(best, max(distance, outside_ball))
            result[group, r] = best


@loop
def surface(index, points, boxes, center, axes, half, quadric, frames, uv):
    """See `Solids.surface`."""
    for n in range(len(index)):
        p = index[n]
        a = axes[p]
        x, y, z = points[n, 0] - center[p, 0], points[n, 1] - center[p, 1], points[n, 2] - center[p, 2]
        lx = a[0, 0] * x + a[0, 1] * y + a[0, 2] * z
        ly = a[1, 0] * x + a[1, 1] * y + a[1, 2] * z
        lz = a[2, 0] * x + a[2, 1] * y + a[2, 2] * z
        sx, sy, sz = lx / half[p, 0], ly / half[p, 1], lz / half[p, 2]
        if p < boxes:
            if abs(sx) >= abs(sy) and abs(sx) >= abs(sz):
                face, u_axis, v_axis, sign, u, v = 0, 1, 2, sx, ly, -lz
            elif abs(sy) >= abs(sz):
                face, u_axis, v_axis, sign, u, v = 1, 0, 2, sy, lx, -lz
            else:
                face, u_axis, v_axis, sign, u, v = 2, 0, 1, sz, lx, ly
            out = np.float32(1.0) if sign > 0 else np.float32(-1.0)
            down = np.float32(1.0) if face == 2 else np.float32(-1.0)
            for i in range(3):
                frames[n, 0, i] = a[u_axis, i]
                frames[n, 1, i] = down * a[v_axis, i]
                frames[n, 2, i] = out * a[face, i]
            uv[n, 0], uv[n, 1] = u, v
            continue
        g, b, k = quadric[p, 0], quadric[p, 1], quadric[p, 2]
        flat = abs(abs(sz) - np.float32(1.0)) < abs(sx * sx + sy * sy + (g * sz + b) * sz - k)
        if flat:
            nx, ny, nz = np.float32(0.0), np.float32(0.0), np.float32(1.0) if sz > 0 else np.float32(-1.0)
        else:
            nx, ny, nz = sx / half[p, 0], sy / half[p, 1], (g * sz + np.float32(0.5) * b) / half[p, 2]
        length = max(math.sqrt(nx * nx + ny * ny + nz * nz), np.float32(1e-12))
        nx, ny, nz = nx / length, ny / length, nz / length
        if flat or (g > np.float32(0.0) and abs(nz) > _POLAR):
            # Seen from above: u runs along the local x axis as far as the surface allows.
            ux, uy, uz = np.float32(1.0) - nx * nx, -nx * ny, -nx * nz
            uv[n, 0], uv[n, 1] = lx, -ly if nz > 0 else ly
        else:
            # u runs around the axis: axis x normal, in local coordinates (-ny, nx, 0); v runs down.
            ux, uy, uz = -ny, nx, np.float32(0.0)
            uv[n, 0] = math.atan2(sy, sx) * np.float32(0.5) * (half[p, 0] + half[p, 1])
            uv[n, 1] = -lz
        length = max(math.sqrt(ux * ux + uy * uy + uz * uz), np.float32(1e-12))
        ux, uy, uz = ux / length, uy / length, uz / length
        for i in range(3):
            frames[n, 2, i] = a[0, i] * nx + a[1, i] * ny + a[2, i] * nz
            frames[n, 0, i] = a[0, i] * ux + a[1, i] * uy + a[2, i] * uz
        u0, u1, u2 = frames[n, 0, 0], frames[n, 0, 1], frames[n, 0, 2]
        n0, n1, n2 = frames[n, 2, 0], frames[n, 2, 1], frames[n, 2, 2]
        frames[n, 1, 0] = u1 * n2 - u2 * n1
        frames[n, 1, 1] = u2 * n0 - u0 * n2
        frames[n, 1, 2] = u0 * n1 - u1 * n0
