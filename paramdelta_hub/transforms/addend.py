"""What is added to a tensor of the target: a stored delta, its weight, and the rows that it goes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import TensorSource
from paramdelta_hub.fileio.digests import values_digest
from paramdelta_hub.numerics.floats import Bits, Wide
from paramdelta_hub.package.chunks import AddedChunk
from paramdelta_hub.package.tensor_delta import StoredDelta

__all__ = ["Added", "Addend", "Addition", "PlacedRun", "RowPlacement", "is_base"]


class PlacedRun(NamedTuple):
    """Rows [first, first + number) of the result get rows [source, …) of the delta, or none if source is None."""

    first: int
    source: int | None
    number: int
    whole: bool
    """Whether they are whole rows of post, which take no weight."""


@dataclass(frozen=True, slots=True)
class RowPlacement:
    """Which rows of a delta go to which rows of the result.

    Args:
        runs: one after another, all rows of the result.
        width: elements of a row.
        target: the target's values in the order of the delta's rows.
    """

    runs: tuple[PlacedRun, ...]
    width: int
    target: TensorSource


@dataclass(frozen=True, slots=True)
class Addend:
    """A delta of one tensor, and its weight; with a placement, if its rows are not in the order of the result's."""

    delta: StoredDelta
    weight: float
    placement: RowPlacement | None = None

    @property
    def spilled_elements(self) -> int:
        """How many elements wait in a temporary file while the sum is made."""
        return 0 if self.placement is None or self.delta.is_zero else self.delta.elements


class Added(NamedTuple):
    """One delta's part in a chunk of the sum."""

    delta: Wide | None
    """What is added, in the order of the result; None for zeros."""
    positions: NDArray[np.intp]
    """The elements that get ``exact`` in place of the sum, as the target has base's values there."""
    exact: Bits


class Addition(Protocol):
    """One delta of a sum, in the order of the result."""

    @property
    def weight(self) -> float:
        """What its values are multiplied by."""

    def next(self, target: NDArray[np.uint8], out: Wide) -> Added:
        """Return its part in the next chunk; ``out`` is a buffer for the values.

        Args:
            target: the target's values, as bytes.
            out: as many wide values.
        """

    def finish(self) -> None:
        """Check that everything that was decoded is what the manifest promises.

        Raises:
            PackageError: it is not.
        """


def is_base(target: NDArray[np.uint8], chunk: AddedChunk) -> bool:
    """Whether a chunk has exceptions and the target has the values of base, for which they are."""
    return bool(chunk.exceptions.size and values_digest(target) == chunk.base_digest)
