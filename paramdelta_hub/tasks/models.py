"""What a plan is made of: tasks, each done independently of all others, and what comes of them.

Both are frozen dataclasses: a plan and a receipt keep them as JSON, by :data:`TASK` and :data:`OUTCOME`. A task knows
how many bytes it reads, which files it reads and writes, and how to do itself. To add a kind of task, write its class
and its outcome's, and name them in the two unions.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from paramdelta_hub.checkpoints.stored import Stored, chunk_digests, read_chunks, source_digest
from paramdelta_hub.checkpoints.tensor_sources import Arranged, Cast, Files, Reordered, TensorSource, exact_cast_digest
from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.digests import ChunkDigests, join_digests
from paramdelta_hub.fileio.direct_writer import DirectWriter
from paramdelta_hub.fileio.durable import TEMPORARY, file_digest
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.paths import PathText
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.numerics.differences import NotFiniteChunkError
from paramdelta_hub.numerics.float8 import Deviation
from paramdelta_hub.package.chunks import chunk_ranges
from paramdelta_hub.package.manifest import FileRecord
from paramdelta_hub.package.shard import ShardWriter
from paramdelta_hub.transforms.arranged import ArrangedAddend, DecodedDeltas, SpilledDelta
from paramdelta_hub.transforms.encode import EncodedPart, EncodedTensor, TensorEncoder
from paramdelta_hub.transforms.requantize import Quantization, Requantizer
from paramdelta_hub.transforms.sum import Addend, TensorSum

__all__ = [
    "OUTCOME",
    "PIECES",
    "RESULT",
    "TASK",
    "Advance",
    "Applied",
    "ApplyTask",
    "DigestTask",
    "Digested",
    "EncodeTask",
    "Encoded",
    "NotFinite",
    "Outcome",
    "OutputSpan",
    "ResultTensor",
    "Task",
    "count_not_finite",
    "result_digests",
]

PIECES, RESULT = "pieces", "result"
"""Folders of the work folder: shards that get their final names at the end, and what becomes the output."""

Advance: TypeAlias = "Callable[[int], None]"
"""Called with the number of bytes handled; may raise to stop the task."""


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A tensor whose values are, or become, NaN or infinite: how many, in a result or in each side of a pair.

    If several tasks make a tensor, each tells of its own part.
    """

    name: str
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputSpan:
    """Where a tensor, or a part of one, lies in a file of the result."""

    name: str
    file: PathText
    start: int
    nbytes: int
    dtype: str

    def part(self, first: int, elements: int) -> OutputSpan:
        """Return where so many of its elements lie."""
        itemsize = ITEM_SIZES[self.dtype]
        return replace(self, start=self.start + first * itemsize, nbytes=elements * itemsize)


@dataclass(frozen=True, slots=True)
class ResultTensor:
    """A tensor of the result, or some chunks of one: what they are made of, and where they go.

    ``dtype`` is that of the target's values, which are read from ``source``; ``result_dtype`` that of the sum, if it is
    another. ``elements`` are made, from ``first`` on. With ``quantization`` the sum becomes 8-bit floats: its
    ``outputs`` are the codes, then the scales. ``may_be_base`` says whether the target may hold base's values, which
    matters where dtypes differ.
    """

    name: str
    dtype: str
    elements: int
    source: TensorSource
    outputs: tuple[OutputSpan, ...]
    addends: tuple[Addend | ArrangedAddend, ...] = ()
    quantization: Quantization | None = None
    result_dtype: str | None = None
    may_be_base: bool = False
    first: int = 0

    def divide(self, parts: int) -> list[ResultTensor]:
        """Return up to so many parts of whole chunks, about equally large; one, if all is needed to make any."""
        whole = (
            self.quantization is not None
            or self._only_addend_across_dtypes() is not None
            or any(isinstance(addend, ArrangedAddend) or addend.placement for addend in self.addends)
        )
        if whole:
            return [self]
        [output] = self.outputs
        return [
            replace(self, first=first, elements=elements, outputs=(output.part(first, elements),))
            for first, elements in chunk_ranges(self.elements, parts)
        ]

    def base_source(self, files: Files) -> TensorSource | None:
        """Return how to read the target's values in the delta's dtype, if they are base's; else None.

        Looked for only where a dtype differs: post's values are then the result, rounded once to its dtype.
        """
        addend = self._only_addend_across_dtypes()
        if addend is None or isinstance(self.source, Arranged | Cast | Reordered):
            return None
        dtype = addend.dtype
        if self.dtype == dtype:
            is_base = source_digest(self.source, self.elements, files) == addend.delta.base_digest
            return self.source if is_base else None
        cast = Cast(self.source, dtype)
        return cast if exact_cast_digest(cast, self.elements, files) == addend.delta.base_digest else None

    def _only_addend_across_dtypes(self) -> Addend | None:
        """Return what makes post of base's values, if that is what the target may have, and a dtype differs."""
        if not self.may_be_base or len(self.addends) != 1:
            return None
        [addend] = self.addends
        if isinstance(addend, ArrangedAddend):
            return None
        differs = {self.dtype, self.result_dtype or self.dtype} != {addend.dtype}
        if not differs or addend.delta.effect == "replace" or addend.weight != 1.0 or addend.placement:
            return None
        return addend

    @property
    def nbytes(self) -> int:
        """Bytes of the target's values."""
        return self.elements * ITEM_SIZES[self.dtype]

    @property
    def arranged(self) -> list[ArrangedAddend]:
        """The addends that are blocks of other tensors' deltas."""
        return [addend for addend in self.addends if isinstance(addend, ArrangedAddend)]


@dataclass(frozen=True, slots=True)
class Applied:
    """What an :class:`ApplyTask` has written: the digests of every tensor's chunks, and the files they are in."""

    files: tuple[PathText, ...]
    digests: dict[str, str]
    """Hexadecimal, those of a tensor one after another."""
    not_finite: tuple[NotFinite, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    """What each tensor that became 8-bit floats lost."""
    kind: Literal["applied"] = "applied"

    def paths(self, folder: Path) -> list[Path]:
        """Return the files that were written, in the work folder."""
        return [folder / RESULT / name for name in self.files]


@dataclass(frozen=True, slots=True)
class ApplyTask:
    """Read tensors of the target, add the deltas, and write them in place in the files of the result."""

    tensors: tuple[ResultTensor, ...]
    nbytes: int
    spilled: tuple[SpilledDelta, ...] = ()
    """The deltas of which tensors get blocks."""
    kind: Literal["apply"] = "apply"

    @classmethod
    def of(cls, tensors: tuple[ResultTensor, ...], spilled: tuple[SpilledDelta, ...] = ()) -> ApplyTask:
        """Return the task of these tensors, and of the deltas of which they get blocks."""
        return cls(tensors, sum(tensor.nbytes for tensor in tensors), spilled)

    @property
    def reads(self) -> set[str]:
        """The target's files that it reads."""
        found = {file for tensor in self.tensors for file in tensor.source.files}
        for tensor in self.tensors:
            for addend in tensor.addends:
                if isinstance(addend, Addend) and addend.placement:
                    found.update(addend.placement.target.files)
        for each in self.spilled:
            found.update(each.target.files if each.target else ())
        return found

    @property
    def writes(self) -> set[str]:
        """The files that it writes to; other tasks may write to other parts of them."""
        return {span.file for tensor in self.tensors for span in tensor.outputs}

    def run(self, folder: Path, advance: Advance) -> Applied:
        """Do the task. The files of the result are in the work folder already, at their final sizes.

        Raises:
            CheckpointError: a file of the target was truncated or can't be read.
            PackageError: a payload is damaged.
        """
        digests: dict[str, str] = {}
        not_finite: list[NotFinite] = []
        deviations: list[Deviation] = []
        with (
            OpenFiles(CheckpointError) as sources,
            OpenFiles(PackageError) as shards,
            _Outputs(folder) as outputs,
            self._decoded(shards, sources, folder) as decoded,
        ):
            for tensor in self.tensors:
                writers = [_TensorWriter(outputs[span.file], span) for span in tensor.outputs]
                with ExitStack() as scope:
                    base = tensor.base_source(sources)
                    source = base or tensor.source
                    total = scope.enter_context(
                        TensorSum(
                            source.dtype,
                            tensor.addends,
                            shards,
                            result=tensor.result_dtype or tensor.dtype,
                            is_base=base is not None,
                            sources=sources,
                            folder=folder,
                            decoded=decoded,
                            first=tensor.first,
                        )
                    )
                    requantizer = None
                    if tensor.quantization is not None:
                        requantizer = scope.enter_context(Requantizer(tensor.quantization, folder))
                    take = requantizer.add if requantizer else writers[0].write
                    for values in read_chunks(source, tensor.elements, sources, first=tensor.first):
                        take(total.add(values))
                        advance(values.size)
                    bad = requantizer.not_finite if requantizer else total.not_finite
                    if bad:
                        not_finite.append(NotFinite(tensor.name, (bad,)))
                    elif requantizer:
                        for codes in requantizer.codes():
                            writers[0].write(codes)
                            advance(0)  # counted already; this is where a task can be stopped
                        writers[1].write(requantizer.scales)
                        deviations.append(requantizer.deviation)
                for addend in tensor.arranged:
                    assert decoded is not None
                    decoded.release(addend)
                digests |= {
                    span.name: writer.digests.finish().hex()
                    for span, writer in zip(tensor.outputs, writers, strict=True)
                }
        return Applied(tuple(sorted(self.writes)), digests, tuple(not_finite), tuple(deviations))

    def _decoded(
        self, shards: OpenFiles, sources: OpenFiles, folder: Path
    ) -> AbstractContextManager[DecodedDeltas | None]:
        if not self.spilled:
            return nullcontext()
        arranged = [addend for tensor in self.tensors for addend in tensor.arranged]
        return DecodedDeltas(self.spilled, arranged, shards, sources, folder)

    def is_done(self, outcome: Outcome, folder: Path) -> bool:
        """Whether the work folder holds what the outcome says, to the byte."""
        with OpenFiles(CheckpointError) as files:
            found = {span.name: _written(span, folder, files) for tensor in self.tensors for span in tensor.outputs}
        return isinstance(outcome, Applied) and found == outcome.digests


def _written(span: OutputSpan, folder: Path, files: Files) -> str:
    """Return the digests of the chunks that a file of the work folder has."""
    source = Stored(str(folder / RESULT / span.file), span.start, span.dtype)
    return chunk_digests(source, span.nbytes // ITEM_SIZES[span.dtype], files).hex()


def result_digests(outcomes: Iterable[Applied]) -> dict[str, str]:
    """Return the digest of every tensor of the result, given the outcomes of all tasks in their order."""
    return join_digests(
        (name, bytes.fromhex(digests)) for outcome in outcomes for name, digests in outcome.digests.items()
    )


def count_not_finite(outcomes: Iterable[Outcome]) -> dict[str, list[int]]:
    """Return how many values are not finite, by tensor, over all of its parts."""
    counts: dict[str, list[int]] = {}
    for outcome in outcomes:
        for found in outcome.not_finite:
            before = counts.get(found.name, [0] * len(found.counts))
            counts[found.name] = [sum(pair) for pair in zip(before, found.counts, strict=True)]
    return counts


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an :class:`EncodeTask` has made: a shard, unless nothing changed, and what came of each of its tensors.

    Until the shard has its final name, the parts name the piece.
    """

    piece: FileRecord | None
    tensors: tuple[EncodedPart, ...]
    not_finite: tuple[NotFinite, ...] = ()
    kind: Literal["encoded"] = "encoded"

    def paths(self, folder: Path) -> list[Path]:
        """Return the files that were written, in the work folder."""
        return [folder / PIECES / self.piece.path] if self.piece else []


@dataclass(frozen=True, slots=True)
class EncodeTask:
    """Encode the differences of tensors, or of parts of them, and write them to one shard."""

    piece: str
    """The name of the shard, until all are there."""
    tensors: tuple[EncodedTensor, ...]
    nbytes: int
    kind: Literal["encode"] = "encode"

    @classmethod
    def of(cls, piece: str, tensors: tuple[EncodedTensor, ...]) -> EncodeTask:
        """Return the task of these tensors."""
        return cls(piece, tensors, 2 * sum(tensor.nbytes for tensor in tensors))

    @property
    def reads(self) -> set[str]:
        """The files of base and post that it reads."""
        return {file for tensor in self.tensors for side in (tensor.base, tensor.post) for file in side.files}

    @property
    def writes(self) -> set[str]:
        """The file that it writes."""
        return {self.piece}

    def run(self, folder: Path, advance: Advance) -> Encoded:
        """Do the task; the shard has its name when it is complete.

        Another attempt at the same task, late or at the same time, can't spoil it: each writes a file of its own.

        Raises:
            CheckpointError: a file of base or post was truncated or can't be read.
        """
        attempt = folder / PIECES / TEMPORARY.replace("*", f"{self.piece}.{uuid.uuid4().hex}")
        shard = ShardWriter(attempt, [tensor.name for tensor in self.tensors])
        encoded: list[EncodedPart] = []
        not_finite: list[NotFinite] = []
        try:
            with OpenFiles(CheckpointError) as files:
                for tensor in self.tensors:
                    encoder = TensorEncoder(tensor, shard.payload(tensor.name))
                    try:
                        encoded.append(encoder.encode(files, self.piece, advance))
                    except NotFiniteChunkError as error:
                        encoder.drop()
                        not_finite.append(NotFinite(tensor.name, (error.base, error.post)))
        except BaseException:
            shard.abort()
            raise
        if not_finite:
            shard.abort()
            return Encoded(None, (), tuple(not_finite))
        if not shard.close():
            return Encoded(None, tuple(encoded))
        digest, size = file_digest(attempt)
        os.replace(attempt, folder / PIECES / self.piece)
        return Encoded(FileRecord(path=self.piece, size=size, sha256=digest), tuple(encoded))

    def is_done(self, outcome: Outcome, folder: Path) -> bool:
        """Whether the work folder holds the shard, to the byte."""
        if not isinstance(outcome, Encoded):
            return False
        path = folder / PIECES / self.piece
        return outcome.piece is None or (path.is_file() and file_digest(path)[0] == outcome.piece.sha256)


@dataclass(frozen=True, slots=True)
class Digested:
    """The sha256 of a file."""

    file: PathText
    sha256: str
    kind: Literal["digested"] = "digested"

    @property
    def not_finite(self) -> tuple[NotFinite, ...]:
        """Nothing: no values are looked at."""
        return ()

    def paths(self, folder: Path) -> list[Path]:
        """Return the files that were written: none."""
        return []


@dataclass(frozen=True, slots=True)
class DigestTask:
    """Take the sha256 of a whole weight file."""

    file: PathText
    nbytes: int
    kind: Literal["digest"] = "digest"

    @property
    def reads(self) -> set[str]:
        """The file."""
        return {self.file}

    @property
    def writes(self) -> set[str]:
        """Nothing."""
        return set()

    def run(self, folder: Path, advance: Advance) -> Digested:
        """Do the task.

        Raises:
            CheckpointError: the file can't be read.
        """
        digest, _ = file_digest(Path(self.file), CheckpointError, follow=True, advance=advance)
        return Digested(self.file, digest)

    def is_done(self, outcome: Outcome, folder: Path) -> bool:
        """Whether it is done: nothing was written that could be lost."""
        return isinstance(outcome, Digested)


Task: TypeAlias = Annotated[ApplyTask | EncodeTask | DigestTask, Field(discriminator="kind")]
Outcome: TypeAlias = Annotated[Applied | Encoded | Digested, Field(discriminator="kind")]
TASK: TypeAdapter[Task] = TypeAdapter(Task)
OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


class _TensorWriter:
    """Writes a tensor, or a part of one, front to back, and takes the digests of its chunks."""

    def __init__(self, output: DirectWriter, span: OutputSpan) -> None:
        self._output, self._position = output, span.start
        self.digests = ChunkDigests(ITEM_SIZES[span.dtype])

    def write(self, data: NDArray[np.uint8]) -> None:
        self.digests.update(data)
        self._output.write(data, self._position)
        self._position += data.size


class _Outputs(ExitStack):
    """The files of the result that a task writes to: each opened once, none created, all finished and closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._open: dict[str, DirectWriter] = {}

    def __getitem__(self, name: str) -> DirectWriter:
        if name not in self._open:
            self._open[name] = self.enter_context(DirectWriter(self._folder / RESULT / name))
        return self._open[name]
