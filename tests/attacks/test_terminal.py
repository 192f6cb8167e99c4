"""Escape sequences and line feeds in a package's labels: they could rewrite a terminal, or forge a line of a report."""

from __future__ import annotations

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import PackageError
from tests.attacks.outcomes import change_manifest
from tests.conftest import Family

LABELS = ("name", "license", "created_by")


@pytest.mark.parametrize(
    "text", ["x\x1b]0;title\x07", "x\x1b[2J", "mit\n  exact         yes", "x\u202egpj", "\r", "a\x9b31m"]
)
@pytest.mark.parametrize("field", LABELS)
def test_labels_that_rewrite_a_terminal(family: Family, field: str, text: str) -> None:
    change_manifest(family.delta, lambda manifest: manifest.update({field: text}))
    with pytest.raises(PackageError):
        pd.inspect(family.delta)


@pytest.mark.parametrize("field", LABELS)
def test_labels_in_any_script(family: Family, field: str) -> None:
    change_manifest(family.delta, lambda manifest: manifest.update({field: "Δ 模型 é 😀"}))
    assert getattr(pd.inspect(family.delta).manifest, field) == "Δ 模型 é 😀"
