"""Lineage: evidence that a target descends from base or shares an ancestor with it, without having base.

Models of equal shapes that were trained separately are uncorrelated; fine-tunes of one ancestor agree almost perfectly.
A few values of base per tensor, at positions derived from the tensor's name, are enough to tell the two cases apart.
Measured, matrix by matrix: MiniLM fine-tunes 0.999 and more, a BERT trained for another task 0.97 and more (its pooler,
which was trained anew, 0.53); of two CHGNet releases of equal shapes, 45 of 46 matrices within ±0.16, and a table that
both share.

A mean would hide that half of the tensors are strangers, so each is judged by itself, and those that have nothing in
common with base's are named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.logical import LogicalTensor
from paramdelta_hub.checkpoints.rules.tensor_rules import as_options
from paramdelta_hub.checkpoints.stored import Files
from paramdelta_hub.errors import CheckpointError, Mismatch, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import build_header, check_header
from paramdelta_hub.limits import (
    FOREIGN_CORRELATION,
    FOREIGN_SHARE,
    FOREIGN_SHARE_OF_ONE,
    KIN_CORRELATION,
    LINEAGE_RUN_LENGTH,
    LINEAGE_RUNS,
    LINEAGE_TENSORS,
    REMOTE_LINEAGE_RUNS,
    REMOTE_LINEAGE_TENSORS,
)
from paramdelta_hub.numerics.casts import as_bits
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.provenance import ForeignTensor, Lineage

__all__ = [
    "LineageMatch",
    "choose_evenly",
    "compare_samples",
    "is_evidence",
    "pack_samples",
    "sample",
    "sample_runs",
    "unpack_samples",
]

Samples: TypeAlias = Mapping[str, tuple[str, NDArray[np.uint8]]]
"""The dtype and the bytes of every tensor's samples."""

_LEAST_VALUES = 32
_LEAST_SPREAD = 0.02
"""Values nearer to one another, as a share of their mean, are all alike but for rounding (BF16: 0.004) and a little
training: such tensors of kin may be uncorrelated."""
_REQUESTS_AT_ONCE = 16
_NAMED = 3
"""Foreign tensors that a note names."""
_HINTS, _EXCHANGED = 8, 8
"""Foreign tensors of which it is tried whether they are transposed or have changed places, and with how many others."""


def sample_runs(name: str, elements: int) -> list[slice]:
    """Return the places of a tensor's samples: all of it, or 16 runs of 16 elements drawn by SHAKE-128 of its name.

    Runs are ascending and may overlap. The draw is public: it guards against mistakes, not against malice.
    """
    if elements <= LINEAGE_RUNS * LINEAGE_RUN_LENGTH:
        return [slice(0, elements)]
    draws = np.frombuffer(hashlib.shake_128(name.encode()).digest(8 * LINEAGE_RUNS), "<u8")
    starts = np.sort(draws % np.uint64(elements - LINEAGE_RUN_LENGTH + 1)).tolist()
    return [slice(start, start + LINEAGE_RUN_LENGTH) for start in starts]


def sample(name: str, tensor: LogicalTensor, files: Files, step: int = 1) -> NDArray[np.uint8]:
    """Read a tensor's samples, or those of every ``step``-th run: raw bytes in its dtype.

    ``name`` is the name in the *package*.
    """
    values, itemsize = tensor.source.open(files), tensor.itemsize
    runs = []
    for run in sample_runs(name, tensor.elements)[::step]:
        runs.append(np.empty((run.stop - run.start) * itemsize, np.uint8))
        values.read(run.start, runs[-1])
    return np.concatenate(runs)


def pack_samples(samples: Samples) -> bytes:
    """Return the lineage file: a safetensors file of one flat tensor of samples (dtype, bytes) a name."""
    entries = []
    for name, (dtype, values) in samples.items():
        entries.append((name, dtype, (values.size // FLOATS[dtype].itemsize,), values.size))
    header = build_header(entries, {"format": "paramdelta-lineage"})
    return header + b"".join(values.tobytes() for _, values in samples.values())


def unpack_samples(content: bytes, where: str) -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Return what :func:`pack_samples` was given.

    Raises:
        PackageError: not a lineage file.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise PackageError("the lineage file is truncated", where=where)
    header = check_header(content[8 : 8 + length], len(content), PackageError, where)
    data = np.frombuffer(content, np.uint8)
    if unknown := [span for span in header.tensors if span.dtype not in FLOATS]:
        raise PackageError(f"the lineage file holds {unknown[0].dtype}", where=where)
    return {span.name: (span.dtype, data[span.start : span.start + span.nbytes]) for span in header.tensors}


@dataclass(frozen=True)
class LineageMatch:
    """How similar a model is to base, tensor by tensor, as far as samples tell."""

    correlation: float | None
    """Mean over tensors, without the foreign ones where they are few. None: constant or tiny tensors only."""
    tensors: int
    """How many were compared."""
    same_values: bool
    """Whether all sampled values are equal."""
    distances: Mapping[str, float]
    """‖model − base‖ over ‖base‖ of the samples of the tensors that the correlation is of; without those that base has
    as zeros."""
    foreign: tuple[ForeignTensor, ...] = ()
    """The tensors that have nothing in common with base's."""
    foreign_share: float = 0.0
    """Their share of the parameters of all compared tensors."""
    foreign_kinds: tuple[str, ...] = ()
    """Kinds of tensors (names with ``*`` for numbers) that are foreign in every layer."""

    exchanged: tuple[str, str] | None = None
    """Two parts of names under which all foreign tensors have changed places."""
    transposed: tuple[str, ...] = ()
    """Ends of names, with ``*`` for numbers, of square matrices that are all transposed."""

    @property
    def is_foreign(self) -> bool:
        """Whether so much has nothing in common with base that the model does not descend from it.

        One tensor alone may be: a new head, or a matrix that somebody transposed.
        """
        if self.same_values or not self.foreign:
            return False
        several = len(self.foreign) > 1
        return self.foreign_share > FOREIGN_SHARE_OF_ONE or (
            several and (self.foreign_share >= FOREIGN_SHARE or bool(self.foreign_kinds))
        )

    @property
    def has_kin(self) -> bool:
        """Whether more than a table or two has something in common with base's."""
        return self.foreign_share < 0.9

    @property
    def is_related(self) -> bool:
        """Whether the target may take the delta."""
        return self.same_values or (
            not self.is_foreign and self.correlation is not None and self.correlation >= KIN_CORRELATION
        )

    @property
    def mismatches(self) -> list[Mismatch]:
        """Every foreign tensor, for an error."""
        return [
            Mismatch(each.name, "foreign", f"unrelated values, correlation {each.correlation:.2f}{each.hint_words}")
            for each in self.foreign
        ]

    @property
    def options_to_try(self) -> str | None:
        """Return options that put tensors back which have changed places, or rows and columns."""
        if self.exchanged is None:
            return as_options("layout", (f"transpose {end}" for end in self.transposed)) or None
        one, other = self.exchanged
        steps = ((one, "exchanged"), (other, one), ("exchanged", other))
        return as_options("rename", (rf"\b{re.escape(old)}\b={new}" for old, new in steps))

    def or_skip(self, how: str) -> str:
        """Return what helps beside another model, to go on a sentence with; ``how`` says what a skip rule would do."""
        if proposed := self.options_to_try:
            return f", or try {proposed}"
        return f", or {how} with --skip REGEX" if self.foreign and self.has_kin else ""

    def record(self, *, forced: bool) -> Lineage:
        """Return what a report keeps of it."""
        return Lineage(correlation=self.correlation, tensors=self.tensors, foreign=self.foreign, forced=forced)

    def foreign_words(self) -> str:
        """Say how much is foreign, and where."""
        count = f"{len(self.foreign)} of {self.tensors} compared tensors ({self.foreign_share:.0%} of their parameters)"
        kinds = f", among them all {' and '.join(self.foreign_kinds[:_NAMED])}" if self.foreign_kinds else ""
        return f"{count} have unrelated values{kinds}; mean correlation {self.correlation or 0.0:.4f}"

    def foreign_note(self, other: str) -> str | None:
        """Return a sentence that names the foreign tensors, or None.

        Args:
            other: whose values they have nothing in common with.
        """
        if not self.foreign:
            return None
        named = ", ".join(f"{each.name}{each.hint_words}" for each in self.foreign[:_NAMED])
        more = f" and {len(self.foreign) - _NAMED} more (all of them with --json)" if len(self.foreign) > _NAMED else ""
        count = f"{len(self.foreign)} of {self.tensors} compared tensors {'is' if len(self.foreign) == 1 else 'are'}"
        return f"{count} unrelated to {other} (correlation under {FOREIGN_CORRELATION}): {named}{more}"

    def __str__(self) -> str:
        if self.correlation is None:
            return "nothing to compare"
        counted = self.tensors if self.is_foreign else self.tensors - len(self.foreign)
        text = f"mean correlation {self.correlation:.4f} over {counted} tensors"
        return f"{text}, {len(self.foreign)} unrelated" if self.foreign else text


def is_evidence(tensor: LogicalTensor) -> bool:
    """Whether a tensor's values tell of its descent: norms and biases of unrelated models resemble one another."""
    return len(tensor.shape) >= 2 and tensor.dtype in FLOATS and tensor.elements >= _LEAST_VALUES


def choose_evenly(names: Sequence[str], limit: int) -> list[str]:
    """Return at most so many names, drawn by hash: every n-th could be of one and the same kind in all layers."""
    if len(names) <= limit:
        return list(names)
    drawn = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:limit])
    return [name for name in names if name in drawn]


def compare_samples(
    base: Samples,
    target: Mapping[str, LogicalTensor],
    remote: Files | None = None,
    limit: int | None = None,
) -> LineageMatch:
    """Correlate base's samples with the target's values at the same places.

    Only matrices count where there are any. The mean counts each tensor once, whatever its size.

    Args:
        base: the package's samples.
        target: the target's tensors by the package's names, their rows in the package's order.
        remote: where the target's files are not on this machine, what reads them, on several threads: every run is a
            request then, and a few of them must do.
        limit: how many tensors are compared.

    Raises:
        CheckpointError: the target's values can't be read.
    """
    names = [name for name in base if name in target and base[name][1].size]
    names = [name for name in names if len(target[name].shape) >= 2] or names
    names = choose_evenly(names, limit or (REMOTE_LINEAGE_TENSORS if remote else LINEAGE_TENSORS))
    equal, found = bool(names), list[_Compared]()
    with OpenFiles(CheckpointError) as files:
        if remote:
            step = LINEAGE_RUNS // REMOTE_LINEAGE_RUNS
            with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
                read = list(pool.map(lambda name: sample(name, target[name], remote, step), names))
        else:
            step, read = 1, [sample(name, target[name], files) for name in names]
        for name, target_values in zip(names, read, strict=True):
            dtype, base_values = base[name]
            base_values = _every_nth_run(step, base_values, target[name].elements)
            base_floats, target_floats = _values(dtype, base_values), _values(target[name].dtype, target_values)
            equal = equal and np.array_equal(base_floats, target_floats, equal_nan=True)
            likeness = _likeness(base_floats, target_floats)
            if likeness is not None:
                found.append(_Compared(name, target[name].elements, *likeness))
        foreign = [each for each in found if each.correlation < FOREIGN_CORRELATION]
        places = {} if remote or equal else _find_places([each.name for each in foreign], base, target, files)
    return _judge(found, foreign, places, equal)


class _Compared(NamedTuple):
    name: str
    elements: int
    correlation: float
    distance: float


def _judge(
    found: Sequence[_Compared], foreign: Sequence[_Compared], places: Mapping[str, str], same_values: bool
) -> LineageMatch:
    names, foreign_names = [each.name for each in found], {each.name for each in foreign}
    match = LineageMatch(
        correlation=None,
        tensors=len(found),
        same_values=same_values,
        distances={},
        foreign=tuple(
            ForeignTensor(
                name=each.name,
                correlation=round(each.correlation, 6),
                elements=each.elements,
                hint=_hint(each.name, places.get(each.name)),
            )
            for each in foreign
        ),
        foreign_share=sum(each.elements for each in foreign) / max(1, sum(each.elements for each in found)),
        foreign_kinds=_foreign_kinds(names, foreign_names),
        exchanged=_exchanged(places, names, foreign_names),
        transposed=_transposed_ends(places, names, foreign_names),
    )
    counted = found if match.is_foreign else [each for each in found if each not in foreign]
    return replace(
        match,
        correlation=float(np.mean([each.correlation for each in counted])) if counted else None,
        distances={each.name: each.distance for each in counted},
    )


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)[0-9]+(?=\.)", "*", f".{name}")[1:]


def _foreign_kinds(compared: Iterable[str], foreign: Collection[str]) -> tuple[str, ...]:
    """Return the kinds of tensors that are foreign in every layer, although the layers hold other tensors that are kin.

    A new head of a few layers is none.
    """
    kinds: dict[str, list[str]] = {}
    for name in compared:
        kinds.setdefault(_kind(name), []).append(name)
    most = max((len(names) for names in kinds.values()), default=0)
    foreign_kinds = {
        kind: names for kind, names in kinds.items() if "*" in kind and all(name in foreign for name in names)
    }
    kin_layers = {_layers(kind) for kind in kinds.keys() - foreign_kinds.keys()}
    return tuple(
        kind
        for kind, names in foreign_kinds.items()
        if len(names) > 1 and 2 * len(names) >= most and _layers(kind) in kin_layers
    )


def _layers(kind: str) -> str:
    return kind.partition("*")[0]


def _find_places(
    foreign: Sequence[str], base: Samples, target: Mapping[str, LogicalTensor], files: Files
) -> dict[str, str]:
    """Return where the values of the first foreign tensors were found: in another of their shape, or in their own.

    There they are transposed.
    """
    places: dict[str, str] = {}
    for name in foreign[:_HINTS]:
        dtype, samples = base[name]
        values, shape = _values(dtype, samples), target[name].shape
        if len(shape) == 2 and shape[0] == shape[1] and _alike(values, _transposed(name, target[name], files)):
            places[name] = name
            continue
        others = [other for other in foreign if other != name and target[other].shape == shape]
        others.sort(key=lambda other: _parts_in_common(name, other), reverse=True)
        for other in others[:_EXCHANGED]:
            # Places are drawn by the name: of the other tensor, those of this one are read.
            if _alike(values, _values(target[other].dtype, sample(name, target[other], files))):
                places[name] = other
                break
    return places


def _parts_in_common(name: str, other: str) -> int:
    return sum(a == b for a, b in zip(name.split("."), other.split("."), strict=False))


def _hint(name: str, place: str | None) -> str | None:
    if place is None:
        return None
    return "rows and columns are exchanged" if place == name else f"its values are in {place}"


def _exchanged(places: Mapping[str, str], compared: Iterable[str], foreign: Collection[str]) -> tuple[str, str] | None:
    """Return the two components of names by whose exchange all found values come to their places, if that is all."""
    pairs = set()
    for name, place in places.items():
        parts, others = name.split("."), place.split(".")
        differing = [(a, b) for a, b in zip(parts, others, strict=False) if a != b]
        if len(parts) != len(others) or len(differing) != 1:
            return None
        pairs.add(tuple(sorted(differing[0])))
    if len(pairs) != 1:
        return None
    [(one, other)] = pairs
    holders = {name for name in compared if {one, other} & set(name.split("."))}
    usable = re.fullmatch(r"\w*[^\W\d]\w*", one) and re.fullmatch(r"\w*[^\W\d]\w*", other)
    return (one, other) if usable and holders == set(foreign) else None


def _transposed_ends(places: Mapping[str, str], compared: Sequence[str], foreign: Collection[str]) -> tuple[str, ...]:
    """Return the shortest ends of the names of transposed matrices that no related tensor's name has."""
    kind_of = {name: _kind(name) for name in compared}
    related = {kind for name, kind in kind_of.items() if name not in foreign}
    ends: dict[str, None] = {}
    for kind in dict.fromkeys(kind_of[name] for name, place in places.items() if place == name):
        parts = kind.split(".")
        found = (".".join(parts[-length:]) for length in range(2, len(parts) + 1))
        if end := next((end for end in found if not any(f".{other}".endswith(f".{end}") for other in related)), None):
            ends[end] = None
    return tuple(ends)


def _transposed(name: str, tensor: LogicalTensor, files: Files) -> NDArray[Any]:
    """Read the samples' values of a square matrix as if rows were columns."""
    values, side = tensor.source.open(files), tensor.shape[0]
    places = [place for run in sample_runs(name, tensor.elements) for place in range(run.start, run.stop)]
    raw = np.empty((len(places), tensor.itemsize), np.uint8)
    for place, out in zip(places, raw, strict=True):
        values.read(place % side * side + place // side, out)
    return _values(tensor.dtype, raw.reshape(-1))


def _alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    likeness = _likeness(a, b)
    return likeness is not None and likeness[0] >= KIN_CORRELATION


def _every_nth_run(step: int, samples: NDArray[np.uint8], elements: int) -> NDArray[np.uint8]:
    """Return the samples of every ``step``-th run, of a tensor of so many elements."""
    if step == 1 or elements <= LINEAGE_RUNS * LINEAGE_RUN_LENGTH or samples.size % LINEAGE_RUNS:
        return samples
    return samples.reshape(LINEAGE_RUNS, -1)[::step].reshape(-1)


def _values(dtype: str, raw: NDArray[np.uint8]) -> NDArray[Any]:
    kind = FLOATS[dtype]
    bits = as_bits(raw, kind)
    values = kind.widen(bits, np.empty(bits.size, kind.wide))
    values[kind.not_finite(bits)] = np.nan
    return values.astype(np.float64)


def _likeness(base: NDArray[Any], other: NDArray[Any]) -> tuple[float, float] | None:
    """Return Pearson's r and ‖other − base‖ over ‖base‖, or None where they mean nothing: few values, no spread.

    Values that are not finite don't count (padding, masks), nor do stretches of zeros: rows that one side has not.
    """
    if base.size != other.size:
        return None
    stretch = np.arange(base.size) // LINEAGE_RUN_LENGTH
    counts = np.isfinite(base) & np.isfinite(other)
    for side in (base, other):
        counts &= (np.bincount(stretch, weights=side != 0) > 0)[stretch]
    base, other = base[counts], other[counts]
    if base.size < _LEAST_VALUES:
        return None
    distance = float(np.linalg.norm(other - base) / np.linalg.norm(base))
    centered = base - base.mean(), other - other.mean()
    spreads = [float(np.sqrt(np.square(side).mean())) for side in centered]
    if any(spread <= _LEAST_SPREAD * abs(side.mean()) for spread, side in zip(spreads, (base, other), strict=True)):
        return None
    return float((centered[0] * centered[1]).mean() / (spreads[0] * spreads[1])), distance
