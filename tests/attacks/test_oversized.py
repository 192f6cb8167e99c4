"""Oversized and degenerate JSON in every place where a stranger's JSON is read: it costs little time and memory.

Cases run in processes that measure themselves. The unit of time is what Python's ``json`` takes, in the same process,
for a plain list of numbers that is as long: a busy machine is slow at both. Those at the very cap are slow.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from paramdelta_hub.limits import HEADER_BYTES, MANIFEST_BYTES, MANIFEST_VALUES
from paramdelta_hub.package.manifest import TensorRecord
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.package.test_manifest import parent

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

_SCRIPT = r"""
import itertools, json, sys, time
from pathlib import Path
from paramdelta_hub.errors import SourceError
from paramdelta_hub.fileio.safetensors import read_header
from paramdelta_hub.package.package import open_package
from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.companions import code_key, read_companion
from paramdelta_hub.checkpoints.kinship.lineage import unpack_samples
from paramdelta_hub.checkpoints.files.resolve import ModelSource
from paramdelta_hub.package.provenance import parse_provenance
from paramdelta_hub.registry.lockfile import read_lock

folder, size, places, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(), sys.argv[4:]
model = Checkpoint(ModelSource(folder, "x", None), ())
JSON = {
    "keys": lambda: b"{" + b",".join(b'"%d":0' % i for i in range(size // 12)) + b"}",
    "the same key": lambda: b"{" + b",".join([b'"a":0'] * (size // 6)) + b"}",
    "a late duplicate": lambda: b"{" + b",".join(b'"%d":0' % i for i in range(size // 12)) + b',"7":0}',
    "empty lists": lambda: b'{"a":[' + b",".join([b"[]"] * (size // 3)) + b"]}",
    "empty objects": lambda: b'{"a":[' + b",".join([b"{}"] * (size // 3)) + b"]}",
    "depth": lambda: b'{"a":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
    "unclosed": lambda: b'{"a":' * (size // 5),
    "a text": lambda: b'{"a":"' + b"x" * size + b'"}',
    "a name": lambda: b'{"' + b"x" * size + b'":1}',
    "digits": lambda: b'{"a":' + b"9" * size + b"}",
    "a fraction": lambda: b'{"a":0.' + b"9" * size + b"}",
    "an exponent": lambda: b'{"a":1e' + b"9" * size + b"}",
    "escapes": lambda: b'{"a":"' + b"\\u0041" * (size // 6) + b'"}',
    "surrogates": lambda: b'{"a":"' + b"\\ud83d\\ude00" * (size // 12) + b'"}',
    "spaces": lambda: b"{" + b" " * size + b"}",
    "zero bytes": lambda: b"{" + bytes(size),
    "numbers": lambda: b'{"a":[' + b",".join([b"1"] * (size // 2)) + b"]}",
    "metadata": lambda: b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(size // 13)) + b"}}",
    "dimensions": lambda: (
        b'{"a":{"dtype":"U8","shape":[' + b",".join([b"1"] * (size // 2)) + b'],"data_offsets":[0,1]}}'),
    "bad tensors": lambda: b"{" + b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,1]}' % i for i in range(size // 60)) + b"}",
}

def at(name, text):
    path = folder / name
    path.write_bytes(text)
    return path

PLACES = {
    "header": lambda text: (at("x.safetensors", len(text).to_bytes(8, "little") + text), read_header),
    "manifest": lambda text: (at("manifest.json", b'{"format":"paramdelta","format_version":1,"x":' + text + b"}"),
        lambda path: open_package(path.parent)),
    "index": lambda text: (at("model.safetensors.index.json", b'{"weight_map":' + text + b"}"),
        lambda path: open_checkpoint(path.parent)),
    "config": lambda text: (at("config.json", text), lambda path: model.read_json(path.name)),
    "companion": lambda text: (at("tokenizer_config.json", text),
        lambda path: code_key(read_companion(path), str(path))),
    "lock": lambda text: (at("paramdelta.lock", text), lambda path: read_lock(path.parent)),
    "provenance": lambda text: (
        at("p.json", b'{"format":"paramdelta-provenance","format_version":1,"x":' + text + b"}"),
        lambda path: parse_provenance(path.read_bytes())),
    "lineage": lambda text: (at("lineage.safetensors", len(text).to_bytes(8, "little") + text),
        lambda path: unpack_samples(path.read_bytes(), "it")),
}

def high_water():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"): return int(line.split()[1]) // 1024

plain = JSON["numbers"]()
start = time.process_time()
json.loads(plain)
unit = time.process_time() - start
del plain
for what, place in itertools.product(wanted, places):
    if place == places[0]: text = JSON[what]()
    for old in folder.iterdir(): old.unlink()
    path, read = PLACES[place](text)
    open("/proc/self/clear_refs", "w").write("5")
    before, start, refused = high_water(), time.process_time(), None
    try: read(path)
    except SourceError as error: refused = error.what[:80]
    took = (time.process_time() - start) / unit
    print(json.dumps([what, place, refused, took, high_water() - before]), flush=True)
"""
TEXTS = re.findall(r'^    "([a-z ]+)": lambda: ', _SCRIPT, re.MULTILINE)


def measure(
    folder: Path, size: int, places: Iterable[str], *wanted: str
) -> list[tuple[str, str, str | None, float, int]]:
    """Return (text, place, refusal, time in units, MiB above what was in use) of each case."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder), str(size), " ".join(places), *wanted], capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


VALID = {
    "keys", "empty lists", "empty objects", "a text", "a name", "a fraction", "escapes", "surrogates", "spaces",
    "numbers", "metadata", "dimensions", "bad tensors",
}  # fmt: skip
MAY_PASS = {
    "header": {"spaces", "metadata"},
    "lineage": {"spaces", "metadata"},
    "index": {"spaces"},
    "config": VALID,
    "companion": VALID,
    "manifest": set(),
    "lock": set(),
    "provenance": set(),
}
"""What each place may hold, odd as it is."""
SIZE, UNITS, MEBIBYTES, SECONDS = 5_000_000, 20, 256, 2
"""Limits of time (a unit is 0.1 s of one quiet core for this size) and memory; the seconds are for the reader."""


@shows(
    "oversized JSON",
    f"{len(TEXTS)} degenerate texts of {SIZE:,} bytes in {len(MAY_PASS)} places ({', '.join(MAY_PASS)}): each less "
    f"than {UNITS} times what Python takes for a plain list as long, about {SECONDS} s, and {MEBIBYTES} MiB",
)
@LINUX
@pytest.mark.parametrize("part", range(4))
def test_twenty_texts_in_each_place(tmp_path: Path, part: int) -> None:
    wanted = TEXTS[part::4]
    assert len(TEXTS) == 20
    results = measure(tmp_path, SIZE, MAY_PASS, *wanted)
    assert len(results) == len(wanted) * len(MAY_PASS)
    for text, place, refused, units, mebibytes in results:
        assert refused or text in MAY_PASS[place], (text, place)
        assert units < UNITS, (text, place)
        assert mebibytes < MEBIBYTES, (text, place)


def put(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    """Return a copy with something else at ``path``."""
    changed = copy.deepcopy(value)
    parent(changed, path)[path[-1]] = wrong
    return changed


ENTRIES = 400_000
ROWS = ("tensors", 1, "rows", "runs")
WRONG: dict[str, tuple[tuple[Any, ...], Callable[[], Any]]] = {
    **{
        f"{place[-1]}: {ENTRIES:,} wrong items": (place, lambda: [0] * ENTRIES)
        for place in (
            ("base", "files"), ("architecture", "classes"), ("renames",), ("omissions",), ("shards",), ("companions",),
            ("tensors",), ("tensors", 1, "parts"), ROWS,
        )
    },
    **{
        f"{place[-1]}: {ENTRIES:,} wrong entries": (place, lambda: {str(number): [] for number in range(ENTRIES)})
        for place in (
            ("base", "dtypes"), ("configs",), ("configs", "config.json", "patch"), ("given_up",),
        )
    },
    "shape: many dimensions": (("tensors", 1, "shape"), lambda: [1] * ENTRIES),
    "runs: wrong triples": (ROWS, lambda: [["x", "x", "x"]] * (ENTRIES // 4)),
    "runs: right ones, many": (ROWS, lambda: [[0, 0, 0]] * (ENTRIES // 4)),
    "given_up: too long tokens": (("given_up",), lambda: {f"{number:02000}": 1 for number in range(2000)}),
    "tensors: wrong values": (
        ("tensors",), lambda: [{name: [] for name in TensorRecord.model_fields}] * (ENTRIES // 40)
    ),
}  # fmt: skip
_PARSE = """
import json, os, sys, time
from pathlib import Path
from paramdelta_hub.errors import PackageError
plain = b"[" + b",".join([b"1"] * 2_500_000) + b"]"
start = time.process_time()
json.loads(plain)
unit = time.process_time() - start
del plain
from paramdelta_hub.package.manifest import parse_manifest
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
for path in sys.argv[1:]:
    if (child := os.fork()):
        assert os.waitpid(child, 0)[1] == 0, path
        continue
    text = Path(path).read_bytes()
    open("/proc/self/clear_refs", "w").write("5")
    before, start, refused = high_water(), time.process_time(), None
    try: parse_manifest(text)
    except PackageError as error: refused = len(str(error))
    print(json.dumps([refused, (time.process_time() - start) / unit, high_water() - before]), flush=True)
    os._exit(0)
"""


@shows("oversized JSON", f"{len(WRONG)} manifests of the right fields with up to {ENTRIES:,} wrong items or entries in "
       "one: likewise")  # fmt: skip
@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_manifests_with_many_wrong_items(shared_rich: Family, tmp_path: Path, part: int) -> None:
    whole = json.loads((shared_rich.delta / "manifest.json").read_bytes())
    cases = list(WRONG)[part::3]
    for number, case in enumerate(cases):
        path, wrong = WRONG[case]
        (tmp_path / f"{number:02}").write_text(json.dumps(put(whole, path, wrong())))
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for case, (refused, units, mebibytes) in zip(cases, results, strict=True):
        assert refused, case
        assert refused < 10_000, "an error of a sensible length"
        assert units < 2 * UNITS, case
        assert mebibytes < MEBIBYTES, case


AT_CAP = ("keys", "empty lists", "a late duplicate", "a text")


@shows("oversized JSON", f"headers at the very cap, {HEADER_BYTES >> 20} MiB: likewise")
@pytest.mark.slow
@pytest.mark.parametrize("case", AT_CAP)
def test_headers_at_the_very_cap(tmp_path: Path, case: str) -> None:
    ((_, _, refused, units, mebibytes),) = measure(tmp_path, HEADER_BYTES - 1000, ["header"], case)
    assert refused
    assert units < UNITS
    assert mebibytes < MEBIBYTES


MOST_MEBIBYTES = 1024


@shows("oversized JSON", f"manifests at their cap of bytes ({MANIFEST_BYTES >> 20} MiB) or of values "
       f"({MANIFEST_VALUES:,}), which the largest honest one comes near: less than {MOST_MEBIBYTES} MiB")  # fmt: skip
@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("case", "size"), [("a text", MANIFEST_BYTES - 1000), ("keys", 12 * (MANIFEST_VALUES - 1000))])
def test_manifests_at_the_very_cap(tmp_path: Path, case: str, size: int) -> None:
    ((_, _, refused, units, mebibytes),) = measure(tmp_path, size, ["manifest"], case)
    assert refused
    assert units < UNITS
    assert mebibytes < MOST_MEBIBYTES
