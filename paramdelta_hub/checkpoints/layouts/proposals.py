"""Suggest layout rules for models that have the same tensors in other pieces, from names and shapes.

A proposal is tried before it is made: every tensor that its rules make must have its like on the other side, in name
and in shape. Those can't be trusted where pieces are interleaved: the ``query_key_value`` of GPT-NeoX, Falcon and BLOOM
and the ``wqkv`` of InternLM2 need the number of heads, which a config has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal, NamedTuple

from paramdelta_hub.checkpoints.layouts.rearrange import Layout, arrange
from paramdelta_hub.checkpoints.logical import entries_of
from paramdelta_hub.checkpoints.matching.by_name import Match, suggest_skips
from paramdelta_hub.checkpoints.matching.rename_proposals import find_renames, suggest_renames
from paramdelta_hub.checkpoints.matching.roles import Entry
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, as_options, exactly
from paramdelta_hub.limits import TENSORS
from paramdelta_hub.numerics.floats import FLOATS

__all__ = ["Proposal", "propose", "suggest_partials", "suggest_rules"]

Entries = Mapping[str, Entry]

_EXPERTS = (("gate_proj.weight", "up_proj.weight", "down_proj.weight"), ("w1.weight", "w3.weight", "w2.weight"))
"""What one expert's gate, up and down projections are called; transformers 5 has all of them in two tensors."""
_QKV = (
    "self_attn.qkv_proj",
    "self_attn.W_pack",
    "attn.Wqkv",
    "attn.qkv",
)
"""What q, k and v are called where they are rows of one matrix, one after another."""
_BY_HEAD = ("attention.wqkv", "attention.query_key_value", "self_attention.query_key_value")
"""The same where each head, or each group of heads that share k and v, has its rows of q, k and v together."""
_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads", "num_attention_heads", "n_head")
_Q_K_V = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ("attn.q", "attn.k", "attn.v"),
    ("attention.query", "attention.key", "attention.value"),
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    ("attention.self.query", "attention.self.key", "attention.self.value"),
)
_IN_PROJ = ("attn.in_proj", "self_attn.in_proj")
"""The same in torch.nn.MultiheadAttention, with an underscore before ``weight`` and ``bias``."""
_GATE_UP = tuple(f"{module}.gate_up_proj" for module in ("mlp", "shared_expert", "shared_experts"))
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""GPT-2's matrices, which are all transposed or none; the shape of a square one does not tell."""
_MODULES = (
    ((r"\.block_sparse_moe\.", ".mlp."),),
    ((r"\.mlp\.", ".block_sparse_moe."),),
    ((r"\.block_sparse_moe\.", ".mlp."), (r"\.gate\.weight$", ".router.weight")),
    ((r"\.mlp\.", ".block_sparse_moe."), (r"\.router\.weight$", ".gate.weight")),
    ((r"\.router\.linear\.", ".router."),),
    ((r"\.router\.(weight|bias)$", r".router.linear.\1"),),
)
"""Renames that go with layouts, there and back: of transformers 5 (Mixtral, PhiMoE) and of Unsloth (gpt-oss)."""
_SQUARES = 4
"""Endings of names of square matrices that a message lists."""
_PARTIALS = 4
"""More tensors of another size than these are another architecture, not another number of inputs."""
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")


class _Fit(NamedTuple):
    """How many of the right side's tensors have their like on the left, under some rules."""

    pairs: int
    made_pair: bool
    """Whether all tensors that layout rules made do."""


class Proposal(NamedTuple):
    """Options that would make a match better."""

    kind: Literal["rules", "partial", "skip"]
    options: str


def propose(
    matched: Match,
    left: Entries,
    right: Entries,
    stored: Entries,
    rules: Rules,
    config: Mapping[str, Any] | None,
    *,
    grow: bool,
) -> Proposal | None:
    """Return what pairs tensors that did not match, or leaves out the few that one side lacks; None if nothing does.

    Args:
        matched: what was found.
        left: the side whose names and shapes are kept.
        right: the side that the rules change, after the layout rules.
        stored: the same before them.
        rules: what the user has given already.
        config: of one of the sides.
        grow: whether a part of a right tensor must be as large as the left one.
    """
    if not matched.mismatches:
        return None
    if found := suggest_rules(left, stored, rules, config):
        return Proposal("rules", found)
    if found := suggest_partials(left, right, rules, grow=grow):
        return Proposal("partial", found)
    skips = suggest_skips(matched, left, right)
    return Proposal("skip", skips) if skips else None


def suggest_rules(left: Entries, right: Entries, rules: Rules, config: Mapping[str, Any] | None = None) -> str | None:
    """Return the options that pair more tensors, ready to paste behind those already given; None if there are none.

    Args:
        left: the side whose names and shapes are kept.
        right: the side that the rules change.
        rules: what the user has given already.
        config: of one of the sides. It tells how many heads there are.
    """
    left = {name: entry for name, entry in left.items() if not rules.skips_name(name)}
    right = {
        name: replace(entry, dtype="F32") if entry.dtype in FLOATS else entry  # dtypes can be made equal with --cast
        for name, entry in right.items()
        if not (rules.skips_name(name) or rules.skips_name(rules.rename(name)))
    }
    before = _fit(left, right, rules).pairs
    found = _with_renames(left, right, rules)
    for family in _families(left, right, _groups(config or {})):
        found = _with_best(left, right, found, family)
    if found.layouts == rules.layouts:
        return suggest_renames(left, _arranged(right, arrange(right, rules, left)), rules)
    fit = _fit(left, right, found)
    given = as_options("layout", found.layouts[len(rules.layouts) :])
    renames = as_options("rename", (f"{old}={new}" for old, new in found.renames[len(rules.renames) :]))
    total = len(_arranged(right, arrange(right, found, left)))
    counted = f"(pairs {fit.pairs} of {total} tensors, {before} without)"
    return f"{' '.join(filter(None, (given, renames)))} {counted}{_square_hint(right, found)}"


def _square_hint(right: Entries, rules: Rules) -> str:
    """Return what is to be said of square matrices where others are transposed: their shapes look alike both ways."""
    turned = [r.sources[0] for r in rules.layout_rules if r.verb == "transpose" and "experts" not in str(r)]
    square = [
        ".".join(_last_parts(name))
        for name, entry in right.items()
        if len(entry.shape) == 2 and entry.shape[0] == entry.shape[1] and not any(rule.match(name) for rule in turned)
    ]
    if not turned or not square:
        return ""
    endings = list(dict.fromkeys(square))
    return f", and `transpose` for square matrices if they are transposed, too: {', '.join(endings[:_SQUARES])}"


def suggest_partials(left: Entries, right: Entries, rules: Rules, *, grow: bool = False) -> str | None:
    """Return the ``--partial`` option for the few tensors that differ in the size of one axis; None if there are none.

    Args:
        left: the side whose shapes are kept.
        right: the side of which a part is used, with its names.
        rules: what the user has given already.
        grow: whether the right side's tensors must hold the left side's.
    """
    found = []
    for name, entry in right.items():
        other = left.get(rules.rename(name))
        if other is None or other.vocabulary or entry.vocabulary or len(entry.shape) != len(other.shape):
            continue
        changed = [(mine, theirs) for mine, theirs in zip(entry.shape, other.shape, strict=True) if mine != theirs]
        if len(changed) == 1 and not (grow and changed[0][0] < changed[0][1]):
            found.append(name)
    if not 1 <= len(found) <= _PARTIALS:
        return None
    return as_options("partial", map(exactly, found))


def _with_renames(left: Entries, right: Entries, rules: Rules) -> Rules:
    """Return rules with the prefixes and modules renamed that are called otherwise on the left."""
    arranged = _arranged(right, arrange(right, rules, left))
    renames = (*rules.renames, *find_renames(left, arranged, rules))
    candidates = [replace(rules, renames=(*renames, *modules)) for modules in ((), *_MODULES)]
    names_paired = {tried: len(left.keys() & {tried.rename(name) for name in arranged}) for tried in candidates}
    return max(candidates, key=lambda tried: (names_paired[tried], -len(tried.renames)))


def _with_best(left: Entries, right: Entries, rules: Rules, family: Sequence[Sequence[str]]) -> Rules:
    """Return rules with those of a family's variants that fits best; as they were if none fits, or several equally."""
    now = _fit(left, right, rules).pairs
    scored = []
    for variant in family:
        tried = replace(rules, layouts=(*rules.layouts, *variant))
        layout = arrange(right, tried, left)
        if layout.problems or not all(use.tensors for use in layout.uses if use.rule == "layout"):
            continue
        fit = _fit(left, right, tried, layout)
        if fit.made_pair and fit.pairs > now:
            scored.append((fit.pairs, tried))
    best = max((pairs for pairs, _ in scored), default=0)
    fitting = [tried for pairs, tried in scored if pairs == best]
    return fitting[0] if len(fitting) == 1 else rules


def _fit(left: Entries, right: Entries, rules: Rules, layout: Layout | None = None) -> _Fit:
    layout = layout or arrange(right, rules, left)
    pairs, made_pair = 0, True
    for name, entry in _arranged(right, layout).items():
        other = left.get(rules.rename(name))
        is_pair = other is not None and other.comparable_shape == entry.comparable_shape
        pairs += is_pair
        made_pair &= is_pair or name not in layout.arrangements
    return _Fit(pairs, made_pair)


def _arranged(entries: Entries, layout: Layout) -> dict[str, Entry]:
    """Return a side's tensors after layout rules."""
    if not layout.arrangements:
        return dict(entries)
    tensors = {name: (entries[name].dtype, entries[name].shape) for name in layout.kept}
    tensors |= {name: (layout.dtypes[name], made.shape) for name, made in layout.arrangements.items()}
    return entries_of(tensors)


def _groups(config: Mapping[str, Any]) -> int | None:
    """Return how many heads, or groups of heads that share k and v, a config says there are; None if it does not."""
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1  # Falcon 7B
    counts = (config.get(key) for key in _HEAD_COUNTS)
    return next((count for count in counts if type(count) is int and 0 < count <= TENSORS), None)


def _families(left: Entries, right: Entries, groups: int | None) -> Iterator[list[list[str]]]:
    """Yield what to try: of each family of rules, the variants that exclude each other."""
    endings = _endings(left), _endings(right)
    yield from _experts(*endings)
    yield from _alternating_experts(left, right, *endings)
    for fused, parts in product((*_QKV, *_IN_PROJ), _Q_K_V):
        for ending in ("weight", "bias"):
            whole = f"{fused}_{ending}" if fused in _IN_PROJ else f"{fused}.{ending}"
            yield _concat_or_split(whole, [f"{part}.{ending}" for part in parts], *endings)
    for fused, parts, ending in product(_BY_HEAD if groups else (), _Q_K_V, ("weight", "bias")):
        yield _concat_or_split(f"{fused}.{ending}", [f"{part}.{ending}" for part in parts], *endings, groups or 1)
    for parts in _Q_K_V:
        yield _conv1d_concat_or_split([f"{part}.weight" for part in parts], *endings)
        yield _concat_or_split("attn.c_attn.bias", [f"{part}.bias" for part in parts], *endings)
    for fused, ending in product(_GATE_UP, ("weight", "bias")):
        module = fused.removesuffix("gate_up_proj")
        names = [f"{module}gate_proj.{ending}", f"{module}up_proj.{ending}"]
        yield _concat_or_split(f"{fused}.{ending}", names, *endings)
    yield from ([[f"stack {pattern} -> {whole}"]] for pattern, whole in _numbered(right, left))
    yield from ([[f"unstack {whole} -> {pattern}"]] for pattern, whole in _numbered(left, right))
    yield from _transposes(left, right)


def _endings(names: Iterable[str]) -> set[str]:
    """Return the last components of all names: one, two, three and four of them."""
    return {".".join(parts[-length:]) for parts in (name.split(".") for name in names) for length in (1, 2, 3, 4)}


def _concat_or_split(
    fused: str, parts: Sequence[str], left: set[str], right: set[str], groups: int = 1
) -> list[list[str]]:
    joined, by = ", ".join(parts), f"/{groups}" if groups > 1 else ""
    if fused in right and left.issuperset(parts):
        return [[f"split{by} {fused} -> {joined}"]]
    if fused in left and right.issuperset(parts):
        return [[f"concat{by} {joined} -> {fused}"]]
    return []


def _conv1d_concat_or_split(parts: Sequence[str], left: set[str], right: set[str]) -> list[list[str]]:
    """Return how GPT-2's fused matrix may be q, k and v: of linear layers, or transposed as all of its matrices are."""
    fused, joined = _CONV1D[0], ", ".join(parts)
    turns = [f"transpose {name}" for name in _CONV1D[1:] if name in left & right]
    if fused in right and left.issuperset(parts):
        split = f"split {fused} -> {joined}"
        return [[split], [f"split@1 {fused} -> {joined}"], [f"transpose {fused}", split, *turns]]
    if fused in left and right.issuperset(parts):
        concat = f"concat {joined} -> {fused}"
        return [[concat], [f"concat@1 {joined} -> {fused}"], [concat, f"transpose {fused}", *turns]]
    return []


def _experts(left: set[str], right: set[str]) -> Iterator[list[list[str]]]:
    """Yield the rules between experts one by one and all experts in two tensors, as they are or transposed."""
    fused, down_all, one = "experts.gate_up_proj", "experts.down_proj", "experts.*.gate_up_proj"
    if f"{fused}_bias" in left | right:
        yield from _numbered_modules(left, right)
        return  # gpt-oss, whose gate and up alternate
    for gate, up, down in _EXPERTS:
        names = f"experts.*.{gate}, experts.*.{up}"
        if fused in right and f"experts.0.{gate}" in left:
            yield [
                [f"unstack {fused} -> {one}", *turn, f"split {one} -> {names}", f"unstack {down_all} -> {each}", *back]
                for each in [f"experts.*.{down}"]
                for turn, back in (([], []), ([f"transpose {one}"], [f"transpose {each}"]))
            ]
        elif fused in left and f"experts.0.{gate}" in right:
            yield [
                [f"concat {names} -> {one}", *turn, f"stack {one} -> {fused}", *back, f"stack {each} -> {down_all}"]
                for each in [f"experts.*.{down}"]
                for turn, back in (([], []), ([f"transpose {one}"], [f"transpose {each}"]))
            ]


def _numbered_modules(left: set[str], right: set[str]) -> Iterator[list[list[str]]]:
    """Yield the rules between the experts of gpt-oss and a linear layer for each, as Unsloth trains them."""
    pairs = [(f"experts.{which}_projs", f"experts.{which}_proj") for which in ("gate_up", "down")]
    if all(f"{many}.0.weight" in left and one in right for many, one in pairs):
        weights = [f"unstack {one} -> {many}.*.weight" for many, one in pairs]
        turns = [f"transpose {many}.*.weight" for many, _ in pairs]
        biases = [f"unstack {one}_bias -> {many}.*.bias" for many, one in pairs]
    elif all(f"{many}.0.weight" in right and one in left for many, one in pairs):
        weights = [f"stack {many}.*.weight -> {one}" for many, one in pairs]
        turns = [f"transpose {one}" for _, one in pairs]
        biases = [f"stack {many}.*.bias -> {one}_bias" for many, one in pairs]
    else:
        return
    yield [[*weights, *biases], [*weights, *turns, *biases]]


def _alternating_experts(
    left_side: Entries, right_side: Entries, left: set[str], right: set[str]
) -> Iterator[list[list[str]]]:
    """Yield the rules between the experts of gpt-oss, whose gate and up take turns, and matrices and biases of each."""
    whole, one = "experts.gate_up_proj", "experts.*.gate_up_proj"
    widths = (e.shape[-1] // 2 for side in (left_side, right_side) for n, e in side.items() if n.endswith(f".{whole}"))
    width, places = next(widths, 0), ("experts.*.gate_proj", "experts.*.up_proj")
    if not width or not {f"{whole}_bias", "experts.0.gate_proj.weight"} <= left | right:
        return
    weights, biases = (", ".join(f"{place}.{kind}" for place in places) for kind in ("weight", "bias"))
    turns = [f"transpose {place}.weight" for place in (*places, "experts.*.down_proj")]
    if whole in right:
        yield [[
            f"unstack {whole} -> {one}", f"split@-1/{width} {one} -> {weights}",
            "unstack experts.down_proj -> experts.*.down_proj.weight", *turns,
            f"unstack {whole}_bias -> {one}_bias", f"split@-1/{width} {one}_bias -> {biases}",
            "unstack experts.down_proj_bias -> experts.*.down_proj.bias",
        ]]  # fmt: skip
    else:
        yield [[
            *turns, f"concat@-1/{width} {weights} -> {one}", f"stack {one} -> {whole}",
            "stack experts.*.down_proj.weight -> experts.down_proj",
            f"concat@-1/{width} {biases} -> {one}_bias", f"stack {one}_bias -> {whole}_bias",
            "stack experts.*.down_proj.bias -> experts.down_proj_bias",
        ]]  # fmt: skip


def _numbered(many: Entries, one: Entries) -> list[tuple[str, str]]:
    """Return (pattern of numbered tensors, name of the stack) where dropping a number gives a tensor of the other side.

    A stack's name may lack the ``.weight`` of its parts.
    """
    found: dict[tuple[str, str], None] = {}
    for name, entry in many.items():
        for number in _NUMBER.finditer(name):
            whole = name[: number.start()] + name[number.end() + 1 :]
            for stack in (whole, whole.removesuffix(".weight")):
                other = one.get(stack)
                if stack in many or other is None or other.shape[1:] != entry.shape or not other.shape:
                    continue
                if len(entry.shape) > 1 and entry.shape[-1] == entry.shape[-2]:
                    continue  # it may be transposed in the stack
                parent = name[: number.start() - 1].rpartition(".")[2]
                if not parent.isdigit():
                    rest = name[number.end() + 1 :]
                    short = rest if stack == whole else rest.removesuffix(".weight")
                    if not _NUMBER.search(f".{rest}."):
                        found[f"{parent}.*.{rest}", f"{parent}.{short}"] = None
    return list(found)


def _transposes(left: Entries, right: Entries) -> Iterator[list[list[str]]]:
    """Yield a transpose for each ending of names whose matrices lie the other way on the other side, all of them."""
    turned: dict[str, bool] = {}
    for name, entry in right.items():
        other = left.get(name)
        if other is None or len(entry.shape) < 2 or len(other.shape) != len(entry.shape):
            continue
        ending = ".".join(_last_parts(name))
        is_turned = entry.shape != other.shape and other.shape == (
            *entry.shape[:-2], entry.shape[-1], entry.shape[-2],
        )  # fmt: skip
        turned[ending] = turned.get(ending, True) and is_turned
    endings = [ending for ending, is_turned in turned.items() if is_turned]
    if any(ending in endings for ending in _CONV1D):
        rules = [f"transpose {ending}" for ending in _CONV1D if ending in _endings(right)]
        yield [rules]
        endings = [ending for ending in endings if ending not in _CONV1D]
    yield from ([[f"transpose {ending}"]] for ending in endings)


def _last_parts(name: str) -> list[str]:
    """Return the last components of a name: two names and what stands between them, numbers as ``*``."""
    parts = ["*" if part.isdigit() else part for part in name.split(".")]
    return parts[-3:] if parts[-1] in ("weight", "bias") else parts[-2:]
