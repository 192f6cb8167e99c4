"""The request of an extract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.numerics.casts import FloatDtype
from paramdelta_hub.tasks.requests import Request

__all__ = ["ExtractRequest"]


@dataclass(frozen=True)
class ExtractRequest(Request):
    """What :func:`~paramdelta_hub.extract` is asked for."""

    paths: ClassVar = ("base", "post", "base_tokenizer", "post_tokenizer")

    base: str
    """The model post was trained from: a folder, a ``.safetensors`` file, or ``org/name[@revision]``."""
    post: str
    """The post-trained model, likewise; or a LoRA adapter of base."""
    name: str | None = None
    """The name of the delta. The default is made from post's name."""
    version: str = "1.0.0"
    """Its semantic version."""
    license: str | None = None
    """An SPDX expression, or a license name of the Hub."""
    renames: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) for the names of post's tensors."""
    skips: tuple[str, ...] = ()
    """Patterns of the tensors to leave out."""
    carries: tuple[str, ...] = ()
    """Patterns of the tensors that only post has, and that the delta carries whole."""
    layouts: tuple[str, ...] = ()
    """Layout rules, such as ``stack experts.*.w1.weight -> experts.w1``, that make base's tensors of post's."""
    partials: tuple[str, ...] = ()
    """Patterns of tensors that are larger in post, and of which the leading part is used."""
    cast: FloatDtype | None = None
    """Read both sides in this float dtype, rounded once, whatever theirs are. Without it a delta is exact in the dtype
    that holds both sides."""
    base_tokenizer: str | None = None
    """The folder of base's tokenizer, if it is not beside the weights. Rows of embeddings are matched by token."""
    post_tokenizer: str | None = None
    """The folder of post's tokenizer, likewise."""
    hash_files: bool = False
    """Also record the sha256 of local weight files, which reads both models twice. For files from the Hub it is known,
    and the digest of every tensor is always recorded."""
    force: bool = False
    """Extract although post does not descend from base."""

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips, self.carries, self.layouts, self.partials)
