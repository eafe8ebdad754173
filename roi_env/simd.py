"""Three operations that Numba does not offer, one machine instruction or few each, for the kernels' inner loops.

Numba keeps a copy of a few numbers as that many scalar loads and stores, because it cannot know that the arrays do not
overlap; these say so. Lengths come from the *type* of a tuple, so that the compiler knows them. Nothing is checked:
indices are unsigned and in range, arrays are C-contiguous.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INT32 = ir.IntType(32)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, indices: list[Any]) -> Any:
    array = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for ``array[index]`` (one-dimensional) to be in the cache soon."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(
            _pointer(context, builder, signature.args[0], arguments[0], [arguments[1]]), cgutils.voidptr_t
        )
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, _INT32(0), _INT32(3), _INT32(1)])  # to read, into every level, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), codegen


@intrinsic
def copy_row(
    typingctx: Any, target: Any, row: Any, column: Any, source: Any, from_row: Any, from_column: Any, length: Any
) -> Any:
    """``target[row, column : column + n] = source[from_row, from_column : from_column + n]`` with ``n = len(length)``."""
    if target.dtype != source.dtype:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to = _pointer(context, builder, signature.args[0], arguments[0], arguments[1:3])
        start = _pointer(context, builder, signature.args[3], arguments[3], arguments[4:6])
        itemsize = context.get_abi_sizeof(context.get_data_type(target.dtype))
        cgutils.raw_memcpy(builder, to, start, cgutils.intp_t(len(length)), itemsize)
        return context.get_dummy_value()

    index = types.uint64
    return types.void(target, index, index, source, index, index, length), codegen


@intrinsic
def at_most(typingctx: Any, target: Any, row: Any, source: Any, from_row: Any, limit: Any, length: Any) -> Any:
    """``target[row] = source[from_row] <= limit``: int8 of 0 and 1, int32 rows of ``len(length)`` numbers."""
    if target.dtype != types.int8 or source.dtype != types.int32:
        return None
    size = len(length)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = context.get_constant(types.uint64, 0)
        to = _pointer(context, builder, signature.args[0], arguments[0], [arguments[1], zero])
        start = _pointer(context, builder, signature.args[2], arguments[2], [arguments[3], zero])
        numbers = ir.VectorType(_INT32, size)
        row = builder.load(builder.bitcast(start, numbers.as_pointer()), align=4)
        limits = ir.Constant(numbers, ir.Undefined)
        limits = builder.insert_element(limits, arguments[4], _INT32(0))
        limits = builder.shuffle_vector(limits, limits, ir.Constant(numbers, [_INT32(0)] * size))
        fits = builder.zext(builder.icmp_signed("<=", row, limits), ir.VectorType(ir.IntType(8), size))
        builder.store(fits, builder.bitcast(to, fits.type.as_pointer()), align=1)
        return context.get_dummy_value()

    index = types.uint64
    return types.void(target, index, source, index, types.int32, length), codegen
