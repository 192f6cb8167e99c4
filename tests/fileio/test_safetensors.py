"""safetensors headers: what we accept, safetensors accepts; what we write, everybody reads; the rest is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.safetensors import ITEM_SIZES, Header, build_header, check_header, read_header
from paramdelta_hub.limits import HEADER_BYTES, TENSOR_ELEMENTS, TENSOR_RANK
from tests.attacks.threats import shows


def entry(
    dtype: str = "F32", shape: tuple[int, ...] = (2, 3), begin: int = 0, end: int = 24, **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def file_of(header: Any, data: int = 24) -> bytes:
    """Return a file with this header (text, or anything JSON can say) and as many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def check(content: bytes) -> Header:
    """Check a file's content the way ``read_header`` does."""
    length = int.from_bytes(content[:8], "little")
    return check_header(content[8 : 8 + length], len(content))


def safetensors_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def refused(content: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        check(content)


def test_a_header_as_the_library_writes_it(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", (3,), 24, 30),
        "a": entry(),
        "empty": entry("I8", (0,), 24, 24),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(header, 30))
    read = read_header(path)
    assert [span.name for span in read.tensors] == ["a", "empty", "b"], "in the order of the data"
    assert read.metadata == {"format": "pt"}
    assert [(span.start - read.data_start, span.nbytes) for span in read.tensors] == [(0, 24), (24, 0), (24, 6)]
    assert [span.elements for span in read.tensors] == [6, 0, 3]
    assert read.size == path.stat().st_size


def test_scalars_and_models_without_tensors() -> None:
    assert check(file_of({"x": entry("F32", (), 0, 4)}, 4)).tensors[0].elements == 1
    assert check(file_of({}, 0)).tensors == ()


@pytest.mark.parametrize("dtype", sorted(ITEM_SIZES))
def test_every_dtype_has_the_size_that_safetensors_gives_it(dtype: str) -> None:
    size = ITEM_SIZES[dtype]
    assert safetensors_accepts(file_of({"x": entry(dtype, (3,), 0, 3 * size)}, 3 * size))
    assert not safetensors_accepts(file_of({"x": entry(dtype, (3,), 0, 3 * size + 1)}, 3 * size + 1))


BROKEN: dict[str, tuple[bytes, str]] = {
    "duplicate": (file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)), "occurs twice"),
    "duplicate in a tensor": (
        file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'),
        "occurs twice",
    ),
    "duplicate metadata": (file_of(b'{"__metadata__":{},"__metadata__":{}}', 0), "occurs twice"),
    "hole": (file_of({"a": entry("F32", (2,), 0, 8), "b": entry("F32", (2,), 16, 24)}), "hole or an overlap"),
    "hole before the first": (file_of({"a": entry("F32", (2,), 16, 24)}), "hole or an overlap"),
    "overlap": (file_of({"a": entry("F32", (4,), 0, 16), "b": entry("F32", (4,), 8, 24)}), "hole or an overlap"),
    "same place": (file_of({"a": entry(), "b": entry()}), "hole or an overlap"),
    "empty one inside another": (file_of({"a": entry(), "b": entry("F32", (0,), 8, 8)}), "hole or an overlap"),
    "trailing bytes": (file_of({"a": entry()}, 25), "1 bytes follow"),
    "truncated": (file_of({"a": entry()}, 23), "truncated"),
    "no tensors but data": (file_of({}, 1), "1 bytes follow"),
    "end before begin": (file_of({"a": entry("F32", (2, 3), 24, 0)}), "spans -24"),
    "shape too large": (file_of({"a": entry("F32", (2, 4))}), "spans 24 bytes"),
    "shape too small": (file_of({"a": entry("F32", (2, 2))}), "spans 24 bytes"),
    "other dtype": (file_of({"a": entry("BF16")}), "spans 24 bytes"),
    "unknown dtype": (file_of({"a": entry("F31")}), "unknown dtype"),
    "lower case dtype": (file_of({"a": entry("f32")}), "unknown dtype"),
    "dtype no text": (file_of({"a": {**entry(), "dtype": 7}}), "unknown dtype"),
    "dtype a list": (file_of({"a": {**entry(), "dtype": ["F32"]}}), "unknown dtype"),
    "product overflows": (file_of({"a": entry("F32", (2**33, 2**33), 0, 24)}), "impossible shape"),
    "product wraps to 24": (file_of({"a": entry("U8", (2**32, 2**32, 24), 0, 24)}), "impossible shape"),
    "too many elements": (file_of({"a": entry("U8", (TENSOR_ELEMENTS + 1,), 0, 24)}), "impossible shape"),
    "hidden by a zero": (file_of({"a": entry("U8", (2**41, 0), 0, 0)}, 0), "impossible shape"),
    "negative length": (file_of({"a": entry("F32", (-2, -3))}), "impossible shape"),
    "fraction": (file_of({"a": {**entry(), "shape": [2.0, 3]}}), "impossible shape"),
    "truth": (file_of({"a": {**entry("U8", (1,), 0, 1), "shape": [True]}}, 1), "impossible shape"),
    "shape a number": (file_of({"a": {**entry(), "shape": 6}}), "impossible shape"),
    "rank": (file_of({"a": entry("U8", (1,) * (TENSOR_RANK + 1), 0, 1)}, 1), "impossible shape"),
    "one offset": (file_of({"a": {**entry(), "data_offsets": [24]}}), "impossible data_offsets"),
    "three offsets": (file_of({"a": {**entry(), "data_offsets": [0, 24, 24]}}), "impossible data_offsets"),
    "negative offset": (file_of({"a": entry("F32", (2, 3), -24, 0)}), "impossible data_offsets"),
    "huge offset": (file_of({"a": entry("F32", (2, 3), 2**64 - 24, 2**64)}), "impossible data_offsets|64 bits"),
    "offsets a text": (file_of({"a": {**entry(), "data_offsets": "0-24"}}), "impossible data_offsets"),
    "missing field": (file_of({"a": {"dtype": "F32", "shape": [2, 3]}}), "exactly the fields"),
    "unknown field": (file_of({"a": entry(stride=[1])}), "exactly the fields"),
    "not an object": (file_of({"a": 7}), "exactly the fields"),
    "null": (file_of({"a": None}), "exactly the fields"),
    "a list": (file_of([], 0), "begin with"),
    "a number": (file_of(b"7", 0), "begin with"),
    "empty": (file_of(b"", 0), "begin with"),
    "space first": (file_of(b" {}", 0), "begin with"),
    "byte order mark": (file_of(b"\xef\xbb\xbf{}", 0), "begin with"),
    "not JSON": (file_of(b"{'a': 1}", 0), "not JSON"),
    "rest after the object": (file_of(b"{}{}", 0), "not JSON"),
    "zero bytes as padding": (file_of(b"{}\0\0", 0), "not JSON"),
    "UTF-16": (file_of(b"{\0}\0", 0), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff":1}', 0), "not UTF-8"),
    "NaN": (file_of(b'{"a":NaN}', 0), "not JSON"),
    "metadata a list": (file_of({"__metadata__": []}, 0), "map of strings"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}, 0), "map of strings"),
    "metadata nested": (file_of({"__metadata__": {"a": {"b": "c"}}}, 0), "map of strings"),
    "empty name": (file_of({"": entry()}), "unsafe tensor name"),
    "control character": (file_of({"a\x1b[31m": entry()}), "unsafe tensor name"),
    "long name": (file_of({"a" * 1025: entry()}), "unsafe tensor name"),
    "lone surrogate": (file_of(b'{"\\ud800":%s}' % json.dumps(entry()).encode()), "unsafe tensor name|surrogate|UTF"),
    "deep": (file_of(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", 0), "nested deeper"),
    "very deep": (file_of(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 0), "nested deeper"),
    "long integer": (
        file_of(b'{"a":{"dtype":"U8","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,1]}}', 1),
        "64 bits",
    ),
}


@shows("broken headers", f"{len(BROKEN)} broken headers: each refused for its own reason")
@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_headers(case: str) -> None:
    content, match = BROKEN[case]
    refused(content, match)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}',
        b'{"__metadata__":{"a":"\\ud800"}}',
        b'{"__metadata__":{"\\udc00":"a"}}',
        b'{"__metadata__":null}',
        b'{"__metadata__":{"a":"\\u0000"}}',
        b'{"__metadata__":{"a":"\\ud83d\\ude00"}}',
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,00]}}',
    ],
)
def test_what_the_two_json_parsers_could_read_differently(header: bytes) -> None:
    content = file_of(header, 0)
    try:
        check(content)
    except CheckpointError:
        return
    assert safetensors_accepts(content)


def valid_header(source: random.Random) -> tuple[dict[str, Any], int]:
    """Return a valid header of a few tensors, and how many bytes of data it has."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "x": "ü"}} if source.random() < 0.5 else {}
    position = 0
    for number in range(source.randint(1, 4)):
        dtype = source.choice(sorted(ITEM_SIZES))
        shape = tuple(source.choice([0, 1, 2, 3, 5]) for _ in range(source.randint(0, 3)))
        size = ITEM_SIZES[dtype]
        for length in shape:
            size *= length
        header[f"layer.{number}.weight"] = entry(dtype, shape, position, position + size)
        position += size
    names = list(header)
    source.shuffle(names)
    return {name: header[name] for name in names}, position


ODD_VALUES = (
    0, 1, 2, 3, 8, -1, -0.0, 1.0, 1e3, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 2**64 - 1, None, True, False,
    "", "F32", "BF16", "f32", "\ud800", "\x00", [], [0], [0, 0], [1, 2, 3], {}, {"dtype": "F32"},
)  # fmt: skip


def mutate_values(header: dict[str, Any], source: random.Random) -> None:
    """Change a value, a key, or the order, somewhere in the header."""
    name = source.choice(list(header))
    kind = source.randrange(7)
    if kind == 0:
        header[name] = source.choice(ODD_VALUES)
    elif kind == 1 and isinstance(header[name], dict) and header[name]:
        header[name][source.choice(list(header[name]))] = source.choice(ODD_VALUES)
    elif kind == 2 and isinstance(header[name], dict):
        field = header[name].get(source.choice(["shape", "data_offsets"]))
        if isinstance(field, list) and field:
            at = source.randrange(len(field))
            field[at] = source.choice(
                [source.choice(ODD_VALUES), (field[at] or 0) + 1 if isinstance(field[at], int) else 1]
            )
    elif kind == 3 and isinstance(header[name], dict) and header[name]:
        del header[name][source.choice(list(header[name]))]
    elif kind == 4:
        header[source.choice(["", "a", "../../x", "__metadata__", "ü", "a\nb", "\ud800"])] = header.pop(name)
    elif kind == 5:
        header[name + "2"] = header[name]
    else:
        del header[name]


def mutate_text(text: bytes, source: random.Random) -> bytes:
    """Edit the text itself: bytes, or tokens that another parser may read in another way."""
    damaged = bytearray(text)
    at = source.randrange(len(damaged) + 1)
    kind = source.randrange(4)
    if kind == 0 and at < len(damaged):
        damaged[at] = source.randrange(256)
    elif kind == 1:
        del damaged[at : at + source.randint(1, 5)]
    elif kind == 2:
        damaged[at:at] = source.choice(
            [b" ", b"\0", b"\t\n", b",", b"-", b"0", b".0", b"e0", b"E+2", b"\\u0061", b"\\ud800", b"/**/"]
        )
    else:
        damaged += source.choice([b" " * 8, b"\n", b"\0", b"}", b"{}", b"#"])
    return bytes(damaged)


MUTATIONS = 5000


@shows("broken headers", f"{MUTATIONS:,} changed headers: what we accept, safetensors accepts; no error but ours")
def test_mutations_what_we_accept_safetensors_accepts() -> None:
    source = random.Random(MUTATIONS)
    accepted = rejected = 0
    for _ in range(MUTATIONS):
        header, data = valid_header(source)
        for _ in range(source.randint(0, 2)):
            if header and source.random() < 0.7:
                mutate_values(header, source)
        text = json.dumps(header, ensure_ascii=source.random() < 0.7).encode("utf-8", "surrogatepass")
        if source.random() < 0.4:
            text = mutate_text(text, source)
        content = file_of(text, max(0, data + source.choice([0, 0, 0, 0, 1, -1])))
        try:
            check(content)
        except CheckpointError:
            rejected += 1
        else:
            accepted += 1
            assert safetensors_accepts(content), text
    assert accepted > MUTATIONS / 10, "mutations that all fail would prove nothing"
    assert rejected > MUTATIONS / 2


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=6),
    seed=st.integers(0, 1000),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    least=st.integers(0, 900),
)
def test_what_we_build_we_and_safetensors_read(
    names: list[str], seed: int, metadata: dict[str, str], least: int
) -> None:
    names = [name for name in names if name.isprintable() and name != "__metadata__"]
    source, spans = random.Random(seed), []
    for name in names:
        dtype, shape = source.choice(sorted(ITEM_SIZES)), tuple(source.choices(range(4), k=source.randint(0, 3)))
        size = ITEM_SIZES[dtype]
        for length in shape:
            size *= length
        spans.append((name, dtype, shape, size))
    header = build_header(spans, metadata, least)
    content = header + bytes(sum(size for *_, size in spans))
    assert len(header) % 8 == 0
    assert len(header) >= least
    read = check(content)
    assert [(span.name, span.dtype, span.shape, span.nbytes) for span in read.tensors] == spans
    assert read.metadata == metadata
    assert safetensors_accepts(content)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, match in (
        (b"", "truncated: 0 bytes"),
        (b"1234567", "truncated: 7 bytes"),
        (b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
        ((HEADER_BYTES + 1).to_bytes(8, "little") + bytes(100), f"header of {HEADER_BYTES + 1} bytes"),
        (((1 << 64) - 1).to_bytes(8, "little"), "declares a header of"),
        ((101).to_bytes(8, "little") + bytes(100), "header alone takes 101"),
        (b"PK\3\4" + bytes(100), "declares a header of"),
        (b"\x80\x02}q\x00." + bytes(100), "declares a header|truncated"),
    ):
        path.write_bytes(content)
        with pytest.raises(PackageError, match=match) as caught:
            read_header(path, PackageError)
        assert caught.value.where == str(path)


def test_every_truncation_of_a_file(tmp_path: Path) -> None:
    content = file_of({"a": entry(), "b": entry("BF16", (2,), 24, 28)}, 28)
    path = tmp_path / "x.safetensors"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            read_header(path)
    path.write_bytes(content)
    assert len(read_header(path).tensors) == 2


def test_a_header_that_claims_100_megabytes_takes_no_memory(tmp_path: Path) -> None:
    """The claim is compared with the file's size before a byte is read."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADER_BYTES.to_bytes(8, "little") + b"{" * 1000)
    code = (
        "import resource, sys; from pathlib import Path; from paramdelta_hub.fileio.safetensors import read_header\n"
        "from paramdelta_hub.errors import CheckpointError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_header(Path(sys.argv[1]))\n"
        "except CheckpointError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 16 << 10


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_duplicate_among_many_keys_is_found_in_time(where: str) -> None:
    """50,000 keys, and the one that stands twice is the last: looking for it must not take the square of that."""
    keys = [f"k{number}" for number in range(50_000)]
    keys = [keys[0], *keys] if where == "first" else [*keys, keys[-1]]
    text = ("{" + ",".join(f'"{key}":0' for key in keys) + "}").encode()
    start = time.process_time()
    refused(file_of(text, 0), "occurs twice")
    assert time.process_time() - start < 2
