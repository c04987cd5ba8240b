"""`Lanes`: a SIMD vector of float32 as a numba type, so that kernels are written once and never depend on the optimiser
finding the vectors by itself.

A `Lanes` holds WIDTH float32 values, a `Mask` WIDTH booleans. Arithmetic and comparisons work between Lanes and with
float32 scalars; Masks combine with ``&  |  ~``. Everything else is a function of this module. WIDTH is the widest
register of the CPU: 16 with AVX-512, 8 with AVX, 4 elsewhere (SSE, NEON).

Arrays are flat and C-contiguous; offsets count elements and are not checked.
"""

import operator

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from da3gs.rendering.cpu.compiling import device

f32 = np.float32


def width_of(features: dict[str, bool]) -> int:
    """Number of float32 in the widest vector register of a processor with these LLVM features."""
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx") else 4


def _target_features() -> dict[str, bool]:
    """Features of the processor numba compiles for: this one, unless NUMBA_CPU_FEATURES names another."""
    if config.CPU_FEATURES is None:
        return dict(llvm.get_host_cpu_features())
    return {feature[1:]: feature[0] == "+" for feature in config.CPU_FEATURES.split(",") if feature}


WIDTH = width_of(_target_features())

_FLOAT, _INT, _BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)
FLOATS, INTS, BITS = (ir.VectorType(element, WIDTH) for element in (_FLOAT, _INT, _BIT))


class LanesType(types.Type):
    def __init__(self):
        super().__init__(name=f"lanes{WIDTH}")


class MaskType(types.Type):
    def __init__(self):
        super().__init__(name=f"mask{WIDTH}")


LANES, MASK = LanesType(), MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, FLOATS)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, BITS)


# ---------------------------------------------------------------- operators


def _splat(builder, scalar):
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), scalar, _INT(0))
    return builder.shuffle_vector(one, ir.Constant(FLOATS, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))


def _as_lanes(builder, numba_type, value):
    return _splat(builder, value) if numba_type == types.float32 else value


def _register_binary(function, result, emit):
    class Template(ConcreteTemplate):
        cases = [  # noqa: RUF012 (numba reads a plain list)
            signature(result, LANES, LANES),
            signature(result, LANES, types.float32),
            signature(result, types.float32, LANES),
        ]

    infer_global(function)(Template)

    def lower(context, builder, sig, args):
        left, right = (_as_lanes(builder, kind, value) for kind, value in zip(sig.args, args, strict=True))
        return emit(builder, left, right)

    for case in Template.cases:
        lower_builtin(function, *case.args)(lower)


def _register_on_masks(function, arity, emit):
    class Template(ConcreteTemplate):
        cases = [signature(MASK, *([MASK] * arity))]  # noqa: RUF012

    infer_global(function)(Template)
    lower_builtin(function, *([MASK] * arity))(lambda context, builder, sig, args: emit(builder, *args))


for _plain, _in_place, _name in (
    (operator.add, operator.iadd, "fadd"),
    (operator.sub, operator.isub, "fsub"),
    (operator.mul, operator.imul, "fmul"),
):
    for _function in (_plain, _in_place):
        _register_binary(_function, LANES, lambda b, x, y, name=_name: getattr(b, name)(x, y))
_register_binary(operator.truediv, LANES, lambda b, x, y: b.fdiv(x, y))
_register_binary(operator.lt, MASK, lambda b, x, y: b.fcmp_ordered("<", x, y))
_register_binary(operator.le, MASK, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_register_binary(operator.gt, MASK, lambda b, x, y: b.fcmp_ordered(">", x, y))
_register_binary(operator.ge, MASK, lambda b, x, y: b.fcmp_ordered(">=", x, y))
_register_on_masks(operator.and_, 2, lambda b, x, y: b.and_(x, y))
_register_on_masks(operator.or_, 2, lambda b, x, y: b.or_(x, y))
_register_on_masks(operator.invert, 1, lambda b, x: b.not_(x))


@infer_global(operator.neg)
class _Negate(ConcreteTemplate):
    cases = [signature(LANES, LANES)]  # noqa: RUF012


lower_builtin(operator.neg, LANES)(lambda context, builder, sig, args: builder.fneg(args[0]))


# ---------------------------------------------------------------- memory


def _address(context, builder, array_type, array, offset):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


@intrinsic
def load(typing_context, array, offset):
    """Lanes array[offset : offset + WIDTH]."""

    def emit(context, builder, sig, args):
        pointer = builder.bitcast(_address(context, builder, sig.args[0], *args), FLOATS.as_pointer())
        return builder.load(pointer, align=4)

    return LANES(array, types.intp), emit


@intrinsic
def store(typing_context, array, offset, values):
    """array[offset : offset + WIDTH] = values."""

    def emit(context, builder, sig, args):
        pointer = builder.bitcast(_address(context, builder, sig.args[0], *args[:2]), FLOATS.as_pointer())
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), emit


@intrinsic
def load_scalar(typing_context, array, offset):
    """array[offset] without the check for negative offsets."""

    def emit(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], *args))

    return array.dtype(array, types.intp), emit


@intrinsic
def take_ticket(typing_context, counter):
    """counter[0], and add 1 to it, in one atomic step: workers that are done early take more of the work."""

    def emit(context, builder, sig, args):
        pointer = _address(context, builder, sig.args[0], args[0], ir.IntType(64)(0))
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "monotonic")

    return types.int64(counter), emit


@intrinsic
def prefetch(typing_context, array, offset):
    """Start to bring the cache line of array[offset] near, for reading."""

    def emit(context, builder, sig, args):
        pointer = builder.bitcast(_address(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer())
        signature_ = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, signature_, "llvm.prefetch.p0")
        builder.call(function, [pointer, _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


def _strided_pointers(context, builder, array_type, array, first, stride, last_lane=None):
    """Pointers [WIDTH] to array[first + lane * stride], with lanes capped at `last_lane`."""
    wide = ir.VectorType(ir.IntType(64), WIDTH)
    lane = ir.Constant(wide, list(range(WIDTH)))
    if last_lane is not None:
        last = _splat_int(builder, last_lane, wide)
        lane = builder.select(builder.icmp_signed("<", lane, last), lane, last)
    bytes_each = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    step = builder.mul(stride, stride.type(bytes_each))
    start = builder.ptrtoint(_address(context, builder, array_type, array, first), ir.IntType(64))
    addresses = builder.add(_splat_int(builder, start, wide), builder.mul(lane, _splat_int(builder, step, wide)))
    pointer = context.get_data_type(array_type.dtype).as_pointer()
    return builder.inttoptr(addresses, ir.VectorType(pointer, WIDTH))


def _splat_int(builder, scalar, vector_type):
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, _INT(0))
    return builder.shuffle_vector(one, ir.Constant(vector_type, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))


@intrinsic
def gather(typing_context, array, first, stride, count):
    """Lanes array[first + lane * stride]; lanes from `count` (>= 1) on repeat the last one before it."""

    def emit(context, builder, sig, args):
        array_value, first_value, stride_value, count_value = args
        last = builder.sub(count_value, count_value.type(1))
        pointers = _strided_pointers(context, builder, sig.args[0], array_value, first_value, stride_value, last)
        everywhere, nothing = ir.Constant(BITS, [1] * WIDTH), ir.Constant(FLOATS, ir.Undefined)
        name = f"llvm.masked.gather.v{WIDTH}f32.v{WIDTH}p0"
        return _call(builder, name, FLOATS, pointers, _INT(4), everywhere, nothing)

    if array.dtype != types.float32:
        return None
    return LANES(array, types.intp, types.intp, types.intp), emit


@intrinsic
def scatter(typing_context, array, first, stride, values, mask):
    """array[first + lane * stride] = values where the mask is set, converted to the type of the array."""

    def emit(context, builder, sig, args):
        array_value, first_value, stride_value, values_value, mask_value = args
        pointers = _strided_pointers(context, builder, sig.args[0], array_value, first_value, stride_value)
        element = sig.args[0].dtype
        if isinstance(element, types.Integer):
            values_value = builder.fptosi(values_value, ir.VectorType(ir.IntType(element.bitwidth), WIDTH))
        kind = f"i{element.bitwidth}" if isinstance(element, types.Integer) else "f32"
        name = f"llvm.masked.scatter.v{WIDTH}{kind}.v{WIDTH}p0"
        _call(builder, name, ir.VoidType(), values_value, pointers, _INT(element.bitwidth // 8), mask_value)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, LANES, MASK), emit


# ---------------------------------------------------------------- functions of lanes


def _call(builder, name, result, *args):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in args]), name
    )
    return builder.call(function, args)


def _unary(name):
    def declare(typing_context, values):
        def emit(context, builder, sig, args):
            return _call(builder, f"llvm.{name}.v{WIDTH}f32", FLOATS, args[0])

        return LANES(LANES), emit

    declare.__name__ = name
    return intrinsic(declare)


sqrt = _unary("sqrt")
floor = _unary("floor")
ceil = _unary("ceil")
nearest = _unary("rint")
absolute = _unary("fabs")


@intrinsic
def splat(typing_context, scalar):
    """The same float32 in every lane."""
    return LANES(types.float32), lambda context, builder, sig, args: _splat(builder, args[0])


@intrinsic
def lane_pattern(typing_context, period):
    """(lane % period, lane // period) as two Lanes; `period` is a literal: the pixel of a lane in its block."""
    if not isinstance(period, types.IntegerLiteral):
        return None
    step = period.literal_value

    def emit(context, builder, sig, args):
        pair = [
            ir.Constant(FLOATS, [float(lane % step) for lane in range(WIDTH)]),
            ir.Constant(FLOATS, [float(lane // step) for lane in range(WIDTH)]),
        ]
        return context.make_tuple(builder, sig.return_type, pair)

    return types.UniTuple(LANES, 2)(period), emit


@intrinsic
def first_lanes(typing_context, count):
    """Mask of the lanes below `count`."""

    def emit(context, builder, sig, args):
        count_value = builder.trunc(args[0], _INT)
        one = builder.insert_element(ir.Constant(INTS, ir.Undefined), count_value, _INT(0))
        counts = builder.shuffle_vector(one, ir.Constant(INTS, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))
        return builder.icmp_signed("<", ir.Constant(INTS, list(range(WIDTH))), counts)

    return MASK(types.intp), emit


@intrinsic
def select(typing_context, mask, yes, no):
    """`yes` where the mask is set, else `no`."""

    def emit(context, builder, sig, args):
        picked, other = (_as_lanes(builder, kind, value) for kind, value in zip(sig.args[1:], args[1:], strict=True))
        return builder.select(args[0], picked, other)

    return LANES(MASK, yes, no), emit


@intrinsic
def any_of(typing_context, mask):
    """True if the mask is set in some lane."""

    def emit(context, builder, sig, args):
        return _call(builder, f"llvm.vector.reduce.or.v{WIDTH}i1", _BIT, args[0])

    return types.boolean(MASK), emit


@intrinsic
def total(typing_context, values):
    """Sum over the lanes."""

    def emit(context, builder, sig, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOAT, [_FLOAT, FLOATS]), f"llvm.vector.reduce.fadd.v{WIDTH}f32"
        )
        return builder.call(function, [_FLOAT(0.0), args[0]], fastmath=("reassoc", "nsz"))

    return types.float32(LANES), emit


@device
def minimum(x, y):
    return select(x < y, x, y)


@device
def maximum(x, y):
    return select(x > y, x, y)
