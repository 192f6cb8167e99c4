"""What ``--overwrite`` may replace: what we made, of the same kind, as we made it, with nothing else beside it.

One rule for every command. A folder is judged by what is in it: it must carry our own mark of that kind (a manifest, a
provenance, a catalog's list of files), and every file in it must be one that the mark tells of, unchanged. And whatever
is in it, it must stand apart from what the command reads, and from the places where people work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from paramdelta_hub.checkpoints.checkpoint import INDEX, Checkpoint, open_checkpoint
from paramdelta_hub.errors import DestinationError, OptionError, SourceError
from paramdelta_hub.fileio.durable import expand, file_digest, io_errors, read_small
from paramdelta_hub.fileio.listing import shown_names
from paramdelta_hub.fileio.seal import is_sealed
from paramdelta_hub.limits import CARD_BYTES, CATALOG_BYTES, PROVENANCE_BYTES
from paramdelta_hub.outputs.applied_model import changed_tensors
from paramdelta_hub.outputs.catalog_files import SITE_NAME, SiteFiles
from paramdelta_hub.package.manifest import LINEAGE_NAME, MANIFEST_NAME
from paramdelta_hub.package.package import LOCK_NAME, open_package
from paramdelta_hub.package.provenance import PROVENANCE_NAME, Provenance, parse_provenance
from paramdelta_hub.registry.locate import chosen
from paramdelta_hub.registry.lockfile import read_lock
from paramdelta_hub.registry.names import folder_of, is_repo, is_version
from paramdelta_hub.registry.reference import parse_reference
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
_CALLED: dict[Kind, str] = {
    "package": "a delta package",
    "model": "a model that pd-apply made",
    "catalog": "a catalog that pd-catalog made",
}
_MARKS = {
    (MANIFEST_NAME, LINEAGE_NAME): "a delta package",
    (PROVENANCE_NAME,): "a model that pd-apply made",
    (SITE_NAME,): "a catalog",
}
_REMEDY = "choose another name for the output; or look into it, and delete it yourself"


@dataclass(frozen=True)
class Replacement:
    """Judges whether a finished output may be replaced: see :class:`~paramdelta_hub.tasks.workspace.Workspace`.

    Args:
        kind: what is about to be made, and so the only kind that may be replaced.
        apart_from: what it must not equal, contain or lie inside, the command's inputs and registries, each with what
            to call it.
    """

    kind: Kind
    apart_from: Sequence[tuple[str, Path]] = ()

    def __call__(self, out: Path) -> None:
        """Check a finished output, all links in its path resolved.

        Raises:
            DestinationError: it must not be replaced; the message says why, and names the first foreign files.
        """
        check_apart(out, self.apart_from)
        if not out.is_dir():
            raise DestinationError("a file, where a folder is to be replaced", where=str(out), remedy=_REMEDY)
        if _is_published(out):
            raise DestinationError(
                "a published version, in a registry that is a folder: it is never replaced",
                where=str(out),
                remedy="choose another place, then publish it as the next version",
            )
        with io_errors("looking at what is to be replaced"):
            if not os.listdir(out):
                return
            try:
                foreign = list(_FOREIGN[self.kind](out))
            except SourceError as error:
                place = f"{Path(error.where).name}: " if error.where and Path(error.where) != out else ""
                what = f"not replaced, as it is not {_CALLED[self.kind]} ({place}{error.what})"
                names = shown_names(sorted(os.listdir(out)))
                raise DestinationError(f"{what}; it holds {names}", where=str(out), remedy=_REMEDY) from None
        if foreign:
            raise DestinationError(
                f"not replaced, as it holds files that are not ours, or not as we made them: {shown_names(foreign)}",
                where=str(out),
                remedy="move them elsewhere, or choose another name for the output",
            )


def check_output_file(
    file: str | Path, is_ours: Callable[[bytes], bool], *, overwrite: bool, beside: bool = False
) -> Path:
    """Return where a report is to be written, every link resolved, if nothing is lost by it.

    Args:
        file: its path, as the user gave it.
        is_ours: whether a content is a report of ours.
        overwrite: whether the user wants an older one replaced.
        beside: whether it may lie in an output of ours: people put statements there, and no library loads them.

    Raises:
        DestinationError: there is a file, and it is not to be replaced or is none of ours; or a folder.
    """
    if not str(file).strip():
        raise OptionError("an empty name of a file")
    path = Path(os.path.realpath(expand(file)))
    if not beside and (owner := owner_of(path)):
        raise DestinationError(
            f"can't be written, as it lies inside {owner}", where=str(file), remedy="choose another place"
        )
    if not os.path.lexists(path):
        return path
    if not overwrite:
        raise DestinationError("exists already", where=str(file), remedy="choose another name, or give --overwrite")
    try:
        ours = is_ours(read_small(path, PROVENANCE_BYTES))
    except SourceError:  # a folder, a device, not readable, or far too large for a report
        ours = False
    if not ours:
        raise DestinationError(
            "not replaced, as it is no report that paramdelta made, or was edited since",
            where=str(file),
            remedy="choose another name; or look into it, and delete it yourself",
        )
    return path


def check_new(out: str | Path, *, overwrite: bool, registry: str | Path | None = None) -> None:
    """Check, before anything is read or fetched, that an output can come where it is wanted.

    Raises:
        OptionError: ``overwrite`` is neither True nor False.
        DestinationError: the place is taken, or lies inside an output of ours or a registry, which it would spoil.
    """
    if not isinstance(overwrite, bool):
        raise OptionError(f"overwrite is True or False, not {overwrite!r}")
    workspace = Workspace(Path(out), may_replace=anything if overwrite else None)
    workspace.check()
    if os.path.lexists(workspace.out):
        return  # judged when it is known what is to take its place
    inside = [
        f"a registry, {place}" for _, place in registry_places(registry) if place.resolve() in workspace.out.parents
    ]
    for what in [*inside, *filter(None, [owner_of(workspace.out)])]:
        raise DestinationError(
            f"can't be made, as it lies inside {what}", where=str(out), remedy="choose another place"
        )


def model_places(what: str, model: Checkpoint) -> list[tuple[str, Path]]:
    """Return where a model lies: its folder, or file, and the folders that its weight files are linked from."""
    linked = sorted({file.path.parent for file in model.files} - {Path(os.path.realpath(model.folder))})
    return [(what, model.source.path), *((f"the folder of the weights of {what}", folder) for folder in linked)]


def registry_places(registry: str | Path | None, deltas: Sequence[str] = ()) -> list[tuple[str, Path]]:
    """Return the registries on this machine that are in use: the one chosen, and those that deltas are named in."""
    roots = [chosen(registry), *(found.root for delta in deltas if (found := parse_reference(delta)))]
    folders = [folder for root in roots if root is not None and (folder := folder_of(root)) is not None]
    return [("a registry", Path(folder)) for folder in folders if folder != os.sep]  # everything lies inside that one


def owner_of(path: Path) -> str | None:
    """Return in words which output of ours, or registry, a path lies inside; None: in none. One more file spoils it."""
    for folder in path.parents:
        for mark, what in _MARKS.items():
            if all(os.path.isfile(folder / name) for name in mark):
                return f"{what}, {folder}"
    return f"a registry, {path.parents[2]}" if len(path.parents) > 2 and _has_versions(path.parent) else None


def _has_versions(folder: Path) -> bool:
    """Whether a folder is a repository of a registry: it holds published versions."""
    try:
        return any(is_version(name) and os.path.isfile(folder / name / MANIFEST_NAME) for name in os.listdir(folder))
    except OSError:
        return False


def check_apart(out: str | Path, apart_from: Sequence[tuple[str, Path]]) -> None:
    """Check that an output neither equals nor contains where people work, and has nothing to do with these places.

    Raises:
        DestinationError: it is, contains or lies inside one.
    """
    out = Path(os.path.realpath(expand(out)))
    around = [("the working folder", Path.cwd()), ("the home folder", expand("~"))]
    for what, path in [*around, *apart_from]:
        place = Path(os.path.realpath(path))
        if out == place:
            how = f"is {what}"
        elif out in place.parents:
            how = f"contains {what}, {place}"
        elif place in out.parents and (what, path) in apart_from:
            how = f"lies inside {what}, {place}"
        else:
            continue
        raise DestinationError(f"can't be the output, as it {how}", where=str(out), remedy="choose another place")


def _is_published(out: Path) -> bool:
    """Whether a folder is ``ROOT/org/name/VERSION`` with a card, as only a registry has it."""
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
        elif name not in weights and name not in (PROVENANCE_NAME, *((INDEX,) if model.index is not None else ())):
            yield name


def _changed_weights(model: Checkpoint, provenance: Provenance, mark: int) -> Iterator[str]:
    """Yield the weight files that hold something else than the provenance tells of.

    Values are compared only in files that were written after the provenance, as by a training that saved over ours.
    """
    newer = set()
    for file in model.files:
        promised = [provenance.tensors.get(span.name) for span in file.header.tensors]
        if any(
            tensor is None or (span.dtype, span.shape) != (tensor.dtype, tensor.shape)
            for span, tensor in zip(file.header.tensors, promised, strict=True)
        ):
            yield file.name
        elif _touched(file.path) >= mark:
            newer.add(file.name)
    if newer:
        untouched = {name for name, (file, _) in model.tensors.items() if file.name not in newer}
        digests = {name: tensor.blake3 for name, tensor in provenance.tensors.items()}
        for problem in changed_tensors(model, digests, untouched, 1, Progress()):
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
    """Yield every file below a folder, and every link, sorted; empty folders hold nothing that could be lost."""
    for at, folders, files in os.walk(out):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        within = Path(at).relative_to(out)
        if within.parts == (".cache", "huggingface"):  # what the Hub's client leaves in a folder that it downloads to
            folders[:] = [name for name in folders if name != "download"]
            files = [name for name in files if name not in (".gitignore", "CACHEDIR.TAG")]
        for name in sorted([*files, *links]):
            yield (within / name).as_posix()


def _is_changed(path: Path, size: int, sha256: str, mark: int) -> bool:
    """Whether a file is not the listed one. Digests are taken of what was written after ``mark`` alone."""
    return os.stat(path).st_size != size or (_touched(path) >= mark and file_digest(path)[0] != sha256)


def _touched(path: Path) -> int:
    """Return when a file was last written, or came to its name, in ns: of two times, one can't be set back by hand."""
    status = os.stat(path)
    return max(status.st_mtime_ns, status.st_ctime_ns)
