"""What loops do with 64-bit words that Numba has no name for: single instructions of most processors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

__all__ = ["leading_zeros", "store_word", "trailing_zeros"]


def _instruction(emitted: Callable[..., Any]) -> Any:
    """Give compiled code a function whose types, and instructions, this one returns."""
    return intrinsic(emitted)


@_instruction
def trailing_zeros(_: Any, word: Any) -> Any:
    """Return how many zeros lie below the lowest 1 of a ``uint64``; 64 if there is none."""

    def emit(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))  # False: 0 is no special case

    return types.uint64(types.uint64), emit


@_instruction
def leading_zeros(_: Any, word: Any) -> Any:
    """Return how many zeros lie above the highest 1 of a ``uint64``; 64 if there is none."""

    def emit(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), emit


@_instruction
def store_word(_: Any, buffer: Any, place: Any, word: Any) -> Any:
    """Store a ``uint64`` to eight bytes of a ``uint8`` buffer, from any place on, least significant byte first."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bytes_of = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(
            builder.gep(bytes_of.data, [arguments[1]]), context.get_value_type(types.uint64).as_pointer()
        )
        little = arguments[2] if sys.byteorder == "little" else builder.bswap(arguments[2])
        builder.store(little, pointer, align=1)
        return context.get_dummy_value()

    return types.void(buffer, types.uint64, types.uint64), emit
