"""Verify a package: its files, its signature, that it decodes, and that base ⊕ Δ equals post."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.kinship.lineage import sample_runs, unpack_samples
from paramdelta_hub.checkpoints.layouts.rearrange import arrange, arranged_model
from paramdelta_hub.checkpoints.logical import LogicalModel, logical_model, logical_post
from paramdelta_hub.checkpoints.matching.roles import Entry
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.checkpoints.stored import Zeros, read_chunks
from paramdelta_hub.checkpoints.tensor_sources import TensorSource
from paramdelta_hub.errors import (
    CheckpointError,
    IntegrityError,
    Mismatch,
    MismatchError,
    OptionError,
    PackageError,
    VerificationError,
)
from paramdelta_hub.fileio.digests import ChunkDigests, join_digests
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.package.records import PARTIAL
from paramdelta_hub.package.tensor_delta import Locations, StoredDelta
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.registry.signing import trust
from paramdelta_hub.tasks.digests import SourcePart, run_over, tensor_digests
from paramdelta_hub.tasks.models import Advance
from paramdelta_hub.tasks.package_files import check_files
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.runner import workers
from paramdelta_hub.transforms.sum import Addend, TensorSum

__all__ = ["VerifyReport", "verify"]

_SHOWN_FILES = 10
Side: TypeAlias = Literal["base", "post"]


class VerifyReport(Report):
    """What was proved; a verification that fails raises instead."""

    path: Path
    id: str
    """sha256 of the manifest."""
    whole: Literal[True] = True
    files: int
    """How many files it has, the manifest among them."""
    tensors: int
    elements: int
    checked_base: bool
    """base's tensors have the digests the manifest promises, and base ⊕ Δ has post's."""
    checked_post: bool
    """post's tensors have the digests the manifest promises."""
    left_out: int = 0
    """How many tensors of base or post the delta leaves out, all or part of them."""
    beside: tuple[str, ...] = ()
    """Files beside the package, which its manifest does not list: nothing vouches for them, and nothing reads them."""
    signed_by: str | None = None
    """Which trusted key its signature holds good for; None where no signature was asked for."""

    @derived
    def exact(self) -> Literal[True] | None:
        """Whether base ⊕ Δ == post, bit for bit; None without base."""
        return True if self.checked_base else None


def verify(
    delta: str | Path,
    *,
    base: str | Path | None = None,
    post: str | Path | None = None,
    registry: str | Path | None = None,
    strict: bool = False,
    require_signature: bool | None = None,
    trusted_keys: Sequence[str | Path] = (),
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> VerifyReport:
    """Prove that a package is whole; with base, that base ⊕ Δ == post bit for bit; with post, that it is that post.

    Every byte of every file is covered by a digest, every chunk is decoded. With base alone the proof of exactness is
    complete, since the manifest holds the digests of post's tensors.

    Args:
        delta: the package's folder, or ``org/name[@version]`` in a registry.
        base: the model it was taken from: a folder, a ``.safetensors`` file, or ``org/name[@revision]``.
        post: the model it leads to, likewise.
        registry: where a bare ``org/name`` is; see :mod:`paramdelta_hub`.
        strict: refuse a folder with other files than the package's.
        require_signature: refuse a package without a trusted signature; default: PARAMDELTA_REQUIRE_SIGNATURE.
        trusted_keys: files of public keys to use instead of those of the configuration.
        threads: how many tasks run at a time. The default is the number of processors.
        memory: limit for all buffers together, in bytes.
        progress: is told how far the work is.

    Raises:
        PackageError: not a package, or damaged; or, if ``strict``, with a file beside it.
        SignatureError: not signed by a trusted key.
        MismatchError: ``base`` or ``post`` is another model than the delta's.
        VerificationError: the sum is not post, although all else is right.
        CheckpointError: a model can't be read.
        RegistryError: the delta can't be had from its registry.
    """
    threads, progress = workers(threads, memory), progress or Progress()
    trusted = trust(trusted_keys, require=require_signature)
    package = open_package(locate_delta(delta, registry, trust=trusted, progress=progress))
    signed_by = trusted.check_package(package) if trusted else None
    beside = _files_beside(package, strict)
    check_files(package, package.manifest.files, progress, threads)
    locations = package.payload_locations()
    _check_lineage_file(package)
    base_model, post_model = (None if model is None else open_checkpoint(model) for model in (base, post))
    digests = _decode(package, base_model, locations, threads, progress)
    _check_base(package, base_model, digests, threads, progress)
    _check_post(package, base_model, post_model, threads, progress)
    return VerifyReport(
        path=package.path,
        id=package.digest,
        files=len(package.manifest.files) + 1,
        tensors=len(package.manifest.tensors),
        elements=package.manifest.exactness.elements,
        checked_base=base_model is not None,
        checked_post=post_model is not None,
        left_out=package.manifest.left_out,
        beside=beside,
        signed_by=signed_by,
    )


def _files_beside(package: Package, strict: bool) -> tuple[str, ...]:
    beside = package.files_beside()
    if beside and strict:
        raise IntegrityError(
            f"beside the package, not vouched for: {shown_names(beside, _SHOWN_FILES)}",
            where=str(package.path),
            remedy="delete what does not belong there, or verify without --strict",
        )
    return beside


def _decode(
    package: Package,
    base: Checkpoint | None,
    locations: Locations,
    threads: int,
    progress: Progress,
) -> dict[str, tuple[str, str]]:
    """Decode every payload, and return each tensor's digests of base and of base ⊕ Δ."""
    groups = run_over(_sums(package, base, locations), _sum_digests, threads, progress, "decoding and adding")
    found = [each for group in groups for each in group]
    before = join_digests((each.name, each.before) for each in found)
    after = join_digests((each.name, each.after) for each in found)
    exceptions: Counter[str] = Counter()
    for each in found:
        exceptions[each.name] += each.exceptions
    for record in package.manifest.tensors:
        if exceptions[record.name] != record.exceptions:
            raise PackageError(
                f"tensor {record.name!r} has {exceptions[record.name]} exceptions, and not the {record.exceptions}"
                " that the manifest promises",
                where=str(package.path),
            )
    return {name: (before[name], after[name]) for name in before}


def _check_base(
    package: Package, base: Checkpoint | None, digests: Mapping[str, tuple[str, str]], threads: int, progress: Progress
) -> None:
    """Check the digests of base's tensors and of base ⊕ Δ against the manifest's, if base is given."""
    if base is None:
        return
    _refuse_other_model("base", package, base, {name: before for name, (before, _) in digests.items()})
    _check_copies("base", package, logical_model(base), threads, progress)
    wrong = [record.name for record in package.manifest.tensors if digests[record.name][1] != record.post_blake3]
    if wrong:
        raise VerificationError(
            f"base ⊕ Δ is not post in {len(wrong)} tensor(s), the first {wrong[0]!r}",
            where=str(package.path),
            remedy="do not use the package; tell its publisher",
        )


def _check_post(
    package: Package, base: Checkpoint | None, post: Checkpoint | None, threads: int, progress: Progress
) -> None:
    """Check the digests of post's tensors against the manifest's; where post is an adapter, of base's with it."""
    if post is None:
        return
    renames = Rules(tuple((rule.pattern, rule.replacement) for rule in package.manifest.renames))
    model = logical_post(post, logical_model(base) if base else None, renames).cast(package.manifest.cast)
    model = _as_in_the_delta(model, package)
    records = package.manifest.tensors
    names = {record.name: record.post_name or record.name for record in records}
    sources = _sources(model, names, records, "post")
    sized = {record.name: (sources[record.name], record.elements) for record in records}
    _refuse_other_model("post", package, post, tensor_digests(sized, threads, progress, "comparing post"))
    _check_copies("post", package, model, threads, progress)


def _check_copies(side: Side, package: Package, model: LogicalModel, threads: int, progress: Progress) -> None:
    """Check that what the manifest calls copies of a tensor are copies of it in the model, where that stores them.

    Of post, copies are known by base's names; where a rule renamed them, post's digests cover the tensors alone.

    Raises:
        MismatchError: some are not.
    """
    records, tensors = package.records, model.tensors
    copies = {name: first for name, first in package.manifest.ties.items() if name in tensors}
    firsts: dict[str, str] = {}
    for name in set(copies.values()):
        record = records[name]
        firsts[name] = (record.base_name if side == "base" else record.post_name) or name
    sized = {name: (tensors[name].source, tensors[name].elements) for name in {*copies, *firsts.values()}}
    digests = tensor_digests(sized, threads, progress, f"comparing copies in {side}") if copies else {}
    wrong = [name for name, first in copies.items() if digests[name] != digests[firsts[first]]]
    if wrong:
        raise MismatchError(
            f"not the {side} of this delta",
            [Mismatch(name, "digest", f"it is no copy of {copies[name]}") for name in wrong],
            where=str(model.checkpoint.source.path),
            remedy=f"the delta's {side} is {getattr(package.manifest, side).name!r}",
        )


def _refuse_other_model(side: Side, package: Package, model: Checkpoint, digests: Mapping[str, str]) -> None:
    """Refuse a model whose tensors have other digests than the manifest promises of this side; or of both, swapped."""
    promised = {
        "base": {record.name: record.base_blake3 for record in package.manifest.tensors},
        "post": {record.name: record.post_blake3 for record in package.manifest.tensors},
    }
    wrong = [name for name, digest in promised[side].items() if digests[name] != digest]
    if not wrong:
        return
    other: Side = "post" if side == "base" else "base"
    where, name = str(model.source.path), getattr(package.manifest, side).name
    if all(digests[name] == digest for name, digest in promised[other].items()):
        raise MismatchError(
            f"this is the delta's {other}, given as its {side}: base and post are swapped",
            where=where,
            remedy=f"give it with --{other}; the delta's {side} is {name!r}",
        )
    raise MismatchError(
        f"not the {side} of this delta",
        [Mismatch(tensor, "digest", "its values differ from the digest in the manifest") for tensor in wrong],
        where=where,
        remedy=f"the delta's {side} is {name!r}",
    )


def _check_lineage_file(package: Package) -> None:
    """Check that the samples are of just the delta's float tensors, as many of each as the format says."""
    where = str(package.path / package.manifest.lineage.path)
    samples = unpack_samples(package.read_lineage(), where)
    promised = {
        record.name: (
            record.dtype,
            record.itemsize * sum(run.stop - run.start for run in sample_runs(record.name, record.elements)),
        )
        for record in package.manifest.tensors
        if record.dtype in FLOATS and record.elements
    }
    if promised != {name: (dtype, values.size) for name, (dtype, values) in samples.items()}:
        raise PackageError("the lineage samples are not those of the delta's tensors", where=where)


@dataclass(frozen=True, slots=True)
class _Sum(SourcePart):
    """A tensor whose sum is made to be checked, or a part of one: base's values, and the delta."""

    addends: tuple[Addend, ...] = ()


class _Digests(NamedTuple):
    """Those of the chunks of a sum, or a part of it: of base, and of base ⊕ Δ; and how many exceptions there are."""

    name: str
    before: bytes
    after: bytes
    exceptions: int


def _sums(package: Package, base: Checkpoint | None, locations: Locations) -> list[_Sum]:
    """Return the sum of every tensor of the delta with base's values; with zeros, if there is no base."""
    records = package.manifest.tensors
    names = {record.name: record.base_name or record.name for record in records}
    sources = {}
    if base is not None:
        sources = _sources(logical_model(base).cast(package.manifest.cast), names, records, "base")
    sums = []
    for record in records:
        if base is None and record.is_zero:
            continue  # nothing to decode, and nothing to compare: a line of the manifest must not cost hours
        is_read = not record.is_zero or record.effect == "add"
        addends = (Addend(StoredDelta.of(record, locations), 1.0),) if is_read else ()
        sums.append(_Sum(record.name, sources.get(record.name, Zeros(record.dtype)), record.elements, addends=addends))
    return sums


def _as_in_the_delta(post: LogicalModel, package: Package) -> LogicalModel:
    """Return post with its tensors in the layout that the delta has, by the rules in the manifest.

    Only layout rules are used, whose patterns are no regular expressions: those could be a stranger's to hang us.

    Raises:
        MismatchError: they don't fit this model.
        PackageError: a rule in the manifest is none.
    """
    manifest = package.manifest
    entries = {record.post_name or record.name: Entry(record.dtype, record.shape) for record in manifest.tensors}
    partial = {omission.name for omission in manifest.omissions if omission.reason.startswith(PARTIAL)}
    try:
        rules = Rules(layouts=tuple(text for text in manifest.layouts if not text.startswith("partial ")))
    except OptionError as error:
        raise PackageError(f"the manifest's layouts: {error.what}", where=str(package.path)) from None
    layout = arrange(post.entries, rules, entries, partial)
    if layout.problems:
        raise MismatchError("not the post of this delta", layout.problems, where=str(post.checkpoint.source.path))
    return arranged_model(post, layout)


def _sources(
    model: LogicalModel, names: Mapping[str, str], records: Sequence[TensorRecord], side: Side
) -> dict[str, TensorSource]:
    """Return how to read every tensor of the delta in the model, in post's row order.

    Raises:
        MismatchError: some are missing, or of another dtype or shape; all of them are listed.
    """
    sources, problems = {}, []
    tensors = model.tensors
    for record in records:
        name = names[record.name]
        if side == "base" and record.rows and not record.rows.base:
            continue  # base has none, and is read as zeros
        if name not in tensors:
            problems.append(Mismatch(record.name, "missing", f"in {side}, but not in the model given"))
            continue
        tensor = tensors[name]
        shape = (record.rows.base, *record.shape[1:]) if record.rows and side == "base" else record.shape
        dtype = record.base_dtype if side == "base" else record.post_dtype
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            promised, given = f"{dtype} {list(shape)}", f"{tensor.dtype} {list(tensor.shape)}"
            problems.append(Mismatch(record.name, "shape", f"{promised} in {side}, {given} in the model given"))
            continue
        sources[record.name] = tensor.cast(record.dtype).reorder_rows(record.runs if side == "base" else None).source
    if problems:
        raise MismatchError(f"not the {side} of this delta", problems, where=str(model.checkpoint.source.path))
    return sources


def _sum_digests(sums: Sequence[_Sum], advance: Advance) -> list[_Digests]:
    """Return the digests of all sums; without base, decode against zeros for the checks alone."""
    digests = []
    with OpenFiles(CheckpointError) as files, OpenFiles(PackageError) as shards:
        for each in sums:
            before, after = (ChunkDigests(ITEM_SIZES[each.source.dtype]) for _ in range(2))
            with TensorSum(each.source.dtype, each.addends, shards, first=each.first) as total:
                for values in read_chunks(each.source, each.elements, files, first=each.first):
                    before.update(values)
                    after.update(total.add(values))
                    advance(values.size)
            digests.append(_Digests(each.name, before.finish(), after.finish(), total.exceptions))
    return digests
