"""The companions of a package: post's tokenizer, templates and settings, and the changes of its configs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from paramdelta_hub.checkpoints.adapters import is_adapter
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.companions import CONFIG, FOLDER, GENERATION, post_companions, read_companion
from paramdelta_hub.checkpoints.config_merge import config_change
from paramdelta_hub.fileio.durable import write_file
from paramdelta_hub.package.manifest import ConfigChange, FileRecord
from paramdelta_hub.package.records import ConfigName

__all__ = ["check_companions", "config_changes", "copy_companions"]


def config_changes(base: Checkpoint, post: Checkpoint) -> dict[ConfigName, ConfigChange]:
    """Return what a manifest says of post's configs. A base whose folder has no generation settings has empty ones.

    A config.json beside an adapter is a copy that some trainer made of base's, and is not looked at.
    """
    changes: dict[ConfigName, ConfigChange] = {}
    old, new = base.read_json(CONFIG), post.read_json(CONFIG)
    if old is not None and new is not None and not is_adapter(post):
        changes[CONFIG] = config_change(old, new)
    new = post.read_json(GENERATION)
    if new is not None and not base.is_lone_file:
        changes[GENERATION] = config_change(base.read_json(GENERATION) or {}, new)
    return changes


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
