"""Lists as bits: what is written is read, by the specification's reader, too, and no read goes past the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.bits import read_bits, read_list, write_bits, write_list
from tests.codecs.tans.handmade import BitWriter
from tests.support.spec_reader import BitReader, RefusedError

ORDERS = range(16)
LARGEST = (1 << 62) - (1 << 15) - 1
"""Codes of every order have it."""


def read(content: bytes, count: int, at: int = 0) -> tuple[list[int] | None, int]:
    """Read a list by the package; return it, None for one that is refused, and the position after it."""
    position, values = np.array([at], np.int64), np.full(count, -7, np.int64)
    good = read_list(np.frombuffer(content, np.uint8), position, values)
    return values.tolist() if good else None, int(position[0])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, (1 << 63) - 1)), max_size=60))
def test_fixed_widths(numbers: list[tuple[int, int]]) -> None:
    buffer, at = np.zeros(1 + sum(count for count, _ in numbers) // 8, np.uint8), np.zeros(1, np.int64)
    by_hand = BitWriter()
    for count, value in numbers:
        write_bits(buffer, at, value, count)
        by_hand.bits(value, count)
    assert at[0] == by_hand.count
    assert buffer.tobytes().startswith(by_hand.bytes())
    reader, at = BitReader(buffer.tobytes()), np.zeros(1, np.int64)
    for count, value in numbers:
        expected = value & ((1 << count) - 1)
        assert read_bits(buffer, at, count) == expected
        assert reader.bits(count) == expected
        assert reader.position == at[0]


numbers_of_any_size = st.integers(0, LARGEST) | st.integers(0, 1 << 20) | st.integers(0, 300) | st.integers(0, 3)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 15), st.lists(numbers_of_any_size, max_size=20)), max_size=8))
def test_lists_of_every_order(lists: list[tuple[int, list[int]]]) -> None:
    """One after another, at any bit."""
    by_hand = BitWriter()
    for order, numbers in lists:
        by_hand.list(numbers, order)
    content = by_hand.bytes()
    reader, at = BitReader(content), 0
    for _, numbers in lists:
        found, at = read(content, len(numbers), at)
        assert found == reader.list(len(numbers)) == numbers
        assert reader.position == at
    assert at == by_hand.count


def best_list(numbers: list[int]) -> BitWriter:
    """Return a list in its shortest form; of several the one of the lowest order."""
    return min((BitWriter().list(numbers, order) for order in ORDERS), key=lambda form: form.count)


@settings(max_examples=200)
@given(st.integers(0, 9), st.lists(st.lists(numbers_of_any_size, max_size=30), min_size=1, max_size=5))
def test_lists_are_written_in_the_order_that_takes_the_fewest_bits(first: int, lists: list[list[int]]) -> None:
    buffer = np.zeros(8 + 20 * sum(1 + len(numbers) for numbers in lists), np.uint8)
    at, by_hand = np.array([first], np.int64), BitWriter().bits(0, first)
    for numbers in lists:
        write_list(buffer, at, np.array(numbers, np.int64))
        best = best_list(numbers)
        by_hand.bits(best.value, best.count)
        assert at[0] == by_hand.count
    assert buffer.tobytes() == by_hand.bytes().ljust(buffer.size, b"\0")
    at = first
    for numbers in lists:
        found, at = read(buffer.tobytes(), len(numbers), at)
        assert found == numbers


@settings(max_examples=100)
@given(st.sampled_from([3, 40, 5000, 1 << 20]), st.integers(1, 60), st.integers(0, 1 << 20))
def test_every_order_can_be_the_best(most: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, most, count)
    buffer, at = np.zeros(8 + 16 * count, np.uint8), np.zeros(1, np.int64)
    write_list(buffer, at, numbers)
    lengths = [BitWriter().list(numbers.tolist(), order).count for order in ORDERS]
    assert (buffer[0] & 15, at[0]) == (lengths.index(min(lengths)), min(lengths))


@pytest.mark.parametrize("order", ORDERS)
def test_the_largest_number_of_each_order(order: int) -> None:
    largest = (1 << 62) - (1 << order) - 1
    content = BitWriter().list([5, largest], order).bytes()
    assert read(content, 2)[0] == [5, largest]
    assert BitReader(content).list(2) == [5, largest]
    beyond = BitWriter().list([5, largest + 1], order).bytes()
    assert read(beyond, 2)[0] is None
    with pytest.raises(RefusedError):
        BitReader(beyond).list(2)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_a_number_that_never_ends(order: int, size: int) -> None:
    content = BitWriter().bits(order, 4).bits(0, 8 * size).bytes()
    found, at = read(content, 1)
    assert found is None
    assert at <= 4 + 63
    assert read(bytes(size), 1)[0] is None


def test_a_list_of_nothing_is_its_order() -> None:
    for order in ORDERS:
        assert read(BitWriter().list([], order).bytes(), 0) == ([], 4)
        assert BitReader(BitWriter().list([], order).bytes()).list(0) == []
    buffer, at = np.zeros(1, np.uint8), np.zeros(1, np.int64)
    write_list(buffer, at, np.empty(0, np.int64))
    assert (buffer[0], at[0]) == (0, 4)


def test_past_the_end_there_are_zeros_and_the_position_tells() -> None:
    buffer, at = np.full(2, 0xFF, np.uint8), np.array([13], np.int64)
    assert read_bits(buffer, at, 10) == 0b111
    assert read_bits(buffer, at, 63) == 0
    assert at[0] == 13 + 10 + 63
    assert read_bits(np.zeros(0, np.uint8), at, 5) == 0


@given(st.lists(st.integers(-(1 << 40), 1 << 40), max_size=20), st.integers(0, 15))
def test_signed_numbers(numbers: list[int], order: int) -> None:
    content = BitWriter().signed(numbers, order).bytes()
    assert BitReader(content).signed(len(numbers)) == numbers
    found, _ = read(BitWriter().signed([0, -1, 1, -2, 2], order).bytes(), 5)
    assert found == [0, 1, 2, 3, 4]
