"""The files beside the weights that make a model usable: configs, tokenizer, templates; by an allow-list, as bytes.

Nothing here runs code or renders templates. Files that reference code by ``auto_map`` are detected, so that no code is
copied unless the user asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.errors import CheckpointError, IntegrityError, PackageError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.lfs import POINTER_BYTES, refuse_pointer
from paramdelta_hub.fileio.names import check_file_name
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import COMPANION_BYTES, CONFIG_BYTES
from paramdelta_hub.package.manifest import DATA_SUFFIXES, FileRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.records import CODE_KEYS, CONFIG_NAME

__all__ = [
    "FOLDER",
    "Kind",
    "code_files",
    "code_key",
    "component_of",
    "is_config",
    "is_vocabulary_file",
    "kind_of",
    "may_name_code",
    "model_companions",
    "package_companions",
    "post_companions",
    "read_companion",
]

FOLDER = "companions"
CONFIG: Literal["config.json"] = "config.json"
GENERATION: Literal["generation_config.json"] = "generation_config.json"
"""Where companions lie in a package."""

Kind = Literal["config", "generation", "layout", "processor", "template", "tokenizer"]

_KINDS: dict[Kind, re.Pattern[str]] = {
    "config": re.compile(r"config\.json"),
    "generation": re.compile(r"generation_config\.json"),
    "layout": re.compile(
        r"modules\.json|model_index\.json|router_config\.json|config_sentence_transformers\.json"
        r"|sentence_bert_config\.json"
    ),
    "processor": re.compile(r"((video_)?pre)?processor_config\.json"),
    "template": re.compile(r"chat_template\.(jinja|json)|additional_chat_templates/[\w-][\w.-]*\.jinja", re.ASCII),
    "tokenizer": re.compile(
        r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|merges\.txt"
        r"|vocab\.(txt|json)|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|tekken\.json"
    ),
}
"""The allow-list: transformers' and sentence-transformers' own files. No code (``.py``), no pickles, no other weights,
no model card (the result is another model). ``config`` and ``layout`` describe the target's tensors, so they never
come out of a package. Files of components have the same names in their folders; other data there is ``layout``."""
_IN_COMPONENTS = re.compile(r"(scheduler_)?config\.json")
_DATA = re.compile(rf"[\w-][\w.-]*({'|'.join(map(re.escape, DATA_SUFFIXES))})", re.ASCII)
_NO_DATA = re.compile(
    r".*\.index(\.[\w-]+)?\.json|paramdelta_\w+\.json|manifest\.json|(readme|license|notice)[\w.-]*", re.I
)
_TEMPLATES = "additional_chat_templates"

_WORDS = re.compile(r"tokenizer\.(json|model)|vocab\.(txt|json)|spiece\.model|sentencepiece\.bpe\.model|tekken\.json")
_MAY_NAME_CODE = re.compile(r"(.*/)?((generation|tokenizer|processor|(video_)?preprocessor)_)?config\.json")
_CONFIG_NAME = re.compile(CONFIG_NAME)
_CODE = re.compile(r"[A-Za-z_]\w*\.py", re.ASCII)


def kind_of(name: str) -> Kind | None:
    """Return the kind of a file in a model's folder, or None if it is not on the allow-list."""
    kind = next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(name)), None)
    folder, _, last = name.rpartition("/")
    if kind or not folder or folder.partition("/")[0] == _TEMPLATES:
        return kind
    if _IN_COMPONENTS.fullmatch(last):
        return "config"
    kind = next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(last)), None)
    return kind or ("layout" if _DATA.fullmatch(last) and not _NO_DATA.fullmatch(last) else None)


def component_of(name: str) -> str:
    """Return the folder of the component that a companion belongs to; an empty text for the model's own."""
    folder = name.rpartition("/")[0]
    return "" if folder == _TEMPLATES else folder


def is_config(name: str) -> bool:
    """Whether a companion is a config in which what post changed is laid over what the target has."""
    return _CONFIG_NAME.fullmatch(name) is not None


def is_vocabulary_file(name: str) -> bool:
    """Whether a file maps tokens to ids. Without one, there is no tokenizer."""
    return _WORDS.fullmatch(name) is not None


def model_companions(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return a model's companion files by name, sorted. A single weight file has none.

    Raises:
        CheckpointError: a file is a git-lfs pointer, or a link out of the folder. It would be copied into the result
            and published.
    """
    return {} if checkpoint.is_lone_file else _companions_in(checkpoint.folder, checkpoint.folders)


def _companions_in(folder: Path, components: Iterable[str] = ()) -> dict[str, Path]:
    folders = [folder, folder / _TEMPLATES, *(folder / component for component in components)]
    files = [path for each in folders if each.is_dir() for path in each.iterdir()]
    names = sorted({path.relative_to(folder).as_posix() for path in files if path.is_file()})
    found = {name: resolve_inside(folder, name, CheckpointError) for name in names if kind_of(name)}
    for path in found.values():
        if path.stat().st_size < POINTER_BYTES:
            read_companion(path)
    return found


def post_companions(post: Checkpoint, tokenizer: Path | None = None) -> dict[str, Path]:
    """Return the companions that a package takes from post, by name; ``tokenizer`` may be a folder of its own.

    Raises:
        CheckpointError: one names code, is not JSON, or is a link out of the folder.
    """
    files = {name: path for name, path in model_companions(post).items() if kind_of(name) not in ("config", "layout")}
    if tokenizer is not None and (post.is_lone_file or not tokenizer.samefile(post.folder)):
        speech = ("tokenizer", "template")
        files = {name: path for name, path in files.items() if component_of(name) or kind_of(name) not in speech}
        files |= {name: path for name, path in _companions_in(tokenizer).items() if kind_of(name) in speech}
    for name, path in files.items():
        check_file_name(name, CheckpointError)
        if may_name_code(name) and (key := code_key(read_companion(path), str(path))):
            raise CheckpointError(
                f"{key!r} refers to code, and a package never contains code",
                where=str(path),
                remedy=f"copy post's folder (links to its weights are enough), remove {key!r} or {name} from "
                "the copy, and extract from the copy",
            )
    return files


def package_companions(package: Package) -> tuple[dict[str, FileRecord], list[str]]:
    """Return a package's companions by their names in a model's folder, and the names that are not known here.

    Every known one is read, and has the bytes that the manifest promises.

    Raises:
        PackageError: missing or too large, a config that names code, or is not JSON.
        IntegrityError: not the promised bytes.
    """
    known, unknown = {}, []
    for file in package.manifest.companions:
        name = file.path.removeprefix(f"{FOLDER}/")
        if kind_of(name) in (None, "config", "layout"):
            unknown.append(name)
            continue
        where = str(package.path / file.path)
        content = package.read_file(file, CONFIG_BYTES if may_name_code(name) else COMPANION_BYTES)
        if len(content) != file.size:
            raise IntegrityError(f"{len(content)} bytes, but the manifest says {file.size}", where=where)
        if may_name_code(name) and (key := code_key(content, where, PackageError)):
            raise PackageError(
                f"{key!r} refers to code, and a package never contains code",
                where=where,
                remedy="do not use this package; pd-extract does not make such packages",
            )
        known[name] = file
    return known, unknown


def may_name_code(name: str) -> bool:
    """Whether a companion is a config, in which a loader looks for the code to run."""
    return _MAY_NAME_CODE.fullmatch(name) is not None


def code_key(content: bytes, where: str, error: type[SourceError] = CheckpointError) -> str | None:
    """Return the key by which a config names code, or None.

    Raises:
        SourceError: (as ``error``) not JSON, or absurdly large.
    """
    if len(content) > CONFIG_BYTES:
        raise error(f"a config of {len(content)} bytes; the limit is {CONFIG_BYTES}", where=where)
    return next(
        (
            key
            for key, value in _pairs(strict_json.parse(content, error, where, long_integers=True))
            if key in CODE_KEYS and value
        ),
        None,
    )


def code_files(target: Checkpoint, configs: Iterable[bytes]) -> dict[str, Path]:
    """Return the target's own Python files by name, among them all that ``configs`` name.

    Raises:
        CheckpointError: a file that a config names is not there, or is a link out of the folder.
    """
    folder = target.folder
    names = sorted(path.name for path in folder.iterdir() if _CODE.fullmatch(path.name) and path.is_file())
    for reference in (
        text
        for content in configs
        for text in _references(strict_json.parse(content, CheckpointError, long_integers=True))
    ):
        file = reference.split(".")[0] + ".py"
        if "--" not in reference and file not in names:  # "org/name--module.Class" lies in another repository
            raise CheckpointError(
                f"its config refers to {reference!r}, but there is no {file}",
                where=str(folder),
                remedy="read the model's Python files on the Hub, and download them yourself; paramdelta never "
                "downloads code",
            )
    return {name: resolve_inside(folder, name, CheckpointError) for name in names}


def read_companion(path: Path) -> bytes:
    """Return a companion's bytes.

    Raises:
        CheckpointError: unreadable or absurdly large.
    """
    content = read_small(path, COMPANION_BYTES, CheckpointError)
    refuse_pointer(content, CheckpointError, str(path))
    return content


def _pairs(value: Any) -> Iterable[tuple[str, Any]]:
    """Yield every key of every object within, and its value."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pairs(inner)


def _references(value: Any) -> Iterable[str]:
    """Yield the ``module.Class`` that ``auto_map`` gives for each class."""
    for _, named in (pair for pair in _pairs(value) if pair[0] == "auto_map"):
        for classes in named.values() if isinstance(named, dict) else ():
            yield from (text for text in (classes if isinstance(classes, list) else [classes]) if isinstance(text, str))
