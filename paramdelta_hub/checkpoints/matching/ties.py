"""Tied tensors: names that stand for one tensor, such as an output head that is the token embedding.

Files store a tied tensor once, or once under each of its names. What is a tie is decided by three things:

- *Names.* A head and a token embedding of its width may be tied; ``encoder.embed_tokens``, ``decoder.embed_tokens`` and
  ``shared`` of one model are; so are a head's bias and that of its decoder.
- *The config.* Whether a head is the embedding is said by ``tie_word_embeddings``, or by its default.
- *Values.* Copies that differ are no tie, whatever the config says. transformers loads them apart, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from paramdelta_hub.checkpoints.config_merge import TEXT_CONFIGS
from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS, Entry, is_head
from paramdelta_hub.checkpoints.matching.tie_defaults import TIED_BY_DEFAULT, UNTIED_BY_DEFAULT

__all__ = ["TieGroups", "Ties", "head_is_tied", "shares_embeddings", "tied_to"]

_HALF = re.compile(r"^(?P<root>|.*\.)(text_)?(encoder|decoder)\.(embed_tokens|word_embeddings)\.weight$")
"""The embedding of one half of a model with an encoder and a decoder."""
_PER_LAYER = re.compile(r"per_layer")
_BIAS = re.compile(r"^(?P<head>.*(predictions|head))(\.decoder)?\.bias$")
"""A head's bias, which BERT and its kin have under two names."""
_NESTED = (*TEXT_CONFIGS, "decoder", "thinker_config")


def head_is_tied(config: Mapping[str, Any] | None) -> bool | None:
    """Whether a config says that the output head is the token embedding; None where it does not tell.

    A key that is absent has the default of the model type. What models of several kinds of input say at the top
    decides, and then what the part says that concerns their tokens.
    """
    parts = _parts(config)
    for part in parts:
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    for kind in (part.get("model_type") for part in parts):
        if isinstance(kind, str) and kind in TIED_BY_DEFAULT | UNTIED_BY_DEFAULT:
            return kind in TIED_BY_DEFAULT
    return None


def shares_embeddings(config: Mapping[str, Any] | None) -> bool:
    """Whether the two halves of a model with an encoder and a decoder share one embedding, where it has ``shared``."""
    return (config or {}).get("share_encoder_decoder_embeddings") is not False


def tied_to(name: str, stored: Collection[str], config: Mapping[str, Any] | None) -> str | None:
    """Return the stored tensor that serves for a name without one of its own, by names and config alone; None if none.

    A head is taken for tied unless the config says that it is not.
    """
    if found := _BIAS.fullmatch(name):
        bias = f"{found['head']}.bias"
        return bias if bias != name and bias in stored else None
    embeddings = [other for other in stored if EMBEDDINGS.search(other) and not _PER_LAYER.search(other)]
    if is_head(name):
        return _nearest(name, embeddings) if head_is_tied(config) is not False else None
    if not shares_embeddings(config):
        return None
    shared = _shared_name(name, stored)
    return shared if shared != name else None


def _parts(config: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    parts = [config] if config else []
    for part in parts:  # which grows
        parts += [inner for name in _NESTED if isinstance(inner := part.get(name), Mapping)]
    return parts


@dataclass(frozen=True)
class Ties:
    """Which names of one model stand for which of its stored tensors."""

    same: Mapping[str, str] = field(default_factory=dict)
    """Name → the stored tensor whose values it has: a copy of it, or a name that has no tensor of its own."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Stored tensors that the config ties to another, but whose values differ."""
    undecided: Mapping[str, str] = field(default_factory=dict)
    """Names without a tensor of their own that may be tied to this one: no config tells."""
    own_heads: frozenset[str] = frozenset()
    """Stored heads beside a stored embedding that are no copies of it."""
    tied_embeddings: bool | None = None
    """Whether the head is the embedding; None where there is no embedding, or nothing tells."""

    def tensor_of(self, name: str) -> str:
        """Return the stored tensor that a name stands for."""
        return self.same.get(name, name)

    def supported_by(self, other: Ties, stored: Iterable[str]) -> Ties:
        """Return the same, with undecided names tied where the ``other`` model stores equal copies under both."""
        known = set(stored)
        shown = {
            name: at
            for name, at in self.undecided.items()
            if name in known and other.tied_embeddings is not False and other.tensor_of(name) == other.tensor_of(at)
        }
        same = {**self.same, **shown}
        return replace(self, same=same, undecided={}, tied_embeddings=True if shown else self.tied_embeddings)

    def without(self, names: Iterable[str]) -> Ties:
        """Return the same, but ``names`` have to have tensors of their own."""
        gone = self.same.keys() & set(names)
        if not gone:
            return self
        return replace(self, same={k: at for k, at in self.same.items() if k not in gone}, tied_embeddings=False)


@dataclass(frozen=True)
class TieGroups:
    """The names of two models that may stand for one tensor: name → the name of its group.

    Of a group, embeddings and biases are always one tensor, and heads may be.
    """

    groups: Mapping[str, str]

    @classmethod
    def of(cls, *sides: Mapping[str, Entry], shares_embeddings: bool = True) -> TieGroups:
        """Return the groups of all names of the models, from names and shapes."""
        entries = {name: entry for side in reversed(sides) for name, entry in side.items()}
        groups: dict[str, str] = {}
        widths: dict[str, int] = {}
        for name, entry in entries.items():
            if len(entry.shape) == 2 and EMBEDDINGS.search(name) and not _PER_LAYER.search(name):
                groups[name] = _shared_name(name, entries) if shares_embeddings else name
                widths[groups[name]] = entry.shape[1]
        for name, entry in entries.items():
            if (found := _BIAS.fullmatch(name)) and len(entry.shape) == 1:
                groups[name] = f"{found['head']}.bias"
            elif (
                len(entry.shape) == 2
                and name not in groups
                and is_head(name)
                and any(_scores_tokens(name, side, groups) for side in sides)
            ):
                fitting = [group for group, width in widths.items() if width == entry.shape[1]]
                if group := _nearest(name, fitting):
                    groups[name] = group
        return cls(groups)

    def ties(
        self,
        stored: Mapping[str, Entry],
        head_is_tied: bool | None,
        equal: Callable[[str, str], bool],
        others: Iterable[str] = (),
    ) -> Ties:
        """Return the ties of one model.

        Args:
            stored: its tensors.
            head_is_tied: what its config says.
            equal: compares the values of two of its tensors; called only where that matters.
            others: names of the other model, for which this one may have no tensor.
        """
        members: dict[str, list[str]] = {}
        for name, group in self.groups.items():
            members.setdefault(group, []).append(name)
        others = set(others)
        found: list[Ties] = []
        for group, names in members.items():
            there = sorted((name for name in names if name in stored), key=lambda name: _rank(name, group))
            if there:
                lacking = [name for name in names if name not in stored]
                compares = head_is_tied is not None or not others.issuperset(there)
                found.append(_ties_of(there, lacking, head_is_tied, compares, equal))
        answers = [ties.tied_embeddings for ties in found if ties.tied_embeddings is not None]
        return Ties(
            same={name: at for ties in found for name, at in ties.same.items()},
            apart={name: at for ties in found for name, at in ties.apart.items()},
            undecided={name: at for ties in found for name, at in ties.undecided.items()},
            own_heads=frozenset(name for ties in found for name in ties.own_heads),
            tied_embeddings=all(answers) if answers else None,
        )


def _ties_of(
    there: Sequence[str],
    lacking: Sequence[str],
    head_is_tied: bool | None,
    compares: bool,
    equal: Callable[[str, str], bool],
) -> Ties:
    """Return the ties of one group: of tensors that the model stores, of which the first serves, and of other names."""
    first, same, apart, own_heads = there[0], {}, {}, set()
    for name in there[1:]:
        if not is_head(name) or (compares and head_is_tied is not False):
            if equal(name, first):
                same[name] = first
            elif not is_head(name) or head_is_tied:
                apart[name] = first
        if is_head(name) and name not in same:
            own_heads.add(name)
    undecided = {}
    for name in lacking:
        if not (is_head(name) or is_head(first)) or (head_is_tied and not own_heads):
            same[name] = first
        elif head_is_tied is None and not own_heads:
            undecided[name] = first
    if first.endswith(".bias"):
        tied = None
    elif own_heads:
        tied = False
    else:
        tied = True if any(map(is_head, same.keys() & set(there))) else head_is_tied
    return Ties(same, apart, undecided, frozenset(own_heads), tied)


def _scores_tokens(name: str, side: Mapping[str, Entry], groups: Mapping[str, str]) -> bool:
    """Whether one model's tensor is as long as an embedding of its width; or the model has no such embedding."""
    if name not in side or len(side[name].shape) != 2:
        return False
    rows, width = side[name].shape
    lengths = {side[other].shape[0] for other in groups if other in side and side[other].shape[1:] == (width,)}
    return not lengths or rows in lengths


def _shared_name(name: str, entries: Collection[str]) -> str:
    """Return the name of the embedding that the halves of a model share; ``name``, where there is none."""
    if found := _HALF.match(name):
        for whole in (f"{found['root']}shared.weight", f"{found['root']}word_embeddings.weight"):
            if whole in entries:
                return whole
    return name


def _rank(name: str, group: str) -> tuple[bool, bool, str]:
    """Sort a group's tensors: the one it is called after, embeddings, heads."""
    return name != group, is_head(name), name


def _nearest(head: str, groups: Sequence[str]) -> str | None:
    """Return the embedding that a head belongs to: the only one; of several the decoder's, or the nearest by name."""
    groups = [group for group in groups if "decoder" in group.split(".")] or groups
    parts = head.split(".")

    def common(group: str) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, group.split("."), strict=False)))

    return max(groups, key=common, default=None)
