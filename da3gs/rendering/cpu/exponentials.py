"""exp2 and log2 of `Lanes`: polynomials, as a call per lane into the C library would cost more than all the rest."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from da3gs.rendering.cpu.compiling import device
from da3gs.rendering.cpu.lanes import FLOATS, INTS, LANES, WIDTH, f32, maximum, nearest


@intrinsic
def _scale_by_power_of_two(typing_context, values, exponents):
    """values * 2**exponents for whole exponents that leave the result a normal number."""

    def emit(context, builder, sig, args):
        bits = builder.bitcast(args[0], INTS)
        whole = builder.fptosi(args[1], INTS)
        shifted = builder.shl(whole, ir.Constant(INTS, [23] * WIDTH))
        return builder.bitcast(builder.add(bits, shifted), FLOATS)

    return LANES(LANES, LANES), emit


@device
def exp2(x):
    """2**x for x in [-100, 127], clamped below; relative error 2e-7 (minimax polynomial on [-1/2, 1/2])."""
    x = maximum(x, f32(-100.0))
    whole = nearest(x)
    rest = x - whole
    power = f32(9.675540961325169e-03) + rest * f32(1.3276460813358426e-03)
    power = f32(5.550713464617729e-02) + rest * power
    power = f32(2.4022120237350464e-01) + rest * power
    power = f32(6.931469440460205e-01) + rest * power
    power = f32(1.0000001192092896) + rest * power
    return _scale_by_power_of_two(power, whole)


@intrinsic
def _split_float(typing_context, values):
    """(exponent, mantissa in [1, 2)) of positive normal numbers."""

    def emit(context, builder, sig, args):
        bits = builder.bitcast(args[0], INTS)
        biased = builder.lshr(bits, ir.Constant(INTS, [23] * WIDTH))
        exponent = builder.sitofp(builder.sub(biased, ir.Constant(INTS, [127] * WIDTH)), FLOATS)
        fraction = builder.and_(bits, ir.Constant(INTS, [0x7FFFFF] * WIDTH))
        mantissa = builder.bitcast(builder.or_(fraction, ir.Constant(INTS, [127 << 23] * WIDTH)), FLOATS)
        return context.make_tuple(builder, sig.return_type, [exponent, mantissa])

    return types.UniTuple(LANES, 2)(LANES), emit


@device
def log2(x):
    """log2 of positive normal numbers; absolute error 1e-6. Series of atanh: ln m = 2 atanh((m - 1) / (m + 1))."""
    exponent, mantissa = _split_float(x)
    ratio = (mantissa - f32(1.0)) / (mantissa + f32(1.0))
    square = ratio * ratio
    series = f32(1.0 / 7.0) + square * f32(1.0 / 9.0)
    series = f32(1.0 / 5.0) + square * series
    series = f32(1.0 / 3.0) + square * series
    series = f32(1.0) + square * series
    return exponent + f32(2.0 / np.log(2.0)) * ratio * series
