"""A target that has a delta already: by its provenance, or by the values of post; and one that only seems to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.errors import MismatchError
from tests.conftest import Family
from tests.support.models import apply_in, read_weights, tuned, write_model


def test_by_its_provenance(family: Family, tmp_path: Path) -> None:
    pd.apply(family.target, {family.delta: 0.5}, tmp_path / "half", threads=1)
    with pytest.raises(MismatchError, match="has this delta already") as caught:
        pd.apply(tmp_path / "half", family.delta, tmp_path / "out", threads=1)
    assert "paramdelta_provenance.json" in caught.value.mismatches[0].message
    assert not (tmp_path / "out").exists()
    with pytest.raises(MismatchError, match="has this delta already"):
        pd.preview(pd.ApplyRequest(str(tmp_path / "half"), ((str(family.delta), 1.0),)), tmp_path / "out")


def test_another_delta_on_an_applied_model_is_no_slip(family: Family, tmp_path: Path) -> None:
    pd.extract(family.base, family.target, tmp_path / "other", threads=1)
    pd.apply(family.target, {family.delta: 0.5}, tmp_path / "half", threads=1)
    assert apply_in(tmp_path, "half", "other", threads=1).notes == ()


def test_a_delta_that_was_taken_back_may_be_added_again(family: Family, tmp_path: Path) -> None:
    pd.apply(family.target, {family.delta: -0.5}, tmp_path / "less", threads=1)
    pd.apply(tmp_path / "less", {family.delta: 0.5}, tmp_path / "out", threads=1)


def test_under_other_labels(family: Family, tmp_path: Path) -> None:
    """The labels are no part of the delta: a relabeled copy, or a new extraction, is the same."""
    pd.relabel(family.delta, tmp_path / "relabeled", version="2.0.0", name="another")
    with pytest.raises(pd.OptionError, match=r"post-delta 1\.0\.0 is given 2 times, also as another 2\.0\.0"):
        pd.apply(family.target, [family.delta, tmp_path / "relabeled"], tmp_path / "out", threads=1)
    pd.apply(family.target, family.delta, tmp_path / "applied", threads=1)
    with pytest.raises(MismatchError, match="has this delta already"):
        apply_in(tmp_path, "applied", "relabeled", threads=1)


def test_what_was_applied_before_the_last_time_is_remembered(family: Family, tmp_path: Path) -> None:
    pd.extract(family.base, family.target, tmp_path / "other", threads=1)
    pd.apply(family.target, {family.delta: 0.5}, tmp_path / "one", threads=1)
    pd.apply(tmp_path / "one", {tmp_path / "other": 0.5}, tmp_path / "two", threads=1)
    provenance = pd.verify_result(tmp_path / "two").provenance
    assert [delta.name for delta in provenance.earlier] == ["post-delta"]
    for target in (tmp_path / "two", tmp_path / "two" / "model.safetensors"):
        with pytest.raises(MismatchError, match="has this delta already"):
            pd.apply(target, family.delta, tmp_path / "out", threads=1)


def test_taken_back_twice(family: Family, tmp_path: Path) -> None:
    pd.apply(family.target, {family.delta: -0.5}, tmp_path / "less", threads=1)
    with pytest.raises(MismatchError, match="has this delta already"):
        pd.apply(tmp_path / "less", {family.delta: -0.5}, tmp_path / "out", threads=1)


def test_by_the_values_of_post(family: Family, tmp_path: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        pd.apply(family.post, family.delta, tmp_path / "out", threads=1)
    assert "compared tensors of the target have the values of post, post" in caught.value.mismatches[0].message
    pd.apply(family.post, {family.delta: -1.0}, tmp_path / "back", threads=1)


def test_a_model_trained_further_from_post_is_no_slip(family: Family, tmp_path: Path) -> None:
    """Its values are not post's any more. Whether the delta is wanted once more is the user's own affair."""
    write_model(tmp_path / "further", tuned(read_weights(family.post), 5), config={"model_type": "llama"})
    pd.apply(tmp_path / "further", family.delta, tmp_path / "out", threads=1)


def test_base_itself_is_no_slip(family: Family, tmp_path: Path) -> None:
    assert pd.apply(family.base, family.delta, tmp_path / "out", threads=1).is_post


def test_one_tensor_of_posts_is_no_evidence(family: Family, tmp_path: Path) -> None:
    """A frozen norm, or a head that somebody took over: all compared tensors must be post's."""
    target = read_weights(family.target)
    name = min((n for n, t in target.items() if t.is_floating_point()), key=lambda n: target[n].numel())
    target[name] = read_weights(family.post)[name]
    write_model(tmp_path / "odd", target, config={"model_type": "llama"})
    pd.apply(tmp_path / "odd", family.delta, tmp_path / "out", threads=1)


def test_a_provenance_that_can_not_be_read_is_no_obstacle(family: Family, tmp_path: Path) -> None:
    (family.target / "paramdelta_provenance.json").write_text(json.dumps({"format": "something else"}))
    report = pd.apply(family.target, family.delta, tmp_path / "out", threads=1)
    assert report.notes == ()
    assert all(torch.isfinite(t.float()).all() for t in read_weights(tmp_path / "out").values())
