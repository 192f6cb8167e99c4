"""Ready to use: what lies beside the weights, in a package and in a result, and where each file of it comes from.

Tokenizer, templates, processors and generation settings are *companions*: a package carries post's, and a result gets
them (``post``), or the target's (``target``), or none but ``config.json`` (``none``). A tokenizer's files are taken all
from one side, never mixed, and templates go with the tokenizer they were written for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.companions import (
    CONFIG,
    FOLDER,
    GENERATION,
    code_files,
    code_key,
    companions,
    kind_of,
    may_name_code,
    names_words,
    packaged,
    read_companion,
)
from paramdelta_hub.checkpoints.config_merge import ALWAYS, STRUCTURE, LaidOver, lay_over
from paramdelta_hub.checkpoints.token_ids import doubtful_ids
from paramdelta_hub.checkpoints.tokenizer import read_vocabulary
from paramdelta_hub.errors import CheckpointError, OptionError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import write_file
from paramdelta_hub.limits import COMPANION_BYTES
from paramdelta_hub.package.manifest import DATA_SUFFIXES, ConfigChange, FileRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.records import ConfigName

__all__ = [
    "CompanionReport",
    "CompanionSelection",
    "Mode",
    "Origin",
    "Prefer",
    "select_companions",
    "write_companions",
]

Mode = Literal["post", "target", "none"]
Prefer = Literal["target", "post"]

_LOOKED_INTO = (CONFIG, GENERATION, "tokenizer_config.json")
_LISTED = 6
"""How many names or keys a line for people spells out."""


@dataclass(frozen=True)
class Origin:
    """A file of the result: its name, whose it is, and what it holds."""

    path: str
    source: str
    """``target``, the label of a delta, or ``target + …`` where deltas changed the target's file."""
    size: int
    sha256: str


@dataclass(frozen=True)
class CompanionSelection:
    """Which companions a result will get; everything has been read once, and nothing written."""

    mode: Mode
    target: Checkpoint
    packages: tuple[Package, ...]
    provider: int | None
    """The number of the delta whose companions are taken."""
    own: Mapping[str, Path]
    """What is taken from the target; generation settings may be in ``carried`` too, and are merged then."""
    carried: Mapping[str, FileRecord]
    """What is taken from the provider."""
    code: Mapping[str, Path]
    """The target's own Python files, where they were asked for."""
    warnings: tuple[str, ...]

    @property
    def tokenizer_of(self) -> int | None:
        """The number of the delta whose tokenizer the result has; None: the target's, or none at all."""
        return self.provider if any(names_words(name) for name in self.carried) else None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the files lie that become the result's tokenizer."""
        number = self.tokenizer_of
        return self.target.folder if number is None else self.packages[number].path / FOLDER


@dataclass(frozen=True)
class CompanionReport:
    """What a result got beside its weights."""

    mode: Mode
    files: tuple[Origin, ...]
    configs: Mapping[str, LaidOver] = field(default_factory=dict)
    """What became of each config over which changes were laid."""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record, which also stands in the provenance file. No time and no path."""
        return {
            "mode": self.mode,
            "files": [asdict(origin) for origin in self.files],
            "configs": {
                name: {
                    "taken": laid.taken,
                    "kept": laid.kept,
                    "overridden": laid.overridden,
                    "conflicts": [asdict(conflict) for conflict in laid.conflicts],
                }
                for name, laid in self.configs.items()
            },
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """Return the report for people."""
        sources = dict.fromkeys(origin.source for origin in self.files)
        lines = [
            f"from {source}: {_some(origin.path for origin in self.files if origin.source == source)}"
            for source in sources
        ]
        for name, laid in self.configs.items():
            whose = {
                delta: [key for key, taker in laid.taken.items() if taker == delta] for delta in laid.taken.values()
            }
            lines += [f"{name}: {_some(keys)} from {delta}" for delta, keys in whose.items()]
            why = {
                reason: [key for key, other in laid.kept.items() if other == reason] for reason in laid.kept.values()
            }
            lines += [f"{name}: {_some(keys)} from the target, because {reason}" for reason, keys in why.items()]
            lines += [f"{name}: {_some(laid.overridden)} set to match the tensors"] if laid.overridden else []
            lines += [
                f"conflict: {name}: {c.key} is {c.base} in base, {c.post} in {c.delta}, {c.found} in {c.other}; "
                f"using {c.winner}" + (" (change this with --prefer post)" if c.winner != c.delta else "")
                for c in laid.conflicts
            ]
        return lines + [f"warning: {warning}" for warning in self.warnings]


def select_companions(
    target: Checkpoint, packages: Sequence[Package], mode: Mode = "post", *, keep_remote_code_of_target: bool = False
) -> CompanionSelection:
    """Decide which companions the result gets, having checked them all, before anything is written.

    Args:
        target: the target; its ``config.json`` is always taken.
        packages: the deltas with a weight above 0, in order; the first that has companions provides them.
        mode: whose companions.
        keep_remote_code_of_target: let the target's configs name code, and take its own Python files along.

    Raises:
        OptionError: no such mode.
        CheckpointError: a file of the target names code, and that was not asked for; or is not there.
        PackageError: a companion is missing, names code, or is not JSON where it should be.
        IntegrityError: a companion has not the promised bytes.
    """
    if mode not in get_args(Mode):
        raise OptionError(f"companions can be {', '.join(get_args(Mode))}, not {mode!r}")
    taken: dict[str, FileRecord] = {}
    provider, warnings = None, []
    for number, package in enumerate(packages if mode == "post" else ()):
        known, unknown = packaged(package)
        if unknown:
            warnings.append(f"{_label(package)} has companions that this version does not know: {_some(unknown)}")
        if known and provider is None:
            provider, taken = number, known
        elif provider is not None and (
            other := [name for name, file in known.items() if name not in taken or taken[name].sha256 != file.sha256]
        ):
            warnings.append(
                f"{_label(package)} has other companions, which are not used: {_some(other)}; all come from "
                f"{_label(packages[provider])}"
            )
    stray = [name for name in taken if kind_of(name) == "tokenizer"]
    if stray and not any(map(names_words, stray)):
        warnings.append(f"not used, because there is no vocabulary with it: {_some(stray)}")
        taken = {name: file for name, file in taken.items() if name not in stray}
    merged = [GENERATION] if any(GENERATION in package.manifest.configs for package in packages) else []
    own = _of_the_target(target, mode, taken.keys() - merged)
    contents = {name: read_companion(path) for name, path in own.items() if may_name_code(name)}
    contents = {name: content for name, content in contents.items() if code_key(content, str(own[name]))}
    if contents and not keep_remote_code_of_target:
        raise CheckpointError(
            f"{_some(contents)}: refers to code that runs when the model is loaded",
            where=str(target.folder),
            remedy="read that code; to keep it, add --keep-remote-code-of-target, which also copies the "
            "target's Python files",
        )
    keeps = keep_remote_code_of_target and not target.is_lone_file
    code = code_files(target, contents.values()) if keeps else {}
    return CompanionSelection(mode, target, tuple(packages), provider, own, taken, code, tuple(warnings))


def _of_the_target(target: Checkpoint, mode: Mode, carried: Set[str]) -> dict[str, Path]:
    """Return what is taken from the target, where files named ``carried`` come from a delta."""
    own = companions(target)
    if mode == "none":
        return {name: path for name, path in own.items() if name == CONFIG}
    kinds = {kind_of(name) for name in carried}
    replaced = {"tokenizer", "template"} if "tokenizer" in kinds else {"template"} & kinds
    return {name: path for name, path in own.items() if kind_of(name) not in replaced and name not in carried}


def write_companions(
    choice: CompanionSelection,
    result: Path,
    *,
    prefer: Prefer = "target",
    overrides: Mapping[str, Any] | None = None,
    is_post: bool = False,
) -> CompanionReport:
    """Write the chosen companions and the merged configs into ``result``; the same call writes the same bytes.

    Args:
        choice: what :func:`choose` returned.
        result: the folder of the result; JSON, text, template and Python files of an interrupted run are removed.
        prefer: who wins where target and post both changed a key of a config.
        overrides: keys of ``config.json`` that the result's tensors decide.
        is_post: whether the tensors are post's own, so that post's shapes and positions fit them.

    Raises:
        SourceError: a file changed since it was checked, or a config is not a JSON object.
    """
    for path in [path for path in result.rglob("*") if path.suffix in (*DATA_SUFFIXES, ".py") and path.is_file()]:
        path.unlink()
    origins: list[Origin] = []
    parsed: dict[str, dict[str, Any]] = {}
    configs: dict[str, LaidOver] = {}

    def put(name: str, source: str, content: bytes) -> None:
        (result / name).parent.mkdir(exist_ok=True)
        write_file(result / name, content)
        origins.append(Origin(name, source, len(content), hashlib.sha256(content).hexdigest()))
        if name in _LOOKED_INTO:
            parsed[name] = _object(content, name)

    for name, path in {**choice.own, **choice.code}.items():
        content, source = read_companion(path), "target"
        if name in (CONFIG, GENERATION):
            laid = configs[name] = lay_over(
                _object(content, str(path)),
                [(_label(package), change) for package, change in _changes(choice, name)],
                exceptions=ALWAYS if is_post or name == GENERATION else {**STRUCTURE, **ALWAYS},
                prefer=prefer,
                tokens=_whose_tokens(choice, name),
                overrides=overrides if name == CONFIG else None,
            )
            if laid.taken or laid.overridden:
                content = strict_json.pretty(laid.config)
                source = " + ".join(dict.fromkeys([source, *laid.taken.values()]))
        put(name, source, content)
    for name, file in choice.carried.items():
        if name not in configs:
            package = choice.packages[choice.provider or 0]
            put(name, _label(package), package.read_file(file, COMPANION_BYTES))
    origins.sort(key=lambda origin: origin.path)
    return CompanionReport(choice.mode, tuple(origins), configs, (*choice.warnings, *_doubts(result, origins, parsed)))


def _changes(choice: CompanionSelection, name: ConfigName) -> list[tuple[Package, ConfigChange]]:
    """Return what is laid over a config of the target. Generation settings are companions, ``config.json`` is not."""
    if name == GENERATION and choice.mode != "post":
        return []
    configs = [(package, package.manifest.configs.get(name)) for package in choice.packages]
    return [(package, change) for package, change in configs if change is not None]


def _whose_tokens(choice: CompanionSelection, name: ConfigName) -> int | Literal["target", "merge"]:
    """Return whose token ids a config gets: those of the tokenizer; merged, where post brought none."""
    if choice.tokenizer_of is None:
        return "merge" if choice.mode == "post" else "target"
    owner = choice.packages[choice.tokenizer_of]
    numbers = [number for number, (package, _) in enumerate(_changes(choice, name)) if package is owner]
    return numbers[0] if numbers else "target"


def _doubts(result: Path, origins: Iterable[Origin], parsed: Mapping[str, Any]) -> list[str]:
    """Return what is odd about the ids at which the result begins and ends."""
    doubts, tokens = [], None
    if any(names_words(origin.path) for origin in origins):
        try:
            vocabulary = read_vocabulary(result)
            tokens = vocabulary.tokens if vocabulary else None
        except SourceError as error:
            doubts.append(f"the tokenizer can't be checked: {error.what}")
    config, generation, settings = (parsed.get(name, {}) for name in _LOOKED_INTO)
    return doubts + doubtful_ids(config, generation, settings, tokens)


def _object(content: bytes, name: str) -> dict[str, Any]:
    value = strict_json.parse(content, CheckpointError, name, long_integers=True)
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", where=name)
    return value


def _label(package: Package) -> str:
    return f"{package.manifest.name} {package.manifest.version}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more
