"""A chunk of wide values as one stream of bytes, and back.

    bits of the even state stream, of the odd one, of the raw one     3 × u32
    the states that a decoder begins in                               8 × 12 bits
    table                                                             see serialize.py
    even state stream | odd state stream                              end on the last bit of their last bytes
    raw stream                                                        begins on the first bit of its first byte

All is little-endian, and bits count from the least significant.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.codecs.tans.alphabet import BINARY32, BINARY64, Alphabet, Binary
from paramdelta_hub.codecs.tans.choose import TREE_EXPONENTS, Histogram, choose_alphabet, places_of
from paramdelta_hub.codecs.tans.classes import choose_classes
from paramdelta_hub.codecs.tans.coder import BLOCK, LANES, PADDING, decode_all, encode
from paramdelta_hub.codecs.tans.serialize import read_table, write_table
from paramdelta_hub.codecs.tans.tables import STATE_BITS, STATES, decoding_table, encoding_table, normalize
from paramdelta_hub.codecs.tans.values import count_exponents, count_values, number_symbols, number_values
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["CodedValues", "encode_values", "parse_values"]

_HEAD = struct.Struct("<3I12s")
SAMPLED_FROM = 1 << 18
SAMPLED, SAMPLED_FOR_EXPONENTS = 4, 32
"""Of a chunk that large, one value of four tells what alphabet suits it, and one of 32 which exponents it has."""
ENOUGH = 1024
"""How many values other than 0 tell the exponents of all."""


def _binary_of(itemsize: int) -> Binary:
    return BINARY32 if itemsize == 4 else BINARY64


def encode_values(values: NDArray[Any]) -> bytes:
    """Code the bits (``uint32`` or ``uint64``) of at least one wide value; equal values always give equal bytes."""
    binary = _binary_of(values.itemsize)
    found = _count(values, binary)
    alphabet = choose_alphabet(found)
    numbers = scratch("symbols of places", found.counts.size, np.uint16)
    where = found.lowest, found.places
    number_symbols(alphabet.exact, alphabet.bins, (binary.exponent_bits, binary.exact_bits), *where, numbers)
    indices, counts = scratch("indices of symbols", values.size, np.uint16), np.empty(alphabet.size, np.int64)
    raw = scratch("raw fields", values.nbytes + 8, np.uint8)
    symbols = alphabet.values(binary)
    raw_bits = int(number_values(values, *where, numbers, len(alphabet.exact), symbols, indices, counts, raw))
    exponents = (symbols[0] >> binary.fraction_bits).astype(np.int64) & ((1 << binary.exponent_bits) - 1)
    classes, counts = choose_classes(indices, counts, exponents)
    frequencies, entries = np.empty(counts.shape, np.int64), np.empty(counts.shape, np.uint64)
    states = np.empty((len(counts) + 1) * STATES, np.uint16)
    for number, row in enumerate(counts):
        normalize(row, frequencies[number])
        encoding_table(frequencies[number], (number + 1) * STATES, entries[number], states)
    streams, bits = [], []
    cursor = np.empty(LANES + 2, np.uint64)
    for parity, name in enumerate(("even stream", "odd stream")):
        stream = scratch(name, (values.size + 1) // 2 * STATE_BITS // 8 + 17, np.uint8)
        encode(indices, classes, entries, states, parity, stream, cursor)
        bits.append(8 * stream.size - int(cursor[LANES + parity]))
        streams.append(stream[stream.size - -(-bits[parity] // 8) :])
    bits.append(raw_bits)
    streams.append(raw[: -(-raw_bits // 8)])
    begin = sum(int(state) << STATE_BITS * lane for lane, state in enumerate(cursor[:LANES])).to_bytes(12, "little")
    table = write_table(alphabet, binary, frequencies, classes)
    return b"".join([_HEAD.pack(*bits, begin), table, *(stream.data for stream in streams)])


def _count(values: NDArray[Any], binary: Binary) -> Histogram:
    """Count the values of the 64 neighboring exponents that most of them have; of a large chunk, a part of the values.

    What is not seen here can be coded all the same, and frequencies are those of all symbols.
    """
    exponents = np.zeros(1 << binary.exponent_bits, np.int64)
    if values.size >= SAMPLED_FROM:
        count_exponents(values, SAMPLED_FOR_EXPONENTS, exponents)
    if exponents.sum() < ENOUGH:  # mostly zeros: all of the others tell
        exponents.fill(0)
        count_exponents(values, 1, exponents)
    trees = exponents.reshape(-1, TREE_EXPONENTS).sum(axis=1)
    first = int(np.argmax(trees[:-1] + trees[1:]))
    counts = scratch("counts of places", int(places_of(binary)[-1]) + 1, np.int32)
    counts.fill(0)
    found = Histogram(binary, first * TREE_EXPONENTS, counts)
    parts = SAMPLED if values.size >= SAMPLED_FROM else 1
    found.total = count_values(values, parts, found.lowest, found.places, counts)
    found.share = values.size / found.total
    return found


@dataclass(frozen=True)
class CodedValues:
    """A chunk that is parsed, and ready to be decoded by the loops of ``coder``.

    Its arrays are in this thread's buffers, until the next chunk is parsed.
    """

    words: NDArray[np.uint64]
    cursor: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    table: NDArray[np.uint32]
    classes: NDArray[np.uint8]
    symbols: NDArray[np.uint64]

    def begin(self) -> tuple[NDArray[Any], ...]:
        """Return what the loops take, at the first element."""
        return self.words, self.cursor.copy(), self.ends, self.table, self.classes, self.symbols

    def decode(self, out: NDArray[Any]) -> None:
        """Fill ``out`` with the values' bits.

        Raises:
            PackageError: the streams do not end where they must.
        """
        if not decode_all(*self.begin(), out):
            raise damaged()


def damaged() -> PackageError:
    """Return the error of streams that do not end where they must."""
    return PackageError("a chunk's streams are damaged: they do not end where they must")


def parse_values(coded: Buffer, count: int, itemsize: int) -> CodedValues:
    """Return ``count`` coded values of ``itemsize`` bytes, ready to be decoded.

    Raises:
        PackageError: the table or the lengths are not what they can be.
    """
    binary = _binary_of(itemsize)
    if len(coded) < _HEAD.size:
        raise PackageError("a chunk breaks off in its head")
    *bits, begin = _HEAD.unpack_from(coded)
    sizes = [-(-length // 8) for length in bits]
    most = [-(-count // 2) * STATE_BITS, count // 2 * STATE_BITS, count * 8 * itemsize]
    table_end = len(coded) - sum(sizes)
    if table_end < _HEAD.size or any(length > limit for length, limit in zip(bits, most, strict=True)):
        raise PackageError("a chunk's streams are longer than they can be")
    raw_table = np.frombuffer(coded, np.uint8, table_end - _HEAD.size, _HEAD.size)
    alphabet, frequencies, classes = read_table(raw_table, binary, -(-count // BLOCK))
    words = scratch("coded chunk", (len(coded) + PADDING) // 8, np.uint64)
    as_bytes = words.view(np.uint8)
    as_bytes[: len(coded)] = np.frombuffer(coded, np.uint8)
    if np.dtype("<u8") != np.dtype("=u8"):
        words.byteswap(inplace=True)
    cursor, ends = np.zeros(LANES + 3, np.uint64), np.zeros(3, np.uint64)
    states = int.from_bytes(begin, "little")
    cursor[:LANES] = [states >> STATE_BITS * lane & (STATES - 1) for lane in range(LANES)]
    end = table_end
    for stream, (length, size) in enumerate(zip(bits, sizes, strict=True)):
        first = 8 * end if stream == 2 else 8 * (end + size) - length
        cursor[LANES + stream], ends[stream] = first, first + length
        end += size
    table = scratch("decoding tables", len(frequencies) * STATES, np.uint32)
    values = alphabet.values(binary)
    first = len(alphabet.exact) if binary is BINARY32 else 0
    symbols = np.zeros((3, 256 if binary is BINARY32 else STATES), np.uint64)
    symbols[:, : alphabet.size - first] = values[:, first:]
    ids = _ids(alphabet, values[0], binary)
    for number, row in enumerate(frequencies):
        decoding_table(row, ids, table[number * STATES : (number + 1) * STATES])
    return CodedValues(words, cursor, ends, table, classes, symbols)


def _ids(alphabet: Alphabet, fixed: NDArray[np.uint64], binary: Binary) -> NDArray[np.uint32]:
    """Return what an entry of the decoding table says of each symbol: its value's upper half, or its number."""
    if binary is BINARY64:
        return np.arange(alphabet.size, dtype=np.uint32)
    ids = (fixed >> 16).astype(np.uint32)
    numbers = np.arange(len(alphabet.bins) + 1, dtype=np.uint32)
    ids[len(alphabet.exact) :] = 0x7F80 | numbers & 127 | numbers >> 7 << 15
    return ids
