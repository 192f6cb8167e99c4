"""Oversized and degenerate JSON where headers, manifests, indexes and configs stand: refused fast, in little memory.

Each case runs in one process that measures itself; those at the very cap are slow.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paramdelta_hub.limits import HEADER_BYTES

_SCRIPT = r"""
import json, sys, time
from pathlib import Path
from paramdelta_hub.errors import SourceError
from paramdelta_hub.format.headers import read_header
from paramdelta_hub.format.package import open_package
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint

folder, size = Path(sys.argv[1]), int(sys.argv[2])
place, wanted = sys.argv[3], sys.argv[4:]
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

def header(text):
    path = folder / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return lambda: read_header(path)

def manifest(text):
    path = folder / "manifest.json"
    path.write_bytes(b'{"format":"paramdelta","format_version":1,"x":' + text + b"}")
    return lambda: open_package(folder)

def index(text):
    (folder / "model.safetensors.index.json").write_bytes(b'{"weight_map":' + text + b"}")
    return lambda: open_checkpoint(folder)

def high_water():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"): return int(line.split()[1]) // 1024

for what, make in JSON.items():
    if wanted and what not in wanted: continue
    for old in folder.iterdir(): old.unlink()
    attempt = {"header": header, "manifest": manifest, "index": index}[place](make())
    open("/proc/self/clear_refs", "w").write("5")
    before, start, refused = high_water(), time.process_time(), None
    try: attempt()
    except SourceError as error: refused = error.what[:80]
    print(json.dumps([f"{place}: {what}", refused, time.process_time() - start, high_water() - before]), flush=True)
"""


def measure(folder: Path, size: int, where: str, *wanted: str) -> list[tuple[str, str | None, float, int]]:
    """Return (case, refusal, seconds, MiB above what was in use) of each case."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder), str(size), where, *wanted], capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("size", [500_000, pytest.param(5_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["header", "index", "manifest"])
def test_twenty_cases_each(tmp_path: Path, where: str, size: int) -> None:
    results = measure(tmp_path, size, where)
    assert len(results) == 20
    for case, refused, seconds, mebibytes in results:
        if case not in {"header: spaces", "header: metadata", "index: spaces"}:  # valid, if odd
            assert refused, case
        assert seconds < 2, case
        assert mebibytes < 256, case


@pytest.mark.slow
@pytest.mark.parametrize("case", ["keys", "empty lists", "a late duplicate"])
def test_at_the_very_cap(tmp_path: Path, case: str) -> None:
    ((_, refused, seconds, mebibytes),) = measure(tmp_path, HEADER_BYTES - 1000, "header", case)
    assert refused
    assert seconds < 2
    assert mebibytes < 256
