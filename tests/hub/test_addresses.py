"""Addresses that people paste are understood, or refused with the form to use."""

from __future__ import annotations

import pytest

from paramdelta_hub.errors import OptionError
from paramdelta_hub.hub.addresses import parse_address
from paramdelta_hub.registry.locate import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("https://huggingface.co/org/x", "org/x", None),
        ("https://huggingface.co/org/x/", "org/x", None),
        ("HTTPS://huggingface.co/org/x?library=transformers#files", "org/x", None),
        ("https://hf.co/org/x/tree/1.2.0", "org/x", "1.2.0"),
        ("https://huggingface.co/org/x/tree/main/companions", "org/x", "main"),
        ("https://huggingface.co/org/x/blob/main/README.md", "org/x", "main"),
        ("http://mirror.example:8080/org/x/tree/refs%2Fpr%2F1", "org/x", "refs/pr/1"),
        ("hf://org/x", "org/x", None),
        ("hf://models/org/x@1.2.0", "org/x", "1.2.0"),
    ],
)
def test_an_address_is_understood(monkeypatch: pytest.MonkeyPatch, text: str, repo: str, revision: str | None) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    assert parse_address(text) == (repo, revision)
    assert parse_reference(text) == Reference(None, repo, revision)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/org/x",
        "https://huggingface.co/spaces/org/x",
        "hf://datasets/org/x",
        "https://huggingface.co/gpt2",
        "https://huggingface.co/org/x/discussions/1",
        "https://huggingface.co/",
        "hf://",
        "hf://org/x/y",
        "hf://org/x@",
    ],
)
def test_another_address_is_refused_with_the_form_to_use(text: str) -> None:
    with pytest.raises(OptionError, match="org/name"):
        parse_reference(text)


def test_what_is_no_address_on_the_hub() -> None:
    for text in ("org/x", "./org/x", "s3://bucket/org/x", "https://elsewhere.example/org/x", "file:///org/x"):
        assert parse_address(text) is None
