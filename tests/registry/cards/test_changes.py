"""What changed: names of all kinds of models find their part, and the bars tell the truth."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.registry.cards.changes import change_table, parts

NORMS = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
NAMES = st.one_of(
    st.text(min_size=1, max_size=40).filter(is_clear),
    st.lists(st.sampled_from(["model", "layers", "h", "0", "1", "31", "mlp", "norm", "|", "`"]), min_size=1).map(
        ".".join
    ),
)


def tensor(name: str, delta: float = 1.0, base: float = 100.0, effect: str = "add") -> TensorRecord:
    return TensorRecord.model_construct(
        name=name,
        delta_norm=delta,
        base_norm=base,
        effect=effect,
        dtype="F32",
        shape=(4,),
        parts=(),
    )


@pytest.mark.parametrize(
    ("name", "label", "layer"),
    [
        ("model.embed_tokens.weight", "embeddings", None),
        ("embeddings.position_embeddings.weight", "embeddings", None),
        ("transformer.wte.weight", "embeddings", None),
        ("lm_head.weight", "head", None),
        ("model.norm.weight", "norms outside the layers", None),
        ("embeddings.LayerNorm.weight", "norms outside the layers", None),
        ("model.layers.31.self_attn.q_proj.weight", "self_attn", 31),
        ("model.layers.3.mlp.experts.7.down_proj.weight", "mlp", 3),
        ("model.layers.3.input_layernorm.weight", "norms", 3),
        ("h.11.ln_1.bias", "norms", 11),
        ("encoder.layer.5.attention.self.query.weight", "attention", 5),
        ("0.weight", "weight", 0),
        ("layer1.0.conv1.weight", "conv1", 0),
        ("conv1.weight", "conv1", None),
        ("α.β", "α", None),
    ],
)
def test_every_name_finds_its_part(name: str, label: str, layer: int | None) -> None:
    (part,) = parts([tensor(name)])
    assert part.label == label
    assert part.layers == (() if layer is None else ((layer, 0.01),))
    assert part.change == pytest.approx(0.01)


def test_changes_add_up_as_norms_do() -> None:
    (part,) = parts(
        [tensor("m.layers.0.mlp.a", 3, 30), tensor("m.layers.0.mlp.b", 4, 40), tensor("m.layers.1.mlp.a", 0, 5)]
    )
    assert part.layers == ((0, pytest.approx(0.1)), (1, 0.0))
    assert part.change == pytest.approx(5 / math.sqrt(2525))


def test_stacks_are_told_apart_only_where_there_are_several() -> None:
    one, two = tensor("text.layers.0.mlp.w"), tensor("vision.layers.0.mlp.w")
    assert [part.label for part in parts([one])] == ["mlp"]
    assert [part.label for part in parts([one, two])] == ["text.layers: mlp", "vision.layers: mlp"]


def test_what_is_replaced_has_no_norm_and_no_part() -> None:
    assert parts([tensor("model.steps", 0, 0, "replace")]) == []


def test_the_table() -> None:
    changes = [0, 1, 2, 4, 8]
    table = change_table(
        [tensor("model.embed_tokens.weight", 0.5)]
        + [tensor(f"model.layers.{layer}.mlp.w", change) for layer, change in enumerate(changes)]
        + [tensor("new", 1, 0), tensor("same", 0)]
    )
    assert table.splitlines() == [
        "| part | change | by layer, first to last | most |",
        "|---|---:|---|---|",
        "| embeddings | 0.50% |  |  |",
        "| mlp | 4.12% | `·▂▃▅█` | layer 4: 8.00% |",
        "| new | new |  |  |",
        "| same | none |  |  |",
    ]


def test_deep_models_stay_narrow_and_no_peak_is_lost() -> None:
    table = change_table(tensor(f"layers.{layer}.mlp", 100.0 if layer == 77 else 1.0) for layer in range(100))
    bars = re.search("`(.*)`", table)
    assert bars
    assert len(bars[1]) == 32
    assert bars[1].count("█") == 1
    assert "layer 77: 100.00%" in table


def test_models_of_other_conventions_get_a_short_table() -> None:
    table = change_table(tensor(f"block{number}.weight", number) for number in range(300))
    assert len(table.splitlines()) == 2 + 24 + 1
    assert table.splitlines()[-1] == "| 276 more | 24.00% to 299.00% | | |"


@given(st.lists(st.tuples(NAMES, NORMS, NORMS), max_size=30))
def test_any_names_and_norms_make_a_table(rows: list[tuple[str, float, float]]) -> None:
    table = change_table(tensor(*row) for row in rows)
    for line in table.splitlines():
        assert line.count("|") == 5
        assert "nan" not in re.sub(r"^\| .*? \|", "", line)
