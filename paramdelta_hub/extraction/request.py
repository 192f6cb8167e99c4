"""What is asked of an extract."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from paramdelta_hub.checkpoints.rules import Rules
from paramdelta_hub.tasks.requests import Request, absolute

__all__ = ["ExtractRequest"]


@dataclass(frozen=True)
class ExtractRequest(Request):
    """What :func:`~paramdelta_hub.extract` is asked for; fields as its arguments, rules as tuples."""

    base: str
    post: str
    name: str | None = None
    version: str = "1.0.0"
    license: str | None = None
    renames: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    base_tokenizer: str | None = None
    post_tokenizer: str | None = None
    hash_files: bool = False

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips, self.carries)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that holds from any current folder."""
        paths = {key: absolute(getattr(self, key)) for key in ("base", "post", "base_tokenizer", "post_tokenizer")}
        return {**asdict(self), **paths}
