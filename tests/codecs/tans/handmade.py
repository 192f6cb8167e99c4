"""Streams of tANS written by hand, bit by bit, from the specification alone (§5.1): right ones, and wrong ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

FIELDS = {32: (8, 23), 64: (11, 52)}


class BitWriter:
    """Bits, the least significant first."""

    def __init__(self) -> None:
        self.value, self.count = 0, 0

    def bits(self, value: int, count: int) -> BitWriter:
        """Append ``count`` bits."""
        self.value |= (value & ((1 << count) - 1)) << self.count
        self.count += count
        return self

    def number(self, value: int, r: int = 0) -> BitWriter:
        """Append ``number(r)``."""
        v = (value >> r) + 1
        z = v.bit_length() - 1
        return self.bits(0, z).bits(1, 1).bits(v, z).bits(value, r)

    def signed(self, value: int, r: int = 0) -> BitWriter:
        """Append ``zigzag`` of a number."""
        return self.number(2 * value if value >= 0 else -2 * value - 1, r)

    def bytes(self) -> bytes:
        """Return all bits, and bits of 0 to the end of a byte."""
        return self.value.to_bytes(-(-self.count // 8), "little")


def begin_table(
    width: int,
    class_bits: int = 0,
    exact: Mapping[int, Iterable[tuple[int, Sequence[int]]]] | None = None,
    bins: Mapping[int, Iterable[tuple[int, int]]] | None = None,
) -> BitWriter:
    """Write a table up to its frequencies.

    Args:
        width: of the values.
        class_bits: c.
        exact: of each n: strings, ascending, with their signs.
        bins: of each n: L and prefix, ascending.
    """
    e, m = FIELDS[width]
    out = BitWriter().bits(class_bits, 2)
    for n in range(16 - e):
        strings = list((exact or {}).get(n, ()))
        out.number(len(strings))
        if strings:
            out.bits(3, 4)
        after = 0
        for string, signs in strings:
            out.number(string - after, 3)
            after = string + 1
            out.bits(int(len(signs) == 2), 1)
            if len(signs) == 1:
                out.bits(signs[0], 1)
    for n in range(m + 1):
        listed = list((bins or {}).get(n, ()))
        out.number(len(listed))
        if listed:
            out.bits(2, 4)
        length, end = e, 0
        for own, prefix in listed:
            out.signed(own - length)
            length = own
            size = 1 << (e + max(n - 1, 0) - own)
            out.number(prefix - -(-end // size), 2)
            end = (prefix + 1) * size
    return out


def add_frequencies(out: BitWriter, frequencies: Iterable[int], changes: bool = False, r: int = 5) -> BitWriter:
    """Write the frequencies of one class."""
    out.bits(int(changes), 1).bits(r, 4)
    before = 0
    for frequency in frequencies:
        if changes:
            out.signed(frequency - before, r)
            before = frequency
        else:
            out.number(frequency, r)
    return out


def stream(
    table: BitWriter | bytes,
    raw: BitWriter | None = None,
    even: BitWriter | None = None,
    odd: BitWriter | None = None,
    states: Iterable[int] = (),
    lengths: Sequence[int] | None = None,
) -> bytes:
    """Put a stream of values together; ``lengths`` may lie."""
    even, odd, raw = (part or BitWriter() for part in (even, odd, raw))
    head = BitWriter()
    for length in lengths or (even.count, odd.count, raw.count):
        head.bits(length, 32)
    for lane, state in enumerate(states):
        head.value |= state << (96 + 12 * lane)
    head.count = 192
    ending = [(part.value << (-part.count % 8)).to_bytes(-(-part.count // 8), "little") for part in (even, odd)]
    return b"".join([head.bytes(), table if isinstance(table, bytes) else table.bytes(), *ending, raw.bytes()])


def of_others(values: Iterable[int], width: int) -> bytes:
    """Return the stream of values that are all "other": no bits of states, and the values as they are."""
    raw = BitWriter()
    for value in values:
        raw.bits(value, width)
    return stream(add_frequencies(begin_table(width), [4096]), raw)
