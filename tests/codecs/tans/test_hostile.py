"""20,000 changed streams, and bombs: a refusal or values, always the same, and no access beyond an array.

That values are right is for the payload's digest to tell: a stream of states has hardly any redundancy.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.chunk import parse_values
from paramdelta_hub.errors import PackageError
from tests.attacks.threats import shows
from tests.codecs.tans import hostile
from tests.codecs.tans.handmade import BitWriter, add_frequencies, begin_table, of_others, stream
from tests.codecs.tans.hostile import by_spec, decoded
from tests.codecs.tans.wide import TYPES, chunk, roundtrip

MUTATIONS = 20_000
CHECKED = 2_500
ROOT = Path(__file__).parents[3]


def megabytes(field: str) -> int:
    """Return a figure of this process's memory."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10


def assert_refused(coded: bytes, count: int, width: int) -> None:
    assert decoded(coded, count, width) is None
    assert by_spec(coded, count, width) is None


@shows("lying packages", f"{MUTATIONS:,} changed streams of values: none crashes, hangs, or takes memory")
@pytest.mark.parametrize(("large", "number"), [(False, MUTATIONS // 2), (True, MUTATIONS // 2)])
def test_mutations_give_values_or_our_error(large: bool, number: int) -> None:
    streams = hostile.originals(large)
    hostile.check_mutations(streams, 200, 0)  # everything is compiled, and buffers are there
    linux = sys.platform.startswith("linux")
    if linux:
        Path("/proc/self/clear_refs").write_text("5")
        before = megabytes("VmRSS")
    found = hostile.check_mutations(streams, number, 1)
    if linux:
        assert megabytes("VmHWM") - before < 64
    assert found.total() == number
    assert found["refused"] > 0.5 * number
    assert found["values"] > 0


def test_mutations_of_streams_with_several_classes() -> None:
    found = hostile.check_mutations(hostile.of_classes(), 1000, 2)
    assert found["refused"] > 500
    assert found["values"] > 0


def test_the_specifications_reader_says_the_same() -> None:
    """It refuses what the package refuses, and else gives the same values."""
    random, agreed = np.random.default_rng(3), {"refused": 0, "values": 0}
    for coded, count, width in hostile.mutations(hostile.originals(large=False), 4000, 4):
        ours = decoded(coded, count, width)
        if random.random() > (0.05 if ours is None else 0.3):
            continue  # it is slow
        theirs = by_spec(coded, count, width)
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs)
        agreed["refused" if ours is None else "values"] += 1
    assert min(agreed.values()) > 20


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(1, 600), st.sampled_from([32, 64]), st.booleans())
def test_random_bytes(data: bytes, count: int, width: int, with_lengths: bool) -> None:
    if with_lengths:
        data = bytes(12) + data
    values = decoded(data, count, width)
    if values is not None:
        assert np.array_equal(values, by_spec(data, count, width))


@shows("lying packages", f"{CHECKED:,} changed streams with every index checked: no access outside an array")
@pytest.mark.slow
def test_no_loop_reads_or_writes_outside_its_arrays(tmp_path: Path) -> None:
    """All loops once more, compiled so that each index is checked."""
    variables = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.codecs.tans.hostile", str(CHECKED)]
    done = subprocess.run(command, env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout


@pytest.mark.parametrize("width", [32, 64])
def test_a_stream_cut_or_extended_anywhere(width: int) -> None:
    """What is left is refused, or, by chance, taken for another table that ends there: never for the same."""
    values = chunk("gaussian", 60, width)
    coded = roundtrip(values)
    taken = 0
    for end in range(len(coded)):
        found = decoded(coded[:end], 60, width)
        assert found is None or not np.array_equal(found, values)
        taken += found is not None
    assert taken <= 2
    for extra in (b"\0", b"\xff", coded):
        assert decoded(coded + extra, 60, width) is None
        assert decoded(extra + coded, 60, width) is None


@pytest.mark.parametrize("width", [32, 64])
def test_a_stream_that_breaks_off_in_its_head(width: int) -> None:
    for size in range(24):
        with pytest.raises(PackageError, match="breaks off in its head"):
            parse_values(bytes(size), 1, width // 8)
        assert by_spec(bytes(size), 1, width) is None
    with pytest.raises(PackageError, match="never ends"):
        parse_values(bytes(24), 1, width // 8)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_lengths_that_lie(width: int, which: int) -> None:
    """Longer than the chunk, than the stream, or than a chunk's values can be; shorter; and none at all."""
    values = chunk("gaussian", 99, width)
    coded = bytearray(roundtrip(values))
    place = slice(4 * which, 4 * which + 4)
    right = int.from_bytes(coded[place], "little")
    most = (600, 588, 99 * width)[which]
    for length in (0, right - 1, right + 1, right + 8, most + 1, 8 * len(coded), (1 << 31) - 1, (1 << 32) - 1):
        coded[place] = length.to_bytes(4, "little")
        assert decoded(bytes(coded), 99, width) is None
        assert by_spec(bytes(coded), 99, width) is None
    for length in (most + 1, (1 << 32) - 1):
        coded[place] = length.to_bytes(4, "little")
        with pytest.raises(PackageError, match="longer than they can be"):
            parse_values(bytes(coded), 99, width // 8)


@pytest.mark.parametrize("width", [32, 64])
def test_another_number_of_values_is_refused(width: int) -> None:
    coded = roundtrip(chunk("gaussian", 500, width))
    for count in (1, 8, 255, 256, 492, 499, 501, 508, 512, 5000, 1 << 20):
        assert decoded(coded, count, width) is None


@pytest.mark.parametrize("width", [32, 64])
def test_states_that_lie(width: int) -> None:
    """A first state is 12 bits, so each is one; but another one does not end at 0."""
    coded = bytearray(roundtrip(chunk("gaussian", 64, width)))
    agreed = 0
    for bit in range(96):
        coded[12 + bit // 8] ^= 1 << bit % 8
        ours, theirs = decoded(bytes(coded), 64, width), by_spec(bytes(coded), 64, width)
        coded[12 + bit // 8] ^= 1 << bit % 8
        assert (ours is None) == (theirs is None)
        agreed += ours is None
    assert agreed > 60


@pytest.mark.parametrize("width", [32, 64])
def test_states_that_never_come_to_zero(width: int) -> None:
    table = add_frequencies(begin_table(width), [4096])
    raw = BitWriter().bits(1234, 11 * width)
    assert decoded(stream(table, raw), 11, width) is not None
    for lane in range(8):
        states = [0] * lane + [4095]
        assert_refused(stream(table, raw, states=states), 11, width)


def test_streams_that_run_as_far_past_their_ends_as_any_can() -> None:
    for bomb in hostile.bombs():
        assert decoded(*bomb) is None
        assert not hostile.summed(*bomb)


@pytest.mark.parametrize("width", [32, 64])
def test_a_bomb_claims_a_whole_chunk(width: int) -> None:
    """A million values of a few bytes: their memory is the caller's, who made it for as many; nothing is added."""
    coded = of_others([], width)
    assert decoded(coded, 1 << 20, width) is None
    table = add_frequencies(begin_table(width, 2), [4096])
    for _ in range(3):
        add_frequencies(table, [4096])
    assert decoded(stream(table), 1 << 20, width) is None, "no classes"
    exact = add_frequencies(begin_table(width, exact={0: [(0, (0,))]}), [4096, 0])
    found = decoded(stream(exact), 1 << 20, width)
    assert found is not None, "the zeros of a whole chunk, by right"
    assert not found.any()


@pytest.mark.parametrize("width", [32, 64])
def test_classes_that_a_table_has(width: int) -> None:
    """Each block is decoded by its own class, up to the fourth, and one past the fourth there can't be."""
    table = begin_table(width, 2, exact={0: [(string, (0,)) for string in range(4)]})
    for number in range(4):
        add_frequencies(table, [4096 * (symbol == number) for symbol in range(5)])
    for number in (3, 1, 0, 2, 3):
        table.bits(number, 2)
    count = 4 * 256 + 7
    expected = np.repeat([3, 1, 0, 2, 3], 256)[:count].astype(TYPES[width]) << TYPES[width].type(
        23 if width == 32 else 52
    )
    assert np.array_equal(decoded(stream(table), count, width), expected)
    assert np.array_equal(by_spec(stream(table), count, width), expected)
    wrong = bytearray(stream(table))
    wrong[24] |= 3
    assert_refused(bytes(wrong), count, width)
