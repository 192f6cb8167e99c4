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
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationError

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.errors import DestinationError, OptionError, SourceError
from paramdelta_hub.fileio.digests import is_sealed
from paramdelta_hub.fileio.durable import expand, file_digest, io_errors, read_small
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.fileio.paths import relation
from paramdelta_hub.limits import CARD_BYTES, CATALOG_BYTES, FILES, PROVENANCE_BYTES
from paramdelta_hub.outputs.applied_model import digest_mismatches
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import LOCK_NAME, open_package
from paramdelta_hub.package.provenance import PROVENANCE_NAME, Provenance, parse_provenance
from paramdelta_hub.package.records import Record, Sha256, Text, at_most
from paramdelta_hub.registry.artifacts import SITE_NAME, artifact_in
from paramdelta_hub.registry.locate import local_registries, parse_reference, registry_root
from paramdelta_hub.registry.lockfile import read_lock
from paramdelta_hub.registry.names import is_repo, is_version
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace, anything

__all__ = [
    "Kind",
    "Replacement",
    "SiteFiles",
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
IsOurs: TypeAlias = Callable[[Path], bool]
"""Whether a file is what we wrote."""
_REMEDY = "choose another name for the output, or check what is there and delete it yourself"


class SiteFiles(Record):
    """What ``paramdelta_catalog.json`` says."""

    format: Literal["paramdelta-catalog"] = "paramdelta-catalog"
    format_version: Literal[1] = 1
    files: Annotated[dict[Text, Sha256], at_most(FILES)] = Field(description="every other file of the site, by name")


@dataclass(frozen=True)
class Replacement:
    """Decides whether a finished output may be replaced; see :class:`~paramdelta_hub.tasks.workspace.Workspace`."""

    kind: Kind
    """Of the new output. Only an output of this kind may be replaced."""
    apart_from: Sequence[tuple[str, Path]] = ()
    """Inputs and registries, with their names for messages. The output must not equal, contain or lie inside one."""

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
                known = _KNOWN[self.kind](out)
                foreign = [name for name in _names(out) if not _is_ours(out / name, known.get(name))]
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

    With ``overwrite``, it may replace a report that paramdelta made, which ``is_ours`` tells by the content. With
    ``beside``, it may be inside an output of ours, as statements may: no library loads them.

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
    """Raise a DestinationError unless an output is apart from these places, and from where people work."""
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


def _known_in_package(out: Path) -> dict[str, IsOurs]:
    package, lock = open_package(out), read_lock(out)
    mark = os.stat(out / MANIFEST_NAME).st_mtime_ns
    return {
        **dict.fromkeys((MANIFEST_NAME, LOCK_NAME), _always),
        **{name: _has_content(digest) for name, digest in (lock.extras if lock else {}).items()},
        **{file.path: _has_content(file.sha256, file.size, mark) for file in package.manifest.files},
    }


def _known_in_model(out: Path) -> dict[str, IsOurs]:
    place = out / PROVENANCE_NAME
    provenance = parse_provenance(read_small(place, PROVENANCE_BYTES), str(place))
    model = open_checkpoint(out)
    changed = set(_changed_weights(model, provenance, os.stat(place).st_mtime_ns))
    unchanged = [file.name for file in model.files if file.name not in changed]
    return {
        **dict.fromkeys((PROVENANCE_NAME, *unchanged, *(index.name for index in model.indexes)), _always),
        "README.md": lambda path: is_sealed(read_small(path, CARD_BYTES)),
        **{file.path: _has_content(file.sha256, file.size) for file in provenance.companions.files},
    }


def _known_in_catalog(out: Path) -> dict[str, IsOurs]:
    try:
        site = SiteFiles.model_validate_json(read_small(out / SITE_NAME, CATALOG_BYTES))
    except ValidationError:
        raise SourceError("its list of files can't be read") from None
    return {**{name: _has_content(digest) for name, digest in site.files.items()}, SITE_NAME: _always}


_KNOWN: Mapping[Kind, Callable[[Path], dict[str, IsOurs]]] = {
    "package": _known_in_package,
    "model": _known_in_model,
    "catalog": _known_in_catalog,
}
"""The files that an output lists, by name, each with its check."""


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


def _is_ours(path: Path, check: IsOurs | None) -> bool:
    return check is not None and not path.is_symlink() and check(path)


def _always(_: Path) -> bool:
    return True


def _has_content(sha256: str, size: int | None = None, mark: int = 0) -> IsOurs:
    """Return the check that a file is the listed one. It is hashed only if it was written after ``mark``."""
    return lambda path: (
        size in (None, os.stat(path).st_size) and (_written_at(path) < mark or file_digest(path)[0] == sha256)
    )


def _written_at(path: Path) -> int:
    """Return when a file was last written or renamed, in ns. The change time can't be set back by hand."""
    status = os.stat(path)
    return max(status.st_mtime_ns, status.st_ctime_ns)
