"""Which files a model consists of, chosen as the libraries choose them that will load the result.

A model's folder may have *components*: subfolders with weights of their own, such as ``2_Dense`` of
sentence-transformers and ``unet`` of diffusers. Their tensors belong to the model, under names such as
``2_Dense/linear.weight``. In each folder:

- transformers and sentence-transformers take ``model.safetensors``, and only without it the index
  ``model.safetensors.index.json``;
- diffusers takes ``diffusion_pytorch_model.safetensors.index.json``, and only without it the single file;
- only if there is neither, the one variant that is there (``model.fp16.safetensors``), or the one file of any name;
  only if there is none of these, an adapter (``adapter_model.safetensors``).

A file that no index names is read too if its tensors are no others' (layers for multi-token prediction lie so). What is
not read is named in a note, with the reason. A file that can be neither is refused.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from paramdelta_hub.checkpoints.files.weight_files import Index, WeightFile, parse_index
from paramdelta_hub.checkpoints.matching.ties import tied_to
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import check_file_name, shown, shown_names
from paramdelta_hub.fileio.safetensors import GGUF_REMEDY
from paramdelta_hub.limits import TENSORS

__all__ = ["ADAPTER", "ADAPTERS", "INDEX", "WEIGHTS", "Listing", "Repository", "not_safetensors", "read_repository"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTERS = re.compile(r"(adapter_model|pytorch_lora_weights)[\w.-]*\.safetensors")
"""Files of PEFT and of diffusers: a model only where nothing else is there, and then read as :mod:`.adapters` says."""
_MODULES, _PIPELINE = "modules.json", "model_index.json"
"""What names the components of sentence-transformers and of diffusers."""
_CONFIG = "config.json"
_STEMS = ("model", "diffusion_pytorch_model")
_DIFFUSERS = _STEMS[1]

_MODEL_REMEDY = "give a folder in Hugging Face layout, a .safetensors file, or org/name"
_MOVE_REMEDY = "give a copy of the model's folder without it; links to the weight files are enough"
_COMPLETE_REMEDY = "the download is not complete; get the missing files"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
_PICKLE_REMEDY = (
    "a pickle can run code when it is read, so it is never opened; convert it once to safetensors, in an environment "
    "you trust: scripts/tools/convert_pickle.py, or transformers' save_pretrained(safe_serialization=True)"
)
_PICKLED_ADAPTER_REMEDY = (
    'convert it; in its folder: python -c "import torch; from safetensors.torch import save_file as save; '
    "save({k: v.contiguous() for k, v in torch.load('adapter_model.bin', 'cpu', weights_only=True).items()}, "
    "'adapter_model.safetensors')\""
)
"""With ``weights_only``, torch runs no code that a pickle names."""
_OTHER_FORMATS = (*_PICKLES, ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".mlmodel", ".engine")

_COPY_FOLDERS = re.compile(
    r"(^|/)(original|onnx|openvino|coreml|metal|tensorrt|gguf|mlx|checkpoint-\d+|global_step\d+)(/|$)", re.IGNORECASE
)
"""Folders of second copies of the weights: in other layouts and formats, or of earlier steps of a training."""
_COPY = "a copy of the weights, or of an earlier step"
_OTHER_FILES = {
    "a copy in another layout": re.compile(r"consolidated[\w.-]*\.safetensors"),
    "an adapter, no part of the model": ADAPTERS,
    "the state of a training": re.compile(r"(optimizer|scheduler|rng_state)[\w.-]*\.safetensors"),
}
"""Files that are no part of a model, by the reason."""
_TRAINING_STATE = re.compile(r"(training_args|optimizer|scheduler|rng_state|random_states|scaler|sampler)[\w.-]*")
_WITH_WEIGHTS = frozenset(
    {"Transformer", "CLIPModel", "MLMTransformer", "Dense", "LayerNorm", "LSTM", "CNN", "WordEmbeddings"}
    | {"StaticEmbedding", "WeightedLayerPooling", "SparseStaticEmbedding", "SparseAutoEncoder"}
)
"""Modules of sentence-transformers that are nothing without weights."""
_PART = re.compile(r"([a-z]\w*_)?[0-9]+_[A-Z][A-Za-z]*")
"""Folders of sentence-transformers' modules."""


class Listing(Protocol):
    """A model's folder, on this machine or on the Hub."""

    @property
    def where(self) -> str:
        """What to call it in messages."""

    @property
    def names(self) -> Collection[str]:
        """All its files, by their names within it."""

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""

    def open_files(self, names: Sequence[str]) -> list[WeightFile]:
        """Return safetensors files with their checked headers, their tensors under their own names."""


@dataclass(frozen=True)
class Repository:
    """What a model consists of."""

    files: tuple[WeightFile, ...]
    """Of the model's own folder first, then component by component."""
    indexes: tuple[Index, ...]
    folders: tuple[str, ...]
    """Of the components, and of modules without weights."""
    notes: tuple[str, ...]
    """What was chosen where there was a choice, and what was not read, in words."""


@dataclass
class _Component:
    """The weights of one folder."""

    files: list[WeightFile]
    index: Index | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {span.name: span.shape for file in self.files for span in file.header.tensors}


def read_repository(listing: Listing) -> Repository:
    """Choose the files of a model and read their headers.

    Raises:
        CheckpointError: no weights, weights that are missing or can't be read, or files that contradict each other.
    """
    return _Reader(listing).read()


class _Reader:
    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._here: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(listing.names):
            folder, _, last = name.rpartition("/")
            self._here[folder].append(last)
        self._unread: defaultdict[str, list[str]] = defaultdict(list)
        """Names of what is not read, by the reason."""

    def read(self) -> Repository:
        pipeline, modules = self._pipeline_folders(), self._module_folders()
        named = {folder for folder in {*pipeline, *modules} if folder}
        components: dict[str, _Component] = {}
        if any(self._weights(folder) for folder in pipeline):
            for name in self._weights(""):
                self._unread["a copy in one file, which diffusers does not read with the folders"].append(name)
        elif root := self._component(""):
            components[""] = root
        for folder in sorted(self._here):
            if folder in named and (component := self._component(folder)):
                components[folder] = component
            elif folder in named:
                self._check_weightless(folder, modules.get(folder))
        for folder, kind in modules.items():
            if folder and folder not in self._here and kind in _WITH_WEIGHTS:
                raise self._missing(folder)
        if not components:
            raise self._no_weights()
        for folder in sorted(self._here):
            if folder and folder not in named and (component := self._found(folder, components.get(""))):
                components[folder] = component
        for folder in self._here:
            self._note_other_formats(folder)
        return self._result(components, named)

    def _result(self, components: Mapping[str, _Component], named: set[str]) -> Repository:
        files = [file.within_model() for component in components.values() for file in component.files]
        spans = [span.name for file in files for span in file.header.tensors]
        if len(spans) > TENSORS:
            raise CheckpointError(f"{len(spans)} tensors are too many", where=self._listing.where)
        if len(set(spans)) != len(spans):
            name = next(name for name, count in Counter(spans).items() if count > 1)
            raise CheckpointError(f"two tensors of the model are called {name!r}", where=self._listing.where)
        notes = [note for component in components.values() for note in component.notes]
        notes += [f"not read: {shown_names(names)}: {reason}" for reason, names in self._unread.items()]
        parts = {folder for folder in self._here if _PART.fullmatch(folder.rpartition("/")[2])}
        folders = {*named, *components, *parts} & self._here.keys()
        return Repository(
            files=tuple(files),
            indexes=tuple(component.index for component in components.values() if component.index),
            folders=tuple(sorted(folders - {""})),
            notes=tuple(notes),
        )

    # Which folders.

    def _pipeline_folders(self) -> dict[str, str | None]:
        """Return the folders that diffusers reads."""
        value = self._json(_PIPELINE)
        if not isinstance(value, dict):
            return {}
        classes = {key: entry for key, entry in value.items() if isinstance(entry, list) and len(entry) == 2}
        return {key: str(entry[1]) for key, entry in classes.items() if entry[1] is not None and key in self._here}

    def _module_folders(self) -> dict[str, str | None]:
        """Return the folders that sentence-transformers reads, and the class of each module."""
        value = self._json(_MODULES)
        folders: dict[str, str | None] = {}
        for module in value if isinstance(value, list) else ():
            if isinstance(module, dict) and isinstance(path := module.get("path"), str):
                if path:
                    check_file_name(path, CheckpointError)
                folders[path] = str(module.get("type")).rpartition(".")[2]
        return folders

    def _check_weightless(self, folder: str, kind: str | None) -> None:
        """Refuse a component whose weights are missing; tokenizers, schedulers and poolings have none."""
        pickles = [name for name in self._here[folder] if name.endswith(_PICKLES) and not _is_state(name)]
        if pickles:
            raise not_safetensors(f"{self._listing.where}/{folder}/{pickles[0]}")
        if kind in _WITH_WEIGHTS or (kind is None and _CONFIG in self._here[folder]):
            raise self._missing(folder)

    def _missing(self, folder: str) -> CheckpointError:
        return CheckpointError(
            f"the component {folder!r} has no safetensors weights",
            where=self._listing.where,
            remedy="get its missing files; if it has only pytorch_model.bin, make a safetensors file of that with "
            "scripts/tools/convert_pickle.py",
        )

    def _found(self, folder: str, root: _Component | None) -> _Component | None:
        """Return the component in a folder that nothing names, or None if it is none."""
        names = self._weights(folder)
        if not names:
            return None
        reason = None
        if _COPY_FOLDERS.search(folder):
            reason = _COPY
        elif "manifest.json" in self._here[folder] and any(name.startswith("delta-") for name in names):
            reason = "a delta package"
        elif all(map(_reason, names)):
            reason = _reason(names[0])
        if reason:
            self._unread[reason].append(f"{folder}/")
            return None
        check_file_name(folder, CheckpointError)
        component = self._component(folder)
        if component is None:
            return None
        if root and component.tensors.items() <= root.tensors.items():
            self._unread["a copy with the names and shapes of the model's own tensors"].append(f"{folder}/")
            return None
        component.notes.insert(0, f"read {folder}/ too, as a part of the model")
        return component

    # Which files of a folder.

    def _component(self, folder: str) -> _Component | None:
        """Return the weights of a folder, or None if there are none."""
        names = self._weights(folder)
        if not names and not any(self._is_index(name) for name in self._here[folder]):
            return None
        config = self._json(_join(folder, _CONFIG))
        config = config if isinstance(config, dict) else {}
        first, note, ignored = self._choose(folder, names, config)
        component = _Component([])
        component.notes += [note] if note else []
        if self._is_index(first):
            name = _join(folder, first)
            component.index = parse_index(name, self._listing.read(name), f"{self._listing.where}/{name}")
            chosen = component.index.shards
            if missing := [shard for shard in chosen if shard not in names]:
                raise CheckpointError(
                    f"the index names {len(missing)} missing file(s): {shown_names(missing)}",
                    where=f"{self._listing.where}/{name}",
                    remedy=_COMPLETE_REMEDY,
                )
        else:
            chosen = [first]
        component.files = self._open(folder, chosen)
        held = self._check_held(component)
        if component.index:
            component.notes += self._check_index(component.index, held, config)
        self._add_others(component, folder, [name for name in names if name not in {*chosen, *ignored}])
        return component

    def _choose(self, folder: str, names: list[str], config: Mapping[str, Any]) -> tuple[str, str | None, list[str]]:
        """Return the file or the index to read, what there is to say, and the files that this leaves out."""
        here = self._here[folder]
        explicit = config.get("transformers_weights")
        if isinstance(explicit, str) and explicit in here and (explicit in names or self._is_index(explicit)):
            return explicit, f"read {_join(folder, explicit)}, which config.json names", []
        for stem in _STEMS[::-1] if "_class_name" in config else _STEMS:
            single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
            if single in names and index in here:
                return self._single_or_index(folder, stem)
            if single in names or index in here:
                return (single if single in names else index), None, []
        variants = {variant for name in here if (variant := _variant(name))}
        plain = [name for name in names if _variant(name) is None and not _reason(name)]
        if len(variants) > 1 and not plain:
            raise CheckpointError(
                f"only variants of the weights, and {len(variants)} of them: {', '.join(sorted(variants))}",
                where=_join(self._listing.where, folder),
                remedy="give a copy of the folder with one of them",
            )
        indexes = [name for name in here if self._is_index(name)]
        if variants and not plain:
            (variant,) = variants
            candidates = indexes or [name for name in names if _variant(name)]
            note = f"read the variant {variant!r} of {folder or 'the weights'}, as there is no other"
            if len(candidates) == 1:
                return candidates[0], note, []
        elif len(indexes) == 1:
            return indexes[0], None, []
        candidates = plain or list(filter(ADAPTERS.fullmatch, names)) or names
        if len(candidates) != 1:
            raise CheckpointError(
                f"{len(candidates)} safetensors files, but no {INDEX} that lists their tensors",
                where=_join(self._listing.where, folder),
                remedy=_MOVE_REMEDY if folder else "get the index file, or give a single file",
            )
        return candidates[0], None, []

    def _single_or_index(self, folder: str, stem: str) -> tuple[str, str, list[str]]:
        """Choose between a single file and an index as the library does that the stem belongs to."""
        single, name = f"{stem}.safetensors", _join(folder, f"{stem}.safetensors.index.json")
        if stem == _DIFFUSERS:
            note = f"read the files that {name} names; {single} beside it was ignored, as diffusers does"
            return f"{single}.index.json", note, [single]
        shards: list[str] = []
        with suppress(CheckpointError):  # an index that is not used may be broken
            shards = parse_index(name, self._listing.read(name), name).shards
        shards = [shard for shard in shards if shard != single and shard in self._here[folder]]
        files = f" and {len(shards)} file(s) that it names were" if shards else " was"
        note = f"read {_join(folder, single)}; {single}.index.json beside it{files} ignored, as transformers does"
        return single, note, shards

    def _add_others(self, component: _Component, folder: str, names: list[str]) -> None:
        """Read what is part of the model without being named, or say why it is not."""
        for name in names:
            reason = "a variant of the weights" if _variant(name) else _reason(name)
            if reason:
                self._unread[reason].append(_join(folder, name))
                continue
            file = replace(self._open(folder, [name])[0], is_listed=False)
            own, held = {span.name: span.shape for span in file.header.tensors}, component.tensors
            if own.keys() <= held.keys():
                self._unread["all its tensors lie in the files that are read"].append(_join(folder, name))
            elif own.keys().isdisjoint(held):
                component.files.append(file)
                by = component.index.name if component.index else component.files[0].name
                component.notes.append(
                    f"read {file.name} too, {'which' if component.index else 'beside'} {by}"
                    + (" does not name" if component.index else "")
                )
            else:
                common = sorted(own.keys() & held.keys())
                raise CheckpointError(
                    f"{shown(name)} holds tensors that the model's other files hold too ({shown_names(common, 2)}), "
                    "and others that they do not",
                    where=_join(self._listing.where, folder),
                    remedy=_MOVE_REMEDY,
                )

    def _check_held(self, component: _Component) -> dict[str, str]:
        """Return the file of each tensor, or raise if two files hold one."""
        held: dict[str, str] = {}
        for file in component.files:
            for span in file.header.tensors:
                if (other := held.setdefault(span.name, file.name)) != file.name:
                    raise CheckpointError(
                        f"the tensor {span.name!r} is in two files, {other} and {file.name}",
                        where=self._listing.where,
                        remedy="save the model again, for example with transformers' save_pretrained",
                    )
        return held

    def _check_index(self, index: Index, held: Mapping[str, str], config: Mapping[str, Any]) -> Iterator[str]:
        """Yield what the index says wrongly, where that does no harm."""
        unstored = [name for name in index.weight_map if name not in held]
        tied = {name: tie for name in unstored if (tie := tied_to(name, held, config))}
        if unknown := [name for name in unstored if name not in tied]:
            raise CheckpointError(
                f"the index names {len(unknown)} tensor(s) that no file holds: {shown_names(unknown)}",
                where=f"{self._listing.where}/{index.name}",
                remedy="get the model again; if its files are complete, remove these names from the index",
            )
        for name, tie in tied.items():
            yield f"{index.name} names {shown(name)}, which no file holds: it is tied to {shown(tie)}"
        if unnamed := [name for name in held if name not in index.weight_map]:
            yield f"{index.name} does not name {len(unnamed)} tensor(s) of its files, read too: {shown_names(unnamed)}"
        files = {name: file.rpartition("/")[2] for name, file in held.items()}
        if moved := [name for name, file in files.items() if index.weight_map.get(name, file) != file]:
            yield f"{index.name} gives other files than the right ones for {len(moved)} tensor(s): {shown_names(moved)}"

    # Reading.

    def _open(self, folder: str, names: Sequence[str]) -> list[WeightFile]:
        return self._listing.open_files([check_file_name(_join(folder, name), CheckpointError) for name in names])

    def _weights(self, folder: str) -> list[str]:
        return [name for name in self._here.get(folder, ()) if name.endswith(".safetensors")]

    @staticmethod
    def _is_index(name: str) -> bool:
        return re.fullmatch(r".*\.safetensors\.index(\.[\w-]+)?\.json", name, re.DOTALL) is not None

    def _json(self, name: str) -> Any:
        """Return the content of a JSON file, or None if there is none."""
        folder, _, last = name.rpartition("/")
        if last not in self._here.get(folder, ()):
            return None
        return strict_json.parse(
            self._listing.read(name), CheckpointError, f"{self._listing.where}/{name}", long_integers=True
        )

    def _note_other_formats(self, folder: str) -> None:
        """Name the weights in formats that are not read, which are mostly copies."""
        names = [name for name in self._here[folder] if name.endswith(_OTHER_FORMATS) and not _is_state(name)]
        if names and folder and _COPY_FOLDERS.search(folder):
            if f"{folder}/" not in self._unread[_COPY]:
                self._unread[_COPY].append(f"{folder}/")
        elif names:
            self._unread["not safetensors"] += [_join(folder, name) for name in names]

    def _no_weights(self) -> CheckpointError:
        where = self._listing.where
        for name in self._here.get("", ()):
            if name.endswith((".gguf", *_PICKLES)):
                return not_safetensors(f"{where}/{name}")
        if folders := [folder for folder in sorted(self._here) if folder and self._weights(folder)]:
            remedy = f"give one of the folders with weights: {shown_names(folders)}"
            return CheckpointError("no .safetensors file in this folder itself", where=where, remedy=remedy)
        what = "no .safetensors file in this folder" if self._listing.names else "an empty folder"
        return CheckpointError(what, where=where, remedy=_MODEL_REMEDY)


def not_safetensors(path: str) -> CheckpointError:
    """Return the error for a file that is none of ours, by its name."""
    where = shown(path)  # a stranger may have named the file
    if path.endswith(".gguf"):
        return CheckpointError("a GGUF file, not safetensors", where=where, remedy=GGUF_REMEDY)
    if path.rpartition("/")[2] == "adapter_model.bin":
        return CheckpointError("a pickled adapter", where=where, remedy=_PICKLED_ADAPTER_REMEDY)
    if path.endswith(_PICKLES):
        return CheckpointError("a pickled checkpoint", where=where, remedy=_PICKLE_REMEDY)
    return CheckpointError("not a .safetensors file", where=where, remedy=_MODEL_REMEDY)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _is_state(name: str) -> bool:
    """Whether a file is a training's state, by its name."""
    return _TRAINING_STATE.fullmatch(name) is not None


def _reason(name: str) -> str | None:
    """Return why a file is no part of a model, by its name alone; None if it may be one."""
    return next((reason for reason, pattern in _OTHER_FILES.items() if pattern.fullmatch(name)), None)


def _variant(name: str) -> str | None:
    """Return the variant that a file belongs to: ``fp16`` of ``model.fp16.safetensors``; None if to none."""
    for stem in _STEMS:
        for pattern in (
            rf"{stem}\.([\w-]+?)(-\d+-of-\d+)?\.safetensors",
            rf"{stem}-\d+-of-\d+\.([\w-]+)\.safetensors",
            rf"{stem}\.safetensors\.index\.([\w-]+)\.json",
        ):
            if found := re.fullmatch(pattern, name, re.ASCII):
                return found[1]
    return None
