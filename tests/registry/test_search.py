"""Search: by fingerprint from headers alone, by base, by words, page by page; every hit is judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.registry.cards.card import FACTS_KEY, LIBRARY, TAG, fingerprint_tag
from paramdelta_hub.registry.protocol import Hit
from paramdelta_hub.registry.search import Wanted, describe_base, judge
from tests.conftest import Family
from tests.registry.hub.test_registry import asked, fails
from tests.support.hub import LoopbackHub
from tests.support.hub.client import CallError, Client
from tests.support.models import write_model

OURS, OTHERS = "a" * 64, "b" * 64


def card(fingerprint: str = OURS, base: str = "org/base", facts: Mapping[str, Any] | None = None) -> bytes:
    """Return the card of a delta; JSON is YAML."""
    told = {"version": "1.2.0", "fingerprint": fingerprint, "name": "Nice delta", "bytes": 42, **(facts or {})}
    data = {
        "library_name": LIBRARY,
        "tags": [TAG, fingerprint_tag(fingerprint)],
        "base_model": [base],
        "base_model_relation": "adapter",
        "license": "mit",
        FACTS_KEY: told,
    }
    return f"---\n{json.dumps(data)}\n---\n".encode()


@pytest.fixture
def hub(hub: LoopbackHub) -> LoopbackHub:
    """Nothing on it yet."""
    hub.repositories.clear()
    return hub


@pytest.mark.parametrize("shards", [1, 3])
def test_a_fingerprint_is_read_from_headers_alone(
    hub: LoopbackHub, client: Client, tmp_path: Path, shards: int
) -> None:
    tensors = {f"layer.{number}.weight": torch.zeros(512, 512) for number in range(6)}
    folder = write_model(tmp_path / "model", tensors, shards, {"model_type": "toy"})
    hub.add("org/model", folder)
    hub.repositories["org/model"].add({"README.md": b"---\nbase_model: org/elder\n---\n"})
    hub.sent = 0
    local = describe_base(folder)
    assert client("describe_base", model="org/model") == ["org/model", local.fingerprint, ["org/elder"]]
    assert hub.sent < 110_000 * shards < open_checkpoint(folder).nbytes / 4
    assert local.name is None
    commit = hub.repositories["org/model"].head.id
    assert client("describe_base", model=f"org/model@{commit}")[1] == local.fingerprint


def test_models_that_cannot_be_looked_into(hub: LoopbackHub, client: Client) -> None:
    hub.add("org/pickled").add({"pytorch_model.bin": b"x"})
    hub.add("org/two").add({"a.safetensors": b"x", "b.safetensors": b"y"})
    for repo in ("org/pickled", "org/two"):
        fails("checkpoint", "safetensors", lambda repo=repo: client("describe_base", model=repo))  # type: ignore[misc]
    hub.add("org/broken").add({"model.safetensors": b"not a header"})
    with pytest.raises(CallError, match=r"checkpoint: org/broken.*not a safetensors file"):
        client("describe_base", model="org/broken")
    for index in (b"{}", b'{"weight_map": {"a": "gone.safetensors"}}', b'{"weight_map": {"a": "../x"}}', b"?"):
        hub.add("org/odd").add({"model.safetensors.index.json": index})
        with pytest.raises(Exception, match="checkpoint"):
            client("describe_base", model="org/odd")
    fails("checkpoint", "no such repository", lambda: client("describe_base", model="org/absent"))


def test_a_search_goes_page_by_page_and_sees_only_what_it_may(hub: LoopbackHub, client: Client) -> None:
    hub.page_size = 10
    for number in range(25):
        hub.add(f"them/delta-{number:02d}").add({"README.md": card()})
    hub.add("them/secret", private=True).add({"README.md": card()})
    hub.add("org/mine", private=True).add({"README.md": card()})
    hub.add("them/model").add({"README.md": b"---\ntags: [other]\n---\n"})
    hits = client("search")
    assert [hit["repo"] for hit in hits] == [*(f"them/delta-{number:02d}" for number in range(25)), "org/mine"]
    assert len(asked(hub, "GET", "/api/models?")) == 3
    created = hub.repositories["them/delta-00"].head.date[:19]
    assert hits[0] == {
        "repo": "them/delta-00",
        "title": "Nice delta",
        "version": "1.2.0",
        "revision": hub.repositories["them/delta-00"].head.id,
        "base": "org/base",
        "post": None,
        "fingerprint": OURS,
        "nbytes": 42,
        "license": "mit",
        "created": hits[0]["created"],
    }
    assert hits[0]["created"][:10] == created[:10]


def test_a_search_by_words_by_base_and_by_architecture(hub: LoopbackHub, client: Client) -> None:
    hub.add("org/chat-delta").add({"README.md": card(OURS, "org/base")})
    hub.add("org/code-delta").add({"README.md": card(OURS, "org/other-base")})
    hub.add("org/large-chat-delta").add({"README.md": card(OTHERS, "org/base")})

    def found(**arguments: str) -> set[str]:
        return {hit["repo"].split("/")[1].removesuffix("-delta") for hit in client("search", **arguments)}

    assert found() == {"chat", "code", "large-chat"}
    assert found(query="chat") == {"chat", "large-chat"}
    assert found(base="org/base") == {"chat", "large-chat"}
    assert found(fingerprint=OURS) == {"chat", "code"}
    assert found(fingerprint=OURS, base="org/base", query="chat") == {"chat"}
    assert found(query="poetry") == set()


def test_what_a_card_says_is_not_trusted(hub: LoopbackHub, client: Client) -> None:
    wrong = {"version": ["1"], "name": "escape \x1b[2J", "bytes": -5, "post": "x" * 5000, "fingerprint": OTHERS}
    hub.add("org/odd").add({"README.md": card(OURS, facts=wrong)})
    (hit,) = client("search")
    assert (hit["version"], hit["title"], hit["nbytes"], hit["post"]) == (None, "org/odd", None, None)
    assert hit["fingerprint"] == OURS[:16]  # the tag is what was searched for, not what the card adds
    hub.repositories["org/odd"].add({"README.md": f"---\ntags: [{TAG}]\n{FACTS_KEY}: 7\n---\n".encode()})
    assert client("search")[0]["fingerprint"] is None


def test_found_deltas_are_judged(hub: LoopbackHub, client: Client, shared_family: Family) -> None:
    ours = str(describe_base(shared_family.base).fingerprint)
    hub.add("org/base", shared_family.base)
    hub.add("org/child", shared_family.target).add({"README.md": b"---\nbase_model: [org/base]\n---\n"})
    hub.add("org/a-chat").add({"README.md": card(ours, "org/base")})
    hub.add("org/b-chat").add({"README.md": card(ours, "org/unrelated")})
    hub.add("org/c-chat").add({"README.md": card(OTHERS, "org/base")})
    hub.add("org/d-chat").add({"README.md": card(OTHERS, "org/unrelated")})

    def judged(**arguments: Any) -> dict[str, str]:
        return {hit["repo"][4:5]: hit["judgement"] for hit in client("find", **arguments)}

    assert judged(base="org/base") == {"a": "same base", "b": "fits", "c": "does not fit"}
    assert judged(base="org/child") == {"a": "kin", "b": "fits"}
    assert judged(base=str(shared_family.base)) == {"a": "fits", "b": "fits"}
    everything = judged(base="org/base", query="chat")
    assert everything == {"a": "same base", "b": "fits", "c": "does not fit", "d": "does not fit"}
    assert list(everything) == ["a", "b", "c", "d"]
    assert set(judged().values()) == {"unknown"}
    assert all(hit["reason"] for hit in client("find", base="org/base"))


def test_a_prediction_for_a_model_on_the_hub_takes_a_few_of_its_values(
    hub: LoopbackHub, client: Client, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = {f"layers.{number}.weight": torch.randn(512, 256) for number in range(8)}
    for name, distance in (("base", 0.0), ("post", 0.001), ("near", 0.005), ("far", 0.5)):
        tensors = {key: value + distance * torch.randn(value.shape) for key, value in base.items()}
        hub.add(f"org/{name}", write_model(tmp_path / name, tensors, 2, {"model_type": "toy"}))
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta", version="1.2.0")
    theirs = card(str(describe_base(tmp_path / "base").fingerprint))
    (tmp_path / "delta/README.md").write_bytes(theirs)
    for name in ("delta", "again"):
        client("publish", package=tmp_path / "delta", repo=f"org/{name}", version="1.2.0")
    hub.add("org/empty-delta").add({"README.md": theirs})

    hub.requests.clear()
    hub.sent = 0
    hits = client("find", base="org/near")
    found = {hit["repo"]: hit["prediction"] for hit in hits}
    assert all(("no prediction: " in hit["reason"]) == (hit["prediction"] is None) for hit in hits)
    assert found["org/empty-delta"] is None
    assert found["org/delta"] == found["org/again"]
    assert found["org/delta"]["distance"] == pytest.approx(0.005, rel=0.2)
    assert found["org/delta"]["measured"]["correlation"] == 0.9999
    ranges = [
        path
        for path in asked(hub, "GET", ".safetensors")
        if path.startswith("/org/near/") and path.endswith(".safetensors")
    ]
    assert len(ranges) == 2 + 8 * 2, "headers, and two runs of every tensor, for all deltas"
    assert not any("/delta-" in path for path in asked(hub, "GET", ".safetensors"))
    assert hub.sent < 8 * 512 * 256 * 4 / 4

    (far, *_) = client("find", base="org/far")
    assert far["prediction"]["measured"]["median"] == 0.0
    (same, *_) = client("find", base="org/base")
    assert same["prediction"]["text"].startswith("the target is base")


HIT = Hit("o/d", "t", None, "", "org/base", None, OURS, None, None, None)


@pytest.mark.parametrize(
    ("hit", "wanted", "judgement"),
    [
        ({}, Wanted("org/base", OURS, frozenset()), "same base"),
        ({}, Wanted("org/new", OURS, frozenset({"org/base"})), "kin"),
        ({}, Wanted("org/new", OURS, frozenset()), "fits"),
        ({"fingerprint": OURS[:16]}, Wanted(None, OURS, frozenset()), "fits"),
        ({"base": None}, Wanted(None, OURS, frozenset()), "fits"),
        ({}, Wanted("org/base", OTHERS, frozenset()), "does not fit"),
        ({"fingerprint": ""}, Wanted("org/base", OURS, frozenset()), "does not fit"),
        ({"fingerprint": None}, Wanted("org/base", OURS, frozenset()), "unknown"),
        ({}, Wanted("org/base", None, frozenset()), "unknown"),
        ({"fingerprint": None, "base": None}, Wanted(None, None, frozenset()), "unknown"),
    ],
)
def test_a_verdict(hit: dict[str, Any], wanted: Wanted, judgement: str) -> None:
    verdict = judge(Hit(**{**vars(HIT), **hit}), wanted)
    assert verdict.judgement == judgement
    assert verdict.reason
