"""What ``--overwrite`` may replace: an output of the same kind that paramdelta made, unchanged, and nothing else.

All commands follow the same rule. A folder must hold the file that lists the output's content: a manifest, a
provenance, or a catalog's list of files. Every file in the folder must be listed there, and unchanged. In any case, the
folder must be apart from what the command reads, and from the places where people work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.errors import DestinationError, OptionError, SourceError
from paramdelta_hub.fileio.durable import expand, file_digest, io_errors, read_small
from paramdelta_hub.fileio.listing import shown_names
from paramdelta_hub.fileio.paths import relation
from paramdelta_hub.fileio.seal import is_sealed
from paramdelta_hub.limits import CARD_BYTES, CATALOG_BYTES, PROVENANCE_BYTES
from paramdelta_hub.outputs.applied_model import digest_mismatches
from paramdelta_hub.outputs.catalog_files import SITE_NAME, SiteFiles
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import LOCK_NAME, open_package
from paramdelta_hub.package.provenance import PROVENANCE_NAME, Provenance, parse_provenance
from paramdelta_hub.registry.artifacts import artifact_in
from paramdelta_hub.registry.locate import local_registries, registry_root
from paramdelta_hub.registry.lockfile import read_lock
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.reference import parse_reference
from paramdelta_hub.registry.versions import is_version
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace, anything

__all__ = [
    "Kind",
    "Replacement",
    "check_apart",
    "check_new",
    "check_output_file",
    "model_places",
    "owner_of",
    "registry_places",
]

Kind = Literal["package", "model", "catalog"]
_KIND_NAMES: dict[Kind, str] = {
    "package": "a delta package",
    "model": "a model that pd-apply made",
    "catalog": "a catalog that pd-catalog made",
}
_REMEDY = "choose another name for the output, or check what is there and delete it yourself"


@dataclass(frozen=True)
class Replacement:
    """Decides whether a finished output may be replaced; see :class:`~paramdelta_hub.tasks.workspace.Workspace`.

    Args:
        kind: the kind of the new output. Only an output of this kind may be replaced.
        apart_from: the command's inputs and registries, each with its name for messages. The output must not equal,
            contain or lie inside any of them.
    """

    kind: Kind
    apart_from: Sequence[tuple[str, Path]] = ()

    def __call__(self, out: Path) -> None:
        """Check that an existing output may be replaced. All links in its path are resolved.

        Raises:
            DestinationError: it must not be replaced. The message says why, and names the first foreign files.
        """
        check_apart(out, self.apart_from)
        if not out.is_dir():
            raise DestinationError("only a folder can be replaced, and this is a file", where=str(out), remedy=_REMEDY)
        if _is_published(out):
            raise DestinationError(
                "this is a published version in a registry; it is never replaced",
                where=str(out),
                remedy="choose another place, then publish it as the next version",
            )
        with io_errors("checking the old output"):
            if not os.listdir(out):
                return
            try:
                foreign = list(_FOREIGN[self.kind](out))
            except SourceError as error:
                place = f"{Path(error.where).name}: " if error.where and Path(error.where) != out else ""
                what = f"not replaced, because it is not {_KIND_NAMES[self.kind]} ({place}{error.what})"
                names = shown_names(sorted(os.listdir(out)))
                raise DestinationError(f"{what}; it holds {names}", where=str(out), remedy=_REMEDY) from None
        if foreign:
            raise DestinationError(
                f"not replaced, because it holds files that were added or changed: {shown_names(foreign)}",
                where=str(out),
                remedy="move them elsewhere, or choose another name for the output",
            )


def check_output_file(
    file: str | Path, is_ours: Callable[[bytes], bool], *, overwrite: bool, beside: bool = False
) -> Path:
    """Return the path at which a report may be written without loss, with all links resolved.

    Args:
        file: the path that the user gave.
        is_ours: whether a content is a report that paramdelta made.
        overwrite: whether an existing report may be replaced.
        beside: whether the report may be inside an output of ours, as statements may: no library loads them.

    Raises:
        DestinationError: the file exists and must not be replaced, or it is a folder.
    """
    if not str(file).strip():
        raise OptionError("the file name is empty")
    path = Path(os.path.realpath(expand(file)))
    if not beside and (owner := owner_of(path)):
        raise DestinationError(
            f"can't be written, because it lies inside {owner}", where=str(file), remedy="choose another place"
        )
    if not os.path.lexists(path):
        return path
    if not overwrite:
        raise DestinationError(
            "the file exists already", where=str(file), remedy="choose another name, or add --overwrite"
        )
    try:
        ours = is_ours(read_small(path, PROVENANCE_BYTES))
    except SourceError:  # a folder, a device, not readable, or too large for a report
        ours = False
    if not ours:
        raise DestinationError(
            "not replaced, because it is not a report by paramdelta, or was edited",
            where=str(file),
            remedy="choose another name, or check the file and delete it yourself",
        )
    return path


def check_new(out: str | Path, *, overwrite: bool, registry: str | Path | None = None) -> None:
    """Check, before anything is read or fetched, that an output can be made at ``out``.

    Raises:
        OptionError: ``overwrite`` is neither True nor False.
        DestinationError: something is there, or the place is inside a registry or an output, which it would break.
    """
    if not isinstance(overwrite, bool):
        raise OptionError(f"overwrite must be True or False, not {overwrite!r}")
    workspace = Workspace(Path(out), may_replace=anything if overwrite else None)
    workspace.check()
    if os.path.lexists(workspace.out):
        return  # judged by Replacement, once the new output's kind and inputs are known
    registries = [place for _, place in registry_places(registry) if relation(workspace.out, place) == "lies inside"]
    owner = f"a registry, {registries[0]}" if registries else owner_of(workspace.out)
    if owner:
        raise DestinationError(
            f"can't be made, because it lies inside {owner}", where=str(out), remedy="choose another place"
        )


def model_places(what: str, model: Checkpoint) -> list[tuple[str, Path]]:
    """Return the places of a model: its folder or file, and the folders that its weight files are links to."""
    own = Path(os.path.realpath(model.folder))
    linked = sorted(folder for folder in {file.path.parent for file in model.files} if not folder.is_relative_to(own))
    return [(what, model.source.path), *((f"the folder of the weights of {what}", folder) for folder in linked)]


def registry_places(registry: str | Path | None, deltas: Sequence[str] = ()) -> list[tuple[str, Path]]:
    """Return the registries in use on this machine: the configured one, and those of the named deltas."""
    roots = [registry_root(registry), *(found.root for delta in deltas if (found := parse_reference(delta)))]
    return [("a registry", Path(folder)) for folder in local_registries(*roots)]


def owner_of(path: Path) -> str | None:
    """Return which output of ours, or registry, a path lies inside, in words; None if in none."""
    for folder in path.parents:
        if kind := artifact_in(folder):
            return f"{kind}, {folder}"
    return f"a registry, {path.parents[2]}" if len(path.parents) > 2 and _has_versions(path.parent) else None


def _has_versions(folder: Path) -> bool:
    """Whether a folder is a repository in a registry, with published versions."""
    try:
        return any(is_version(name) and os.path.isfile(folder / name / MANIFEST_NAME) for name in os.listdir(folder))
    except OSError:
        return False


def check_apart(out: str | Path, apart_from: Sequence[tuple[str, Path]]) -> None:
    """Check that an output is apart from these places, and neither equals nor contains where people work.

    Raises:
        DestinationError: it is, contains or lies inside one of them.
    """
    out = Path(os.path.realpath(expand(out)))
    may_contain_it = [("the working folder", Path.cwd()), ("the home folder", expand("~"))]
    for what, path in [*may_contain_it, *apart_from]:
        how = relation(out, path)
        if how is None or (how == "lies inside" and (what, path) in may_contain_it):
            continue
        place = "" if how == "is" else f", {os.path.realpath(path)}"
        raise DestinationError(
            f"can't be the output, because it {how} {what}{place}", where=str(out), remedy="choose another place"
        )


def _is_published(out: Path) -> bool:
    """Whether a folder is ``ROOT/org/name/VERSION`` with a card, as in a registry."""
    repo = f"{out.parent.parent.name}/{out.parent.name}"
    return is_version(out.name) and is_repo(repo) and (out / MANIFEST_NAME).exists() and (out / "README.md").exists()


def _foreign_in_package(out: Path) -> Iterator[str]:
    package, lock = open_package(out), read_lock(out)
    mark = os.stat(out / MANIFEST_NAME).st_mtime_ns
    listed = {file.path: (file.size, file.sha256) for file in package.manifest.files}
    extras = lock.extras if lock else {}
    for name in _names(out):
        path = out / name
        if path.is_symlink():
            yield name
        elif name in listed:
            if _is_changed(path, *listed[name], mark):
                yield name
        elif name in extras:
            if file_digest(path)[0] != extras[name]:
                yield name
        elif name not in (MANIFEST_NAME, LOCK_NAME):
            yield name


def _foreign_in_model(out: Path) -> Iterator[str]:
    place = out / PROVENANCE_NAME
    provenance = parse_provenance(read_small(place, PROVENANCE_BYTES), str(place))
    model = open_checkpoint(out)
    changed = set(_changed_weights(model, provenance, os.stat(place).st_mtime_ns))
    weights = {file.name for file in model.files} - changed
    companions = {file.path: (file.size, file.sha256) for file in provenance.companions.files}
    for name in _names(out):
        path = out / name
        if path.is_symlink():
            yield name
        elif name in companions:
            if _is_changed(path, *companions[name], mark=0):
                yield name
        elif name == "README.md":
            if not is_sealed(read_small(path, CARD_BYTES)):
                yield name
        elif name not in weights and name not in (PROVENANCE_NAME, *(index.name for index in model.indexes)):
            yield name


def _changed_weights(model: Checkpoint, provenance: Provenance, mark: int) -> Iterator[str]:
    """Yield the weight files whose content is not what the provenance says.

    Values are compared only in files that are newer than the provenance, as after a training that saved over them.
    """
    newer = set()
    for file in model.files:
        promised = [provenance.tensors.get(span.name) for span in file.header.tensors]
        if any(
            tensor is None or (span.dtype, span.shape) != (tensor.dtype, tensor.shape)
            for span, tensor in zip(file.header.tensors, promised, strict=True)
        ):
            yield file.name
        elif _written_at(file.path) >= mark:
            newer.add(file.name)
    if newer:
        untouched = {name for name, (file, _) in model.tensors.items() if file.name not in newer}
        digests = {name: tensor.blake3 for name, tensor in provenance.tensors.items()}
        for problem in digest_mismatches(model, digests, untouched, 1, Progress()):
            yield model.tensors[problem.location][0].name


def _foreign_in_catalog(out: Path) -> Iterator[str]:
    try:
        site = SiteFiles.model_validate_json(read_small(out / SITE_NAME, CATALOG_BYTES))
    except ValidationError:
        raise SourceError("its list of files can't be read") from None
    for name in _names(out):
        path = out / name
        if name == SITE_NAME:
            continue
        if path.is_symlink() or name not in site.files or file_digest(path)[0] != site.files[name]:
            yield name


_FOREIGN: Mapping[Kind, Callable[[Path], Iterator[str]]] = {
    "package": _foreign_in_package,
    "model": _foreign_in_model,
    "catalog": _foreign_in_catalog,
}


def _names(out: Path) -> Iterator[str]:
    """Yield every file and link below a folder, sorted. Empty folders are left out: they hold nothing to lose."""
    for at, folders, files in os.walk(out):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        within = Path(at).relative_to(out)
        if within.parts == (".cache", "huggingface"):  # huggingface_hub leaves these in a folder that it downloads to
            folders[:] = [name for name in folders if name != "download"]
            files = [name for name in files if name not in (".gitignore", "CACHEDIR.TAG")]
        for name in sorted([*files, *links]):
            yield (within / name).as_posix()


def _is_changed(path: Path, size: int, sha256: str, mark: int) -> bool:
    """Whether a file differs from the listed one. Only files written after ``mark`` are hashed."""
    return os.stat(path).st_size != size or (_written_at(path) >= mark and file_digest(path)[0] != sha256)


def _written_at(path: Path) -> int:
    """Return when a file was last written or renamed, in ns. The change time can't be set back by hand."""
    status = os.stat(path)
    return max(status.st_mtime_ns, status.st_ctime_ns)
