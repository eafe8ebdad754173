"""Three operations that Numba does not offer, for the kernels' inner loops.

Numba keeps a copy of a few numbers as that many scalar loads and stores, because it cannot know that the arrays do not
overlap; these say so. Lengths are numbers like any other, so that one compiled kernel serves every kind of exam.
Nothing is checked: indices are unsigned and in range, arrays are C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INT8, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_SHORT = 16


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, indices: list[Any]) -> Any:
    array = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)


def _in_pieces(builder: Any, length: Any, piece: Callable[[Any, int], None], long: Callable[[], None]) -> None:
    """Cover ``0..length-1`` by ``piece(first, size)`` with sizes that the compiler knows, or at once by ``long()``.

    Two pieces of the largest size that fits, the second one ending at the end: they may overlap. There is no loop,
    for one inside the callers' loops costs them their registers.
    """
    end = builder.append_basic_block("covered")

    def fork(condition: Any) -> tuple[Any, Any]:
        yes, no = builder.append_basic_block("fits"), builder.append_basic_block("else")
        return builder.cbranch(condition, yes, no), (yes, no)

    branch, (yes, no) = fork(builder.icmp_unsigned(">", length, _INT64(_SHORT)))
    branch.set_weights([1, 1000])
    builder.position_at_end(yes)
    long()
    builder.branch(end)
    builder.position_at_end(no)
    for size in (8, 4, 2, 1):
        _, (yes, no) = fork(builder.icmp_unsigned(">=", length, _INT64(size)))
        builder.position_at_end(yes)
        piece(_INT64(0), size)
        if size > 1:
            piece(builder.sub(length, _INT64(size)), size)
        builder.branch(end)
        builder.position_at_end(no)
    builder.branch(end)
    builder.position_at_end(end)


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
    """``target[row, column : column + length] = source[from_row, from_column : from_column + length]``."""
    if target.dtype != source.dtype:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to = _pointer(context, builder, signature.args[0], arguments[0], arguments[1:3])
        start = _pointer(context, builder, signature.args[3], arguments[3], arguments[4:6])
        itemsize = context.get_abi_sizeof(context.get_data_type(target.dtype))

        def copy(first: Any, size: int) -> None:
            piece = builder.gep(to, [first]), builder.gep(start, [first])
            cgutils.raw_memcpy(builder, *piece, cgutils.intp_t(size), itemsize)

        _in_pieces(builder, arguments[6], copy, lambda: cgutils.raw_memcpy(builder, to, start, arguments[6], itemsize))
        return context.get_dummy_value()

    index = types.uint64
    return types.void(target, index, index, source, index, index, index), codegen


@intrinsic
def at_most(typingctx: Any, target: Any, row: Any, source: Any, from_row: Any, limit: Any, length: Any) -> Any:
    """``target[row] = source[from_row] <= limit``: int8 of 0 and 1, int32 rows of ``length`` numbers."""
    if target.dtype != types.int8 or source.dtype != types.int32:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = context.get_constant(types.uint64, 0)
        to = _pointer(context, builder, signature.args[0], arguments[0], [arguments[1], zero])
        start = _pointer(context, builder, signature.args[2], arguments[2], [arguments[3], zero])

        def compare(first: Any, size: int) -> None:
            numbers = ir.VectorType(_INT32, size)
            row = builder.load(builder.bitcast(builder.gep(start, [first]), numbers.as_pointer()), align=4)
            limits = ir.Constant(numbers, ir.Undefined)
            limits = builder.insert_element(limits, arguments[4], _INT32(0))
            limits = builder.shuffle_vector(limits, limits, ir.Constant(numbers, [_INT32(0)] * size))
            fits = builder.zext(builder.icmp_signed("<=", row, limits), ir.VectorType(_INT8, size))
            builder.store(fits, builder.bitcast(builder.gep(to, [first]), fits.type.as_pointer()), align=1)

        many = _many_at_most(builder.module)
        _in_pieces(builder, arguments[5], compare, lambda: builder.call(many, [to, start, *arguments[4:]]))
        return context.get_dummy_value()

    index = types.uint64
    return types.void(target, index, source, index, types.int32, index), codegen


def _many_at_most(module: Any) -> Any:
    """The same for a long row, one by one, as a function of its own."""
    kind = ir.FunctionType(ir.VoidType(), [_INT8.as_pointer(), _INT32.as_pointer(), _INT32, _INT64])
    function = cgutils.get_or_insert_function(module, kind, "roi_env_many_at_most")
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        to, start, limit, length = function.args
        builder = ir.IRBuilder(function.append_basic_block())
        with cgutils.for_range(builder, length) as loop:
            fits = builder.icmp_signed("<=", builder.load(builder.gep(start, [loop.index])), limit)
            builder.store(builder.zext(fits, _INT8), builder.gep(to, [loop.index]))
        builder.ret_void()
    return function
