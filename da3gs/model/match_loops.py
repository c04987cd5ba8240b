"""The loop of `match_adjustment`: errors of matches, and the normal equations of Gauss-Newton.

Letters: V views, N matches in one direction, U = 7 V + 1 unknowns: per view a turn, a shift and a logarithm of scale,
last the logarithm of the focal factor.
"""

import numpy as np

from da3gs.compiling import loop


@loop
def match_errors(
    i, j, x, y, depth, sigma, weight, R, t, scale, focal, centre, depth_sigma, behind, kernel, errors, H, gradient
):
    """Squared errors of N matches in standard deviations; with a `kernel` > 0 also adds to the normal equations.

    Args:
        i, j, x, y, depth, sigma, weight: See `match_adjustment.Observations`.
        R, t, scale: Poses [V, 3, 3], [V, 3] and factors of depth [V].
        focal, centre: [V, 2] pixels.
        depth_sigma: Of the logarithm of depth.
        behind: Share of the depth below which z is held.
        kernel: Width of the Cauchy kernel in standard deviations; 0 computes errors alone.
        errors: [N], written.
        H, gradient: [U, U], [U], added to.
    """
    turn, J = np.empty((3, 3)), np.empty((2, 14))
    place = np.empty(14, np.int64)
    for n in range(len(i)):
        a, b = i[n], j[n]
        for r in range(3):
            for c in range(3):
                turn[r, c] = R[b, r, 0] * R[a, c, 0] + R[b, r, 1] * R[a, c, 1] + R[b, r, 2] * R[a, c, 2]
        # The point in view i, turned into j's axes, and in view j.
        X2 = depth[n] * scale[a]
        X0, X1 = (x[n, 0] - centre[a, 0]) / focal[a, 0] * X2, (x[n, 1] - centre[a, 1]) / focal[a, 1] * X2
        T0 = turn[0, 0] * X0 + turn[0, 1] * X1 + turn[0, 2] * X2
        T1 = turn[1, 0] * X0 + turn[1, 1] * X1 + turn[1, 2] * X2
        T2 = turn[2, 0] * X0 + turn[2, 1] * X1 + turn[2, 2] * X2
        Z0 = T0 + t[b, 0] - turn[0, 0] * t[a, 0] - turn[0, 1] * t[a, 1] - turn[0, 2] * t[a, 2]
        Z1 = T1 + t[b, 1] - turn[1, 0] * t[a, 0] - turn[1, 1] * t[a, 1] - turn[1, 2] * t[a, 2]
        Z2 = T2 + t[b, 2] - turn[2, 0] * t[a, 0] - turn[2, 1] * t[a, 1] - turn[2, 2] * t[a, 2]
        z = max(Z2, behind * X2)
        fx, fy = focal[b, 0], focal[b, 1]
        u0, u1 = fx * Z0 / z, fy * Z1 / z  # from the principal point
        d0, d1 = u0 + centre[b, 0] - y[n, 0], u1 + centre[b, 1] - y[n, 1]
        # Across the epipolar line a match is as good as its sigma, along it depth adds its own error.
        g0, g1 = fx * (T0 / z - Z0 * T2 / z**2), fy * (T1 / z - Z1 * T2 / z**2)  # du / dlog depth
        length = np.sqrt(g0**2 + g1**2)
        e0, e1 = g0 / max(length, 1e-9), g1 / max(length, 1e-9)
        across = 1 / sigma[n]
        change = 1 / np.sqrt(sigma[n] ** 2 + (depth_sigma * length) ** 2) - across
        W00, W01, W11 = across + change * e0 * e0, change * e0 * e1, across + change * e1 * e1
        r0, r1 = W00 * d0 + W01 * d1, W01 * d0 + W11 * d1
        errors[n] = r0**2 + r1**2
        if kernel <= 0:
            continue
        for r in range(2):
            w0, w1 = (W00, W01) if r == 0 else (W01, W11)
            P0, P1, P2 = w0 * fx / z, w1 * fy / z, -(w0 * u0 + w1 * u1) / z  # dr / dZ
            B0 = P0 * turn[0, 0] + P1 * turn[1, 0] + P2 * turn[2, 0]  # dr / dX
            B1 = P0 * turn[0, 1] + P1 * turn[1, 1] + P2 * turn[2, 1]
            B2 = P0 * turn[0, 2] + P1 * turn[1, 2] + P2 * turn[2, 2]
            J[r, 0], J[r, 1], J[r, 2] = B1 * X2 - B2 * X1, B2 * X0 - B0 * X2, B0 * X1 - B1 * X0
            J[r, 3], J[r, 4], J[r, 5] = -B0, -B1, -B2
            J[r, 6] = w0 * g0 + w1 * g1
            J[r, 7], J[r, 8], J[r, 9] = P2 * Z1 - P1 * Z2, P0 * Z2 - P2 * Z0, P1 * Z0 - P0 * Z1
            J[r, 10], J[r, 11], J[r, 12] = P0, P1, P2
            J[r, 13] = w0 * u0 + w1 * u1 - B0 * X0 - B1 * X1
        for k in range(7):
            place[k] = 7 * a + k
        for k in range(6):
            place[7 + k] = 7 * b + k
        place[13] = len(gradient) - 1
        robust = weight[n] / (1 + errors[n] / kernel**2)
        for p in range(14):
            left0, left1 = robust * J[0, p], robust * J[1, p]
            gradient[place[p]] += left0 * r0 + left1 * r1
            for q in range(14):
                H[place[p], place[q]] += left0 * J[0, q] + left1 * J[1, q]
