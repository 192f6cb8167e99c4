"""Tampering: every single byte of every file of a package is changed, one at a time.

verify must refuse each change outside the manifest. The manifest is the root of trust, so that a change of a mere
label in it is another package with another id; whatever is changed anywhere, apply refuses or gives the same weights.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import ParamdeltaError, SourceError
from tests.attacks.outcomes import apply_is_safe
from tests.conftest import Family
from tests.models import read_weights, tuned, weights, write_model

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def small(tmp_path: Path) -> Family:
    """The smallest family with every kind of tensor, so that all of its bytes can be tried."""
    base = {name: tensor[:20] for name, tensor in weights(0).items() if "layers.1.mlp" not in name}
    models = {"base": base, "post": tuned(base, 1), "target": tuned(base, 2, scale=0.01)}
    for name, tensors in models.items():
        write_model(tmp_path / name, tensors)
    family = Family(tmp_path / "base", tmp_path / "post", tmp_path / "target", tmp_path / "delta")
    pd.extract(family.base, family.post, family.delta)
    return family


def places(family: Family, step: int) -> list[tuple[Path, int]]:
    """Return every ``step``-th byte of every file."""
    every = [(path, at) for path in sorted(family.delta.iterdir()) for at in range(path.stat().st_size)]
    return every[::step]


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_verify_refuses_every_flip(small: Family, step: int) -> None:
    source, refused, relabelled = random.Random(step), 0, 0
    untouched = pd.verify(small.delta).id
    for path, at in places(small, step):
        content = path.read_bytes()
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << source.randrange(8))]) + content[at + 1 :])
        try:
            report = pd.verify(small.delta, threads=1)
        except SourceError:
            refused += 1
        else:
            assert path.name == "manifest.json", (path.name, at)
            assert report.id != untouched
            relabelled += 1
        path.write_bytes(content)
    assert refused > 20 * relabelled / 10
    assert pd.verify(small.delta).id == untouched


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["base", "target"])
def test_apply_never_gives_other_weights(small: Family, tmp_path: Path, step: int, side: str) -> None:
    source = random.Random(step)
    model = small.base if side == "base" else small.target
    pd.apply(model, small.delta, tmp_path / "expected")
    expected = read_weights(tmp_path / "expected")
    refused = 0
    for path, at in places(small, step):
        content = path.read_bytes()
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << source.randrange(8))]) + content[at + 1 :])
        refused += apply_is_safe(model, small.delta, tmp_path / "out", expected) is not None
        path.write_bytes(content)
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


@pytest.mark.parametrize("rounds", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_larger_damage(small: Family, tmp_path: Path, rounds: int) -> None:
    """Cut, doubled, zeroed, shuffled and overwritten pieces."""
    source, expected, refused = random.Random(rounds), read_weights(small.post), 0
    for _ in range(rounds):
        path = source.choice(sorted(small.delta.iterdir()))
        content = path.read_bytes()
        at, length = source.randrange(len(content)), source.randint(1, 64)
        piece = content[at : at + length]
        new = source.choice(
            [b"", piece * 2, bytes(len(piece)), piece[::-1], source.randbytes(len(piece)), content[:length]]
        )
        path.write_bytes(content[:at] + new + content[at + length :])
        if new != piece:
            try:
                pd.verify(small.delta, threads=1)
            except ParamdeltaError:
                refused += 1
            else:
                assert path.name == "manifest.json"
            apply_is_safe(small.base, small.delta, tmp_path / "out", expected)
        path.write_bytes(content)
    assert refused > rounds * 0.7
    shutil.rmtree(small.delta)
