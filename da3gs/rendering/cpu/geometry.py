"""Projection of one Gaussian per lane, shared by the forward and the backward stage.

World mean m, rotation R(q), standard deviations s; camera pose [W | p]. Zwicker et al. 2002 (EWA splatting) as in
gsplat: 2D covariance J W R S S R^T W^T J^T + BLUR I with the Jacobian J of the pinhole projection at the mean.
"""

from collections import namedtuple

from da3gs.rendering.cpu.compiling import device
from da3gs.rendering.cpu.lanes import f32, gather, maximum, minimum, sqrt
from da3gs.rendering.cpu.layout import BLUR_PX2, FOCAL_X, FOCAL_Y, LIMIT_BOTTOM, LIMIT_LEFT, LIMIT_RIGHT, LIMIT_TOP

BLUR = f32(BLUR_PX2)


@device
def to_camera(camera, x, y, z):
    """Camera-frame coordinates of world points."""
    return (
        camera[0] * x + camera[1] * y + camera[2] * z + camera[3],
        camera[4] * x + camera[5] * y + camera[6] * z + camera[7],
        camera[8] * x + camera[9] * y + camera[10] * z + camera[11],
    )


@device
def unit_quaternion(w, x, y, z):
    """The quaternion at norm 1, and 1 / norm."""
    inverse_norm = f32(1.0) / sqrt(maximum(w * w + x * x + y * y + z * z, f32(1e-30)))
    return w * inverse_norm, x * inverse_norm, y * inverse_norm, z * inverse_norm, inverse_norm


@device
def rotation_matrix(w, x, y, z):
    """Rows of R(q) for unit q = (w, x, y, z)."""
    one, two = f32(1.0), f32(2.0)
    return (
        (one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)),
        (two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)),
        (two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)),
    )


@device
def clamped_slopes(camera, x, y, inverse_z):
    """x/z and y/z limited to the frustum plus a margin; the Jacobian is evaluated there."""
    slope_x = minimum(maximum(x * inverse_z, camera[LIMIT_LEFT]), camera[LIMIT_RIGHT])
    slope_y = minimum(maximum(y * inverse_z, camera[LIMIT_TOP]), camera[LIMIT_BOTTOM])
    return slope_x, slope_y


@device
def screen_from_world(camera, slope_x, slope_y, inverse_z):
    """Rows of J W, pixels per world unit, with J = [[fx/z, 0, -fx sx/z], [0, fy/z, -fy sy/z]]."""
    along_x = camera[FOCAL_X] * inverse_z
    along_y = camera[FOCAL_Y] * inverse_z
    depth_x = -along_x * slope_x
    depth_y = -along_y * slope_y
    return (
        (
            along_x * camera[0] + depth_x * camera[8],
            along_x * camera[1] + depth_x * camera[9],
            along_x * camera[2] + depth_x * camera[10],
        ),
        (
            along_y * camera[4] + depth_y * camera[8],
            along_y * camera[5] + depth_y * camera[9],
            along_y * camera[6] + depth_y * camera[10],
        ),
    )


@device
def row_times(row, matrix):
    """row [3] @ matrix [3, 3]."""
    return (
        row[0] * matrix[0][0] + row[1] * matrix[1][0] + row[2] * matrix[2][0],
        row[0] * matrix[0][1] + row[1] * matrix[1][1] + row[2] * matrix[2][1],
        row[0] * matrix[0][2] + row[1] * matrix[1][2] + row[2] * matrix[2][2],
    )


@device
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@device
def scaled(row, scales):
    return row[0] * scales[0], row[1] * scales[1], row[2] * scales[2]


@device
def squared_cross(a, b):
    """|a x b|^2, which is (a.a)(b.b) - (a.b)^2 without the cancellation: exact for needles and edge-on pancakes."""
    x = a[1] * b[2] - a[2] * b[1]
    y = a[2] * b[0] - a[0] * b[2]
    z = a[0] * b[1] - a[1] * b[0]
    return x * x + y * y + z * z


# What the forward and the backward stage both need of a projected Gaussian.
Footprint = namedtuple(
    "Footprint",
    [
        "inverse_z",  # 1 / z-depth
        "slope_x",  # x / z, limited
        "slope_y",
        "screen_x",  # rows of J W
        "screen_y",
        "quat",  # unit
        "inverse_norm",  # of the quaternion
        "rotation",  # R(q)
        "turned_x",  # rows of J W R
        "turned_y",
        "axis_x",  # rows of J W R S
        "axis_y",
        "a",  # 2D covariance [[a, b], [b, c]], with blur
        "b",
        "c",
        "sharp",  # its determinant without blur
        "determinant",
    ],
)


@device
def footprint(camera, x, y, inverse_z, quat, sizes):
    """The screen-space ellipse of a Gaussian at camera-frame (x, y, 1 / inverse_z)."""
    slope_x, slope_y = clamped_slopes(camera, x, y, inverse_z)
    screen_x, screen_y = screen_from_world(camera, slope_x, slope_y, inverse_z)
    qw, qx, qy, qz, inverse_norm = unit_quaternion(quat[0], quat[1], quat[2], quat[3])
    rotation = rotation_matrix(qw, qx, qy, qz)
    turned_x, turned_y = row_times(screen_x, rotation), row_times(screen_y, rotation)
    axis_x, axis_y = scaled(turned_x, sizes), scaled(turned_y, sizes)
    a, b, c = dot(axis_x, axis_x) + BLUR, dot(axis_x, axis_y), dot(axis_y, axis_y) + BLUR
    sharp = squared_cross(axis_x, axis_y)
    # det(C + blur I) = det C + blur tr C + blur^2, in terms of the blurred diagonal
    determinant = sharp + BLUR * (a + c) - BLUR * BLUR
    return Footprint(
        inverse_z, slope_x, slope_y, screen_x, screen_y, (qw, qx, qy, qz), inverse_norm, rotation,
        turned_x, turned_y, axis_x, axis_y, a, b, c, sharp, determinant,
    )  # fmt: skip


@device
def gather_3(array, i, lanes):
    """Rows i to i + lanes of a flat [N, 3] array, as columns."""
    return gather(array, 3 * i, 3, lanes), gather(array, 3 * i + 1, 3, lanes), gather(array, 3 * i + 2, 3, lanes)


@device
def gather_4(array, i, lanes):
    """Rows i to i + lanes of a flat [N, 4] array, as columns."""
    return (
        gather(array, 4 * i, 4, lanes),
        gather(array, 4 * i + 1, 4, lanes),
        gather(array, 4 * i + 2, 4, lanes),
        gather(array, 4 * i + 3, 4, lanes),
    )
