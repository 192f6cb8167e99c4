"""Tampering: every single byte of every file of a package is changed, one at a time.

verify must refuse each change outside the manifest. The manifest is the root of trust, so that a change of a mere
label in it is another package with another id: who asks for a package by its id, or has pulled it once, is told of
every change there is. Whatever is changed anywhere, apply refuses or gives the same weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import ParamdeltaError, RegistryError, SourceError
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.attacks.outcomes import apply_is_safe
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.support.models import read_weights, tuned, weights, write_model

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def tmp_path(memory: Path) -> Iterator[Path]:
    """A folder in memory: what is done here tens of thousands of times would wait for a disk."""
    made = Path(tempfile.mkdtemp(dir=memory))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def small(tmp_path: Path) -> Family:
    """The smallest family with every kind of tensor, so that all of its bytes can be tried."""
    base = {name: tensor[:8] for name, tensor in weights(0).items() if "layers.1.mlp" not in name}
    models = {"base": base, "post": tuned(base, 1), "target": tuned(base, 2, scale=0.01)}
    for name, tensors in models.items():
        write_model(tmp_path / name, tensors)
    family = Family(tmp_path / "base", tmp_path / "post", tmp_path / "target", tmp_path / "delta")
    pd.extract(family.base, family.post, family.delta)
    return family


def flips(delta: Path) -> Iterator[Path]:
    """Flip a bit of every byte of every file in turn; yield the file, and mend it."""
    source = random.Random(0)
    for path in sorted(path for path in delta.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for at, byte in enumerate(content):
            put(path, at, byte ^ (1 << source.randrange(8)))
            yield path
            put(path, at, byte)
        assert path.read_bytes() == content


def put(path: Path, at: int, byte: int) -> None:
    """Write one byte in place. To write the file anew would take longer than all that is tried on it."""
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, bytes([byte]), at)
    os.close(descriptor)


@shows("tampering", "every byte of every file of a package flipped: verify refuses, but for labels in the manifest, "
       "which give another id")  # fmt: skip
def test_verify_refuses_every_flip(rich: Family) -> None:
    refused = relabelled = 0
    untouched = pd.verify(rich.delta).id
    for path in flips(rich.delta):
        try:
            report = pd.verify(rich.delta, threads=1)
        except SourceError:
            refused += 1
        else:
            assert path.name == "manifest.json"
            assert report.id != untouched
            relabelled += 1
    assert refused > 2 * relabelled
    assert pd.verify(rich.delta).id == untouched


@shows("tampering", "every byte flipped of a package that was pulled before, or is pulled by its id: refused, without "
       "exception")  # fmt: skip
def test_a_pinned_package_refuses_every_flip(rich: Family, tmp_path: Path) -> None:
    registry = StoreRegistry(tmp_path / "registry")
    version = registry.publish(rich.delta, "org/name", "1.0.0")
    place, copy = Path(version.url), tmp_path / "copy"
    registry.pull("org/name", "1.0.0", copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    tried = 0
    for path in flips(place):
        held = copy / path.relative_to(place)
        if path.name != "manifest.json":  # what the copy has, and has right, is not fetched again
            held.unlink()
        for revision in ("1.0.0", version.id):
            with pytest.raises((SourceError, RegistryError)):
                registry.pull("org/name", revision, copy)
        if path.name != "manifest.json":
            held.write_bytes(before[held])
        assert held.read_bytes() == before[held]
        tried += 1
    assert tried >= sum(len(content) for path, content in before.items() if path.name != "paramdelta.lock")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@shows("tampering", "every byte of every file flipped: apply refuses, or gives the same weights, on base and on "
       "another target")  # fmt: skip
@pytest.mark.parametrize("side", ["base", "target"])
def test_apply_never_gives_other_weights(small: Family, tmp_path: Path, side: str) -> None:
    model = small.base if side == "base" else small.target
    pd.apply(model, small.delta, tmp_path / "expected")
    expected = read_weights(tmp_path / "expected")
    refused = 0
    for _ in flips(small.delta):
        refused += apply_is_safe(model, small.delta, tmp_path / "out", expected) is not None
    assert refused > 20


def test_a_changed_label_is_another_package(small: Family, tmp_path: Path) -> None:
    """What apply used is told by the package's id in the result, so that a pinned id finds every change."""
    before = pd.inspect(small.delta).id
    path = small.delta / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"post-delta"', b'"best-delta"'))
    pd.verify(small.delta)
    assert pd.inspect(small.delta).id != before
    pd.apply(small.base, small.delta, tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_bytes())
    assert provenance["deltas"][0]["id"] == hashlib.sha256(path.read_bytes()).hexdigest() != before


DAMAGES = 1500


@shows("tampering", f"{DAMAGES:,} pieces cut out, doubled, zeroed, reversed or overwritten in any file: refused, or "
       "the very same weights")  # fmt: skip
def test_larger_damage(rich: Family, tmp_path: Path) -> None:
    pd.apply(rich.target, rich.delta, tmp_path / "expected")
    source, expected, refused = random.Random(0), read_weights(tmp_path / "expected"), 0
    for _ in range(DAMAGES):
        path = source.choice(sorted(path for path in rich.delta.rglob("*") if path.is_file()))
        content = path.read_bytes()
        at, length = source.randrange(len(content)), source.randint(1, 64)
        piece = content[at : at + length]
        new = source.choice(
            [b"", piece * 2, bytes(len(piece)), piece[::-1], source.randbytes(len(piece)), content[:length]]
        )
        path.write_bytes(content[:at] + new + content[at + length :])
        if new != piece:
            try:
                pd.verify(rich.delta, threads=1)
            except ParamdeltaError:
                refused += 1
            else:
                assert path.name == "manifest.json"
            apply_is_safe(rich.target, rich.delta, tmp_path / "out", expected)
        path.write_bytes(content)
    assert refused > DAMAGES * 0.7
