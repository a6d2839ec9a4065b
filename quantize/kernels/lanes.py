"""Vector values in Numba: one block (or super-block) in each SIMD lane.

`F32`, `I32` and `MASK` are Numba types that stand for an LLVM vector of `WIDTH` lanes and take the operators of the
scalar types. A kernel written with them reads like the scalar algorithm and runs it on `WIDTH` blocks at once: each
lane does the IEEE float32 operations of scalar code in their order, since LLVM may neither reorder nor fuse them.
`Buffer` is a small array of vectors on the stack.

Scalars mix with vectors of their kind: np.float32 with F32, integers with I32. A float64 is a type error, so that a
constant without np.float32 cannot give a slower, different result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing import templates
from numba.extending import models, register_model

from mconv.quantize.kernels.jit import intrinsic

# Two registers a value: enough independent work to hide the latency of in-order sums, few enough to stay in registers.
WIDTH = 32 if llvm.get_host_cpu_features().get("avx512f") else 16
_ALIGN = 64  # of buffers, in bytes: no vector straddles a cache line

# These values as Python's type checker sees them.
Floats: TypeAlias = Any
Ints: TypeAlias = Any
Mask: TypeAlias = Any
Buffer: TypeAlias = Any

_Emit: TypeAlias = Callable[..., ir.Value]


class Lanes(types.Type):
    """A vector of `WIDTH` float32, int32 or truth values."""


class BufferType(types.Type):
    """A stack array of vectors of one type."""

    def __init__(self, dtype: Lanes) -> None:
        self.dtype = dtype
        super().__init__(f"buffer_{dtype.name}")


F32, I32, MASK = Lanes("f32_lanes"), Lanes("i32_lanes"), Lanes("mask_lanes")
_ELEMENT = {F32: ir.FloatType(), I32: ir.IntType(32), MASK: ir.IntType(1)}
_VECTOR = {lanes: ir.VectorType(element, WIDTH) for lanes, element in _ELEMENT.items()}
_SCALARS = {F32: (types.float32,), I32: (types.int32, types.int64), MASK: ()}


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, _VECTOR[fe_type])


@register_model(BufferType)
class _BufferModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: BufferType) -> None:
        super().__init__(dmm, fe_type, _VECTOR[fe_type.dtype].as_pointer())


# ---- operators


def _splat(builder: ir.IRBuilder, lanes: Lanes, scalar: ir.Value) -> ir.Value:
    """The scalar in every lane."""
    vector, index = _VECTOR[lanes], ir.IntType(32)
    if scalar.type != _ELEMENT[lanes]:
        scalar = builder.trunc(scalar, _ELEMENT[lanes])
    if isinstance(scalar, ir.Constant):
        return ir.Constant(vector, [scalar.constant] * WIDTH)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(index, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, WIDTH), [0] * WIDTH))


def _operand(argument: types.Type, lanes: Lanes) -> types.Type | None:
    """The type as which an operator of `lanes` accepts `argument`; None if it does not."""
    scalar = types.unliteral(argument)
    return scalar if scalar == lanes or scalar in _SCALARS[lanes] else None


def _vectors(builder: ir.IRBuilder, lanes: Lanes, operands: Any, values: Any) -> list[ir.Value]:
    return [
        value if operand == lanes else _splat(builder, lanes, value)
        for operand, value in zip(operands, values, strict=True)
    ]


def _binary(function: Any, lanes: Lanes, result: Lanes, emit: _Emit) -> None:
    """Define `function(a, b)` for `lanes` on either side, with `lanes` or a scalar of its kind on the other."""

    class Template(templates.AbstractTemplate):
        key = function

        def generic(self, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
            operands = [_operand(argument, lanes) for argument in args]
            if lanes not in args or None in operands:
                return None
            return templates.signature(result, *operands)

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(builder, *_vectors(builder, lanes, sig.args, args))

    templates.infer_global(function)(Template)
    lower_builtin(function, lanes, lanes)(lower)
    for scalar in _SCALARS[lanes]:
        lower_builtin(function, lanes, scalar)(lower)
        lower_builtin(function, scalar, lanes)(lower)


_build = ir.IRBuilder
for _lanes, _names, _emit in (
    (F32, ("add", "iadd"), _build.fadd),
    (F32, ("sub", "isub"), _build.fsub),
    (F32, ("mul", "imul"), _build.fmul),
    (F32, ("truediv",), _build.fdiv),
    (I32, ("add", "iadd"), _build.add),
    (I32, ("sub", "isub"), _build.sub),
    (I32, ("and_", "iand"), _build.and_),
    (I32, ("or_", "ior"), _build.or_),
    (I32, ("lshift",), _build.shl),
    (I32, ("rshift",), _build.lshr),
    (MASK, ("and_", "iand"), _build.and_),
    (MASK, ("or_", "ior"), _build.or_),
):
    for _name in _names:
        _binary(getattr(operator, _name), _lanes, _lanes, _emit)


def _comparison(name: str, symbol: str) -> None:
    def floats(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        # As in C, every comparison with a NaN is false except `!=`.
        return (builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered)(symbol, a, b)

    def ints(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.icmp_signed(symbol, a, b)

    _binary(getattr(operator, name), F32, MASK, floats)
    _binary(getattr(operator, name), I32, MASK, ints)


for _name, _symbol in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
    _comparison(_name, _symbol)


# ---- functions of one vector


def _lowered(signature: Any, emit: _Emit) -> Any:
    """What an intrinsic returns: its signature, and how `emit(builder, *values)` makes its value."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(builder, *args)

    return signature, generate


def _unary(source: Lanes, result: types.Type, emit: _Emit) -> Any:
    def typed(typingctx: Any, value: types.Type) -> Any:
        if value != source:
            return None
        return _lowered(result(value), emit)

    return intrinsic(typed)


def _llvm(name: str) -> _Emit:
    def emit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        signature = ir.FunctionType(value.type, (value.type,))
        function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{WIDTH}f32")
        return builder.call(function, (value,))

    return emit


def _any(builder: ir.IRBuilder, mask: ir.Value) -> ir.Value:
    word = ir.IntType(WIDTH)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, word), ir.Constant(word, 0))


sqrt = _unary(F32, F32, _llvm("sqrt"))
absolute = _unary(F32, F32, _llvm("fabs"))
negative = _unary(F32, F32, lambda builder, value: builder.fneg(value))
bits = _unary(F32, I32, lambda builder, value: builder.bitcast(value, _VECTOR[I32]))
from_bits = _unary(I32, F32, lambda builder, value: builder.bitcast(value, _VECTOR[F32]))
to_float = _unary(I32, F32, lambda builder, value: builder.sitofp(value, _VECTOR[F32]))
truncate = _unary(F32, I32, lambda builder, value: builder.fptosi(value, _VECTOR[I32]))
any_lane = _unary(MASK, types.boolean, _any)
invert = _unary(MASK, MASK, lambda builder, value: builder.not_(value))


@intrinsic
def select(typingctx: Any, mask: types.Type, yes: types.Type, no: types.Type) -> Any:
    """`yes` in the lanes of `mask` and `no` in the others; one of the two may be a scalar."""
    lanes = yes if isinstance(yes, Lanes) else no
    if mask != MASK or not isinstance(lanes, Lanes):
        return None
    operands = [operand for argument in (yes, no) if (operand := _operand(argument, lanes))]
    if len(operands) < 2:
        return None

    def emit(builder: ir.IRBuilder, condition: ir.Value, *values: ir.Value) -> ir.Value:
        return builder.select(condition, *_vectors(builder, lanes, operands, values))

    return _lowered(lanes(mask, *operands), emit)


@intrinsic
def fill(typingctx: Any, scalar: types.Type) -> Any:
    """A float32 or an integer in every lane."""
    lanes = F32 if types.unliteral(scalar) == types.float32 else I32
    operand = _operand(scalar, lanes)
    if operand is None:
        return None
    return _lowered(lanes(operand), lambda builder, value: _splat(builder, lanes, value))


# ---- buffers


def _allocator(lanes: Lanes) -> Any:
    def typed(typingctx: Any, count: types.Type) -> Any:
        if not isinstance(count, types.IntegerLiteral):
            return None

        def emit(builder: ir.IRBuilder, _: ir.Value) -> ir.Value:
            memory = cgutils.alloca_once(builder, ir.ArrayType(_VECTOR[lanes], count.literal_value))
            memory.align = _ALIGN
            return builder.bitcast(memory, _VECTOR[lanes].as_pointer())

        return _lowered(BufferType(lanes)(count), emit)

    return intrinsic(prefer_literal=True)(typed)


f32_buffer = _allocator(F32)
i32_buffer = _allocator(I32)


@intrinsic
def part(typingctx: Any, buffer: types.Type, start: types.Type) -> Any:
    """The buffer from vector `start` on; the memory is shared."""
    if not isinstance(buffer, BufferType):
        return None
    return _lowered(buffer(buffer, types.intp), lambda builder, memory, index: builder.gep(memory, [index]))


@templates.infer_global(operator.getitem)
class _GetItem(templates.AbstractTemplate):
    def generic(self, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
        if isinstance(args[0], BufferType) and isinstance(args[1], types.Integer):
            return templates.signature(args[0].dtype, args[0], types.intp)
        return None


@templates.infer_global(operator.setitem)
class _SetItem(templates.AbstractTemplate):
    def generic(self, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
        buffer, index, value = args
        if isinstance(buffer, BufferType) and isinstance(index, types.Integer) and value == buffer.dtype:
            return templates.signature(types.none, buffer, types.intp, value)
        return None


@lower_builtin(operator.getitem, BufferType, types.intp)
def _get(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    value = builder.load(builder.gep(args[0], [args[1]]))
    value.align = _ALIGN
    return value


@lower_builtin(operator.setitem, BufferType, types.intp, Lanes)
def _set(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    builder.store(args[2], builder.gep(args[0], [args[1]])).align = _ALIGN
    return context.get_dummy_value()
