"""Θ' + Σ wᵢΔᵢ for one tensor, chunk by chunk: payloads decoded, added to the target's values, rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.tensor_delta import DeltaReader
from paramdelta_hub.transforms.addend import Added, Addend, Addition, is_base
from paramdelta_hub.transforms.placed import PlacedAddition

__all__ = ["TensorSum", "little_endian"]


class TensorSum:
    """The sum of one tensor, chunk after chunk: in the wide type, in the order of the deltas, rounded once.

    One delta is decoded at a time, so that memory does not grow with their number. A single delta of weight 1 whose
    chunk has exceptions looks at the digest of the target's chunk: on base's own values the result is post, bit for
    bit; on any other target the sum stands. To be used in a ``with`` block.

    Args:
        dtype: the dtype of the tensor.
        addends: what is added.
        shards: open files of the packages.
        sources: read access to the target; needed for addends with a placement.
        folder: where their temporary files are.
        kernel: does the arithmetic.
    """

    def __init__(
        self,
        dtype: str,
        addends: Sequence[Addend],
        shards: OpenFiles,
        kernel: Kernel,
        *,
        sources: Files | None = None,
        folder: Path | None = None,
    ) -> None:
        self._dtype, self._kernel = dtype, kernel
        self.not_finite = 0
        """How many values of the result are NaN or infinite."""
        self._replaced_by: DeltaReader | None = None
        self._additions: list[Addition] = []
        self._exit = ExitStack()
        with self._exit:
            is_post = len(addends) == 1 and addends[0].weight == 1.0
            for addend in addends:
                if addend.delta.effect == "replace":
                    if not addend.delta.is_zero:
                        self._replaced_by = DeltaReader(addend.delta, dtype, shards, kernel)
                elif addend.placement is None:
                    self._additions.append(_InOrder(addend, dtype, shards, kernel, is_post=is_post))
                else:
                    assert sources is not None
                    assert folder is not None
                    placed = PlacedAddition(addend, dtype, shards, sources, folder, kernel, is_post=is_post)
                    self._additions.append(self._exit.enter_context(placed))
            self._exit = self._exit.pop_all()

    def add(self, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bytes of the result's next chunk, given the target's.

        They are in this thread's buffer, until its next use.
        """
        if self._replaced_by is not None:
            values = scratch("result", target.size, np.uint8).view(f"u{ITEM_SIZES[self._dtype]}")
            self._replaced_by.next_replaced(values)
            return little_endian(values)
        if not self._additions:
            return target
        kind = FLOATS[self._dtype]
        bits = target.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
        out = scratch("result", target.size, np.uint8).view(kind.bits)
        if len(self._additions) > 1:
            self.not_finite += self._kernel.add_all(kind, bits, self._deltas(kind, target), out)
            return little_endian(out)
        [addition] = self._additions
        added = addition.next(target, scratch("delta", bits.size, kind.wide))
        self.not_finite += self._kernel.add(kind, bits, added.delta, addition.weight, out)
        if added.positions.size:
            sums = kind.widen(out[added.positions], np.empty(added.positions.size, kind.wide))
            self.not_finite -= kind.count_not_finite(sums)
            out[added.positions] = added.exact
        return little_endian(out)

    def _deltas(self, kind: Float, target: NDArray[np.uint8]) -> Iterator[tuple[Wide | None, float]]:
        """Decode one delta after another, into the one buffer that all of them share."""
        for addition in self._additions:
            out = scratch("delta", target.size // kind.itemsize, kind.wide)
            yield addition.next(target, out).delta, addition.weight

    def finish(self) -> None:
        """Check every payload.

        Raises:
            PackageError: one is not what its manifest promises.
        """
        for addition in self._additions:
            addition.finish()
        if self._replaced_by is not None:
            self._replaced_by.finish()

    def __enter__(self) -> TensorSum:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()


class _InOrder:
    """A delta whose elements are in the order of the result: decoded as the sum is made."""

    def __init__(self, addend: Addend, dtype: str, shards: OpenFiles, kernel: Kernel, *, is_post: bool) -> None:
        self.weight = addend.weight
        self._reader = DeltaReader(addend.delta, dtype, shards, kernel)
        self._is_post = is_post
        self._none = np.empty(0, np.intp), np.empty(0, FLOATS[dtype].bits)

    def next(self, target: NDArray[np.uint8], out: Wide) -> Added:
        chunk = self._reader.next_added(out)
        if chunk is None:
            return Added(None, *self._none)
        if self._is_post and is_base(target, chunk):
            return Added(chunk.delta, chunk.exceptions, chunk.exact)
        return Added(chunk.delta, *self._none)

    def finish(self) -> None:
        self._reader.finish()


def little_endian(bits: Bits) -> NDArray[np.uint8]:
    """Return the little-endian bytes of bits: a view, except on big-endian machines."""
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).view(np.uint8)
