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
        """Append a number of a list of order r."""
        v = (value >> r) + 1
        z = v.bit_length() - 1
        return self.bits(0, z).bits(1, 1).bits(v, z).bits(value, r)

    def list(self, values: Iterable[int], r: int = 0) -> BitWriter:
        """Append a list."""
        self.bits(r, 4)
        for value in values:
            self.number(value, r)
        return self

    def signed(self, values: Iterable[int], r: int = 0) -> BitWriter:
        """Append a list of signed numbers."""
        return self.list([2 * value if value >= 0 else -2 * value - 1 for value in values], r)

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
    counts, string_gaps, signs = [], [], []
    for n in range(16 - e):
        strings = list((exact or {}).get(n, ()))
        counts.append(len(strings))
        after = 0
        for string, own in strings:
            string_gaps.append(string - after)
            signs.append(0 if len(own) == 2 else 1 + own[0])
            after = string + 1
    bin_counts, changes, prefix_gaps = [], [], []
    for n in range(m + 1):
        listed = list((bins or {}).get(n, ()))
        bin_counts.append(len(listed))
        length, end = e, 0
        for own, prefix in listed:
            changes.append(own - length)
            length = own
            size = 1 << (e + max(n - 1, 0) - own)
            prefix_gaps.append(prefix - -(-end // size))
            end = (prefix + 1) * size
    out = BitWriter().bits(class_bits, 2)
    out.list(counts).list(string_gaps, 3).list(signs, 1)
    return out.list(bin_counts).signed(changes, 2).list(prefix_gaps, 2)


def add_frequencies(out: BitWriter, frequencies: Iterable[int], r: int = 5) -> BitWriter:
    """Write the frequencies of one class."""
    listed = list(frequencies)
    return out.signed([own - before for own, before in zip(listed, [0, *listed], strict=False)], r)


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
