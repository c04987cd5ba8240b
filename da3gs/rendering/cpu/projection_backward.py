"""Derivative of stage 1: sum each Gaussian's rows of gradient sums, then go back through the projection."""

import numpy as np
from numba import prange

from da3gs.rendering.cpu import harmonics
from da3gs.rendering.cpu.compiling import device, kernel
from da3gs.rendering.cpu.geometry import BLUR, dot, footprint, gather_3, gather_4, scaled, to_camera
from da3gs.rendering.cpu.lanes import (
    WIDTH,
    f32,
    first_lanes,
    gather,
    load,
    maximum,
    scatter,
    select,
    splat,
    store,
    total,
)
from da3gs.rendering.cpu.layout import (
    CHANNEL,
    FOCAL_X,
    FOCAL_Y,
    LIMIT_BOTTOM,
    LIMIT_LEFT,
    LIMIT_RIGHT,
    LIMIT_TOP,
    MAX_CHANNELS,
    RECORD,
    SUM,
    SUM_CHANNEL,
    SUM_T,
    SUM_TT,
    SUM_TY,
    SUM_Y,
    SUM_YY,
)
from da3gs.rendering.cpu.listing import share

ZERO, HALF, ONE, TWO = f32(0.0), f32(0.5), f32(1.0), f32(2.0)
TALL = SUM_CHANNEL + MAX_CHANNELS
POSE_AND_EYE = 15  # gradient of [R | t] row by row, then of the camera centre
FLUSH_EVERY = 64  # groups whose camera gradients are summed in float32 before they join the float64 sums


@device
def sum_rows(gradient_sums, columns, first_row, i, lanes, sums):
    """sums[column * WIDTH + lane] = total over the rows of Gaussian i + lane; the plane TALL holds their number."""
    for k in range((TALL + 1) * WIDTH):
        sums[k] = ZERO
    for lane in range(lanes):
        sums[TALL * WIDTH + lane] = f32(first_row[i + lane + 1] - first_row[i + lane])
        for row in range(first_row[i + lane], first_row[i + lane + 1]):
            for column in range(columns):
                sums[column * WIDTH + lane] += gradient_sums[row * columns + column]


@device
def add_at(array, first, stride, lanes, values, mask):
    """array[first + lane * stride] += values where the mask is set."""
    scatter(array, first, stride, gather(array, first, stride, lanes) + values, mask)


@device
def quaternion_gradient(w, x, y, z, inverse_norm, h):
    """dL/dq of the unnormalised quaternion from h = dL/dR(q)."""
    vw = TWO * (x * (h[2][1] - h[1][2]) + y * (h[0][2] - h[2][0]) + z * (h[1][0] - h[0][1]))
    vx = TWO * (
        y * (h[0][1] + h[1][0]) + z * (h[0][2] + h[2][0]) + w * (h[2][1] - h[1][2]) - TWO * (x * (h[1][1] + h[2][2]))
    )
    vy = TWO * (
        x * (h[0][1] + h[1][0]) + z * (h[1][2] + h[2][1]) + w * (h[0][2] - h[2][0]) - TWO * (y * (h[0][0] + h[2][2]))
    )
    vz = TWO * (
        x * (h[0][2] + h[2][0]) + y * (h[1][2] + h[2][1]) + w * (h[1][0] - h[0][1]) - TWO * (z * (h[0][0] + h[1][1]))
    )
    along = vw * w + vx * x + vy * y + vz * z
    return (
        (vw - along * w) * inverse_norm,
        (vx - along * x) * inverse_norm,
        (vy - along * y) * inverse_norm,
        (vz - along * z) * inverse_norm,
    )


@device
def outer_sum(row_x, vx, row_y, vy):
    """row_x^T vx + row_y^T vy, a 3 x 3 matrix."""
    return (
        (row_x[0] * vx[0] + row_y[0] * vy[0], row_x[0] * vx[1] + row_y[0] * vy[1], row_x[0] * vx[2] + row_y[0] * vy[2]),
        (row_x[1] * vx[0] + row_y[1] * vy[0], row_x[1] * vx[1] + row_y[1] * vy[1], row_x[1] * vx[2] + row_y[1] * vy[2]),
        (row_x[2] * vx[0] + row_y[2] * vy[0], row_x[2] * vx[1] + row_y[2] * vy[1], row_x[2] * vx[2] + row_y[2] * vy[2]),
    )


@device
def matrix_times(matrix, row):
    """matrix [3, 3] @ row [3]."""
    return dot(matrix[0], row), dot(matrix[1], row), dot(matrix[2], row)


@device
def ellipse_gradient(shape, sums):
    """dL/d(centre x, centre y) and dL/d(a, b, c) of the 2D covariance, from the sums over pixels.

    sigma = A/2 t^2 + G/2 dy^2 with t = dx + S dy, A = c / det, S = -b / c, G = 1 / c.
    """
    big_a, shear, big_g = shape.c / shape.determinant, -shape.b / shape.c, ONE / shape.c
    v_center_x = big_a * load(sums, SUM_T * WIDTH)
    v_center_y = shear * v_center_x + big_g * load(sums, SUM_Y * WIDTH)
    v_big_a, v_big_g = HALF * load(sums, SUM_TT * WIDTH), HALF * load(sums, SUM_YY * WIDTH)
    v_shear = big_a * load(sums, SUM_TY * WIDTH)
    tilt = shape.b / shape.determinant
    v_a = -big_a * big_a * v_big_a
    v_b = TWO * big_a * tilt * v_big_a - big_g * v_shear
    v_c = -tilt * tilt * v_big_a - big_g * shear * v_shear - big_g * big_g * v_big_g
    return v_center_x, v_center_y, v_a, v_b, v_c


@device
def compensation_gradient(shape, v_log_opacity):
    """dL/d(a, b, c) through the antialiased opacity o' = o sqrt(det C / det(C + blur))."""
    over_sharp = HALF * v_log_opacity / maximum(shape.sharp, f32(1e-30))
    over_blurred = HALF * v_log_opacity / shape.determinant
    return (
        over_sharp * (shape.c - BLUR) - over_blurred * shape.c,
        TWO * shape.b * (over_blurred - over_sharp),
        over_sharp * (shape.a - BLUR) - over_blurred * shape.a,
    )


@device
def axes_gradient(shape, v_a, v_b, v_c):
    """dL/d(axis_x), dL/d(axis_y) with a = |axis_x|^2, b = axis_x . axis_y, c = |axis_y|^2."""
    x, y = shape.axis_x, shape.axis_y
    return (
        (TWO * v_a * x[0] + v_b * y[0], TWO * v_a * x[1] + v_b * y[1], TWO * v_a * x[2] + v_b * y[2]),
        (TWO * v_c * y[0] + v_b * x[0], TWO * v_c * y[1] + v_b * x[1], TWO * v_c * y[2] + v_b * x[2]),
    )


@device
def position_gradient(camera, shape, x, y, v_center_x, v_center_y, v_screen_x, v_screen_y):
    """dL/d(x, y, z) of the camera-frame mean, from the centre f x/z + c and from J W at the limited slopes."""
    along_x, along_y = camera[FOCAL_X] * shape.inverse_z, camera[FOCAL_Y] * shape.inverse_z
    pose_x, pose_y = (camera[0], camera[1], camera[2]), (camera[4], camera[5], camera[6])
    pose_z = (camera[8], camera[9], camera[10])
    # row x of J W = fx/z (W_x - slope_x W_z), row y alike
    v_depth_x, v_depth_y = dot(v_screen_x, pose_z), dot(v_screen_y, pose_z)
    v_along_x = dot(v_screen_x, pose_x) - shape.slope_x * v_depth_x
    v_along_y = dot(v_screen_y, pose_y) - shape.slope_y * v_depth_y
    free_x = (shape.slope_x > camera[LIMIT_LEFT]) & (shape.slope_x < camera[LIMIT_RIGHT])
    free_y = (shape.slope_y > camera[LIMIT_TOP]) & (shape.slope_y < camera[LIMIT_BOTTOM])
    v_slope_x = camera[FOCAL_X] * v_center_x - select(free_x, along_x * v_depth_x, ZERO)
    v_slope_y = camera[FOCAL_Y] * v_center_y - select(free_y, along_y * v_depth_y, ZERO)
    vx, vy = v_slope_x * shape.inverse_z, v_slope_y * shape.inverse_z
    vz = -(x * vx + y * vy + along_x * v_along_x + along_y * v_along_y) * shape.inverse_z
    return vx, vy, vz


@device
def color_gradient(
    colors, sh_count, count, i, lanes, live, records, sums, camera, world, basis, weights, color_gradients
):  # fmt: skip
    """Add dL/dcolors; return dL/d(mean) through the viewing direction (its negative reaches the camera centre)."""
    stride = colors.size // count
    zero = splat(ZERO)
    if sh_count == 0:
        for channel in range(stride):
            add_at(
                color_gradients, stride * i + channel, stride, lanes, load(sums, (SUM_CHANNEL + channel) * WIDTH), live
            )
        return zero, zero, zero
    for channel in range(3):  # the colour max(0, SH + 1/2) ignores SH below -1/2
        plane = (SUM_CHANNEL + channel) * WIDTH
        bright = gather(records, RECORD * i + CHANNEL + channel, RECORD, lanes) > ZERO
        store(sums, plane, select(live & bright, load(sums, plane), ZERO))
    x, y, z, inverse_distance = harmonics.view_direction(camera, world)
    harmonics.write_basis(basis, sh_count, x, y, z)
    for k in range(sh_count):
        y_k, weight = load(basis, k * WIDTH), zero
        for channel in range(3):
            v = load(sums, (SUM_CHANNEL + channel) * WIDTH)
            first = stride * i + 3 * k + channel
            weight += v * gather(colors, first, stride, lanes)
            add_at(color_gradients, first, stride, lanes, v * y_k, live)
        store(weights, k * WIDTH, weight)
    if sh_count == 1:
        return zero, zero, zero
    vx, vy, vz = harmonics.direction_gradient(weights, sh_count, x, y, z)
    along = vx * x + vy * y + vz * z
    return (vx - along * x) * inverse_distance, (vy - along * y) * inverse_distance, (vz - along * z) * inverse_distance


@device
def add_pose_gradient(pose, camera, shape, live, world, v, v_screen_x, v_screen_y, v_ray):
    """Add to the vector sums of dL/d[W | p] (x_cam = W m + p, and W inside J W) and of dL/d(camera centre)."""
    along_x, along_y = camera[FOCAL_X] * shape.inverse_z, camera[FOCAL_Y] * shape.inverse_z
    depth_x, depth_y = -along_x * shape.slope_x, -along_y * shape.slope_y
    add_plane(pose, 0, live, v[0] * world[0] + along_x * v_screen_x[0])
    add_plane(pose, 1, live, v[0] * world[1] + along_x * v_screen_x[1])
    add_plane(pose, 2, live, v[0] * world[2] + along_x * v_screen_x[2])
    add_plane(pose, 3, live, v[0])
    add_plane(pose, 4, live, v[1] * world[0] + along_y * v_screen_y[0])
    add_plane(pose, 5, live, v[1] * world[1] + along_y * v_screen_y[1])
    add_plane(pose, 6, live, v[1] * world[2] + along_y * v_screen_y[2])
    add_plane(pose, 7, live, v[1])
    add_plane(pose, 8, live, v[2] * world[0] + depth_x * v_screen_x[0] + depth_y * v_screen_y[0])
    add_plane(pose, 9, live, v[2] * world[1] + depth_x * v_screen_x[1] + depth_y * v_screen_y[1])
    add_plane(pose, 10, live, v[2] * world[2] + depth_x * v_screen_x[2] + depth_y * v_screen_y[2])
    add_plane(pose, 11, live, v[2])
    add_plane(pose, 12, live, -v_ray[0])
    add_plane(pose, 13, live, -v_ray[1])
    add_plane(pose, 14, live, -v_ray[2])


@device
def add_plane(pose, entry, live, values):
    store(pose, entry * WIDTH, load(pose, entry * WIDTH) + select(live, values, ZERO))


@device
def flush_pose(pose, pose_gradients, worker):
    """Move the float32 sums to float64."""
    for entry in range(POSE_AND_EYE):
        pose_gradients[worker * POSE_AND_EYE + entry] += total(load(pose, entry * WIDTH))
        store(pose, entry * WIDTH, splat(ZERO))


@kernel
def project_backward(
    means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, workers,
    records, first_row, gradient_sums,
    mean_gradients, quat_gradients, scale_gradients, opacity_gradients, color_gradients, pose_gradients,
):  # fmt: skip
    """Add to the gradients of all inputs; pose_gradients [workers, 15] float64 is [R | t] by rows, then the centre."""
    for worker in prange(workers):
        _project_share_backward(
            means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, worker, workers,
            records, first_row, gradient_sums,
            mean_gradients, quat_gradients, scale_gradients, opacity_gradients, color_gradients, pose_gradients,
        )  # fmt: skip


@device
def _project_share_backward(
    means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, worker, workers,
    records, first_row, gradient_sums,
    mean_gradients, quat_gradients, scale_gradients, opacity_gradients, color_gradients, pose_gradients,
):  # fmt: skip
    """One worker's part of the Gaussians, a vector of them at a time."""
    channels = 3 if sh_count > 0 else colors.size // opacities.size
    columns = SUM_CHANNEL + channels + (1 if with_depth else 0)
    basis = np.empty(harmonics.MAX_COEFFICIENTS * WIDTH, np.float32)
    weights = np.empty(harmonics.MAX_COEFFICIENTS * WIDTH, np.float32)
    sums = np.empty((TALL + 1) * WIDTH, np.float32)
    pose = np.zeros(POSE_AND_EYE * WIDTH, np.float32)
    first, end = share(opacities.size, worker, workers)
    for i in range(first, end, WIDTH):
        lanes = min(end - i, WIDTH)
        if first_row[i] == first_row[i + lanes]:
            continue
        sum_rows(gradient_sums, columns, first_row, i, lanes, sums)
        live = first_lanes(lanes) & (load(sums, TALL * WIDTH) > ZERO)

        # the forward quantities again
        world, sizes = gather_3(means, i, lanes), gather_3(scales, i, lanes)
        x, y, z = to_camera(camera, world[0], world[1], world[2])
        inverse_z = ONE / select(live, z, ONE)
        shape = footprint(camera, x, y, inverse_z, gather_4(quats, i, lanes), sizes)

        # opacity: alpha = o exp(-sigma) gives dL/d(ln o) = -sum dL/dsigma
        v_log_opacity = -load(sums, SUM * WIDTH)
        opacity = gather(opacities, i, 1, lanes)
        add_at(opacity_gradients, i, 1, lanes, v_log_opacity / maximum(opacity, f32(1e-30)), live)

        # ellipse -> axes J W R S -> scales, rotation
        v_center_x, v_center_y, v_a, v_b, v_c = ellipse_gradient(shape, sums)
        if antialiased:
            extra_a, extra_b, extra_c = compensation_gradient(shape, v_log_opacity)
            v_a, v_b, v_c = v_a + extra_a, v_b + extra_b, v_c + extra_c
        v_axis_x, v_axis_y = axes_gradient(shape, v_a, v_b, v_c)
        turned_x, turned_y = shape.turned_x, shape.turned_y
        add_at(scale_gradients, 3 * i, 3, lanes, v_axis_x[0] * turned_x[0] + v_axis_y[0] * turned_y[0], live)
        add_at(scale_gradients, 3 * i + 1, 3, lanes, v_axis_x[1] * turned_x[1] + v_axis_y[1] * turned_y[1], live)
        add_at(scale_gradients, 3 * i + 2, 3, lanes, v_axis_x[2] * turned_x[2] + v_axis_y[2] * turned_y[2], live)
        v_turned_x, v_turned_y = scaled(v_axis_x, sizes), scaled(v_axis_y, sizes)
        v_rotation = outer_sum(shape.screen_x, v_turned_x, shape.screen_y, v_turned_y)
        qw, qx, qy, qz = shape.quat
        vw, vx, vy, vz = quaternion_gradient(qw, qx, qy, qz, shape.inverse_norm, v_rotation)
        add_at(quat_gradients, 4 * i, 4, lanes, vw, live)
        add_at(quat_gradients, 4 * i + 1, 4, lanes, vx, live)
        add_at(quat_gradients, 4 * i + 2, 4, lanes, vy, live)
        add_at(quat_gradients, 4 * i + 3, 4, lanes, vz, live)

        # J W, centre, depth and colour -> mean, pose
        v_screen_x, v_screen_y = matrix_times(shape.rotation, v_turned_x), matrix_times(shape.rotation, v_turned_y)
        vx, vy, vz = position_gradient(camera, shape, x, y, v_center_x, v_center_y, v_screen_x, v_screen_y)
        if with_depth:
            vz += load(sums, (SUM_CHANNEL + channels) * WIDTH)
        v_ray = color_gradient(
            colors, sh_count, opacities.size, i, lanes, live, records, sums, camera, world, basis, weights,
            color_gradients,
        )  # fmt: skip
        v_x = camera[0] * vx + camera[4] * vy + camera[8] * vz + v_ray[0]
        v_y = camera[1] * vx + camera[5] * vy + camera[9] * vz + v_ray[1]
        v_z = camera[2] * vx + camera[6] * vy + camera[10] * vz + v_ray[2]
        add_at(mean_gradients, 3 * i, 3, lanes, v_x, live)
        add_at(mean_gradients, 3 * i + 1, 3, lanes, v_y, live)
        add_at(mean_gradients, 3 * i + 2, 3, lanes, v_z, live)
        add_pose_gradient(pose, camera, shape, live, world, (vx, vy, vz), v_screen_x, v_screen_y, v_ray)
        if i // WIDTH % FLUSH_EVERY == 0:
            flush_pose(pose, pose_gradients, worker)
    flush_pose(pose, pose_gradients, worker)
