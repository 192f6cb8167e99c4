"""Streams that no encoder wrote: mutations of good ones, and what must hold of each of them.

Run as a module, it checks so many mutations as are asked for. With ``NUMBA_BOUNDSCHECK=1`` in the environment every
index of every loop is checked, and an IndexError ends it; ``test_hostile.py`` does that in a process of its own, as
loops are compiled in another way.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator

import numba
import numpy as np

from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.codecs.tans.chunk import encode_values, parse_values
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.compiled import SLICE, compiled
from paramdelta_hub.numerics.differences import subtract
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.sums import Delta, add_all
from tests.codecs.tans.handmade import BitWriter, add_frequencies, begin_table, of_others, stream
from tests.codecs.tans.wide import KINDS, TYPES, chunk, roundtrip, specials
from tests.support.spec_reader import RefusedError, tans

Original = tuple[bytes, int, int]
"""A stream, how many values it has, and their width."""


def originals(large: bool) -> list[Original]:
    """Return good streams of both widths: small chunks of every kind, or some of about 5,000 values."""
    found = []
    for width in TYPES:
        if large:
            shapes = [(kind, 5000 + 37 * i) for i, kind in enumerate(("gaussian", "scales", "outliers", "few changes"))]
        else:
            shapes = [(kind, count) for kind in KINDS for count in (1, 8, 61, 300)]
            found.append((of_others(specials(width).tolist(), width), specials(width).size, width))
        for kind, count in shapes:
            found.append((encode_values(chunk(kind, count, width)), count, width))
    return found


def of_classes() -> list[Original]:
    """Return good streams whose blocks have several classes."""
    found = [(encode_values(chunk("scales", 40_000, width)), 40_000, width) for width in TYPES]
    assert all(coded[24] & 3 for coded, _, _ in found)
    return found


def bombs() -> list[Original]:
    """Return streams that run as far past their ends as any can before that is seen: a slice of the longest fields."""
    found = []
    for width in TYPES:
        n = 7 if width == 32 else 4
        strings = [(string, (0, 1)) for string in range(2047)] + [(2047, (0,))]
        # Every symbol has one state, and so takes 12 bits.
        table = add_frequencies(begin_table(width, exact={n: strings}), [1] * 4096)
        for count in (SLICE - 1, SLICE, SLICE + 1, 3 * SLICE, 1 << 20):
            found += [(of_others([], width), count, width), (stream(table), count, width)]
            found.append((stream(table, even=BitWriter().bits(1, 12)), count, width))
    return found


def mutate(random: np.random.Generator, coded: bytes) -> bytes:
    """Change a stream: bits, bytes, numbers of its head, its length, or all of it."""
    out = bytearray(coded)
    for _ in range(int(random.integers(1, 4))):
        # Half of all changes are where the head and the table are, which are small.
        size = min(len(out), 24 + int(random.integers(1, 120))) if random.random() < 0.5 else len(out)
        at = int(random.integers(size)) if size else 0
        kind = int(random.integers(10))
        if kind < 3 and out:
            out[at] ^= 1 << int(random.integers(8))
        elif kind < 5 and out:
            out[at] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))
        elif kind == 5:
            del out[at : at + int(random.integers(1, 9))]
        elif kind == 6:
            out[at:at] = random.bytes(int(random.integers(1, 9)))
        elif kind == 7 and len(out) >= 12:
            place = 4 * int(random.integers(3))
            old = int.from_bytes(out[place : place + 4], "little")
            steps = [old + int(random.integers(-17, 18)), int(random.integers(1 << 32)), 0, (1 << 32) - 1]
            out[place : place + 4] = (steps[int(random.integers(4))] % (1 << 32)).to_bytes(4, "little")
        elif kind == 8:
            del out[int(random.integers(len(out) + 1)) :]
        elif random.random() < 0.1:
            out[24:] = random.bytes(int(random.integers(200)))
        elif out:
            end = min(len(out), at + int(random.integers(1, 40)))
            out[at:end] = random.bytes(end - at)
    return bytes(out)


def decoded(coded: bytes, count: int, width: int) -> np.ndarray | None:
    """Return what the package makes of a stream, None if it refuses it; nothing else than that error is allowed."""
    out = np.zeros(count, TYPES[width])
    try:
        parse_values(coded, count, width // 8).decode(out)
    except PackageError:
        return None
    return out


def by_spec(coded: bytes, count: int, width: int) -> np.ndarray | None:
    """Return what the specification's reader makes of a stream."""
    try:
        return tans(coded, count, width)
    except RefusedError:
        return None


def mutations(streams: list[Original], number: int, seed: int) -> Iterator[Original]:
    """Yield changed streams, now and then with another number of values."""
    random = np.random.default_rng(seed)
    for _ in range(number):
        coded, count, width = streams[int(random.integers(len(streams)))]
        if random.random() < 0.05:
            count = max(1, count + int(random.integers(-9, 10)))
        if random.random() < 0.02:
            width = 96 - width
        yield mutate(random, coded), count, width


def check_mutations(streams: list[Original], number: int, seed: int) -> Counter[str]:
    """Decode changed streams; count what comes of them."""
    found: Counter[str] = Counter()
    for place, (coded, count, width) in enumerate(mutations(streams, number, seed)):
        values = decoded(coded, count, width)
        found["refused" if values is None else "values"] += 1
        if values is not None:
            assert np.array_equal(values, decoded(coded, count, width)), "always the same"
        if place % 4 == 0:
            assert summed(coded, count, width) is (values is not None), "wherever it is decoded"
    return found


def summed(coded: bytes, count: int, width: int) -> bool:
    """Whether a stream is taken by the loops that decode and add at once; both of them, or none."""
    kind = FLOATS["BF16" if width == 32 else "F32"]
    target, total = np.zeros(count, kind.bits), np.zeros(count, kind.wide)
    uses: list[Callable[[Delta], object]] = [
        lambda delta: delta.add(kind, target, 0.5, target.copy()),
        lambda delta: delta.accumulate(total, 0.5),
    ]
    taken = set()
    for use in uses:
        try:
            use(TANS.open([b"", coded], count, kind.wide))
        except PackageError:
            taken.add(False)
        else:
            taken.add(True)
    [both] = taken
    return both


@compiled
def _read_past_the_end(values: np.ndarray) -> int:
    return values[values.size]


def check_all(number: int) -> None:
    """Check the loops of codecs and sums on mutations, and on good chunks of many shapes."""
    assert numba.config.BOUNDSCHECK == 1
    try:
        _read_past_the_end(np.zeros(3))
    except IndexError:
        pass
    else:
        raise AssertionError("indices are not checked")
    small = originals(large=False)
    found = check_mutations(small, number * 6 // 10, 11)
    found += check_mutations(originals(large=True), number * 3 // 10, 12)
    found += check_mutations(of_classes(), number // 10, 13)
    for bomb in bombs():
        assert decoded(*bomb) is None
        assert not summed(*bomb)
    for width in TYPES:
        for kind in KINDS:
            for count in (1, 7, 8, 9, 255, 257, SLICE - 1, SLICE + 1, 40_000):
                roundtrip(chunk(kind, count, width))
        roundtrip(chunk("scales", (1 << 18) + 77, width))
    check_sums(np.random.default_rng(0))
    print(dict(found))


def check_sums(random: np.random.Generator) -> None:
    """Take and add differences, coded and not."""
    for kind in FLOATS.values():
        for count in (1, 7, 513, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE + 5):
            base, post = random.integers(0, kind.infinity, (2, count)).astype(kind.bits)
            wide, out = np.empty(count, kind.wide), np.empty(count, kind.bits)
            subtract(kind, base, np.where(random.random(count) < random.choice([0.01, 1]), post, base), wide)
            coded = TANS.open(TANS.encode(wide), count, kind.wide)
            coded.add(kind, base, 0.5, out)
            coded.add(kind, base | kind.bits.type(kind.infinity), 0.5, out)
            add_all(kind, base, [(coded, 1.0), (None, 2.0), (coded, -1.0)], out)


if __name__ == "__main__":
    check_all(int(sys.argv[1]))
