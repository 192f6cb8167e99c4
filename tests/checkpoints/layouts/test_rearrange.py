"""Layout rules: how they are written, what they make of names and shapes, and what is proposed."""

from __future__ import annotations

import re
import shlex

import pytest

from paramdelta_hub.checkpoints.layouts.proposals import suggest_partials, suggest_rules
from paramdelta_hub.checkpoints.layouts.rearrange import arrange
from paramdelta_hub.checkpoints.matching.roles import Entry
from paramdelta_hub.checkpoints.rules.layout_rules import LayoutRule, NamePattern
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.cli.common import parse_rules
from paramdelta_hub.errors import OptionError

Shapes = dict[str, tuple[int, ...]]


def entries(shapes: Shapes, dtype: str = "BF16") -> dict[str, Entry]:
    return {name: Entry(dtype, shape) for name, shape in shapes.items()}


def shapes_after(shapes: Shapes, *rules: str, other: Shapes | None = None) -> Shapes:
    """Return the shapes of all tensors after layout rules, which must fit."""
    layout = arrange(entries(shapes), Rules(layouts=rules), entries(other or {}))
    assert layout.problems == []
    return {name: shapes[name] for name in layout.kept} | {name: m.shape for name, m in layout.arrangements.items()}


def problems_of(shapes: Shapes, *rules: str, other: Shapes | None = None) -> list[str]:
    return [
        problem.message for problem in arrange(entries(shapes), Rules(layouts=rules), entries(other or {})).problems
    ]


@pytest.mark.parametrize(
    "text",
    [
        "stack experts.*.w1.weight -> experts.w1",
        "stack q, k, v -> qkv",
        "unstack qkv -> q, k, v",
        "unstack@1 x.*.w -> x.*.w.*.b",
        "concat@-1 a.*.w, b.*.w -> c.*.w",
        "split qkv_proj.weight -> q_proj.weight, k_proj.weight",
        "split/16 qkv_proj.weight -> q_proj.weight, k_proj.weight",
        "concat@-1/2880 gate, up -> gate_up",
        "transpose c_attn.weight",
        "transpose ^old.weight -> new.weight",
    ],
)
def test_a_rule_is_what_it_says(text: str) -> None:
    assert str(LayoutRule.parse(text)) == text
    verb, rest = text.split(" ", 1)
    assert LayoutRule.parse(f" {verb}:  {rest} ") == LayoutRule.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stak a.*.b -> a.b", "not a layout rule"),
        ("stack", "not a layout rule"),
        ("stack a.*.b", "not the end of a tensor's name"),
        ("stack a.b -> a.c", r"must have one \* less than"),
        ("unstack a.b -> a.c", r"must have one \* more than"),
        ("transpose a.*.b -> a.b", r"must have as many \* as"),
        ("concat a -> b", "needs two tensors"),
        ("concat a, a -> b", "given twice"),
        ("concat a.*, b -> c", r"equally many \*"),
        ("split a, b -> c, d", "takes one pattern"),
        ("concat a, b -> c, d", "makes one tensor"),
        ("transpose@1 a", "swaps the last two axes"),
        ("stack@99 a.*.b -> a.b", "no axis 99"),
        ("stack/2 a.*.b -> a.b", "stack has no groups"),
        ("split/0 a -> b, c", "not a layout rule"),
        ("transpose a.**.b", "not the end of a tensor's name"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Rules(layouts=(text,))


def test_a_pattern_is_the_end_of_a_name() -> None:
    pattern = NamePattern("experts.*.w1")
    assert pattern.match("model.layers.3.experts.12.w1") == ("model.layers.3.", ("12",))
    assert pattern.match("experts.0.w1") == ("", ("0",))
    assert pattern.match("unet/experts.0.w1") == ("unet/", ("0",))  # a component's
    assert pattern.match("shared_experts.0.w1") is None
    assert pattern.match("experts.0.w1.weight") is None
    assert pattern.match("experts.x.w1") is None
    assert NamePattern("^experts.*.w1").match("model.experts.0.w1") is None


def test_shapes() -> None:
    experts: Shapes = {f"m.{layer}.e.{n}.w": (4, 6) for layer in range(2) for n in range(11)}
    assert shapes_after(experts, "stack e.*.w -> e.w") == {"m.0.e.w": (11, 4, 6), "m.1.e.w": (11, 4, 6)}
    assert shapes_after(experts, "stack@-1 e.*.w -> e.w")["m.0.e.w"] == (4, 6, 11)
    assert shapes_after(experts, "stack e.*.w -> e.w", "unstack e.w -> e.*.w") == experts
    assert shapes_after({"a": (2, 3), "b": (5, 3), "c": (1,)}, "concat a, b -> d") == {"c": (1,), "d": (7, 3)}
    assert shapes_after({"x.a": (2, 3, 4)}, "transpose a") == {"x.a": (2, 4, 3)}
    assert shapes_after({"a": (6, 3)}, "split a -> b, c, d") == dict.fromkeys("bcd", (2, 3))
    other: Shapes = {"b": (4, 3), "c": (1, 3), "d": (1, 3)}
    assert shapes_after({"a": (6, 3)}, "split a -> b, c, d", other=other) == other


def test_parts_that_are_transposed_later_have_the_sizes_of_the_other_side() -> None:
    other: Shapes = {"q": (8, 5), "k": (2, 5), "v": (2, 5)}
    rules = ("split@1 qkv -> q, k, v", "transpose q", "transpose k", "transpose v")
    assert shapes_after({"qkv": (5, 12)}, *rules, other=other) == other


def test_what_does_not_fit_is_told() -> None:
    holes: Shapes = {"e.0.w": (4, 6), "e.2.w": (4, 6)}
    assert problems_of(holes, "stack e.*.w -> e.w") == ["stack e.*.w -> e.w: there is no 'e.1.w'"]
    assert problems_of({"e.9999999999.w": (1,)}, "stack e.*.w -> e.w") == ["stack e.*.w -> e.w: there is no 'e.0.w'"]
    assert problems_of({"q": (4, 6)}, "concat q, k -> qk") == ["concat q, k -> qk: there is no 'k'"]
    uneven: Shapes = {"e.0.w": (4, 6), "e.1.w": (4, 7)}
    assert "don't go together" in problems_of(uneven, "stack e.*.w -> e.w")[0]
    assert "don't go together" in problems_of({"q": (4, 6), "k": (4, 7)}, "concat q, k -> qk")[0]
    assert "has no axis 2" in problems_of({"q": (4, 6), "k": (4, 6)}, "concat@2 q, k -> qk")[0]
    assert "equal parts" in problems_of({"a": (5, 6)}, "split a -> b, c")[0]
    assert "4 + 2" in problems_of({"a": (5, 6)}, "split a -> b, c", other={"b": (4, 6), "c": (2, 6)})[0]
    assert "no two axes" in problems_of({"a": (5,)}, "transpose a")[0]
    assert "there already" in problems_of({"q": (4,), "k": (4,), "qk": (8,)}, "concat q, k -> qk")[0]
    assert "into 4 groups" in problems_of({"q": (6,), "k": (8,)}, "concat/4 q, k -> qk")[0]
    assert "into 4 groups" in problems_of({"a": (8,)}, "split/4 a -> b, c", other={"b": (2,), "c": (6,)})[0]
    mixed = {"q": Entry("BF16", (4,)), "k": Entry("F32", (4,))}
    assert "dtypes" in arrange(mixed, Rules(layouts=("concat q, k -> qk",)), {}).problems[0].message


def test_seven_with_a_zero_is_no_number_of_a_tensor() -> None:
    shapes: Shapes = {"e.0.w": (4, 6), "e.1.w": (4, 6), "e.01.w": (4, 6)}
    assert shapes_after(shapes, "stack e.*.w -> e.w") == {"e.01.w": (4, 6), "e.w": (2, 4, 6)}


def transformer(hidden: int = 8, inner: int = 6, kv: int = 4, experts: int = 3, module: str = "mlp") -> Shapes:
    """Return a model with experts one by one."""
    shapes: Shapes = {"model.embed_tokens.weight": (50, hidden), "lm_head.weight": (50, hidden)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{x}_proj.weight": (n, hidden) for x, n in (("q", hidden), ("k", kv), ("v", kv))}
        shapes |= {f"{prefix}self_attn.{x}_proj.bias": (n,) for x, n in (("q", hidden), ("k", kv), ("v", kv))}
        shapes[f"{prefix}{module}.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            names = ("gate_proj", "up_proj", "down_proj") if module == "mlp" else ("w1", "w3", "w2")
            for name, shape in zip(names, [(inner, hidden), (inner, hidden), (hidden, inner)], strict=True):
                shapes[f"{prefix}{module}.experts.{expert}.{name}.weight"] = shape
        shapes[f"{prefix}norm.weight"] = (hidden,)
    return shapes


def fused(shapes: Shapes, *, turned: bool = False) -> Shapes:
    """Return the same as transformers 5 has it, with q, k and v in one matrix."""
    result: Shapes = {}
    for name, shape in shapes.items():
        name = name.replace("block_sparse_moe", "mlp")
        if found := re.fullmatch(r"(.*self_attn\.)([qkv])_proj(\..*)", name):
            key, axis = f"{found[1]}qkv_proj{found[3]}", 0
            old = result.get(key, (0, *shape[1:]))
        elif found := re.fullmatch(r"(.*experts)\.(\d+)\.(\w+)\.weight", name):
            down = found[3] in ("down_proj", "w2")
            key = f"{found[1]}.{'down_proj' if down else 'gate_up_proj'}"
            one = shape if down else (2 * shape[0], shape[1])
            one = one[::-1] if turned else one
            result[key] = (int(found[2]) + 1, *one)
            continue
        else:
            result[name] = shape
            continue
        result[key] = (old[axis] + shape[axis], *shape[1:])
    return result


def proposed(left: Shapes, right: Shapes, given: Rules | None = None) -> Rules:
    """Return the rules that are proposed, as one gets them by copying."""
    text = suggest_rules(entries(left), entries(right), given or Rules())
    assert text is not None
    words = shlex.split(text.partition(" (pairs")[0])
    options = list(zip(words[::2], words[1::2], strict=True))
    return parse_rules(
        [value for option, value in options if option == "--rename"],
        [],
        layouts=[value for option, value in options if option == "--layout"],
    )


@pytest.mark.parametrize("module", ["mlp", "block_sparse_moe"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("direction", ["cut", "join"])
@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_proposals_pair_everything(module: str, turned: bool, direction: str, prefix: str) -> None:
    single = transformer(module=module)
    whole = {prefix + name: shape for name, shape in fused(single, turned=turned).items()}
    left, right = (single, whole) if direction == "cut" else (whole, single)
    rules = proposed(left, right)
    layout = arrange(entries(right), rules, entries(left))
    assert not layout.problems
    result = {name: right[name] for name in layout.kept} | {n: made.shape for n, made in layout.arrangements.items()}
    assert {rules.rename(name): shape for name, shape in result.items()} == left
    order = [str(rule) for rule in rules.layout_rules if "qkv_proj.weight" in str(rule)]
    assert order == [
        "split self_attn.qkv_proj.weight -> self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight"
        if direction == "cut"
        else "concat self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight "
        "-> self_attn.qkv_proj.weight"
    ]


def test_gpt2_is_transposed_as_a_whole() -> None:
    """Its square matrices look alike both ways, but they are turned as the others are."""
    linear: Shapes = {}
    for layer in range(2):
        prefix = f"transformer.h.{layer}."
        linear |= {f"{prefix}attn.c_attn.weight": (12, 4), f"{prefix}attn.c_proj.weight": (4, 4)}
        linear |= {f"{prefix}mlp.c_fc.weight": (16, 4), f"{prefix}mlp.c_proj.weight": (4, 16)}
    conv = {name: shape[::-1] for name, shape in linear.items()}
    names = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert proposed(linear, conv).layouts == tuple(f"transpose {name}" for name in names)


def test_other_stacks() -> None:
    single: Shapes = {f"model.layers.{n}.mixer.experts.{e}.up_proj.weight": (6, 4) for n in range(2) for e in range(3)}
    whole: Shapes = {f"model.layers.{n}.mixer.experts.up_proj": (3, 6, 4) for n in range(2)}
    assert proposed(whole, single).layouts == ("stack experts.*.up_proj.weight -> experts.up_proj",)
    assert proposed(single, whole).layouts == ("unstack experts.up_proj -> experts.*.up_proj.weight",)


def pairs_everything(left: Shapes, right: Shapes) -> bool:
    """Whether the proposed rules make the left side's names and shapes of the right side's."""
    rules = proposed(left, right)
    layout = arrange(entries(right), rules, entries(left))
    result = {name: right[name] for name in layout.kept} | {n: made.shape for n, made in layout.arrangements.items()}
    return not layout.problems and {rules.rename(name): shape for name, shape in result.items()} == left


@pytest.mark.parametrize("router", ["router", "router.linear"])
def test_experts_of_gpt_oss_in_one_tensor_or_a_linear_layer_each(router: str) -> None:
    """As Unsloth trains them. Real down projections are square; they are turned as the others are."""
    single: Shapes = {}
    whole: Shapes = {}
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp."
        for kind, inputs, outputs in (("gate_up", 8, 12), ("down", 8, 8)):
            whole |= {f"{mlp}experts.{kind}_proj": (3, inputs, outputs), f"{mlp}experts.{kind}_proj_bias": (3, outputs)}
            for expert in range(3):
                name = f"{mlp}experts.{kind}_projs.{expert}"
                single |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        whole |= {f"{mlp}router.weight": (3, 8), f"{mlp}router.bias": (3,)}
        single |= {f"{mlp}{router}.weight": (3, 8), f"{mlp}{router}.bias": (3,)}
    for left, right in ((single, whole), (whole, single)):
        assert pairs_everything(left, right)
        assert [rule for rule in proposed(left, right).layouts if rule.startswith("transpose experts.down_proj")]


@pytest.mark.parametrize("module", ["attn", "self_attn"])
@pytest.mark.parametrize("fused", ["attn", "self_attn"])
def test_attention_of_torch(module: str, fused: str) -> None:
    single: Shapes = {}
    whole: Shapes = {}
    for layer in range(2):
        block = f"visual.transformer.resblocks.{layer}."
        whole |= {f"{block}{fused}.in_proj_weight": (12, 4), f"{block}{fused}.in_proj_bias": (12,)}
        for which in "qkv":
            name = f"{block}{module}.{which}_proj"
            single |= {f"{name}.weight": (4, 4), f"{name}.bias": (4,)}
    assert pairs_everything(single, whole)
    assert pairs_everything(whole, single)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "fused_linear"])
def test_q_k_and_v_of_gpt2(kind: str) -> None:
    """Its fused matrix is transposed if its other matrices are, and is that of a linear layer in Qwen."""
    single: Shapes = {}
    whole: Shapes = {}
    for layer in range(2):
        block = f"transformer.h.{layer}."
        single |= {f"{block}attn.{which}_proj.weight": (4, 4) for which in "qkv"}
        single |= {f"{block}attn.{which}_proj.bias": (4,) for which in "qkv"}
        whole |= {f"{block}attn.c_attn.weight": (12, 4) if kind == "fused_linear" else (4, 12)}
        whole |= {f"{block}attn.c_attn.bias": (12,)}
        for side, turned in ((single, False), (whole, kind == "linear")):
            side |= {f"{block}attn.c_proj.weight": (4, 4), f"{block}mlp.c_fc.weight": (4, 16) if turned else (16, 4)}
    for left, right in ((single, whole), (whole, single)):
        assert pairs_everything(left, right)
        turned_too = "transpose attn.c_proj.weight" in proposed(left, right).layouts
        assert turned_too == (kind == "linear")


def test_interleaved_pieces_are_not_proposed_without_the_number_of_heads() -> None:
    single: Shapes = {f"layers.{n}.attention.{x}_proj.weight": (4, 4) for n in range(2) for x in "qkv"}
    for name in ("query_key_value.weight", "wqkv.weight"):
        whole: Shapes = {f"layers.{n}.attention.{name}": (12, 4) for n in range(2)}
        assert suggest_rules(entries(single), entries(whole), Rules()) is None
        assert suggest_rules(entries(whole), entries(single), Rules()) is None
        text = suggest_rules(entries(single), entries(whole), Rules(), {"num_attention_heads": 2})
        assert text is not None
        assert text.startswith(f"--layout 'split/2 attention.{name} -> attention.q_proj.weight, ")
        text = suggest_rules(entries(whole), entries(single), Rules(), {"multi_query": True, "num_attention_heads": 2})
        assert text is not None
        assert text.startswith("--layout 'concat attention.q_proj.weight, ")
    experts: Shapes = {
        f"layers.{n}.mlp.experts.{e}.{x}_proj.weight": (6, 4)
        for n in range(2)
        for e in range(3)
        for x in ("gate", "up")
    }
    oss: Shapes = {f"layers.{n}.mlp.experts.gate_up_proj": (3, 12, 4) for n in range(2)}
    oss |= {f"layers.{n}.mlp.experts.gate_up_proj_bias": (3, 12) for n in range(2)}
    assert suggest_rules(entries(experts), entries(oss), Rules()) is None


def test_where_shapes_fit_both_ways_nothing_is_proposed() -> None:
    """Experts whose matrices are square may be transposed or not."""
    single = transformer(hidden=8, inner=4)
    del single["lm_head.weight"]
    single = {name: (8, 8) if "down_proj" in name else shape for name, shape in single.items()}
    whole = fused(single)
    rules = proposed(single, whole)
    assert not [rule for rule in rules.layouts if "experts" in rule]


def test_partials_are_proposed_where_one_axis_differs() -> None:
    left: Shapes = {"conv_in.weight": (32, 9, 3, 3), "a.weight": (4, 4)}
    right: Shapes = {"conv_in.weight": (32, 4, 3, 3), "a.weight": (4, 4)}
    assert suggest_partials(entries(left), entries(right), Rules()) == r"--partial '^conv_in\.weight$'"
    assert suggest_partials(entries(left), entries(right), Rules(), grow=True) is None
    assert suggest_partials(entries(right), entries(left), Rules(), grow=True) == r"--partial '^conv_in\.weight$'"
    assert suggest_partials(entries(left), entries(left), Rules()) is None
