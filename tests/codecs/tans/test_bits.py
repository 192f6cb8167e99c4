"""Numbers as bits: what is written is read, by the specification's reader, too, and no read goes past the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.bits import best_order, read, read_number, write, write_number, zigzag
from tests.codecs.tans.handmade import BitWriter
from tests.support.spec_reader import BitReader, RefusedError


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, (1 << 63) - 1)), max_size=60))
def test_fixed_widths(numbers: list[tuple[int, int]]) -> None:
    buffer, at = np.zeros(1 + sum(count for count, _ in numbers) // 8, np.uint8), np.zeros(1, np.int64)
    by_hand = BitWriter()
    for count, value in numbers:
        write(buffer, at, value, count)
        by_hand.bits(value, count)
    assert at[0] == by_hand.count
    assert buffer.tobytes().startswith(by_hand.bytes())
    reader, at = BitReader(buffer.tobytes()), np.zeros(1, np.int64)
    for count, value in numbers:
        expected = value & ((1 << count) - 1)
        assert read(buffer, at, count) == expected
        assert reader.bits(count) == expected
        assert reader.position == at[0]


def codes(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Orders and numbers that they can code."""
    return st.tuples(st.integers(0, 15), st.integers(0, most) | st.integers(0, 300))


@settings(max_examples=200)
@given(st.lists(codes((1 << 40) - 1), max_size=40))
def test_numbers(numbers: list[tuple[int, int]]) -> None:
    buffer, at = np.zeros(1 + 16 * len(numbers), np.uint8), np.zeros(1, np.int64)
    by_hand = BitWriter()
    for order, value in numbers:
        write_number(buffer, at, value, order)
        by_hand.number(value, order)
    assert at[0] == by_hand.count
    assert buffer.tobytes().startswith(by_hand.bytes())
    reader, at = BitReader(buffer.tobytes()), np.zeros(1, np.int64)
    for order, value in numbers:
        assert read_number(buffer, at, order) == reader.number(order) == value
        assert reader.position == at[0]


@pytest.mark.parametrize("order", range(16))
def test_the_largest_number_of_each_order(order: int) -> None:
    largest = (1 << 62) - (1 << order) - 1
    buffer = np.frombuffer(BitWriter().number(largest, order).bytes(), np.uint8)
    assert read_number(buffer, np.zeros(1, np.int64), order) == largest
    assert BitReader(buffer.tobytes()).number(order) == largest
    beyond = np.frombuffer(BitWriter().number(largest + 1, order).bytes(), np.uint8)
    assert read_number(beyond, np.zeros(1, np.int64), order) == -1
    with pytest.raises(RefusedError):
        BitReader(beyond.tobytes()).number(order)


@pytest.mark.parametrize("order", range(16))
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_a_number_that_never_ends(order: int, size: int) -> None:
    at = np.zeros(1, np.int64)
    assert read_number(np.zeros(size, np.uint8), at, order) == -1
    assert at[0] <= 63


def test_past_the_end_there_are_zeros_and_the_position_tells() -> None:
    buffer, at = np.full(2, 0xFF, np.uint8), np.array([13], np.int64)
    assert read(buffer, at, 10) == 0b111
    assert read(buffer, at, 63) == 0
    assert at[0] == 13 + 10 + 63
    assert read(np.zeros(0, np.uint8), at, 5) == 0


@given(st.integers(-(1 << 40), 1 << 40))
def test_zigzag(value: int) -> None:
    assert [zigzag(number) for number in (0, -1, 1, -2, 2)] == [0, 1, 2, 3, 4]
    assert BitReader(BitWriter().number(zigzag(value), 3).bytes()).signed(3) == value


@settings(max_examples=100)
@given(st.lists(st.integers(0, 5000) | st.integers(0, 1 << 20), min_size=1, max_size=60))
def test_the_best_order(numbers: list[int]) -> None:
    lengths = []
    for order in range(16):
        out = BitWriter()
        for number in numbers:
            out.number(number, order)
        lengths.append(out.count)
    assert best_order(np.array(numbers, np.int64)) == (lengths.index(min(lengths)), min(lengths))
