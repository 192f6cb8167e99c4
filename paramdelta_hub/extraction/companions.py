"""The companions of a package: post's tokenizer, templates and settings, and the changes of its configs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from paramdelta_hub.checkpoints.adapters.reading import is_adapter
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.companions import (
    CONFIG,
    FOLDER,
    GENERATION,
    is_config,
    kind_of,
    model_companions,
    post_companions,
    read_companion,
)
from paramdelta_hub.checkpoints.config_merge import config_change
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import write_file
from paramdelta_hub.fileio.names import shown
from paramdelta_hub.package.manifest import ConfigChange, FileRecord
from paramdelta_hub.package.records import ConfigName

__all__ = ["check_companions", "config_changes", "copy_companions", "layout_notes"]


def config_changes(base: Checkpoint, post: Checkpoint) -> dict[ConfigName, ConfigChange]:
    """Return what a manifest says of post's configs. A base whose folder has no generation settings has empty ones.

    A config.json beside an adapter is a copy that some trainer made of base's, and is not looked at.
    """
    changes: dict[ConfigName, ConfigChange] = {}
    for name in filter(is_config, model_companions(post)):
        if name == CONFIG and is_adapter(post):
            continue
        old, new = base.read_json(name), post.read_json(name)
        if old is None and name.endswith(GENERATION) and not base.is_lone_file:
            old = {}
        if old is None or new is None:
            continue
        change = config_change(old, new)
        if change.patch or name in (CONFIG, GENERATION):
            changes[name] = change
    return changes


def layout_notes(base: Checkpoint, post: Checkpoint) -> Iterator[str]:
    """Yield in words what base and post have otherwise that no package holds: a result has the target's."""
    if base.is_lone_file or post.is_lone_file:
        return
    sides = model_companions(base), model_companions(post)
    for name in sorted(sides[0].keys() | sides[1].keys()):
        if kind_of(name) not in ("config", "layout"):
            continue
        holders = [side for side, files in zip(("base", "post"), sides, strict=True) if name in files]
        if len(holders) == 1:
            yield f"{shown(name)}: only {holders[0]} has it; a result has what the target has"
        elif not is_config(name) and _differ(name, *(files[name] for files in sides)):
            yield f"{shown(name)}: post's differs from base's; a result has the target's"


def _differ(name: str, base: Path, post: Path) -> bool:
    old, new = read_companion(base), read_companion(post)
    if old == new or not name.endswith(".json"):
        return old != new
    values = [strict_json.parse(text, CheckpointError, name, long_integers=True) for text in (old, new)]
    return strict_json.canonical(values[0]) != strict_json.canonical(values[1])


def check_companions(base: Checkpoint, post: Checkpoint, tokenizer: Path | None) -> None:
    """Raise before the work starts what :func:`copy_companions` and :func:`config_changes` would raise after it."""
    post_companions(post, tokenizer)
    config_changes(base, post)


def copy_companions(post: Checkpoint, tokenizer: Path | None, result: Path) -> tuple[FileRecord, ...]:
    """Copy post's companions into the package being made in ``result``, and return their records.

    Tokenizer and templates may lie in a folder of their own.

    Raises:
        CheckpointError: one names code, is not JSON where it should be, or is a link out of the folder.
    """
    shutil.rmtree(result / FOLDER, ignore_errors=True)  # of an interrupted run
    records = []
    for name, path in post_companions(post, tokenizer).items():
        content, place = read_companion(path), f"{FOLDER}/{name}"
        (result / place).parent.mkdir(parents=True, exist_ok=True)
        write_file(result / place, content)
        records.append(FileRecord(path=place, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    return tuple(records)
