"""The tasks of an apply: read a group of target tensors, add the deltas, write them in place in the output shards.

A task is JSON (see :mod:`paramdelta_hub.tasks.plan`), with views as in :mod:`paramdelta_hub.checkpoints.tensor_sources`::

    {"bytes": …, "tensors": [
        {"name", "dtype", "elements", "nbytes", "view": the target's values,
         "out": [{"name", "file", "start", "nbytes"}, …]: where the result's bytes go,
         "deltas": [{"name", "elements", "weight", "effect", "codec", "shard", "start", "nbytes", "digest",
                     "counts"}, …]}, …]}

Where rows are placed by token there is more, see :mod:`.rows`; where sums become 8-bit floats, see :mod:`.requantize`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.application.requantize import Requantizer
from paramdelta_hub.application.row_sums import RowAdder
from paramdelta_hub.application.sums import ChunkAdder
from paramdelta_hub.checkpoints.tensor_sources import Files, open_view
from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.digests import begin_digest
from paramdelta_hub.fileio.direct_writer import Output
from paramdelta_hub.fileio.open_files import Descriptors
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["out_digests", "read_chunks", "run_apply_task", "view_digest"]


def run_apply_task(
    task: dict[str, Any], result: Path, kernel: Kernel, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Do one task and return its outcome, plain JSON: the digest of every tensor written.

    Args:
        task: as planned.
        result: the folder that holds the output files, already at their final sizes.
        kernel: does the arithmetic.
        advance: called with the number of bytes handled; may raise to stop the task.

    Raises:
        CheckpointError: a target file was truncated or can't be read.
        PackageError: a payload is damaged.
    """
    digests: dict[str, str] = {}
    not_finite: list[list[Any]] = []
    requantized: list[list[float]] = []
    with Descriptors(CheckpointError) as sources, Descriptors(PackageError) as shards, _Outputs(result) as outputs:
        for tensor in task["tensors"]:
            with contextlib.ExitStack() as scope:
                adder: ChunkAdder | RowAdder
                if "rows" in tensor:
                    adder = scope.enter_context(RowAdder(tensor, shards, sources, result.parent, kernel))
                else:
                    adder = ChunkAdder(tensor, shards, kernel)
                requantizer = None
                if "quantized" in tensor:
                    requantizer = scope.enter_context(Requantizer(tensor["quantized"], result.parent))
                writers = [_Writer(outputs[out["file"]], out["start"]) for out in tensor["out"]]
                take = requantizer.add if requantizer else writers[0].write
                for target in read_chunks(tensor, sources):
                    summed = adder.add(target)
                    take(summed)
                    advance(summed.size)
                adder.finish()
                if adder.not_finite:
                    not_finite.append([tensor["name"], adder.not_finite])
                elif requantizer:
                    for codes in requantizer.codes():
                        writers[0].write(codes)
                        advance(0)  # counted already; this is where a task can be stopped
                    writers[1].write(requantizer.scales)
                    requantized.append(list(astuple(requantizer.deviation)))
                digests |= {
                    out["name"]: writer.digest.hexdigest() for out, writer in zip(tensor["out"], writers, strict=True)
                }
    written = sorted({out["file"] for tensor in task["tensors"] for out in tensor["out"]})
    outcome = {"files": written, "tensors": digests, "not_finite": not_finite, "requantized": requantized}
    return {key: value for key, value in outcome.items() if value or key in ("files", "tensors")}


def read_chunks(tensor: dict[str, Any], sources: Files) -> Iterator[NDArray[np.uint8]]:
    """Yield the chunks of a tensor's view, as bytes in this thread's buffer; zeros where there is no view."""
    itemsize = ITEM_SIZES[tensor["dtype"]]
    step = CHUNK_ELEMENTS * itemsize
    values = open_view(tensor["view"], sources) if tensor["view"] is not None else None
    for offset in range(0, tensor["nbytes"], step):
        chunk = scratch("target", min(step, tensor["nbytes"] - offset), np.uint8)
        if values is None:
            chunk[:] = 0
        else:
            values.read(offset // itemsize, chunk)
        yield chunk


def view_digest(tensor: dict[str, Any], sources: Files, advance: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest (hex) of the values that a tensor's view yields."""
    digest = begin_digest()
    for values in read_chunks(tensor, sources):
        digest.update(values.data)
        advance(values.size)
    return digest.hexdigest()


def out_digests(task: dict[str, Any], result: Path) -> dict[str, str]:
    """Return the digest of every tensor of a task as it lies in the output files now."""
    with Descriptors(CheckpointError) as files:
        return {
            out["name"]: view_digest(
                {
                    "dtype": "U8",
                    "nbytes": out["nbytes"],
                    "view": {**out, "file": str(result / out["file"]), "dtype": "U8"},
                },
                files,
            )
            for tensor in task["tensors"]
            for out in tensor["out"]
        }


class _Writer:
    """Writes one tensor front to back, and takes its digest."""

    def __init__(self, output: Output, start: int) -> None:
        self._output, self._position = output, start
        self.digest = begin_digest()

    def write(self, data: NDArray[np.uint8]) -> None:
        self.digest.update(data.data)
        self._output.write(data, self._position)
        self._position += data.size


class _Outputs(contextlib.ExitStack):
    """The output files a task writes to: each opened once, never created, all finished and closed at its end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._open: dict[str, Output] = {}

    def __getitem__(self, name: str) -> Output:
        if name not in self._open:
            self._open[name] = self.enter_context(Output(self._folder / name))
        return self._open[name]
