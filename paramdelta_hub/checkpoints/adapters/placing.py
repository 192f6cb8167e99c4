"""Placing an adapter in base: which of base's tensors each of its modules updates, whatever their prefixes, and how."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from paramdelta_hub.checkpoints.adapters.reading import COMPONENTS, CONFIG, KOHYA, Adapter, Module, refuse
from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS, is_head
from paramdelta_hub.checkpoints.matching.ties import head_is_tied
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, as_options, exactly
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.names import counted, shown
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import FACTOR_BYTES
from paramdelta_hub.numerics.floats import FLOATS

__all__ = ["Update", "Updates", "describe", "find_updates", "refuse_half_of_tie", "tied_heads"]

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]

_UNTIE_REMEDY = (
    "give the head a copy of its own, and give UNTIED as BASE: "
    'python -c "from transformers import AutoModelForCausalLM as Model; '
    "model = Model.from_pretrained('BASE', dtype='auto'); model.config.tie_word_embeddings = False; "
    "head, embedding = model.get_output_embeddings(), model.get_input_embeddings(); "
    "head.weight = type(head.weight)(embedding.weight.detach().clone()); model.save_pretrained('UNTIED')\""
)
"""What gives base a head that an adapter of its embedding alone leaves as it is."""
_WITH_HEAD = re.compile(r"LMHead|For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)$")
"""Classes of models that score tokens."""
_TRANSPOSING_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Models whose layers hold their weights as (inputs, outputs)."""
_FOLDERS = {
    "lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3", "lora_transformer": "transformer", "lora_prior_unet": "prior",
}  # fmt: skip
"""Folders of diffusers' components by how kohya's names begin."""


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


def find_updates(adapter: Adapter, base: Shapes, model_type: object, rules: Rules) -> Updates:
    """Return what an adapter does to base's tensors.

    Args:
        adapter: an adapter.
        base: the shapes of base's tensors.
        model_type: of base's config.
        rules: the user's; their renames apply to the names of the adapter, without PEFT's prefix.

    Raises:
        CheckpointError: names that can mean several tensors, or factors that contradict the config.
    """
    modules = {name: rules.rename(f"{name}.weight") for name in adapter.modules}
    shapes = {name: _product_shape(adapter, adapter.modules[name]) for name in modules}
    places = _find_places(modules, shapes, base, adapter.where)
    moved = {modules[name]: place for name, place in places.items() if place != modules[name]}
    turn = _orientation(adapter, places, shapes, base, model_type)
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
        rank, scale = _scale(adapter, module)
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
            indices = _token_indices(adapter, name, rows, base[place])
            tensors[place] = replace(tensors.get(place, Update()), rows=rows, indices=indices)
    return Updates(tensors, homeless, moved)


def _token_indices(adapter: Adapter, module: str, rows: str, shape: Shape) -> tuple[int, ...]:
    """Return which rows of a matrix an adapter replaces."""
    said: Any = (adapter.config or {}).get("trainable_token_indices")
    if isinstance(said, dict):
        said = next((value for key, value in said.items() if f".{module}".endswith(f".{key}")), None)
    span = adapter.span(rows)
    known = isinstance(said, list) and all(type(index) is int and 0 <= index < shape[0] for index in said)
    if not known or len(set(said)) != len(said) or span.shape != (len(said), *shape[1:]) or span.dtype not in FLOATS:
        refuse(f"tensor {rows!r} {list(span.shape)} does not fit trainable_token_indices in {CONFIG}", adapter.where)
    return tuple(said)


def _product_shape(adapter: Adapter, module: Module) -> Shape:
    """Return the shape of B · A: (outputs, inputs, …)."""
    down, up, where = adapter.span(module.down or ""), adapter.span(module.up or ""), adapter.where
    for span in (down, up):
        if span.dtype not in FLOATS:
            refuse(f"tensor {span.name!r} is {span.dtype}, not F32, BF16 or F16", where)
        if span.elements == 0 or len(span.shape) < 2:
            raise CheckpointError(
                f"tensor {span.name!r} has the shape {list(span.shape)}: it was saved in pieces (ZeRO-3, FSDP)",
                where=where,
                remedy="save the adapter again with its parameters gathered",
            )
        if span.elements * 4 > FACTOR_BYTES:
            raise CheckpointError(f"tensor {span.name!r} has {span.elements} elements, too many to hold", where=where)
    if up.shape[1] != down.shape[0] or any(length != 1 for length in up.shape[2:]):
        refuse(f"{down.name!r} {list(down.shape)} and {up.name!r} {list(up.shape)} can't be multiplied", where)
    return (up.shape[0], *down.shape[1:])


def _fits(shape: Shape, product: Shape, transposed: bool) -> bool:
    return shape == (tuple(reversed(product)) if transposed and len(product) == 2 else product)


def _orientation(
    adapter: Adapter, places: Mapping[str, str], shapes: Shapes, base: Shapes, model_type: object
) -> Callable[[str, Shape, Shape], bool]:
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

    def turned(place: str, shape: Shape, product: Shape) -> bool:
        if len(shape) != 2 or len(product) != 2 or shape[0] != shape[1]:
            return shape != product
        if len(seen) > 1:
            refuse(
                f"{place!r} is square, and other layers are transposed or not, so this one may be either", adapter.where
            )
        return next(iter(seen)) if seen else said

    return turned


def _scale(adapter: Adapter, module: Module) -> tuple[int, float]:
    """Return a module's rank and the factor of its product."""
    rank, where = adapter.span(module.down or "").shape[0], adapter.where
    config = adapter.config_of(module.name)
    if module.name in adapter.alphas or config is None:
        alpha = adapter.alphas.get(module.name, float(rank))
        scale = alpha / rank
    else:
        said = _by_pattern(config.get("rank_pattern"), module.name, config.get("r", rank), where)
        if said != rank:
            refuse(f"module {module.name!r} has rank {rank}, but {CONFIG} says {str(said)[:20]}", where)
        alpha = _by_pattern(config.get("alpha_pattern"), module.name, config.get("lora_alpha"), where)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise CheckpointError(
                f"{CONFIG} has no number as lora_alpha, which makes the scale",
                where=where,
                remedy=f"add the lora_alpha that the adapter was trained with to {CONFIG}",
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        refuse(f"module {module.name!r} has the scale {scale}", where)
    return rank, scale


def _by_pattern(patterns: object, name: str, default: Any, where: str) -> Any:
    """Return what PEFT's ``rank_pattern`` or ``alpha_pattern`` say of a module: of the first pattern that matches."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.search(r"[*+}][*+{]|\)[*+{]", pattern):  # may take exponential time
            refuse(f"{CONFIG} has the pattern {shown(pattern[:80])}, which is not supported", where)
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error:
            refuse(f"{CONFIG} has the pattern {shown(pattern[:80])}, which is no regular expression", where)
    return default


def _find_places(modules: Mapping[str, str], shapes: Shapes, base: Shapes, where: str) -> dict[str, str]:
    """Return base's tensor for each module that has one, by name; a prefix may differ, for all modules alike."""
    groups: dict[str, dict[str, str]] = {}
    for name, wanted in modules.items():
        kohya = KOHYA.fullmatch(name) if wanted == f"{name}.weight" else None
        head = kohya[1] if kohya else name.split(".")[0]
        group = groups.setdefault(head if kohya or head in COMPONENTS else "", {})
        group[name] = f"{kohya[2]}_weight" if kohya else wanted
    places: dict[str, str] = {}
    for head, group in groups.items():
        flat = bool(KOHYA.match(f"{head}_x"))
        folder = f"{_FOLDERS.get(head, head)}/"
        component = {name: shape for name, shape in base.items() if name.startswith(folder)}
        if component:
            group = {name: wanted.removeprefix(f"{head}.") for name, wanted in group.items()}
        places |= _place_group(group, shapes, component or base, flat, where, folder)
    doubled = len(places) - len(set(places.values()))
    if doubled:
        refuse(f"{doubled} of its modules have the same place in base as others", where)
    return places


def _place_group(
    group: Mapping[str, str], shapes: Shapes, base: Shapes, flat: bool, where: str, folder: str
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
            options = [
                place for place in options if any(_fits(base[place], shapes[name], turned) for turned in (False, True))
            ]
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


def tied_heads(adapter: Adapter, shapes: Shapes, config: JsonObject | None, rules: Rules) -> dict[str, str]:
    """Return the heads that an adapter updates and base does not store: the name → base's embedding that it is."""
    if not head_is_tied(config):
        return {}
    embedding = next((name for name in shapes if EMBEDDINGS.search(name)), None)
    wanted = {rules.rename(f"{name}.weight") for name in adapter.modules}
    return {name: embedding for name in wanted if embedding and is_head(name) and name not in shapes}


def refuse_half_of_tie(
    adapter: Adapter, updates: Updates, shapes: Shapes, config: JsonObject | None, rules: Rules
) -> None:
    """Raise if an adapter updates one of two tensors that base ties, and nothing tells what becomes of the other.

    An update of a head or an embedding is of it alone, as the adapter was trained, so that they are two tensors in
    post. Where base stores an embedding only, its head then has no name.

    Raises:
        CheckpointError: it does.
    """
    if not head_is_tied(config):
        return
    where = adapter.where
    copies = [name for name in shapes if EMBEDDINGS.search(name) or is_head(name)]
    stays_tied = bool((adapter.config or {}).get("ensure_weight_tying"))
    for name in copies:
        if (update := updates.tensors.get(name)) is None or rules.skips_name(name):
            continue
        for other in copies:
            follows = shapes[other] == shapes[name] and other not in updates.tensors
            if follows and (stays_tied or update.rows is not None):
                refuse(f"it updates {name!r}, but base ties it to {other!r}, of which it holds a copy", where)
        is_alone = not (stays_tied or any(is_head(other) for other in (*shapes, *updates.tensors)))
        if is_alone and (update.up or update.whole) and _has_head(config):
            what = f"it updates {name!r}, but not the output head, which base ties to it"
            remedy = _UNTIE_REMEDY
            if (config or {}).get("is_encoder_decoder"):
                what = f"it updates {name!r}, but neither encoder nor decoder uses the embedding under this name"
                remedy = f"leave out what changed nothing while it was trained: {as_options('skip', [exactly(name)])}"
            raise CheckpointError(what, where=where, remedy=remedy)


def _has_head(config: JsonObject | None) -> bool:
    classes = (config or {}).get("architectures")
    return isinstance(classes, list) and any(_WITH_HEAD.search(str(name)) for name in classes)


def describe(adapter: Adapter, updates: Updates, base: str) -> Sequence[str]:
    """Return what there is to say of an adapter, in words."""
    changed = updates.tensors.values()
    ranks = sorted({update.rank for update in changed if update.down})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no product"
    products = counted(sum(update.down is not None for update in changed), "tensor")
    counts = {
        "added to biases": counted(sum(update.down is None and update.up is not None for update in changed), "vector"),
        "replaced whole": counted(sum(update.whole is not None for update in changed), "tensor"),
        "of tokens replaced": counted(sum(len(update.indices) for update in changed), "row"),
    }
    words = [f"post is an adapter: base + scale·B·A, {rank}, {products}"]
    words += [f"{count} {what}" for what, count in counts.items() if not count.startswith("0 ")]
    lines = ["; ".join(words)]
    if updates.renamed:
        old, new = next(iter(updates.renamed.items()))
        lines.append(f"the adapter's names differ from base's: {old} is base's {new}, and so on")
    trained_on = adapter.trained_on
    if trained_on and trained_on.rstrip("/").rpartition("/")[2].lower() != base.rpartition("/")[2].lower():
        lines.append(f"the adapter's config names {shown(trained_on[:120])} as its base; BASE is {shown(base)}")
    return lines
