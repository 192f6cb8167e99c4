"""Three-way merge of configs: what post changed against base is applied to the target's, as RFC 7396 patches.

A key takes post's value if post changed it and the target still has base's value. If the target changed it too, there
is a conflict: it is reported, and the target wins unless the user chooses post. Some keys have their own rules:

| keys                                             | whose value       | why                                           |
|--------------------------------------------------|-------------------|-----------------------------------------------|
| ``hidden_size``, ``num_…``, ``…_dim``,           | the target's ¹    | its tensors have these shapes                 |
| ``architectures``, ``id2label``, …               |                   |                                               |
| ``rope_…``, ``max_position_embeddings``, …       | the target's ¹    | its weights were trained with these positions |
| ``dtype``, ``torch_dtype``                       | the target's      | so are its tensors                            |
| ``quantization_config``, ``compression_config``  | the target's      | so are its tensors                            |
| ``transformers_version``, ``_name_or_path``, …   | the target's      | it says who wrote the file, not what it means |
| ``auto_map``, ``custom_pipelines``               | the target's      | they name code; none comes out of a package   |
| ``…_token_id``, ``suppress_tokens``, …           | the tokenizer's ² | ids mean nothing without their tokenizer      |
| what the caller settles                          | the result's      | its tensors decide: vocabulary, ties, …       |

¹ post's, where the result's tensors are post's own. ² post's where the result has post's tokenizer, even if the target
changed them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.package.provenance import Conflict, Merged
from paramdelta_hub.package.records import CODE_KEYS, ConfigChange

__all__ = [
    "ALWAYS",
    "STRUCTURE",
    "TEXT_CONFIGS",
    "MergedConfig",
    "apply_patch",
    "config_change",
    "merge_config",
    "merge_patch",
]

Exceptions = Mapping[str, re.Pattern[str]]

STRUCTURE: Exceptions = {
    "the shapes are those of the target's tensors": re.compile(
        r"(?!num_(beams|beam_groups|return_sequences)$)num_\w+|n_(?!ctx|positions)\w+|(?!.*ngram_size)\w+_(size|sizes|dim|dims|rank)"
        r"|d_(model|ff|kv|state|conv|inner)|\w*(layers|heads|experts)|layer_types|tie_word_embeddings"
        r"|model_type|architectures|id2label|label2id|(in|out)_features|\w*_channels|\w+_dimension|\w+_block_types?"
    ),
    "the target's weights were trained with its positions": re.compile(
        r"rope_\w+|rotary_\w+|partial_rotary_factor|original_max_position_embeddings|max_position_embeddings"
        r"|max_sequence_length|max_seq_len|seq_length|n_positions|n_ctx"
    ),
}
"""Keys of ``config.json`` that describe the target's tensors, by the reason why its values stay."""

ALWAYS: Exceptions = {
    "the dtype is that of the target's tensors": re.compile(r"(torch_)?dtype|(quantization|compression)_config"),
    "it says who wrote the file": re.compile(
        r"transformers_version|_diffusers_version|__version__|_name_or_path|_commit_hash|_from_model_config"
    ),
    "it refers to code, and code is never taken from a package": re.compile(
        "|".join([*sorted(CODE_KEYS), "_class_name", "activation_(fn|function)", "module_(input|output)_\\w+"])
    ),
}
"""Keys that are the target's in every file, even where all tensors are post's."""

_TOKENS = re.compile(r"\w*_token_ids?|\w*_token_index|(begin_)?suppress_tokens|forced_decoder_ids|bad_words_ids")
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where models of several kinds of input keep what concerns their tokens."""
_SHOWN = 120


@dataclass
class MergedConfig:
    """A target's config after the merge, and the outcome for every key that some post changed."""

    config: JsonObject
    taken: dict[str, str] = field(default_factory=dict)
    """Keys that have post's value now, and the delta it comes from."""
    kept: dict[str, str] = field(default_factory=dict)
    """Keys that post changed and that are the target's all the same, and why."""
    overridden: list[str] = field(default_factory=list)
    """Keys that were set to what the result's tensors are."""
    conflicts: list[Conflict] = field(default_factory=list)

    @property
    def record(self) -> Merged:
        """The outcome, as a provenance keeps it."""
        conflicts, overridden = tuple(self.conflicts), tuple(self.overridden)
        return Merged(taken=self.taken, kept=self.kept, overridden=overridden, conflicts=conflicts)


def merge_patch(old: Any, new: Any, always: re.Pattern[str] | None = None) -> Any:
    """Return the RFC 7396 patch that makes ``new`` of ``old``; an empty object where they are equal.

    The RFC reserves null for deletion, so a key that *becomes* null is recorded as deleted: transformers' configs
    treat an absent key and a null one alike. Keys that match ``always`` are in the patch even where nothing changed.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    patch: JsonObject = {key: None for key in old if key not in new and old[key] is not None}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            if inner := merge_patch(before, value, always):
                patch[key] = inner
        elif not _equal(before, value) or (always and value is not None and always.fullmatch(key)):
            patch[key] = value
    return patch


def apply_patch(value: Any, patch: Any) -> Any:
    """Return what an RFC 7396 patch makes of ``value``, which is left as it is."""
    if not isinstance(patch, dict):
        return patch
    patched = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            patched.pop(key, None)
        else:
            patched[key] = apply_patch(patched.get(key), change)
    return patched


def config_change(base: Mapping[str, Any], post: Mapping[str, Any]) -> ConfigChange:
    """Return the manifest's record of what post changed in a config, without what names code.

    Post's token ids are in it even where base has the same: a target with another tokenizer may have others.

    Raises:
        CheckpointError: a key that can't be printed.
    """
    old, new = _without_code(base), _without_code(post)
    try:
        return ConfigChange(patch=merge_patch(old, new, _TOKENS), reverse=merge_patch(new, old, _TOKENS))
    except ValidationError as error:
        raise CheckpointError(f"the config can't be stored in a manifest: {error.errors()[0]['msg']}") from None


def merge_config(
    target: Mapping[str, Any],
    changes: Sequence[tuple[str, ConfigChange]],
    *,
    exceptions: Exceptions,
    prefer: Literal["target", "post"] = "target",
    tokens: int | Literal["target", "merge"] = "merge",
    overrides: Mapping[str, Any] | None = None,
) -> MergedConfig:
    """Return ``target`` with every change merged into it in order. The target's keys keep their order.

    Merging the same changes into the result again changes nothing. They are (label of the delta, what its post
    changed), in the order of the deltas. Where the target changed a key, too, ``prefer`` tells who wins; with ``post``,
    the last delta does. Keys of ``exceptions`` stay the target's, by the reason. Token ids are those of the delta whose
    number ``tokens`` is, the target's, or merged as other keys are.

    ``overrides`` are keys that the result's tensors decide; they win over everything, and None deletes. They are set
    wherever the target has them: at the top, and in the part that describes the language model.
    """
    result = MergedConfig(copy.deepcopy(dict(target)))
    elsewhere = {f"the tokenizer is {'the target' if tokens == 'target' else 'another delta'}'s": _TOKENS}
    for number, (label, change) in enumerate(changes):
        rules = exceptions if tokens in (number, "merge") else {**exceptions, **elsewhere}
        _Merge(result, label, rules, tokens == number, prefer).merge(result.config, change.patch, change.reverse)
    for key, value in (overrides or {}).items():
        _override(result, key, value)
    return result


@dataclass(frozen=True)
class _Merge:
    """Merges one delta's change into the result."""

    result: MergedConfig
    label: str
    exceptions: Exceptions
    takes_token_ids: bool
    prefer: Literal["target", "post"]

    def merge(self, node: JsonObject, patch: Mapping[str, Any], reverse: Mapping[str, Any], prefix: str = "") -> None:
        """Change ``node``, an object of the result whose keys' paths begin with ``prefix``."""
        for key, new in patch.items():
            path, old, current = prefix + key, reverse.get(key), node.get(key)
            value = None if new is None else apply_patch(current, new)
            if _equal(current, value) or (_equal(old, value) and not self.takes_token_ids):
                continue  # the latter is a token id that post did not change
            if why := next((why for why, pattern in self.exceptions.items() if pattern.fullmatch(key)), None):
                self.result.kept[path] = why
            elif isinstance(new, dict) and isinstance(current, dict) and (old is None or isinstance(old, dict)):
                self.merge(current, new, old or {}, f"{path}.")
            elif (
                _equal(current, old)
                or (self.takes_token_ids and _TOKENS.fullmatch(key))
                or self._resolve_conflict(path, old, value, current)
            ):
                _set_or_delete(node, key, value)
                self.result.taken[path] = self.label

    def _resolve_conflict(self, path: str, base: Any, post: Any, current: Any) -> bool:
        """Record a conflict; return whether post's value is taken all the same."""
        other = self.result.taken.get(path, "target")
        winner = self.label if self.prefer == "post" else other
        conflict = Conflict(
            key=path,
            delta=self.label,
            base=_excerpt(base),
            post=_excerpt(post),
            found=_excerpt(current),
            other=other,
            winner=winner,
        )
        self.result.conflicts.append(conflict)
        return self.prefer == "post"


def _override(result: MergedConfig, key: str, value: Any) -> None:
    parts = {"": result.config, **{f"{name}.": result.config.get(name) for name in TEXT_CONFIGS}}
    nodes = {prefix: node for prefix, node in parts.items() if isinstance(node, dict) and key in node}
    for prefix, node in (nodes or {"": result.config}).items():
        if not _equal(node.get(key), value):
            _set_or_delete(node, key, value)
            result.overridden.append(prefix + key)
            for record in (result.kept, result.taken):  # whatever was to become of it before
                record.pop(prefix + key, None)


def _set_or_delete(node: JsonObject, key: str, value: Any) -> None:
    if value is None:
        node.pop(key, None)
    else:
        node[key] = value


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON. 1, 1.0 and true differ; an absent key equals null."""
    return strict_json.canonical(_without_nulls(one)) == strict_json.canonical(_without_nulls(other))


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


def _without_code(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_code(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    return {key: _without_code(inner) for key, inner in value.items() if key not in CODE_KEYS}


def _excerpt(value: Any) -> str:
    """Return an untrusted value for a report: JSON in ASCII, one line, shortened."""
    text = strict_json.canonical(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
