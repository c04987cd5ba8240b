"""Spherical harmonics of degree 0-3, one Gaussian per lane: basis, colour and their derivatives.

The basis is that of `da3gs.geometry.spherical_harmonics` (a test compares them). Arrays `basis` and `weights` are
scratch of 16 Lanes. Coefficients are read from the flat array of [N, K, 3].
"""

from da3gs.rendering.cpu.compiling import device
from da3gs.rendering.cpu.lanes import WIDTH, f32, gather, load, maximum, splat, sqrt, store
from da3gs.rendering.cpu.layout import EYE_X, EYE_Y, EYE_Z

MAX_COEFFICIENTS = 16

# Normalisations, named by degree: sqrt(1/4pi), sqrt(3/4pi), sqrt(15/4pi), sqrt(5/16pi), sqrt(35/32pi), ...
Y0 = f32(0.28209479177387814)
Y1 = f32(0.48860251190291987)
Y2_XY = f32(1.0925484305920792)
Y2_ZZ = f32(0.31539156525252005)
Y2_XX = f32(0.5462742152960396)
Y3_YXX = f32(0.5900435899266435)
Y3_XYZ = f32(2.890611442640554)
Y3_YZZ = f32(0.4570457994644658)
Y3_ZZZ = f32(0.3731763325901154)
Y3_ZXX = f32(1.445305721320277)
TWO, THREE, FOUR, FIVE, SIX = f32(2.0), f32(3.0), f32(4.0), f32(5.0), f32(6.0)


@device
def view_direction(camera, world):
    """Unit vector from the camera centre to a point, and 1 / distance."""
    x, y, z = world[0] - camera[EYE_X], world[1] - camera[EYE_Y], world[2] - camera[EYE_Z]
    inverse_distance = f32(1.0) / sqrt(maximum(x * x + y * y + z * z, f32(1e-30)))
    return x * inverse_distance, y * inverse_distance, z * inverse_distance, inverse_distance


@device
def write_basis(basis, count, x, y, z):
    """basis[k] = Y_k(x, y, z) for k < count (1, 4, 9 or 16), at unit vectors."""
    store(basis, 0, splat(Y0))
    if count > 1:
        store(basis, 1 * WIDTH, -Y1 * y)
        store(basis, 2 * WIDTH, Y1 * z)
        store(basis, 3 * WIDTH, -Y1 * x)
    if count > 4:
        store(basis, 4 * WIDTH, Y2_XY * (x * y))
        store(basis, 5 * WIDTH, -Y2_XY * (y * z))
        store(basis, 6 * WIDTH, Y2_ZZ * (THREE * (z * z) - f32(1.0)))
        store(basis, 7 * WIDTH, -Y2_XY * (x * z))
        store(basis, 8 * WIDTH, Y2_XX * (x * x - y * y))
    if count > 9:
        store(basis, 9 * WIDTH, -Y3_YXX * (y * (THREE * (x * x) - y * y)))
        store(basis, 10 * WIDTH, Y3_XYZ * (x * y * z))
        store(basis, 11 * WIDTH, -Y3_YZZ * (y * (FIVE * (z * z) - f32(1.0))))
        store(basis, 12 * WIDTH, Y3_ZZZ * (z * (FIVE * (z * z) - THREE)))
        store(basis, 13 * WIDTH, -Y3_YZZ * (x * (FIVE * (z * z) - f32(1.0))))
        store(basis, 14 * WIDTH, Y3_ZXX * (z * (x * x - y * y)))
        store(basis, 15 * WIDTH, -Y3_YXX * (x * (x * x - THREE * (y * y))))


@device
def evaluate(coefficients, first, stride, lanes, basis, count, channel):
    """sum_k basis[k] coefficients[first + lane * stride + 3 k + channel]."""
    value = splat(f32(0.0))
    for k in range(count):
        value += load(basis, k * WIDTH) * gather(coefficients, first + 3 * k + channel, stride, lanes)
    return value


@device
def direction_gradient(weights, count, x, y, z):
    """sum_k weights[k] dY_k/d(x, y, z), with Y_k as polynomials of free x, y, z."""
    zero = splat(f32(0.0))
    vx, vy, vz = zero, zero, zero
    if count > 1:
        vy -= Y1 * load(weights, 1 * WIDTH)
        vz += Y1 * load(weights, 2 * WIDTH)
        vx -= Y1 * load(weights, 3 * WIDTH)
    if count > 4:
        xy = Y2_XY * load(weights, 4 * WIDTH)
        yz = -Y2_XY * load(weights, 5 * WIDTH)
        zz = Y2_ZZ * load(weights, 6 * WIDTH)
        xz = -Y2_XY * load(weights, 7 * WIDTH)
        xx = Y2_XX * load(weights, 8 * WIDTH)
        vx += xy * y + xz * z + TWO * (xx * x)
        vy += xy * x + yz * z - TWO * (xx * y)
        vz += yz * y + xz * x + SIX * (zz * z)
    if count > 9:
        yxx = -Y3_YXX * load(weights, 9 * WIDTH)
        xyz = Y3_XYZ * load(weights, 10 * WIDTH)
        yzz = -Y3_YZZ * load(weights, 11 * WIDTH)
        zzz = Y3_ZZZ * load(weights, 12 * WIDTH)
        xzz = -Y3_YZZ * load(weights, 13 * WIDTH)
        zxx = Y3_ZXX * load(weights, 14 * WIDTH)
        xyy = -Y3_YXX * load(weights, 15 * WIDTH)
        x2_less_y2 = x * x - y * y
        five_z2 = FIVE * (z * z)
        vx += SIX * (yxx * (x * y)) + xyz * (y * z) + xzz * (five_z2 - f32(1.0)) + TWO * (zxx * (x * z))
        vx += THREE * (xyy * x2_less_y2)
        vy += THREE * (yxx * x2_less_y2) + xyz * (x * z) + yzz * (five_z2 - f32(1.0)) - TWO * (zxx * (y * z))
        vy -= SIX * (xyy * (x * y))
        vz += xyz * (x * y) + f32(10.0) * (z * (yzz * y + xzz * x)) + THREE * (zzz * (five_z2 - f32(1.0)))
        vz += zxx * x2_less_y2
    return vx, vy, vz
