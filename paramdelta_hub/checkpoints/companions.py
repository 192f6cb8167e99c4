"""The files beside the weights that make a model usable: configs, tokenizer, templates; by an allow-list, as bytes."""

from __future__ import annotations

import re
from pathlib import Path

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.format.durable import read_small
from paramdelta_hub.format.links import settle
from paramdelta_hub.limits import COMPANION_BYTES

__all__ = ["companions"]

_ALLOWED = re.compile(
    r"config\.json|generation_config\.json|preprocessor_config\.json|processor_config\.json|video_preprocessor_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.txt|vocab\.json|merges\.txt|chat_template\.(jinja|json)"
    r"|modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json|[0-9]+_[A-Z][A-Za-z]*/config\.json",
)
"""transformers' and sentence-transformers' own files. No code (``.py``), no pickles, no other weights, no model card
(the result is another model)."""


def companions(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return a model's companion files by their names in its folder, sorted; none for a lone weight file.

    Raises:
        CheckpointError: one is a link out of the folder: it would be copied into the result, and published with it.
    """
    if checkpoint.is_lone_file:
        return {}
    folder = checkpoint.folder
    found = [*folder.iterdir(), *folder.glob("[0-9]_*/config.json")]
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())
    return {name: settle(folder, name, CheckpointError) for name in names if _ALLOWED.fullmatch(name)}


def read_companion(path: Path) -> bytes:
    """Return a companion's bytes.

    Raises:
        CheckpointError: unreadable or absurdly large.
    """
    return read_small(path, COMPANION_BYTES, CheckpointError)
