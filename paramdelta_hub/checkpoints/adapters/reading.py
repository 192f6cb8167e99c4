"""Reading an adapter's file: PEFT's folders, diffusers' and kohya's files, by names and config alone.

An adapter is no model: post is base + scale · B · A. PEFT keeps the scale in ``adapter_config.json`` (alpha and rank,
for all modules or by patterns), kohya beside each pair (``.alpha``); diffusers' files have none, and mean 1.

    what                ends in                                        updates
    PEFT, diffusers     ``lora_A.weight``, ``lora_B.weight``           ``x.weight`` by B · A
    of an embedding     ``lora_embedding_A``, ``lora_embedding_B``     ``x.weight`` by (B · A) transposed
    of a bias           ``lora_B.bias``                                ``x.bias``
    kohya               ``lora_down.weight``, ``lora_up.weight``       ``x.weight``; the dots of x are underscores
    tokens              ``token_adapter.trainable_tokens_delta``       replaces rows of ``x.weight``
    whole tensors       anything else (``modules_to_save``)            replace base's

What can't be written as such a sum, or was trained against another base than the released one, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.files.repository import ADAPTER, ADAPTERS, WEIGHTS
from paramdelta_hub.checkpoints.stored import Stored, read_floats
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.names import shown
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import TensorSpan
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import CONFIG_BYTES
from paramdelta_hub.numerics.floats import FLOATS

__all__ = [
    "COMPONENTS",
    "CONFIG",
    "KOHYA",
    "Adapter",
    "Module",
    "is_adapter",
    "open_adapter",
    "refuse",
    "refuse_adapter",
    "refuse_adapter_beside",
]

CONFIG = "adapter_config.json"

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_down|lora_up|lora\.down|lora\.up"
    r"|lora_linear_layer\.down|lora_linear_layer\.up)(?:\.(?P<adapter>[^.]+))??(?:\.(?P<kind>weight|bias))?",
    re.DOTALL,
)
_DOWN = frozenset({"lora_A", "lora_embedding_A", "lora_down", "lora.down", "lora_linear_layer.down"})
_ALPHA = ".alpha"
_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?", re.DOTALL)
_OTHER_METHODS = (
    (re.compile(r"lora_magnitude_vector|\.dora_scale$"), "DoRA"),
    (re.compile(r"\.hada_(w|t)[12]"), "LoHa"),
    (re.compile(r"\.lokr_(w|t)[12]"), "LoKr"),
    (re.compile(r"\.lora_mid\."), "LoRA with a third factor (lora_mid)"),
    (re.compile(r"\.lora_E$|\.ranknum$"), "AdaLoRA"),
    (re.compile(r"\.ia3_l"), "IA3"),
    (re.compile(r"vera_(lambda|A|B)"), "VeRA"),
    (re.compile(r"\.(oft_|boft_)"), "OFT"),
    (re.compile(r"prompt_embeddings|prompt_encoder"), "prompt tuning"),
    (re.compile(r"\.processor\..*_lora\."), "diffusers' attention processors, its layout until 0.20"),
    (re.compile(r"\.diff(_b)?$"), "ComfyUI's differences"),
)
"""What the names of tensors give away."""
_SIGNS = re.compile(
    r"(^|\.)lora_(A|B|embedding_A|embedding_B|down|up|mid)\b|\.lora\.(down|up)\.|\.lora_linear_layer\."
    r"|^(lora_(unet|te\d?|transformer|prior_unet)|lycoris)_|\.(hada|lokr)_(w|t)[12]"
)

_MERGE_REMEDY = (
    "merge it with PEFT, and give OUT: "
    'python -c "from transformers import AutoModelForCausalLM as Model; from peft import PeftModel; '
    "PeftModel.from_pretrained(Model.from_pretrained('BASE', dtype='auto'), 'ADAPTER')"
    ".merge_and_unload().save_pretrained('OUT')\""
)
"""What makes a full model of any adapter of PEFT."""
_FUSE_REMEDY = (
    "fuse it with diffusers, and give OUT: "
    "python -c \"from diffusers import DiffusionPipeline as Pipe; pipe = Pipe.from_pretrained('BASE'); "
    "pipe.load_lora_weights('ADAPTER'); pipe.fuse_lora(); pipe.unload_lora_weights(); pipe.save_pretrained('OUT')\""
    "; for LoHa and LoKr, LyCORIS has tools/merge.py"
)
"""What makes a full pipeline of the adapters that diffusers can load."""
_KNOWN = frozenset({
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "runtime_config", "lora_bias", "ensure_weight_tying", "task_type", "peft_type", "auto_mapping", "peft_version",
    "base_model_name_or_path", "revision", "inference_mode", "trainable_token_indices",
})  # fmt: skip
"""Keys of PEFT's config that are read here, or that say nothing of what an adapter adds to its base."""
_NO_WEIGHTS = frozenset({
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "XLORA", "POLY",
    "CARTRIDGE",
})  # fmt: skip
"""Kinds that can't be merged: they add tokens, or what they add depends on the input."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave base as it is; the others, such as PiSSA, move a part of it into the adapter."""
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model")
"""Components that diffusers' and ComfyUI's files begin their names with."""
_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the configs of an adapter, as JSON, in the header of its file."""
KOHYA = re.compile(r"(lora_(?:unet|te[1-3]?|transformer|prior_unet))_(.+)", re.DOTALL)


@dataclass
class Module:
    """One module of an adapter, and the names of what it has for it."""

    name: str
    kohya: bool = False
    embedding: bool = False
    down: str | None = None
    up: str | None = None
    bias: str | None = None
    alpha: str | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter as its headers and its config describe it."""

    checkpoint: Checkpoint
    config: JsonObject | None
    """``adapter_config.json``, or None for files that need none."""
    modules: Mapping[str, Module]
    wholes: Mapping[str, str] = field(default_factory=dict)
    """Tensors that replace base's: base's name, as the adapter has it → the name in the file."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Rows of trained tokens: the module of the embedding → the name in the file."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """kohya's alpha by module."""
    part_configs: Mapping[str, JsonObject] = field(default_factory=dict)
    """What diffusers writes into the file's metadata: the config of each component, by how its names begin."""

    def config_of(self, module: str) -> JsonObject | None:
        """Return the config that tells a module's scale."""
        return self.config or self.part_configs.get(module.partition(".")[0]) or self.part_configs.get("")

    @property
    def where(self) -> str:
        """What messages call it."""
        return _where(self.checkpoint)

    @property
    def trained_on(self) -> str | None:
        """What the config calls the base it was trained on."""
        name = (self.config or {}).get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that it updates, as rules know them: without PEFT's prefix."""
        return (*(f"{name}.weight" for name in (*self.modules, *self.tokens)), *self.wholes)

    def span(self, name: str) -> TensorSpan:
        """Return what the header says of a tensor."""
        return self.checkpoint.tensors[name][1]


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a file of weights is an adapter, by its name or its tensors' names.

    Some models, such as Phi-4-multimodal, have adapters among their own weights. They have a config, and are models.
    """
    names = {file.name for file in checkpoint.files}
    if names == {ADAPTER}:
        return True
    if checkpoint.indexes or (WEIGHTS in names and checkpoint.config):
        return False
    return any(_SIGNS.search(name) for name in checkpoint.tensors)


def refuse_adapter(checkpoint: Checkpoint) -> None:
    """Raise if a model is an adapter, where a full model is needed.

    Raises:
        CheckpointError: it is.
    """
    if is_adapter(checkpoint):
        path = _where(checkpoint)
        raise CheckpointError(
            "a LoRA adapter, not a model; only pd-extract takes one, as POST",
            where=path,
            remedy=f"pd-extract BASE {path} -o DELTA, and apply DELTA; or {_MERGE_REMEDY}",
        )


def refuse_adapter_beside(checkpoint: Checkpoint) -> None:
    """Raise if an adapter lies beside a model that is given as post: either may be what was trained.

    Raises:
        CheckpointError: one does.
    """
    if checkpoint.is_lone_file:
        return
    names = sorted(path.name for path in checkpoint.folder.iterdir() if ADAPTERS.fullmatch(path.name))
    if names:
        path = shown(str(checkpoint.folder))
        raise CheckpointError(
            f"both a model and an adapter ({shown(names[0])})",
            where=path,
            remedy=f"if the adapter is post, give the one file {path}/{shown(names[0])}; if the model is, give a copy "
            "of the folder without it (links to its weights are enough)",
        )


def open_adapter(checkpoint: Checkpoint) -> Adapter:
    """Return an adapter, with the names of its tensors understood; of values, only kohya's alphas are read.

    Raises:
        CheckpointError: it is no plain LoRA, its config is missing, or it has what is not known here.
    """
    where = _where(checkpoint)
    config = _read_config(checkpoint)
    part_configs = {} if config else _read_metadata(checkpoint)
    remedy = _MERGE_REMEDY if config else _FUSE_REMEDY
    for each in [config] if config else part_configs.values():
        _check_config(each, where, remedy)
    for name in checkpoint.tensors:
        if method := next((method for sign, method in _OTHER_METHODS if sign.search(name)), None):
            refuse(f"tensor {name!r} shows that the adapter is {method}, not plain LoRA", where, remedy)
    modules: dict[str, Module] = {}
    wholes: dict[str, str] = {}
    tokens: dict[str, str] = {}
    adapters: set[str] = set()
    for name in checkpoint.tensors:
        if factor := _FACTOR.fullmatch(name):
            module, part = _module(modules, factor["module"]), factor["part"]
            slot = "down" if part in _DOWN else "bias" if factor["kind"] == "bias" else "up"
            if (part in _DOWN and factor["kind"] == "bias") or getattr(module, slot) is not None:
                refuse(f"tensor {name!r} is not understood", where)
            setattr(module, slot, name)
            module.embedding = "embedding" in part
            adapters.update(filter(None, [factor["adapter"]]))
        elif token := _TOKENS.fullmatch(name):
            tokens[_plain(token[1])] = name
        elif name.endswith(_ALPHA):
            _module(modules, name.removesuffix(_ALPHA)).alpha = name
        else:
            wholes[_plain(name)] = name
    if len(adapters) > 1:
        refuse(f"it holds {len(adapters)} adapters: {', '.join(map(shown, sorted(adapters)[:5]))}", where)
    if not (modules or wholes or tokens):
        raise CheckpointError("an adapter without tensors", where=where, remedy="get the file again")
    for module in modules.values():
        if module.down is None or module.up is None:
            raise CheckpointError(
                f"module {module.name!r} lacks one of its two factors", where=where, remedy="get the file again"
            )
    # Files of kohya and of diffusers need no config: without an alpha, the scale is 1.
    tells_scale = (m.alpha or m.kohya or m.name.split(".")[0] in COMPONENTS for m in modules.values())
    if not (config or part_configs) and not all(tells_scale):
        raise CheckpointError(
            f"a LoRA adapter without its {CONFIG}, which has the scale (lora_alpha)",
            where=where,
            remedy=f"put the {CONFIG} that belongs to it in the same folder",
        )
    alphas = _read_alphas(checkpoint, modules)
    return Adapter(checkpoint, config, modules, wholes, tokens, alphas, part_configs)


def refuse(what: str, where: str, remedy: str = _MERGE_REMEDY) -> NoReturn:
    """Raise a CheckpointError; the remedy is to merge the adapter by the library that made it."""
    raise CheckpointError(what, where=where, remedy=remedy)


def _where(checkpoint: Checkpoint) -> str:
    return shown(str(checkpoint.source.path))


def _read_config(checkpoint: Checkpoint) -> JsonObject | None:
    path = checkpoint.folder / CONFIG
    if not path.exists():
        return None
    text = read_small(path, CONFIG_BYTES, CheckpointError, follow=True)
    return strict_json.parse_object(text, CheckpointError, str(path))


def _read_metadata(checkpoint: Checkpoint) -> dict[str, JsonObject]:
    """Return the configs in a file's metadata: ``unet.lora_alpha`` is that of ``unet``."""
    configs: dict[str, JsonObject] = {}
    for file in checkpoint.files:
        if (text := file.header.metadata.get(_METADATA)) is None:
            continue
        for name, value in strict_json.parse_object(text.encode(), CheckpointError, str(file.path)).items():
            head, _, key = name.rpartition(".")
            configs.setdefault(head, {})[key] = value
    return configs


def _check_config(config: JsonObject, where: str, remedy: str) -> None:
    """Refuse what is not base + scale · B · A."""
    method = config.get("peft_type", "LORA")
    if method in _NO_WEIGHTS:
        what = f"an adapter of the kind {method}, which works on inputs and activations"
        raise CheckpointError(what, where=where, remedy="it changes no weights, so that there is no delta to extract")
    if config.get("layer_replication"):
        what = "the adapter repeats layers of base (layer_replication)"
        raise CheckpointError(what, where=where, remedy="a model with other layers than base has no delta from it")
    if method != "LORA":
        refuse(f"an adapter of the kind {str(method)[:40]}, not LoRA", where, remedy)
    for key, value in config.items():
        if key == "use_dora" and value:
            refuse("the adapter is DoRA (use_dora), which also scales base's columns", where, remedy)
        if key not in _KNOWN and value not in (None, False, [], {}, ""):
            refuse(f"the adapter uses {shown(key[:80])}, which is not supported", where, remedy)
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        refuse(f"the adapter was begun with {str(start)[:40]}, which also changes base", where, remedy)


def _module(modules: dict[str, Module], name: str) -> Module:
    name = _plain(name)
    return modules.setdefault(name, Module(name, kohya=bool(KOHYA.fullmatch(name))))


def _plain(name: str) -> str:
    """Return a name without what PEFT's wrappers add to it."""
    name = re.sub(r"^(?:base_model\.model\.|base_model\.)", "", name)
    name = re.sub(r"\.modules_to_save\.(?:[^.]+\.)?(?=[^.]+$)", ".", name)
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def _read_alphas(checkpoint: Checkpoint, modules: Mapping[str, Module]) -> dict[str, float]:
    alphas = {}
    with OpenFiles(CheckpointError) as files:
        for name, module in modules.items():
            if module.alpha is None:
                continue
            file, span = checkpoint.tensors[module.alpha]
            if span.elements != 1 or span.dtype not in FLOATS:
                refuse(f"tensor {module.alpha!r} is not one number", _where(checkpoint))
            alphas[name] = float(read_floats(Stored.of(file, span), 1, files)[0])
    return alphas
