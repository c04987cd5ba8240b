"""Derivative of stage 1: sum each Gaussian's rows of gradient sums, then go back through the projection."""

import numpy as np
from numba import prange

from da3gs.rendering.cpu import harmonics
from da3gs.rendering.cpu.compiling import device, kernel
from da3gs.rendering.cpu.geometry import (
    blurred_determinant,
    clamped_slopes,
    dot,
    rotation_matrix,
    row_times,
    scaled,
    screen_from_world,
    squared_cross,
    to_camera,
    unit_quaternion,
)
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
    sqrt,
    store,
    total,
)
from da3gs.rendering.cpu.layout import (
    BLUR_PX2,
    CHANNEL,
    EYE_X,
    EYE_Y,
    EYE_Z,
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

BLUR = f32(BLUR_PX2)
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
def times_matrix(matrix, row):
    """matrix [3, 3] @ row [3]."""
    return dot(matrix[0], row), dot(matrix[1], row), dot(matrix[2], row)


@device
def color_gradient(
    colors, sh_count, channels, stride, i, lanes, live, records, sums, camera, world, basis, weights, color_gradients
):
    """Add dL/dcolors; return dL/d(mean) through the viewing direction (its negative reaches the camera centre)."""
    for channel in range(channels):
        v = load(sums, (SUM_CHANNEL + channel) * WIDTH)
        if sh_count == 0:
            add_at(color_gradients, stride * i + channel, stride, lanes, v, live)
        else:  # the colour max(0, SH + 1/2) ignores SH below -1/2
            bright = gather(records, RECORD * i + CHANNEL + channel, RECORD, lanes) > ZERO
            store(sums, (SUM_CHANNEL + channel) * WIDTH, select(live & bright, v, ZERO))
    zero = splat(ZERO)
    if sh_count == 0:
        return zero, zero, zero
    ray = world[0] - camera[EYE_X], world[1] - camera[EYE_Y], world[2] - camera[EYE_Z]
    shorten = ONE / sqrt(maximum(dot(ray, ray), f32(1e-30)))
    x, y, z = ray[0] * shorten, ray[1] * shorten, ray[2] * shorten
    harmonics.write_basis(basis, sh_count, x, y, z)
    for k in range(sh_count):
        y_k, weight = load(basis, k * WIDTH), zero
        for channel in range(channels):
            v = load(sums, (SUM_CHANNEL + channel) * WIDTH)
            first = stride * i + 3 * k + channel
            weight += v * gather(colors, first, stride, lanes)
            add_at(color_gradients, first, stride, lanes, v * y_k, live)
        store(weights, k * WIDTH, weight)
    if sh_count == 1:
        return zero, zero, zero
    v_unit = harmonics.direction_gradient(weights, sh_count, x, y, z)
    along = v_unit[0] * x + v_unit[1] * y + v_unit[2] * z
    return (v_unit[0] - along * x) * shorten, (v_unit[1] - along * y) * shorten, (v_unit[2] - along * z) * shorten


@kernel
def project_backward(
    means, quats, scales, opacities, colors, sh_count, with_depth, antialiased, camera, workers,
    records, first_row, gradient_sums,
    mean_gradients, quat_gradients, scale_gradients, opacity_gradients, color_gradients, pose_gradients,
):  # fmt: skip
    """Add to the gradients of all inputs; pose_gradients [workers, 15] float64 holds [R | t] by rows, then the
    centre.
    """
    count = opacities.size
    stride = colors.size // count
    channels = stride if sh_count == 0 else 3
    columns = SUM_CHANNEL + channels + (1 if with_depth else 0)
    for worker in prange(workers):
        basis = np.empty(harmonics.MAX_COEFFICIENTS * WIDTH, np.float32)
        weights = np.empty(harmonics.MAX_COEFFICIENTS * WIDTH, np.float32)
        sums = np.empty((TALL + 1) * WIDTH, np.float32)
        pose = np.zeros(POSE_AND_EYE * WIDTH, np.float32)
        first, end = share(count, worker, workers)
        for i in range(first, end, WIDTH):
            lanes = min(count - i, WIDTH)
            if first_row[i] == first_row[i + lanes]:
                continue
            sum_rows(gradient_sums, columns, first_row, i, lanes, sums)
            live = first_lanes(lanes) & (load(sums, TALL * WIDTH) > ZERO)

            # the forward quantities again; see projection.project
            world = (
                gather(means, 3 * i, 3, lanes),
                gather(means, 3 * i + 1, 3, lanes),
                gather(means, 3 * i + 2, 3, lanes),
            )
            sizes = (
                gather(scales, 3 * i, 3, lanes),
                gather(scales, 3 * i + 1, 3, lanes),
                gather(scales, 3 * i + 2, 3, lanes),
            )
            w, qx, qy, qz, inverse_norm = unit_quaternion(
                gather(quats, 4 * i, 4, lanes), gather(quats, 4 * i + 1, 4, lanes),
                gather(quats, 4 * i + 2, 4, lanes), gather(quats, 4 * i + 3, 4, lanes),
            )  # fmt: skip
            x, y, z = to_camera(camera, world[0], world[1], world[2])
            inverse_z = ONE / select(live, z, ONE)
            slope_x, slope_y = clamped_slopes(camera, x, y, inverse_z)
            screen_x, screen_y = screen_from_world(camera, slope_x, slope_y, inverse_z)
            rotation = rotation_matrix(w, qx, qy, qz)
            turned_x, turned_y = row_times(screen_x, rotation), row_times(screen_y, rotation)
            axis_x, axis_y = scaled(turned_x, sizes), scaled(turned_y, sizes)
            a, b, c = dot(axis_x, axis_x) + BLUR, dot(axis_x, axis_y), dot(axis_y, axis_y) + BLUR
            sharp = squared_cross(axis_x, axis_y)
            determinant = blurred_determinant(sharp, a, c, BLUR)

            # sigma = A/2 t^2 + G/2 dy^2 with t = dx + S dy, A = c / det, S = -b / c, G = 1 / c
            big_a, shear, big_g = c / determinant, -b / c, ONE / c
            v_center_x = big_a * load(sums, SUM_T * WIDTH)
            v_center_y = shear * v_center_x + big_g * load(sums, SUM_Y * WIDTH)
            v_big_a, v_big_g = HALF * load(sums, SUM_TT * WIDTH), HALF * load(sums, SUM_YY * WIDTH)
            v_shear = big_a * load(sums, SUM_TY * WIDTH)
            tilt = b / determinant
            v_a = -big_a * big_a * v_big_a
            v_b = TWO * big_a * tilt * v_big_a - big_g * v_shear
            v_c = -tilt * tilt * v_big_a - big_g * shear * v_shear - big_g * big_g * v_big_g

            # opacity: alpha = o exp(-sigma) gives dL/do = -sum(v) / o
            v_log_opacity = -load(sums, SUM * WIDTH)
            opacity = gather(opacities, i, 1, lanes)
            add_at(opacity_gradients, i, 1, lanes, v_log_opacity / maximum(opacity, f32(1e-30)), live)
            if antialiased:  # o' = o sqrt(det C / det(C + blur)), so d ln o' = (d det C / det C - d det / det) / 2
                over_sharp = HALF * v_log_opacity / maximum(sharp, f32(1e-30))
                over_blurred = HALF * v_log_opacity / determinant
                v_a += over_sharp * (c - BLUR) - over_blurred * c
                v_c += over_sharp * (a - BLUR) - over_blurred * a
                v_b += TWO * b * (over_blurred - over_sharp)

            # C = axes axes^T, axes = (J W) R S
            v_axis_x = (
                TWO * v_a * axis_x[0] + v_b * axis_y[0],
                TWO * v_a * axis_x[1] + v_b * axis_y[1],
                TWO * v_a * axis_x[2] + v_b * axis_y[2],
            )
            v_axis_y = (
                TWO * v_c * axis_y[0] + v_b * axis_x[0],
                TWO * v_c * axis_y[1] + v_b * axis_x[1],
                TWO * v_c * axis_y[2] + v_b * axis_x[2],
            )
            add_at(scale_gradients, 3 * i, 3, lanes, v_axis_x[0] * turned_x[0] + v_axis_y[0] * turned_y[0], live)
            add_at(scale_gradients, 3 * i + 1, 3, lanes, v_axis_x[1] * turned_x[1] + v_axis_y[1] * turned_y[1], live)
            add_at(scale_gradients, 3 * i + 2, 3, lanes, v_axis_x[2] * turned_x[2] + v_axis_y[2] * turned_y[2], live)
            v_turned_x, v_turned_y = scaled(v_axis_x, sizes), scaled(v_axis_y, sizes)
            v_rotation = outer_sum(screen_x, v_turned_x, screen_y, v_turned_y)
            vw, vx, vy, vz = quaternion_gradient(w, qx, qy, qz, inverse_norm, v_rotation)
            add_at(quat_gradients, 4 * i, 4, lanes, vw, live)
            add_at(quat_gradients, 4 * i + 1, 4, lanes, vx, live)
            add_at(quat_gradients, 4 * i + 2, 4, lanes, vy, live)
            add_at(quat_gradients, 4 * i + 3, 4, lanes, vz, live)

            # J W: row x = fx/z (W_0 - sx W_2) with the clamped slope sx, row y alike
            v_screen_x, v_screen_y = times_matrix(rotation, v_turned_x), times_matrix(rotation, v_turned_y)
            along_x, along_y = camera[FOCAL_X] * inverse_z, camera[FOCAL_Y] * inverse_z
            pose_0, pose_1 = (camera[0], camera[1], camera[2]), (camera[4], camera[5], camera[6])
            pose_2 = (camera[8], camera[9], camera[10])
            v_depth_x, v_depth_y = dot(v_screen_x, pose_2), dot(v_screen_y, pose_2)
            v_along_x = dot(v_screen_x, pose_0) - slope_x * v_depth_x
            v_along_y = dot(v_screen_y, pose_1) - slope_y * v_depth_y
            free_x = (slope_x > camera[LIMIT_LEFT]) & (slope_x < camera[LIMIT_RIGHT])
            free_y = (slope_y > camera[LIMIT_TOP]) & (slope_y < camera[LIMIT_BOTTOM])
            v_slope_x = select(free_x, -along_x * v_depth_x, ZERO)
            v_slope_y = select(free_y, -along_y * v_depth_y, ZERO)

            # camera-frame mean: centre = f x/z + c, slope = x/z, along = f/z
            vx_cam = (camera[FOCAL_X] * v_center_x + v_slope_x) * inverse_z
            vy_cam = (camera[FOCAL_Y] * v_center_y + v_slope_y) * inverse_z
            vz_cam = -(x * vx_cam + y * vy_cam + along_x * v_along_x + along_y * v_along_y) * inverse_z
            if with_depth:
                vz_cam += load(sums, (SUM_CHANNEL + channels) * WIDTH)

            v_ray = color_gradient(
                colors, sh_count, channels, stride, i, lanes, live, records, sums, camera, world, basis, weights,
                color_gradients,
            )  # fmt: skip
            add_at(
                mean_gradients,
                3 * i,
                3,
                lanes,
                camera[0] * vx_cam + camera[4] * vy_cam + camera[8] * vz_cam + v_ray[0],
                live,
            )
            add_at(
                mean_gradients,
                3 * i + 1,
                3,
                lanes,
                camera[1] * vx_cam + camera[5] * vy_cam + camera[9] * vz_cam + v_ray[1],
                live,
            )
            add_at(
                mean_gradients,
                3 * i + 2,
                3,
                lanes,
                camera[2] * vx_cam + camera[6] * vy_cam + camera[10] * vz_cam + v_ray[2],
                live,
            )

            # pose: x_cam = W m + p, and W inside J W
            depth_x, depth_y = -along_x * slope_x, -along_y * slope_y
            add_pose(pose, 0, live, vx_cam * world[0] + along_x * v_screen_x[0])
            add_pose(pose, 1, live, vx_cam * world[1] + along_x * v_screen_x[1])
            add_pose(pose, 2, live, vx_cam * world[2] + along_x * v_screen_x[2])
            add_pose(pose, 3, live, vx_cam)
            add_pose(pose, 4, live, vy_cam * world[0] + along_y * v_screen_y[0])
            add_pose(pose, 5, live, vy_cam * world[1] + along_y * v_screen_y[1])
            add_pose(pose, 6, live, vy_cam * world[2] + along_y * v_screen_y[2])
            add_pose(pose, 7, live, vy_cam)
            add_pose(pose, 8, live, vz_cam * world[0] + depth_x * v_screen_x[0] + depth_y * v_screen_y[0])
            add_pose(pose, 9, live, vz_cam * world[1] + depth_x * v_screen_x[1] + depth_y * v_screen_y[1])
            add_pose(pose, 10, live, vz_cam * world[2] + depth_x * v_screen_x[2] + depth_y * v_screen_y[2])
            add_pose(pose, 11, live, vz_cam)
            add_pose(pose, 12, live, -v_ray[0])
            add_pose(pose, 13, live, -v_ray[1])
            add_pose(pose, 14, live, -v_ray[2])
            if i // WIDTH % FLUSH_EVERY == 0:
                flush_pose(pose, pose_gradients, worker)
        flush_pose(pose, pose_gradients, worker)


@device
def add_pose(pose, entry, live, values):
    store(pose, entry * WIDTH, load(pose, entry * WIDTH) + select(live, values, ZERO))


@device
def flush_pose(pose, pose_gradients, worker):
    """Move the float32 sums to float64."""
    for entry in range(POSE_AND_EYE):
        pose_gradients[worker * POSE_AND_EYE + entry] += total(load(pose, entry * WIDTH))
        store(pose, entry * WIDTH, splat(ZERO))
