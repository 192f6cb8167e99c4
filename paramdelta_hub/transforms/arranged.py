"""Deltas of tensors that the target has in other pieces: stacked, cut, joined or transposed.

A payload is decoded front to back, and its elements are wanted in another order, often by several tensors of the
result. So it is decoded once per task to a temporary file, which all of them read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files, TensorSource
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics.arrangements import Box, BoxReader, positions_in_result
from paramdelta_hub.numerics.floats import FLOATS, Bits, Wide
from paramdelta_hub.package.tensor_delta import StoredDelta
from paramdelta_hub.transforms.decoded_delta import DecodedDelta, decode_delta

__all__ = ["ArrangedAddend", "ArrangedDelta", "DecodedDeltas", "SpilledDelta"]


@dataclass(frozen=True, slots=True)
class SpilledDelta:
    """A delta that waits in a temporary file while tensors of the result are made of its elements.

    Args:
        key: names it in the addends of its task.
        delta: where the package keeps it.
        target: the target's values in the order of the delta; None where the target has not all of them, or in another
            dtype.
    """

    key: str
    delta: StoredDelta
    target: TensorSource | None

    @property
    def elements(self) -> int:
        """How many elements wait in the file."""
        return 0 if self.delta.is_zero else self.delta.elements


@dataclass(frozen=True, slots=True)
class ArrangedAddend:
    """What is added to a tensor of the result: blocks of deltas, and a weight.

    Args:
        keys: of the deltas.
        boxes: which elements of the tensor get which of these deltas.
        elements: how many the tensor has.
        dtype: of the deltas.
        weight: what the deltas are multiplied by.
        is_zero: whether none of the deltas changes anything.
    """

    keys: tuple[str, ...]
    boxes: tuple[Box, ...]
    elements: int
    dtype: str
    weight: float
    is_zero: bool


class DecodedDeltas:
    """The deltas of one task, each decoded and checked when it is first asked for, and kept until its last use.

    To be used in a ``with`` block, at whose end the temporary files are gone.

    Args:
        spilled: the deltas.
        addends: everything that will use them.
        shards: open files of the packages.
        sources: read access to the target.
        folder: where the temporary files are.
    """

    def __init__(
        self,
        spilled: Sequence[SpilledDelta],
        addends: Iterable[ArrangedAddend],
        shards: OpenFiles,
        sources: Files,
        folder: Path,
    ) -> None:
        self._spilled = {each.key: each for each in spilled}
        self._uses = Counter(key for addend in addends for key in addend.keys)
        self._shards, self._sources, self._folder = shards, sources, folder
        self._decoded: dict[str, DecodedDelta] = {}

    def __getitem__(self, key: str) -> DecodedDelta:
        """Return a delta, decoded.

        Raises:
            PackageError: the payload is damaged.
            CheckpointError: the target can't be read.
        """
        if key not in self._decoded:
            spilled = self._spilled[key]
            self._decoded[key] = decode_delta(spilled.delta, spilled.target, self._shards, self._sources, self._folder)
        return self._decoded[key]

    def release(self, addend: ArrangedAddend) -> None:
        """Delete the files of the deltas that no other addend will use."""
        for key in addend.keys:
            self._uses[key] -= 1
            if not self._uses[key] and (decoded := self._decoded.pop(key, None)):
                decoded.close()

    def __enter__(self) -> DecodedDeltas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for decoded in self._decoded.values():
            decoded.close()
        self._decoded.clear()


class ArrangedDelta:
    """What is added to one tensor of the result, handed out in its order.

    Args:
        addend: the blocks of deltas.
        decoded: the deltas.
        is_post: whether nothing else is added, with a weight of 1: on base's values the result is then post.
    """

    def __init__(self, addend: ArrangedAddend, decoded: DecodedDeltas, *, is_post: bool) -> None:
        kind = FLOATS[addend.dtype]
        self._deltas = [decoded[key] for key in addend.keys]
        self._boxes = BoxReader(addend.boxes, addend.elements, kind.wide, self._read)
        # Where no delta has anything, weight times this is −0, which changes no value at all: +0 would make +0 of −0.
        self._missing = -0.0 if addend.weight >= 0 else 0.0
        self._next = 0
        self._exceptions, self._exact = np.empty(0, np.intp), np.empty(0, kind.bits)
        if is_post:
            self._find_exceptions(addend)

    def _find_exceptions(self, addend: ArrangedAddend) -> None:
        """Bring the exceptions of the deltas to the tensor's order."""
        places, exact = [self._exceptions], [self._exact]
        for box in addend.boxes:
            delta = self._deltas[box.source]
            if delta.exceptions.size:
                place, numbers = positions_in_result(box, delta.exceptions)
                places.append(place)
                exact.append(delta.exact[numbers])
        joined = np.concatenate(places)
        order = np.argsort(joined, kind="stable")
        self._exceptions, self._exact = joined[order], np.concatenate(exact)[order]

    def _read(self, source: int, start: int, out: NDArray[Any]) -> None:
        self._deltas[source].read(start, out)

    def next(self, out: Wide) -> tuple[NDArray[np.intp], Bits]:
        """Fill ``out`` with the next values, and return which of them have exceptions, and those."""
        self._boxes.read(self._next, out, self._missing)
        inside = slice(*np.searchsorted(self._exceptions, (self._next, self._next + out.size)).tolist())
        positions = self._exceptions[inside] - self._next
        self._next += out.size
        return positions, self._exact[inside]
