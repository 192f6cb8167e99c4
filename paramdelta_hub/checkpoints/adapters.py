"""LoRA adapters as post: which tensors of base they update, and by what. PEFT's folders, diffusers' and kohya's files.

An adapter is no model: post is base + scale · B · A. PEFT keeps the scale in ``adapter_config.json`` (alpha and rank,
for all modules or by patterns), kohya beside each pair (``.alpha``); diffusers' files have none, and mean 1.

    what                ends in                                        updates
    PEFT, diffusers     ``lora_A.weight``, ``lora_B.weight``           ``x.weight`` by B · A
    of an embedding     ``lora_embedding_A``, ``lora_embedding_B``     ``x.weight`` by (B · A) transposed
    of a bias           ``lora_B.bias``                                ``x.bias``
    kohya               ``lora_down.weight``, ``lora_up.weight``       ``x.weight``; the dots of x are underscores
    tokens              ``token_adapter.trainable_tokens_delta``       replaces rows of ``x.weight``
    whole tensors       anything else (``modules_to_save``)            replace base's

What cannot be written as such a sum, or was trained against another base than the released one, is refused by name.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.files.repository import ADAPTER, ADAPTERS, WEIGHTS
from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS, is_head
from paramdelta_hub.checkpoints.matching.ties import head_is_tied
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.checkpoints.tensor_sources import Stored, read_floats
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.names import shown
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import TensorSpan
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import CONFIG_BYTES, FACTOR_BYTES
from paramdelta_hub.numerics.floats import FLOATS

__all__ = [
    "MERGE_REMEDY",
    "Adapter",
    "Update",
    "Updates",
    "describe",
    "find_updates",
    "is_adapter",
    "open_adapter",
    "refuse_adapter",
    "refuse_adapter_beside",
    "refuse_half_of_tie",
    "tied_heads",
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

MERGE_REMEDY = (
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
_UNTIE_REMEDY = (
    "give the head a copy of its own, and give UNTIED as BASE: "
    'python -c "from transformers import AutoModelForCausalLM as Model; '
    "model = Model.from_pretrained('BASE', dtype='auto'); model.config.tie_word_embeddings = False; "
    "head, embedding = model.get_output_embeddings(), model.get_input_embeddings(); "
    "head.weight = type(head.weight)(embedding.weight.detach().clone()); model.save_pretrained('UNTIED')\""
)
_WITH_HEAD = re.compile(r"LMHead|For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)$")
"""Classes of models that score tokens."""

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
_TRANSPOSING_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Models whose layers hold their weights as (inputs, outputs)."""
_HEADS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model")
"""Components that diffusers' and ComfyUI's files begin their names with."""
_FOLDERS = {
    "lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3", "lora_transformer": "transformer", "lora_prior_unet": "prior",
}  # fmt: skip
"""Folders of diffusers' components by how kohya's names begin."""
_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the configs of an adapter, as JSON, in the header of its file."""
_KOHYA = re.compile(r"(lora_(?:unet|te[1-3]?|transformer|prior_unet))_(.+)", re.DOTALL)


@dataclass(frozen=True)
class Update:
    """What an adapter does to one tensor of base.

    Args:
        down: the name of A, of shape (rank, inputs, …); None for a bias, and for a tensor that is replaced.
        up: the name of B, of shape (outputs, rank, …); of a bias's summand; of the tensor that replaces base's.
        whole: the name of a tensor that replaces base's, and to which the product is added.
        rank: of the product; 0 where there is none.
        scale: what the product is multiplied with.
        transposed: whether (B · A) transposed is added.
    """

    down: str | None = None
    up: str | None = None
    whole: str | None = None
    rank: int = 0
    scale: float = 1.0
    transposed: bool = False
    rows: str | None = None
    """The name of the rows that replace some of base's, if any."""
    indices: tuple[int, ...] = ()
    """Which rows those are."""


@dataclass(frozen=True)
class Updates:
    """What an adapter does to base's tensors, by their names, and what it has for tensors that base lacks."""

    tensors: Mapping[str, Update]
    """By base's names; whole tensors that base lacks are there too."""
    homeless: Mapping[str, str]
    """Products for which base has no tensor that fits: the name that it would have → why."""
    renamed: Mapping[str, str]
    """Name in the adapter → base's, where a prefix was changed."""

    @property
    def ranks(self) -> list[int]:
        """The ranks that occur, ascending."""
        return sorted({update.rank for update in self.tensors.values() if update.down})


@dataclass
class _Module:
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
    modules: Mapping[str, _Module]
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
        path = shown(str(checkpoint.source.path))
        raise CheckpointError(
            "a LoRA adapter, not a model; only pd-extract takes one, as POST",
            where=path,
            remedy=f"pd-extract BASE {path} -o DELTA, and apply DELTA; or {MERGE_REMEDY}",
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
    where = shown(str(checkpoint.source.path))
    config = _read_config(checkpoint)
    part_configs = {} if config else _read_metadata(checkpoint)
    remedy = MERGE_REMEDY if config else _FUSE_REMEDY
    for each in (config, *part_configs.values()):
        _check_config(each, where, remedy)
    for name in checkpoint.tensors:
        if method := next((method for sign, method in _OTHER_METHODS if sign.search(name)), None):
            _refuse(f"tensor {name!r} shows that the adapter is {method}, not plain LoRA", where, remedy)
    modules: dict[str, _Module] = {}
    wholes: dict[str, str] = {}
    tokens: dict[str, str] = {}
    adapters: set[str] = set()
    for name in checkpoint.tensors:
        factor = _FACTOR.fullmatch(name)
        if token := _TOKENS.fullmatch(name):
            tokens[_plain(token[1])] = name
        elif factor is None:
            if name.endswith(_ALPHA):
                _module(modules, name.removesuffix(_ALPHA)).alpha = name
            else:
                wholes[_plain(name)] = name
        if factor is None:
            continue
        if factor["adapter"]:
            adapters.add(factor["adapter"])
        module, part = _module(modules, factor["module"]), factor["part"]
        slot = "down" if part in _DOWN else "bias" if factor["kind"] == "bias" else "up"
        if (part in _DOWN and factor["kind"] == "bias") or getattr(module, slot) is not None:
            _refuse(f"tensor {name!r} is not understood", where)
        setattr(module, slot, name)
        module.embedding = "embedding" in part
    if len(adapters) > 1:
        _refuse(f"it holds {len(adapters)} adapters: {', '.join(map(shown, sorted(adapters)[:5]))}", where)
    if not (modules or wholes or tokens):
        raise CheckpointError("an adapter without tensors", where=where, remedy="get the file again")
    for module in modules.values():
        if module.down is None or module.up is None:
            raise CheckpointError(
                f"module {module.name!r} lacks one of its two factors", where=where, remedy="get the file again"
            )
    if not (config or part_configs) and not all(module.alpha or _says_no_scale(module) for module in modules.values()):
        raise CheckpointError(
            f"a LoRA adapter without its {CONFIG}, which has the scale (lora_alpha)",
            where=where,
            remedy=f"put the {CONFIG} that belongs to it in the same folder",
        )
    alphas = _read_alphas(checkpoint, modules)
    return Adapter(checkpoint, config, modules, wholes, tokens, alphas, part_configs)


def find_updates(
    adapter: Adapter, base: Mapping[str, tuple[int, ...]], model_type: object = None, rules: Rules | None = None
) -> Updates:
    """Return what an adapter does to base's tensors.

    Args:
        adapter: an adapter.
        base: the shapes of base's tensors.
        model_type: of base's config.
        rules: the user's; their renames apply to the names of the adapter, without PEFT's prefix.

    Raises:
        CheckpointError: names that can mean several tensors, or factors that contradict the config.
    """
    rules = rules or Rules()
    where = shown(str(adapter.checkpoint.source.path))
    modules = {name: rules.rename(f"{name}.weight") for name in adapter.modules}
    shapes = {name: _product_shape(adapter, adapter.modules[name], where) for name in modules}
    places = _find_places(adapter, modules, shapes, base, where)
    moved = {modules[name]: place for name, place in places.items() if place != modules[name]}
    turn = _orientation(adapter, places, shapes, base, model_type, where)
    tensors: dict[str, Update] = {}
    homeless: dict[str, str] = {}
    for name, whole in adapter.wholes.items():
        tensors[_place_like(rules.rename(name), moved)] = Update(whole=whole)
    for name, module in adapter.modules.items():
        place = places.get(name)
        if place is None:
            homeless[modules[name]] = "post's adapter updates it, base does not have it"
            continue
        shape = tensors[place].whole and adapter.span(tensors[place].whole or "").shape if place in tensors else None
        shape = shape or base[place]
        rank, scale = _scale(adapter, module, where)
        transposed = True if module.embedding else turn(place, shape, shapes[name])
        if not _fits(shape, shapes[name], transposed):
            homeless[place] = f"base has {list(shape)}, post's adapter updates {list(shapes[name])}"
            continue
        known = tensors.get(place, Update())
        tensors[place] = Update(module.down, module.up, known.whole, rank, scale, transposed)
        if module.bias is not None:
            bias = place.removesuffix("weight") + "bias"
            span, known = adapter.span(module.bias), tensors.get(bias, Update())
            if bias not in base or base[bias] != span.shape:
                homeless[bias] = "post's adapter updates it, base does not have it"
            else:
                tensors[bias] = Update(None, module.bias, known.whole, 1, scale)
    for name, rows in adapter.tokens.items():
        place = _place_like(rules.rename(f"{name}.weight"), moved)
        if place not in base:
            homeless[place] = "post's adapter has tokens for it, base does not have it"
        else:
            indices = _token_indices(adapter, name, rows, base[place], where)
            tensors[place] = replace(tensors.get(place, Update()), rows=rows, indices=indices)
    return Updates(tensors, homeless, moved)


def _token_indices(adapter: Adapter, module: str, rows: str, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Return which rows of a matrix an adapter replaces."""
    said: Any = (adapter.config or {}).get("trainable_token_indices")
    if isinstance(said, dict):
        said = next((value for key, value in said.items() if f".{module}".endswith(f".{key}")), None)
    span = adapter.span(rows)
    known = isinstance(said, list) and all(type(index) is int and 0 <= index < shape[0] for index in said)
    if not known or len(set(said)) != len(said) or span.shape != (len(said), *shape[1:]) or span.dtype not in FLOATS:
        _refuse(f"tensor {rows!r} {list(span.shape)} does not fit trainable_token_indices in {CONFIG}", where)
    return tuple(said)


def _refuse(what: str, where: str, remedy: str = MERGE_REMEDY) -> NoReturn:
    raise CheckpointError(what, where=where, remedy=remedy)


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


def _check_config(config: JsonObject | None, where: str, remedy: str) -> None:
    """Refuse what is not base + scale · B · A."""
    if config is None:
        return
    method = config.get("peft_type", "LORA")
    if method in _NO_WEIGHTS:
        what = f"an adapter of the kind {method}, which works on inputs and activations"
        raise CheckpointError(what, where=where, remedy="it changes no weights, so that there is no delta to extract")
    if config.get("layer_replication"):
        what = "the adapter repeats layers of base (layer_replication)"
        raise CheckpointError(what, where=where, remedy="a model with other layers than base has no delta from it")
    if method != "LORA":
        _refuse(f"an adapter of the kind {str(method)[:40]}, not LoRA", where, remedy)
    for key, value in config.items():
        if key == "use_dora" and value:
            _refuse("the adapter is DoRA (use_dora), which also scales base's columns", where, remedy)
        if key not in _KNOWN and value not in (None, False, [], {}, ""):
            _refuse(f"the adapter uses {shown(key[:80])}, which is not supported", where, remedy)
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        _refuse(f"the adapter was begun with {str(start)[:40]}, which also changes base", where, remedy)


def _module(modules: dict[str, _Module], name: str) -> _Module:
    name = _plain(name)
    return modules.setdefault(name, _Module(name, kohya=bool(_KOHYA.fullmatch(name))))


def _plain(name: str) -> str:
    """Return a name without what PEFT's wrappers add to it."""
    name = re.sub(r"^(?:base_model\.model\.|base_model\.)", "", name)
    name = re.sub(r"\.modules_to_save\.(?:[^.]+\.)?(?=[^.]+$)", ".", name)
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def _says_no_scale(module: _Module) -> bool:
    """Whether a module is of a file that has no config because its scale is 1."""
    return module.kohya or module.name.split(".")[0] in _HEADS


def _read_alphas(checkpoint: Checkpoint, modules: Mapping[str, _Module]) -> dict[str, float]:
    alphas = {}
    with OpenFiles(CheckpointError) as files:
        for name, module in modules.items():
            if module.alpha is None:
                continue
            file, span = checkpoint.tensors[module.alpha]
            if span.elements != 1 or span.dtype not in FLOATS:
                _refuse(f"tensor {module.alpha!r} is not one number", shown(str(checkpoint.source.path)))
            alphas[name] = float(read_floats(Stored.of(file, span), 1, files)[0])
    return alphas


def _product_shape(adapter: Adapter, module: _Module, where: str) -> tuple[int, ...]:
    """Return the shape of B · A: (outputs, inputs, …)."""
    down, up = adapter.span(module.down or ""), adapter.span(module.up or "")
    for span in (down, up):
        if span.dtype not in FLOATS:
            _refuse(f"tensor {span.name!r} is {span.dtype}, not F32, BF16 or F16", where)
        if span.elements == 0 or len(span.shape) < 2:
            raise CheckpointError(
                f"tensor {span.name!r} has the shape {list(span.shape)}: it was saved in pieces (ZeRO-3, FSDP)",
                where=where,
                remedy="save the adapter again with its parameters gathered",
            )
        if span.elements * 4 > FACTOR_BYTES:
            raise CheckpointError(f"tensor {span.name!r} has {span.elements} elements, too many to hold", where=where)
    if up.shape[1] != down.shape[0] or any(length != 1 for length in up.shape[2:]):
        _refuse(f"{down.name!r} {list(down.shape)} and {up.name!r} {list(up.shape)} can't be multiplied", where)
    return (up.shape[0], *down.shape[1:])


def _fits(shape: tuple[int, ...], product: tuple[int, ...], transposed: bool) -> bool:
    return shape == (tuple(reversed(product)) if transposed and len(product) == 2 else product)


def _orientation(
    adapter: Adapter,
    places: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]],
    model_type: object,
    where: str,
) -> Any:
    """Return a function (place, shape of base, shape of B · A) → whether the product is transposed.

    Shapes decide, but for square ones, where the other layers of the adapter do. PEFT's ``fan_in_fan_out`` says it for
    all layers, and is set right by PEFT for each as its class has it; so it decides only where no other layer does.
    """
    seen = {
        base[place] != shapes[name]
        for name, place in places.items()
        if not adapter.modules[name].embedding
        and place in base
        and len(base[place]) == 2
        and len(set(base[place])) > 1
        and not re.search(r"(^|\.)(lm_head|score|classifier)\.weight$", place)
    }
    said = bool((adapter.config or {}).get("fan_in_fan_out")) or model_type in _TRANSPOSING_MODELS

    def turned(place: str, shape: tuple[int, ...], product: tuple[int, ...]) -> bool:
        if len(shape) != 2 or len(product) != 2 or shape[0] != shape[1]:
            return shape != product
        if len(seen) > 1:
            _refuse(f"{place!r} is square, and other layers are transposed or not, so this one may be either", where)
        return next(iter(seen)) if seen else said

    return turned


def _scale(adapter: Adapter, module: _Module, where: str) -> tuple[int, float]:
    """Return a module's rank and the factor of its product."""
    rank = adapter.span(module.down or "").shape[0]
    config = adapter.config_of(module.name)
    if module.name in adapter.alphas or config is None:
        alpha = adapter.alphas.get(module.name, float(rank))
        scale = alpha / rank
    else:
        said = _by_pattern(config.get("rank_pattern"), module.name, config.get("r", rank), where)
        if said != rank:
            _refuse(f"module {module.name!r} has rank {rank}, but {CONFIG} says {str(said)[:20]}", where)
        alpha = _by_pattern(config.get("alpha_pattern"), module.name, config.get("lora_alpha"), where)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise CheckpointError(
                f"{CONFIG} has no number as lora_alpha, which makes the scale",
                where=where,
                remedy=f"add the lora_alpha that the adapter was trained with to {CONFIG}",
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        _refuse(f"module {module.name!r} has the scale {scale}", where)
    return rank, scale


def _by_pattern(patterns: object, name: str, default: Any, where: str) -> Any:
    """Return what PEFT's ``rank_pattern`` or ``alpha_pattern`` say of a module: of the first pattern that matches."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.search(r"[*+}][*+{]|\)[*+{]", pattern):  # may take exponential time
            _refuse(f"{CONFIG} has the pattern {shown(pattern[:80])}, which is not supported", where)
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error:
            _refuse(f"{CONFIG} has the pattern {shown(pattern[:80])}, which is no regular expression", where)
    return default


def _find_places(
    adapter: Adapter,
    modules: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, str]:
    """Return base's tensor for each module that has one, by name; a prefix may differ, for all modules alike."""
    groups: dict[str, dict[str, str]] = {}
    for name, wanted in modules.items():
        kohya = _KOHYA.fullmatch(name) if wanted == f"{name}.weight" else None
        head = kohya[1] if kohya else name.split(".")[0]
        groups.setdefault(head if kohya or head in _HEADS else "", {})[name] = f"{kohya[2]}_weight" if kohya else wanted
    places: dict[str, str] = {}
    for head, group in groups.items():
        flat = bool(_KOHYA.match(f"{head}_x"))
        folder = f"{_FOLDERS.get(head, head)}/"
        component = {name: shape for name, shape in base.items() if name.startswith(folder)}
        if component:
            group = {name: wanted.removeprefix(f"{head}.") for name, wanted in group.items()}
        places |= _place_group(group, shapes, component or base, flat, where, folder)
    doubled = len(places) - len(set(places.values()))
    if doubled:
        _refuse(f"{doubled} of its modules have the same place in base as others", where)
    return places


def _place_group(
    group: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]],
    flat: bool,
    where: str,
    folder: str,
) -> dict[str, str]:
    separator = "_" if flat else "."
    by_name: dict[str, list[str]] = {}
    for name in base:
        if name.endswith(".weight"):
            in_module = name.removeprefix(folder).replace("/", ".")
            by_name.setdefault(in_module.replace(".", "_") if flat else in_module, []).append(name)

    def resolve(old: str, new: str) -> dict[str, str] | None:
        """Return the places with a prefix replaced; None if one has no place, or several."""
        found = {}
        for name, wanted in group.items():
            options = by_name.get(new + wanted.removeprefix(old), []) if wanted.startswith(old) else []
            options = [place for place in options if _may_fit(base[place], shapes[name])]
            if len(options) != 1:
                return None
            found[name] = options[0]
        return found

    if (found := resolve("", "")) is not None:
        return found
    maps: list[dict[str, str]] = []
    for old, new in _prefixes(next(iter(group.values())), by_name, separator):
        if (found := resolve(old, new)) is not None and found not in maps:
            maps.append(found)
    if len(maps) > 1:
        first = next(iter(group))
        options = ", ".join(repr(found[first]) for found in maps[:3])
        raise CheckpointError(
            f"the adapter's module {first!r} may be any of base's {options}",
            where=where,
            remedy="say which by --rename '^OLD=NEW', or give the part of the model that it was trained on as BASE",
        )
    if maps:
        return maps[0]
    return {name: by_name[wanted][0] for name, wanted in group.items() if len(by_name.get(wanted, ())) == 1}


def _may_fit(shape: tuple[int, ...], product: tuple[int, ...]) -> bool:
    return _fits(shape, product, transposed=False) or _fits(shape, product, transposed=True)


def _prefixes(wanted: str, names: Iterable[str], separator: str) -> list[tuple[str, str]]:
    """Return the pairs (old prefix, new prefix) that make a name of base of the one that is wanted.

    There are no numbers in them: a layer is never taken for another.
    """
    pairs: dict[tuple[str, str], None] = {}
    parts = wanted.split(separator)
    for name in names:
        others = name.split(separator)
        shared = 0
        while shared < min(len(parts), len(others)) and parts[-1 - shared] == others[-1 - shared]:
            shared += 1
        before = [*parts[: len(parts) - shared], *others[: len(others) - shared]]
        if shared >= 2 and not any(part.isdecimal() for part in before):
            pairs[
                separator.join([*parts[:-shared], ""]) if shared < len(parts) else "",
                separator.join([*others[:-shared], ""]) if shared < len(others) else "",
            ] = None
    return list(pairs)


def _place_like(name: str, moved: Mapping[str, str]) -> str:
    """Return where a whole tensor goes, if the modules of the adapter have another prefix in base."""
    for old, new in moved.items():
        shared = 0
        for a, b in zip(reversed(old), reversed(new), strict=False):
            if a != b:
                break
            shared += 1
        before, after = old[: len(old) - shared], new[: len(new) - shared]
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def tied_heads(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], config: JsonObject | None, rules: Rules
) -> dict[str, str]:
    """Return the heads that an adapter updates and base does not store: the name → base's embedding that it is."""
    if not head_is_tied(config):
        return {}
    embedding = next((name for name in shapes if EMBEDDINGS.search(name)), None)
    wanted = {rules.rename(f"{name}.weight") for name in adapter.modules}
    return {name: embedding for name in wanted if embedding and is_head(name) and name not in shapes}


def refuse_half_of_tie(
    adapter: Adapter, updates: Updates, shapes: Mapping[str, tuple[int, ...]], config: JsonObject | None, rules: Rules
) -> None:
    """Raise if an adapter updates one of two tensors that base ties, and nothing tells what becomes of the other.

    An update of a head or an embedding is of it alone, as the adapter was trained, so that they are two tensors in
    post. Where base stores an embedding only, its head then has no name.

    Raises:
        CheckpointError: it does.
    """
    if not head_is_tied(config):
        return
    where = shown(str(adapter.checkpoint.source.path))
    copies = [name for name in shapes if EMBEDDINGS.search(name) or is_head(name)]
    stays_tied = bool((adapter.config or {}).get("ensure_weight_tying"))
    for name in copies:
        if (update := updates.tensors.get(name)) is None or rules.skips_name(name):
            continue
        for other in copies:
            follows = shapes[other] == shapes[name] and other not in updates.tensors
            if follows and (stays_tied or update.rows is not None):
                _refuse(f"it updates {name!r}, but base ties it to {other!r}, of which it holds a copy", where)
        is_alone = not (stays_tied or any(is_head(other) for other in (*shapes, *updates.tensors)))
        if is_alone and (update.up or update.whole) and _has_head(config):
            what = f"it updates {name!r}, but not the output head, which base ties to it"
            remedy = _UNTIE_REMEDY
            if (config or {}).get("is_encoder_decoder"):
                what = f"it updates {name!r}, but neither encoder nor decoder uses the embedding under this name"
                skip = shlex.quote(f"^{re.escape(name)}$")
                remedy = f"leave out what changed nothing while it was trained: --skip {skip}"
            raise CheckpointError(what, where=where, remedy=remedy)


def _has_head(config: JsonObject | None) -> bool:
    classes = (config or {}).get("architectures")
    return isinstance(classes, list) and any(_WITH_HEAD.search(str(name)) for name in classes)


def describe(adapter: Adapter, updates: Updates, base: str) -> Sequence[str]:
    """Return what there is to say of an adapter, in words."""
    products = sum(update.down is not None for update in updates.tensors.values())
    wholes = sum(update.whole is not None for update in updates.tensors.values())
    biases = sum(update.down is None and update.up is not None for update in updates.tensors.values())
    ranks = updates.ranks
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no product"
    words = [f"post is an adapter: base + scale·B·A, {rank}, {_counted(products, 'tensor')}"]
    words += [f"{_counted(biases, 'vector')} added to biases"] if biases else []
    words += [f"{_counted(wholes, 'tensor')} replaced whole"] if wholes else []
    tokens = sum(len(update.indices) for update in updates.tensors.values())
    words += [f"{_counted(tokens, 'row')} of tokens replaced"] if tokens else []
    lines = ["; ".join(words)]
    if updates.renamed:
        old, new = next(iter(updates.renamed.items()))
        lines.append(f"the adapter's names differ from base's: {old} is base's {new}, and so on")
    trained_on = adapter.trained_on
    if trained_on and trained_on.rstrip("/").rpartition("/")[2].lower() != base.rpartition("/")[2].lower():
        lines.append(f"the adapter's config names {shown(trained_on[:120])} as its base; BASE is {shown(base)}")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
