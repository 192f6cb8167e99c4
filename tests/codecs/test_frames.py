"""zstd frames: 20,000 mutations, bombs, dictionaries, and everything python-zstandard would let pass."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs import frames
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import MIB, WINDOW_BYTES
from tests.attacks.threats import shows


def content(size: int, seed: int = 0) -> bytes:
    """Return skewed bytes, as ranks are."""
    source = random.Random(seed)
    return bytes(min(255, int(source.expovariate(0.08))) for _ in range(size))


@given(st.binary(max_size=5000))
def test_roundtrip(data: bytes) -> None:
    frame = frames.compress(data)
    assert frames.content_size(frame, most=max(len(data), 1)) == len(data)
    assert frames.decompress(frame, len(data)) == data
    assert frames.decompress(memoryview(frame), len(data)) == data
    assert frames.compress(memoryview(data)) == frame


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_535, 65_536, 65_791, 65_792, 131_072, MIB - 1, MIB, MIB + 1])
def test_roundtrip_around_the_sizes_where_headers_change(size: int) -> None:
    for data in (bytes(size), content(size)):
        assert frames.decompress(frames.compress(data), size) == data


def test_nothing_is_no_frame() -> None:
    assert frames.compress(b"") == b""
    assert frames.decompress(b"", 0) == b""
    assert frames.content_size(b"", most=0) == 0
    with pytest.raises(PackageError):
        frames.decompress(b"", 1)


def test_frames_are_standard() -> None:
    data = content(50_000)
    assert zstandard.ZstdDecompressor().decompress(frames.compress(data)) == data
    parameters = zstandard.get_frame_parameters(frames.compress(data))
    assert (parameters.content_size, parameters.has_checksum, parameters.dict_id) == (len(data), True, 0)


@pytest.mark.parametrize("claimed", [0, 1, 999, 1001, 2000, 2**31, 2**63])
def test_another_size_than_promised(claimed: int) -> None:
    with pytest.raises(PackageError):
        frames.decompress(frames.compress(content(1000)), claimed)


MUTATIONS = 20_000


@shows("decompression bombs", f"{MUTATIONS:,} changed frames: no wrong byte, and no error but ours")
def test_mutations_give_no_wrong_byte_and_no_foreign_error() -> None:
    """One to three edits each: flips, overwritten, deleted, inserted and repeated bytes, cuts."""
    source = random.Random(MUTATIONS)
    originals = [(data, frames.compress(data)) for data in (content(size, size) for size in (1, 40, 300, 2000))]
    refused = same = 0
    for _ in range(MUTATIONS):
        data, frame = source.choice(originals)
        damaged = bytearray(frame)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(damaged) + 1)
            kind = source.randrange(6)
            if kind == 0 and at < len(damaged):
                damaged[at] ^= 1 << source.randrange(8)
            elif kind == 1 and at < len(damaged):
                damaged[at] = source.randrange(256)
            elif kind == 2:
                del damaged[at : at + source.randint(1, 4)]
            elif kind == 3:
                damaged[at:at] = source.randbytes(source.randint(1, 4))
            elif kind == 4:
                damaged[at:at] = damaged[at : at + source.randint(1, 20)]
            else:
                del damaged[at:]
        try:
            decoded = frames.decompress(bytes(damaged), len(data))
        except PackageError:
            refused += 1
        else:
            assert decoded == data
            same += 1
    assert refused + same == MUTATIONS
    assert refused > 0.9 * MUTATIONS


def test_a_frame_cut_anywhere() -> None:
    frame = frames.compress(content(1500))
    for end in range(len(frame)):
        with pytest.raises(PackageError):
            frames.decompress(frame[:end], 1500)


@pytest.mark.parametrize("extra", [b"\0", b"\x28", frames.compress(b"another"), b"\x50\x2a\x4d\x18\x01\0\0\0x"])
def test_trailing_bytes(extra: bytes) -> None:
    with pytest.raises(PackageError):
        frames.decompress(frames.compress(content(100)) + extra, 100)


def test_two_frames_that_add_up_to_the_size() -> None:
    with pytest.raises(PackageError):
        frames.decompress(frames.compress(content(50)) + frames.compress(content(50)), 100)


def compressed(data: bytes, **options: object) -> bytes:
    chosen = {"write_content_size": True, "write_checksum": True, "write_dict_id": True, **options}
    return zstandard.ZstdCompressor(**chosen).compress(data)


def test_a_frame_without_a_checksum() -> None:
    with pytest.raises(PackageError, match="no checksum"):
        frames.decompress(compressed(content(100), write_checksum=False), 100)


def test_a_frame_without_a_content_size() -> None:
    frame = compressed(content(100), write_content_size=False)
    with pytest.raises(PackageError, match="declares"):
        frames.decompress(frame, 100)
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    with pytest.raises(PackageError):
        frames.decompress(stream.compress(content(100)) + stream.flush(), 100)


def test_a_frame_that_wants_a_dictionary() -> None:
    samples = [content(200, seed) for seed in range(200)]
    dictionary = zstandard.train_dictionary(2000, samples)
    frame = zstandard.ZstdCompressor(dict_data=dictionary, write_checksum=True).compress(samples[0])
    assert zstandard.get_frame_parameters(frame).dict_id
    with pytest.raises(PackageError, match="dictionary"):
        frames.decompress(frame, 200)
    hidden = zstandard.ZstdCompressor(dict_data=dictionary, write_checksum=True, write_dict_id=False).compress(
        samples[0]
    )
    with pytest.raises(PackageError):
        frames.decompress(hidden, 200)


def test_a_skippable_frame_and_older_magics() -> None:
    for magic in (
        b"\x50\x2a\x4d\x18",
        b"\x5f\x2a\x4d\x18",
        b"\x27\xb5\x2f\xfd",
        b"\x1e\xb5\x2f\xfd",
        b"\x1f\x8b\x08\0",
    ):
        with pytest.raises(PackageError):
            frames.decompress(magic + b"\x04\0\0\0abcd", 4)


def header(window: int, size: int) -> bytes:
    """Return a frame header with a window descriptor, an eight-byte content size and a checksum flag (RFC 8878)."""
    exponent = window.bit_length() - 1 - 10
    return b"\x28\xb5\x2f\xfd" + bytes([0b11000100, exponent << 3]) + size.to_bytes(8, "little")


@pytest.mark.parametrize("window", [2 * WINDOW_BYTES, 1 << 30, 1 << 41])
def test_a_frame_that_asks_for_a_huge_window(window: int) -> None:
    raw_block = (4 << 3 | 1).to_bytes(3, "little") + b"abcd"
    with pytest.raises(PackageError):
        frames.decompress(header(window, 4) + raw_block + b"\0\0\0\0", 4)


@pytest.mark.parametrize("declared", [1 << 20, 1 << 40, (1 << 64) - 1, (1 << 64) - 2])
def test_a_size_beyond_what_the_caller_can_take_is_refused_by_the_header_alone(declared: int) -> None:
    with pytest.raises(PackageError, match="where 1 to 1000 are possible"):
        frames.content_size(header(1 << 10, declared), most=1000)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes(data: bytes) -> None:
    for candidate in (data, b"\x28\xb5\x2f\xfd" + data):
        if not candidate:
            continue
        with pytest.raises(PackageError):
            frames.decompress(candidate, 37)


_BOMB = """
import sys, zstandard
from paramdelta_hub.codecs import frames
from paramdelta_hub.errors import PackageError
bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(200 << 20))
at = bomb.index((200 << 20).to_bytes(4, "little")); assert at < 10
lying = bytearray(bomb); lying[at:at + 4] = (1 << 20).to_bytes(4, "little")   # says 1 MiB, holds 200
assert zstandard.get_frame_parameters(bytes(lying)).content_size == 1 << 20
bare = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(bytes(200 << 20))
huge = b"\\x28\\xb5\\x2f\\xfd" + bytes([0b11000100, 31 << 3]) + (1 << 20).to_bytes(8, "little") + bytes(20)
frames.decompress(frames.compress(bytes(1 << 20)), 1 << 20)
with open("/proc/self/clear_refs", "w") as file: file.write("5")
before = [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")][0]
for frame in (bomb, bytes(lying), bare, huge):
    try: frames.decompress(frame, 1 << 20)
    except PackageError: continue
    sys.exit("not refused")
after = [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")][0]
print((after - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_bomb_takes_no_more_memory_than_it_may() -> None:
    """200 MiB behind 1 MiB: refused within the chunk that was asked for."""
    done = subprocess.run([sys.executable, "-c", _BOMB], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 16


def test_threads_do_not_share_contexts() -> None:
    data = [content(20_000, seed) for seed in range(4)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(60):
            if frames.decompress(frames.compress(data[index]), 20_000) != data[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
