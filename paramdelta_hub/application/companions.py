"""The companion files of a result, and where each of them comes from.

Tokenizer, templates, processors and generation settings are *companions*. A package has those of post. A result gets
post's (``post``), the target's (``target``), or only ``config.json`` (``none``). The files of a tokenizer all come from
one side, and templates come with the tokenizer they were written for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.companions import (
    CONFIG,
    FOLDER,
    GENERATION,
    code_files,
    code_key,
    component_of,
    is_config,
    is_vocabulary_file,
    kind_of,
    may_name_code,
    model_companions,
    package_companions,
    read_companion,
)
from paramdelta_hub.checkpoints.config_merge import ALWAYS, STRUCTURE, merge_config
from paramdelta_hub.checkpoints.tokens.tokenizer import read_vocabulary, token_id_warnings
from paramdelta_hub.errors import CheckpointError, OptionError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import write_file
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import COMPANION_BYTES
from paramdelta_hub.package.manifest import DATA_SUFFIXES, ConfigChange, FileRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.provenance import Companion, Companions, Merged
from paramdelta_hub.package.records import ConfigName

__all__ = ["CompanionReport", "CompanionSelection", "Mode", "Prefer", "select_companions", "write_companions"]

Mode = Literal["post", "target", "none"]
Prefer = Literal["target", "post"]

_PARSED = (CONFIG, GENERATION, "tokenizer_config.json")
_NOTHING_MERGED = Merged(taken={}, kept={}, overridden=(), conflicts=())
_LISTED = 6
"""How many names or keys a line for people spells out."""


@dataclass(frozen=True)
class CompanionSelection:
    """The companions that a result will get. All of them have been checked; nothing has been written."""

    mode: Mode
    target: Checkpoint
    packages: tuple[Package, ...]
    provider: int | None
    """The number of the delta whose companions are taken."""
    from_target: Mapping[str, Path]
    """What is taken from the target; generation settings may be in ``from_delta`` too, and are merged then."""
    from_delta: Mapping[str, FileRecord]
    """What is taken from the provider."""
    code: Mapping[str, Path]
    """The target's own Python files, where they were asked for."""
    warnings: tuple[str, ...]

    @property
    def tokenizer_of(self) -> int | None:
        """The number of the delta whose tokenizer the result has; None: the target's, or none at all."""
        return self.provider if any(is_vocabulary_file(name) for name in self.from_delta) else None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the files lie that become the result's tokenizer."""
        number = self.tokenizer_of
        return self.target.folder if number is None else self.packages[number].path / FOLDER


class CompanionReport(Companions):
    """What a result got beside its weights, as its provenance has it."""

    def lines(self) -> list[str]:
        """Return the report for people."""
        lines = [
            f"from {source}: {_listed(paths)}"
            for source, paths in _grouped((origin.path, origin.source) for origin in self.files).items()
        ]
        for name, merged in self.configs.items():
            for delta, keys in _grouped(merged.taken.items()).items():
                lines.append(f"{name}: {_listed(keys)} from {delta}")
            for reason, keys in _grouped(merged.kept.items()).items():
                lines.append(f"{name}: {_listed(keys)} from the target, because {reason}")
            if merged.overridden:
                lines.append(f"{name}: {_listed(merged.overridden)} set to match the tensors")
            lines += [
                f"conflict: {name}: {c.key} is {c.base} in base, {c.post} in {c.delta}, {c.found} in {c.other}; "
                f"using {c.winner}" + (" (change this with --prefer post)" if c.winner != c.delta else "")
                for c in merged.conflicts
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
        known, unknown = package_companions(package)
        homeless = [name for name in known if component_of(name) not in ("", *target.folders)]
        if homeless:
            warnings.append(f"not used, because the target has no such folder: {_listed(homeless)}")
            known = {name: file for name, file in known.items() if name not in homeless}
        if unknown:
            warnings.append(f"{package.label} has companions that this version does not know: {_listed(unknown)}")
        if known and provider is None:
            provider, taken = number, known
        elif provider is not None and (
            other := [name for name, file in known.items() if name not in taken or taken[name].sha256 != file.sha256]
        ):
            warnings.append(
                f"{package.label} has other companions, which are not used: {_listed(other)}; all come from "
                f"{packages[provider].label}"
            )
    for component in dict.fromkeys(map(component_of, taken)):
        orphaned = [name for name in taken if kind_of(name) == "tokenizer" and component_of(name) == component]
        if orphaned and not any(is_vocabulary_file(name.rpartition("/")[2]) for name in orphaned):
            warnings.append(f"not used, because there is no vocabulary with it: {_listed(orphaned)}")
            taken = {name: file for name, file in taken.items() if name not in orphaned}
    merged = {name for package in packages for name in package.manifest.configs if kind_of(name) == "generation"}
    from_target = _target_files(target, mode, taken.keys() - merged)
    contents = {name: read_companion(path) for name, path in from_target.items() if may_name_code(name)}
    contents = {name: content for name, content in contents.items() if code_key(content, str(from_target[name]))}
    if contents and not keep_remote_code_of_target:
        raise CheckpointError(
            f"{_listed(contents)}: refers to code that runs when the model is loaded",
            where=str(target.folder),
            remedy="read that code; to keep it, add --keep-remote-code-of-target, which also copies the "
            "target's Python files",
        )
    keeps_code = keep_remote_code_of_target and not target.is_lone_file
    code = code_files(target, contents.values()) if keeps_code else {}
    return CompanionSelection(mode, target, tuple(packages), provider, from_target, taken, code, tuple(warnings))


def _target_files(target: Checkpoint, mode: Mode, from_delta: Set[str]) -> dict[str, Path]:
    """Return what is taken from the target, where files named ``from_delta`` come from a delta."""
    from_target = model_companions(target)
    if mode == "none":
        kept = ("config", "layout") if target.folders else ("config",)
        return {name: path for name, path in from_target.items() if kind_of(name) in kept}
    replaced: dict[str, set[str]] = {}
    for name in from_delta:
        kind = kind_of(name)
        kinds = {"tokenizer", "template"} if kind == "tokenizer" else {"template"} if kind == "template" else set()
        replaced.setdefault(component_of(name), set()).update(kinds)
    return {
        name: path
        for name, path in from_target.items()
        if kind_of(name) not in replaced.get(component_of(name), ()) and name not in from_delta
    }


def write_companions(
    selection: CompanionSelection,
    result: Path,
    *,
    prefer: Prefer = "target",
    overrides: Mapping[str, Any] | None = None,
    is_post: bool = False,
) -> CompanionReport:
    """Write the chosen companions and the merged configs into ``result``; the same call writes the same bytes.

    Args:
        selection: what :func:`select_companions` returned.
        result: the folder of the result; JSON, text, template and Python files of an interrupted run are removed.
        prefer: who wins where target and post both changed a key of a config.
        overrides: keys of ``config.json`` that the result's tensors decide.
        is_post: whether the tensors are post's own, so that post's shapes and positions fit them.

    Raises:
        SourceError: a file changed since it was checked, or a config is not a JSON object.
    """
    for path in [path for path in result.rglob("*") if path.suffix in (*DATA_SUFFIXES, ".py") and path.is_file()]:
        path.unlink()
    origins: list[Companion] = []
    configs: dict[str, Merged] = {}

    def write(name: str, source: str, content: bytes) -> None:
        (result / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(result / name, content)
        digest = hashlib.sha256(content).hexdigest()
        origins.append(Companion(path=name, source=source, size=len(content), sha256=digest))

    for name, path in {**selection.from_target, **selection.code}.items():
        content, source = read_companion(path), "target"
        if is_config(name):
            merged = merge_config(
                _parse(content, str(path)),
                [(package.label, change) for package, change in _config_changes(selection, name)],
                exceptions=ALWAYS if is_post or kind_of(name) == "generation" else {**STRUCTURE, **ALWAYS},
                prefer=prefer,
                tokens=_token_ids_from(selection, name),
                overrides=overrides if name == CONFIG else None,
            )
            if name in (CONFIG, GENERATION) or merged.record != _NOTHING_MERGED:
                configs[name] = merged.record
            if merged.taken or merged.overridden:
                content = strict_json.pretty(merged.config)
                source = " + ".join(dict.fromkeys([source, *merged.taken.values()]))
        write(name, source, content)
    for name, file in selection.from_delta.items():
        if name not in selection.from_target:
            package = selection.packages[selection.provider or 0]
            write(name, package.label, package.read_file(file, COMPANION_BYTES))
    origins.sort(key=lambda origin: origin.path)
    return CompanionReport(
        mode=selection.mode,
        files=tuple(origins),
        configs=configs,
        warnings=(*selection.warnings, *_token_warnings(result, {origin.path for origin in origins})),
    )


def _config_changes(selection: CompanionSelection, name: ConfigName) -> list[tuple[Package, ConfigChange]]:
    """Return what is laid over a config of the target. Generation settings are companions, ``config.json`` is not."""
    if kind_of(name) == "generation" and selection.mode != "post":
        return []
    configs = [(package, package.manifest.configs.get(name)) for package in selection.packages]
    return [(package, change) for package, change in configs if change is not None]


def _token_ids_from(selection: CompanionSelection, name: ConfigName) -> int | Literal["target", "merge"]:
    """Return whose token ids a config gets: those of the tokenizer; merged, where post brought none."""
    if component_of(name):  # whose tokenizers lie in other folders
        return "merge"
    if selection.tokenizer_of is None:
        return "merge" if selection.mode == "post" else "target"
    owner = selection.packages[selection.tokenizer_of]
    numbers = [number for number, (package, _) in enumerate(_config_changes(selection, name)) if package is owner]
    return numbers[0] if numbers else "target"


def _token_warnings(result: Path, names: Set[str]) -> list[str]:
    """Return what is odd about the ids at which the result begins and ends."""
    warnings, tokens = [], None
    if any(map(is_vocabulary_file, names)):
        try:
            vocabulary = read_vocabulary(result)
            tokens = vocabulary.tokens if vocabulary else None
        except SourceError as error:
            warnings.append(f"the tokenizer can't be checked: {error.what}")
    parsed = (_parse((result / name).read_bytes(), name) if name in names else {} for name in _PARSED)
    config, generation, settings = parsed
    return warnings + token_id_warnings(config, generation, settings, tokens)


def _parse(content: bytes, name: str) -> JsonObject:
    return strict_json.parse_object(content, CheckpointError, name, long_integers=True)


def _listed(names: Iterable[str]) -> str:
    return shown_names(names, _LISTED)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return for each second part the first parts that it goes with."""
    groups: dict[str, list[str]] = {}
    for first, second in pairs:
        groups.setdefault(second, []).append(first)
    return groups
