"""Resolve a model name to files on disk: a folder, a single file, or a Hub id with ``@revision``."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paramdelta_hub.errors import CheckpointError, SourceError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.hub.addresses import parse_address
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import translate_hub_errors

__all__ = ["ModelSource", "download", "is_hub_id", "path_exists", "resolve"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

_ALLOW_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*/config.json"]
"""Files fetched from a Hub repository: weights, configs, tokenizers. Never ``.bin`` or ``.gguf``."""
_CONFIG_PATTERNS = ["config.json", "*/config.json", "*.safetensors.index*.json", "modules.json", "model_index.json"]
"""What the headers of weights are understood by."""
_IGNORE_PATTERNS = ["original/*", "onnx/*", "openvino/*", "consolidated*.safetensors"]
"""Second copies of the same weights, in other formats or layouts."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, and its name in manifests and messages."""

    path: Path
    name: str
    commit: str | None
    """Of a Hub repository; None for local files."""


def resolve(model: str | Path, *, code: bool = False) -> ModelSource:
    """Find a model by path, Hub id or address on the Hub (``org/name[@revision]``), downloading what is not cached.

    Python files are downloaded only with ``code``.

    A path that exists wins over a Hub id of the same spelling. HF_TOKEN, HF_HOME, HF_HUB_OFFLINE are honoured.

    Raises:
        CheckpointError: neither a path nor a repository that can be had; the message says what was tried.
        RegistryError: the Hub can't be reached, or is out of order.
    """
    text = str(model)
    if address := parse_address(text):
        return download(*address, code=code)
    path = expand(model)
    if path_exists(path):
        if path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name):
            # models--org--name/snapshots/<commit> of the Hub's cache, given as a path, is still that commit.
            return ModelSource(path, path.parents[1].name.removeprefix("models--").replace("--", "/"), path.name)
        return ModelSource(path, _printable(path.resolve().name), None)
    if isinstance(model, Path) or not is_hub_id(text):
        raise CheckpointError(
            "no such file or folder", where=text, remedy="give a folder, a .safetensors file or org/name"
        )
    repository, _, revision = text.partition("@")
    return download(repository, revision or None, code=code)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ``org/name`` or ``org/name@revision``."""
    return bool(_HUB_ID.fullmatch(text.partition("@")[0])) and not text.endswith("@")


def path_exists(path: Path, error: type[SourceError] = CheckpointError) -> bool:
    """Whether there is something at ``path``.

    Raises:
        SourceError: (as ``error``) nobody can tell, as a folder above it can't be read: that is not for the Hub to
            answer.
    """
    try:
        os.stat(path)
    except ValueError:  # a zero byte
        return False
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise error(
            f"can't be read: {problem.strerror}",
            where=str(path),
            remedy="check the permissions of the folders above it",
        ) from None
    return True


def _printable(name: str) -> str:
    """Return a folder's name as it can stand in a manifest: what does not show, or is no UTF-8, becomes ``?``."""
    return "".join(character if is_clear(character) else "?" for character in name) or "model"


def download(
    repository: str, revision: str | None, *, part: Literal["all", "companions", "config"] = "all", code: bool = False
) -> ModelSource:
    """Fetch a repository's files into the Hub's cache; Python files only with ``code``.

    ``all`` are weights, configs and tokenizer; ``companions`` all but the weights; ``config`` the config and the index.

    Raises:
        CheckpointError: there is none, or it is not for this account.
        RegistryError: the Hub can't be reached, or is out of order.
    """
    # Imported here: only Hub ids need it, and it takes a quarter of a second.
    from huggingface_hub import snapshot_download

    connect()
    ignore_patterns = _IGNORE_PATTERNS if part == "all" else [*_IGNORE_PATTERNS, "*.safetensors"]
    with translate_hub_errors(f"{repository}@{revision}" if revision else repository, CheckpointError):
        allow_patterns = [*(_CONFIG_PATTERNS if part == "config" else _ALLOW_PATTERNS), *(["*.py"] if code else ())]
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
    return ModelSource(Path(folder), repository, Path(folder).name)
