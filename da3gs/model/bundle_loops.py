"""The loops of `bundle_adjustment`: errors of sightings, and normal equations from which the points are eliminated.

Letters: V views, L points, N sightings sorted by point; each depends on 8 unknowns of cameras: turn, shift, logarithms
of the scale of depth and of the focal factor. U = 7 V + 1: seven of each view, then the focal factor.
"""

import numpy as np

from da3gs.compiling import loop


@loop
def sighting_errors(points, point, view, x, log_depth, sigma, R, t, log_scale, focal, centre, behind, errors, gaps):
    """Squared reprojection errors in standard deviations, and log z - log(scale x depth) [N]; both written.

    Args:
        points: [L, 3].
        point, view, x, log_depth, sigma: See `bundle_adjustment.Sightings`.
        R, t, log_scale: Poses [V, 3, 3], [V, 3] and logarithms of the factors of depth [V].
        focal, centre: [V, 2] pixels.
        behind: Share of the predicted depth below which z is held.
    """
    for n in range(len(view)):
        v = view[n]
        X0, X1, X2 = points[point[n], 0], points[point[n], 1], points[point[n], 2]
        Z0 = R[v, 0, 0] * X0 + R[v, 0, 1] * X1 + R[v, 0, 2] * X2 + t[v, 0]
        Z1 = R[v, 1, 0] * X0 + R[v, 1, 1] * X1 + R[v, 1, 2] * X2 + t[v, 1]
        Z2 = R[v, 2, 0] * X0 + R[v, 2, 1] * X1 + R[v, 2, 2] * X2 + t[v, 2]
        predicted = log_depth[n] + log_scale[v]
        z = max(Z2, behind * np.exp(predicted))
        r0 = (focal[v, 0] * Z0 / z + centre[v, 0] - x[n, 0]) / sigma[n]
        r1 = (focal[v, 1] * Z1 / z + centre[v, 1] - x[n, 1]) / sigma[n]
        errors[n] = r0**2 + r1**2
        gaps[n] = np.log(z) - predicted


@loop
def reduced_equations(
    first, points, view, x, log_depth, sigma, pixel_weight, depth_weight, R, t, log_scale, focal, centre, behind,
    damping, H, gradient, diagonal, cross, inverse, pull,
):  # fmt: skip
    """The normal equations of the cameras, points eliminated (Schur complement), and what brings the points back.

    Args:
        first: [L + 1] where the sightings of a point begin.
        pixel_weight, depth_weight: [N] of the squared errors; others as in `sighting_errors`.
        damping: Levenberg-Marquardt, relative to the diagonal, of the points.
        H, gradient: [U, U], [U], added to.
        diagonal: [U] of H before elimination, added to.
        cross: [N, 8, 3] second derivatives by camera and point, written.
        inverse, pull: [L, 3, 3] inverse damped second derivatives and [L, 3] gradients of the points, written.
    """
    unknowns = len(gradient)
    J, P = np.zeros((3, 8)), np.empty((3, 3))
    weights, residuals = np.empty(3), np.empty(3)
    A, half = np.empty((3, 3)), np.empty((8, 3))
    places = np.empty((len(view), 8), np.int64)
    for point in range(len(points)):
        A[:] = 0
        pull[point] = 0
        for n in range(first[point], first[point + 1]):
            v = view[n]
            for k in range(7):
                places[n, k] = 7 * v + k
            places[n, 7] = unknowns - 1
            X0, X1, X2 = points[point, 0], points[point, 1], points[point, 2]
            Z0 = R[v, 0, 0] * X0 + R[v, 0, 1] * X1 + R[v, 0, 2] * X2 + t[v, 0]
            Z1 = R[v, 1, 0] * X0 + R[v, 1, 1] * X1 + R[v, 1, 2] * X2 + t[v, 1]
            Z2 = R[v, 2, 0] * X0 + R[v, 2, 1] * X1 + R[v, 2, 2] * X2 + t[v, 2]
            predicted = log_depth[n] + log_scale[v]
            z = max(Z2, behind * np.exp(predicted))
            u0, u1 = focal[v, 0] * Z0 / z, focal[v, 1] * Z1 / z
            residuals[0] = (u0 + centre[v, 0] - x[n, 0]) / sigma[n]
            residuals[1] = (u1 + centre[v, 1] - x[n, 1]) / sigma[n]
            residuals[2] = np.log(z) - predicted
            weights[0] = weights[1] = pixel_weight[n]
            weights[2] = depth_weight[n]
            # By the point in the camera's frame; then by turn and shift, scale, focal factor.
            P[0, 0], P[0, 1], P[0, 2] = focal[v, 0] / z / sigma[n], 0.0, -u0 / z / sigma[n]
            P[1, 0], P[1, 1], P[1, 2] = 0.0, focal[v, 1] / z / sigma[n], -u1 / z / sigma[n]
            P[2, 0], P[2, 1], P[2, 2] = 0.0, 0.0, 1 / z
            for r in range(3):
                J[r, 0], J[r, 1] = P[r, 2] * Z1 - P[r, 1] * Z2, P[r, 0] * Z2 - P[r, 2] * Z0
                J[r, 2] = P[r, 1] * Z0 - P[r, 0] * Z1
                J[r, 3], J[r, 4], J[r, 5] = P[r, 0], P[r, 1], P[r, 2]
            J[2, 6] = -1.0
            J[0, 7], J[1, 7] = u0 / sigma[n], u1 / sigma[n]
            cross[n] = 0
            for r in range(3):
                D0 = P[r, 0] * R[v, 0, 0] + P[r, 1] * R[v, 1, 0] + P[r, 2] * R[v, 2, 0]
                D1 = P[r, 0] * R[v, 0, 1] + P[r, 1] * R[v, 1, 1] + P[r, 2] * R[v, 2, 1]
                D2 = P[r, 0] * R[v, 0, 2] + P[r, 1] * R[v, 1, 2] + P[r, 2] * R[v, 2, 2]
                w = weights[r]
                A[0, 0] += w * D0 * D0
                A[0, 1] += w * D0 * D1
                A[0, 2] += w * D0 * D2
                A[1, 1] += w * D1 * D1
                A[1, 2] += w * D1 * D2
                A[2, 2] += w * D2 * D2
                pull[point, 0] += w * D0 * residuals[r]
                pull[point, 1] += w * D1 * residuals[r]
                pull[point, 2] += w * D2 * residuals[r]
                for p in range(8):
                    weighted = w * J[r, p]
                    cross[n, p, 0] += weighted * D0
                    cross[n, p, 1] += weighted * D1
                    cross[n, p, 2] += weighted * D2
                    gradient[places[n, p]] += weighted * residuals[r]
                    diagonal[places[n, p]] += weighted * J[r, p]
                    for q in range(8):
                        H[places[n, p], places[n, q]] += weighted * J[r, q]
        for k in range(3):
            A[k, k] = A[k, k] * (1 + damping) + 1e-12
        back = inverse[point]
        back[0, 0] = A[1, 1] * A[2, 2] - A[1, 2] ** 2
        back[0, 1] = back[1, 0] = A[0, 2] * A[1, 2] - A[0, 1] * A[2, 2]
        back[0, 2] = back[2, 0] = A[0, 1] * A[1, 2] - A[0, 2] * A[1, 1]
        back[1, 1] = A[0, 0] * A[2, 2] - A[0, 2] ** 2
        back[1, 2] = back[2, 1] = A[0, 1] * A[0, 2] - A[0, 0] * A[1, 2]
        back[2, 2] = A[0, 0] * A[1, 1] - A[0, 1] ** 2
        back /= A[0, 0] * back[0, 0] + A[0, 1] * back[0, 1] + A[0, 2] * back[0, 2]
        for m in range(first[point], first[point + 1]):
            for p in range(8):
                for k in range(3):
                    half[p, k] = cross[m, p, 0] * back[0, k] + cross[m, p, 1] * back[1, k] + cross[m, p, 2] * back[2, k]
                gradient[places[m, p]] -= (
                    half[p, 0] * pull[point, 0] + half[p, 1] * pull[point, 1] + half[p, 2] * pull[point, 2]
                )
            for n in range(first[point], first[point + 1]):
                for p in range(8):
                    for q in range(8):
                        H[places[m, p], places[n, q]] -= (
                            half[p, 0] * cross[n, q, 0] + half[p, 1] * cross[n, q, 1] + half[p, 2] * cross[n, q, 2]
                        )


@loop
def point_steps(first, view, cross, inverse, pull, step, moves):
    """Steps [L, 3] of the points that go with the step [U] of the cameras; written."""
    for point in range(len(moves)):
        g0, g1, g2 = pull[point, 0], pull[point, 1], pull[point, 2]
        for n in range(first[point], first[point + 1]):
            for p in range(8):
                by = step[7 * view[n] + p] if p < 7 else step[len(step) - 1]
                g0 += cross[n, p, 0] * by
                g1 += cross[n, p, 1] * by
                g2 += cross[n, p, 2] * by
        for k in range(3):
            moves[point, k] = -(inverse[point, k, 0] * g0 + inverse[point, k, 1] * g1 + inverse[point, k, 2] * g2)
