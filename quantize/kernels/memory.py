"""Between blocks in memory and lanes: loads that widen and transpose, stores that transpose back.

`places` says where in memory the block of each lane starts, in bytes from a base address. Tiles of 8 blocks by 8
elements are transposed in registers, in three rounds of shuffles that AVX does in one instruction each.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mconv.quantize.kernels.jit import intrinsic, jit
from mconv.quantize.kernels.lanes import WIDTH, Buffer

Places: TypeAlias = Any

_TILE = 8
_I16, _I32, _WORD, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, _TILE), ir.VectorType(_FLOAT, _TILE)


@intrinsic
def new_places(typingctx: Any) -> Any:
    """Room for the place of each lane, on the stack."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(_WORD, WIDTH)), _WORD.as_pointer())

    return types.CPointer(types.intp)(), generate


@jit
def set_places(places: Places, first: int, count: int, period: int, size: int) -> None:
    """Lane i takes block `first + i`, of `size` bytes; places repeat after `period` blocks.

    Lanes after the last of `count` blocks repeat it: they compute and write the same bytes again, so that kernels need
    no separate code for the end of a tensor.
    """
    for lane in range(WIDTH):
        places[lane] = (min(first + lane, count - 1) % period) * size


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The transpose of 8 vectors of 8."""

    def round_(values: list[ir.Value], apart: int, low: list[int], high: list[int]) -> list[ir.Value]:
        masks = [ir.Constant(ir.VectorType(_I32, _TILE), mask) for mask in (low, high)]
        starts = [i for i in range(_TILE) if not i & apart]
        return [builder.shuffle_vector(values[i], values[i + apart], mask) for i in starts for mask in masks]

    pairs = round_(rows, 1, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])
    quads = round_(pairs, 2, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
    halves = round_(quads, 4, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
    return halves[0::2] + halves[1::2]


def _same(element: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, _TILE), [value] * _TILE)


def _from_f32(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return builder.bitcast(raw, _FLOATS)


def _from_bf16(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return builder.bitcast(builder.shl(builder.zext(raw, _INTS), _same(_I32, 16)), _FLOATS)


def _from_f16(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    # Shifted into place the exponent lacks the difference of the biases, 112, which a multiplication adds exactly and
    # for subnormals too. Infinity and NaN keep an exponent of all ones.
    wide = builder.zext(raw, _INTS)
    magnitude = builder.shl(builder.and_(wide, _same(_I32, 0x7FFF)), _same(_I32, 13))
    scaled = builder.bitcast(builder.fmul(builder.bitcast(magnitude, _FLOATS), _same(_FLOAT, 2.0**112)), _INTS)
    special = builder.icmp_unsigned(">=", magnitude, _same(_I32, 0x7C00 << 13))
    exponent = builder.select(special, _same(_I32, 0x7F800000), _same(_I32, 0))
    sign = builder.shl(builder.and_(wide, _same(_I32, 0x8000)), _same(_I32, 16))
    return builder.bitcast(builder.or_(builder.or_(scaled, exponent), sign), _FLOATS)


# The kinds of source: how an element is stored, and how it becomes a float32.
F32_KIND, F16_KIND, BF16_KIND = 0, 1, 2
KIND_BYTES = (4, 2, 2)
_STORAGE = (_I32, _I16, _I16)
_WIDEN = (_from_f32, _from_f16, _from_bf16)


def _word(value: int) -> ir.Constant:
    return ir.Constant(_WORD, value)


def _memory(builder: ir.IRBuilder, base: ir.Value, places: ir.Value, lane: ir.Value, offset: ir.Value) -> ir.Value:
    """The address `offset` bytes into the block of `lane`."""
    return builder.add(builder.add(base, builder.load(builder.gep(places, [lane]))), offset)


def _slot(builder: ir.IRBuilder, buffer: ir.Value, index: ir.Value, lane: ir.Value, element: ir.Type) -> ir.Value:
    """The address of 8 lanes, from `lane` on, of vector `index` in a buffer."""
    flat = builder.bitcast(buffer, element.as_pointer())
    at = builder.add(builder.mul(index, _word(WIDTH)), lane)
    return builder.bitcast(builder.gep(flat, [at]), ir.VectorType(element, _TILE).as_pointer())


@intrinsic(prefer_literal=True)
def _load_tile(
    typingctx: Any,
    base: Any,
    kind: Any,
    places: Any,
    lane: Any,
    start: Any,
    index: Any,
    buffer: Any,
) -> Any:
    """Elements `start` to `start + 8` of 8 blocks, into vectors `index` to `index + 8` of the buffer."""
    which = kind.literal_value

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        base, _, places, lane, start, index, buffer = args
        offset = builder.mul(start, _word(KIND_BYTES[which]))
        rows = []
        for i in range(_TILE):
            address = _memory(builder, base, places, builder.add(lane, _word(i)), offset)
            raw = builder.load(builder.inttoptr(address, ir.VectorType(_STORAGE[which], _TILE).as_pointer()))
            raw.align = 1
            rows.append(_WIDEN[which](builder, raw))
        for i, column in enumerate(_transposed(builder, rows)):
            slot = _slot(builder, buffer, builder.add(index, _word(i)), lane, _FLOAT)
            builder.store(column, slot).align = 4 * _TILE
        return context.get_dummy_value()

    return types.none(types.intp, kind, places, types.intp, types.intp, types.intp, buffer), generate


@intrinsic(prefer_literal=True)
def _store_tile(
    typingctx: Any,
    buffer: Any,
    index: Any,
    count: Any,
    lane: Any,
    base: Any,
    places: Any,
    offset: Any,
) -> Any:
    """`count` (1 to 8) vectors of int32 from `index` on, for 8 lanes, to `offset` bytes into their blocks."""
    held = count.literal_value

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        buffer, index, _, lane, base, places, offset = args
        columns = []
        for i in range(held):
            column = builder.load(_slot(builder, buffer, builder.add(index, _word(i)), lane, _I32))
            column.align = 4 * _TILE
            columns.append(column)
        columns += [ir.Constant(_INTS, ir.Undefined)] * (_TILE - held)
        kept = ir.Constant(ir.VectorType(_I32, held), list(range(held)))
        for i, row in enumerate(_transposed(builder, columns)):
            address = _memory(builder, base, places, builder.add(lane, _word(i)), offset)
            row = builder.shuffle_vector(row, row, kept)
            builder.store(row, builder.inttoptr(address, row.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.none(buffer, types.intp, count, types.intp, types.intp, places, types.intp), generate


@intrinsic
def store_half(typingctx: Any, value: Any, base: Any, places: Any, offset: Any) -> Any:
    """The low 16 bits of each lane of an int32 vector, to `offset` bytes into the lane's block."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value, base, places, offset = args
        for i in range(WIDTH):
            address = _memory(builder, base, places, _word(i), offset)
            half = builder.trunc(builder.extract_element(value, ir.Constant(_I32, i)), _I16)
            builder.store(half, builder.inttoptr(address, _I16.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.none(value, types.intp, places, types.intp), generate


@jit
def load(base: int, kind: int, places: Places, start: int, count: int, buffer: Buffer) -> None:
    """Elements `start` to `start + count` (a multiple of 8) of each lane's block, as float32."""
    for lane in range(0, WIDTH, _TILE):
        if kind == F32_KIND:
            for i in range(0, count, _TILE):
                _load_tile(base, F32_KIND, places, lane, start + i, i, buffer)
        elif kind == F16_KIND:
            for i in range(0, count, _TILE):
                _load_tile(base, F16_KIND, places, lane, start + i, i, buffer)
        else:
            for i in range(0, count, _TILE):
                _load_tile(base, BF16_KIND, places, lane, start + i, i, buffer)


@jit
def store(buffer: Buffer, count: int, base: int, places: Places, offset: int) -> None:
    """The first `count` int32 vectors of the buffer, as little-endian dwords `offset` bytes into each lane's block."""
    for lane in range(0, WIDTH, _TILE):
        for i in range(0, count - 7, _TILE):
            _store_tile(buffer, i, 8, lane, base, places, offset + 4 * i)
        if count & 4:
            _store_tile(buffer, count & ~7, 4, lane, base, places, offset + 4 * (count & ~7))
        if count & 2:
            _store_tile(buffer, count & ~3, 2, lane, base, places, offset + 4 * (count & ~3))
        if count & 1:
            _store_tile(buffer, count & ~1, 1, lane, base, places, offset + 4 * (count & ~1))
