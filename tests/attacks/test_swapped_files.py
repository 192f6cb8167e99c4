"""Mix-and-match: files of three packages of the same models' family are exchanged, alone and together."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import IntegrityError, PackageError
from tests.attacks.outcomes import apply_is_safe, change_manifest, refused_by_verify
from tests.attacks.threats import shows
from tests.support.models import read_weights, tuned, weights, write_model

FILES = ("manifest.json", "delta-00001-of-00001.safetensors", "lineage.safetensors")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three packages: two of one base, a third of another base of the same shapes."""
    root = tmp_path_factory.mktemp("three")
    for number, (seed, tune) in enumerate(((0, 1), (0, 2), (5, 3))):
        base = weights(seed)
        write_model(root / f"base{number}", base)
        write_model(root / f"post{number}", tuned(base, tune))
        pd.extract(root / f"base{number}", root / f"post{number}", root / f"delta{number}", name="same")
    return root


MIXES = [mix for mix in itertools.product(range(3), repeat=3) if len(set(mix)) > 1]


@shows("mix-and-match of files", f"manifest, shard and samples of 3 packages in all {len(MIXES)} mixtures: refused")
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_every_mix_is_refused(packages: Path, tmp_path: Path, mix: tuple[int, ...]) -> None:
    delta = tmp_path / "mixed"
    delta.mkdir()
    for name, origin in zip(FILES, mix, strict=True):
        shutil.copy(packages / f"delta{origin}" / name, delta / name)
    same_lineage = {0, 1}  # two deltas of one base have equal lineage files: exchanging those changes nothing
    if mix[0] == mix[1] and {mix[0], mix[2]} <= same_lineage:
        pd.verify(delta)
        return
    refused_by_verify(delta, PackageError)
    expected = read_weights(packages / f"post{mix[0]}")
    refusal = apply_is_safe(packages / f"base{mix[0]}", delta, tmp_path / "out", expected)
    assert refusal is not None


@shows("mix-and-match of files", "payloads, names of tensors and shards exchanged within a package: refused")
def test_a_payload_of_another_tensor(packages: Path, tmp_path: Path) -> None:
    """Two tensors of one shape exchange their payloads' digests: each payload is whole, and at the wrong place."""
    delta = tmp_path / "delta"
    shutil.copytree(packages / "delta0", delta)

    def exchange(manifest: dict) -> None:  # type: ignore[type-arg]
        one, other = (t for t in manifest["tensors"] if t["name"].endswith("mlp.weight"))
        for field in ("parts", "changed", "exceptions"):
            one[field], other[field] = other[field], one[field]

    change_manifest(delta, exchange)
    refused_by_verify(delta, PackageError)
    assert apply_is_safe(packages / "base0", delta, tmp_path / "out", {}) is not None


def test_tensors_exchanged_with_their_names(packages: Path, tmp_path: Path) -> None:
    """The manifest's records change names: verify against base finds it, since the digests are of other tensors."""
    delta = tmp_path / "delta"
    shutil.copytree(packages / "delta0", delta)
    path = delta / "manifest.json"
    text = path.read_text()
    one, other = '"model.layers.0.mlp.weight"', '"model.layers.1.mlp.weight"'
    path.write_text(text.replace(one, '"?"').replace(other, one).replace('"?"', other))
    with pytest.raises(pd.ParamdeltaError):
        pd.verify(delta, base=packages / "base0")


def test_swapped_shards_of_one_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_hub.tasks import plan

    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    base = weights(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "post", tuned(base, 1))
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    first, second, *_ = sorted((tmp_path / "delta").glob("delta-*"))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    refused_by_verify(tmp_path / "delta", IntegrityError)
    assert apply_is_safe(tmp_path / "base", tmp_path / "delta", tmp_path / "out", {}) is not None
