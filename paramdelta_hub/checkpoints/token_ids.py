"""Whether the ids by which a model begins, ends and pads its text are tokens of the tokenizer that it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paramdelta_hub.checkpoints.config_merge import TEXT_CONFIGS
from paramdelta_hub.fileio.names import is_clear

__all__ = ["doubtful_ids"]

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHOWN = 60


def doubtful_ids(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    tokens: Mapping[str, int] | None,
) -> list[str]:
    """Return what would make generation go on for ever, or look up a row that is not there; a sentence each.

    Args:
        config: the result's ``config.json``; its ``vocab_size`` must be what the tensors have.
        generation: its ``generation_config.json``; empty where there is none.
        tokenizer: its ``tokenizer_config.json``, likewise.
        tokens: every token of its tokenizer and its id, or None where they are not known.
    """
    text = next((part for name in TEXT_CONFIGS if isinstance(part := config.get(name), Mapping)), {})
    rows = config.get("vocab_size", text.get("vocab_size"))
    known = None if tokens is None else set(tokens.values())
    doubts = []
    for file, part in (("config.json", config), ("config.json", text), ("generation_config.json", generation)):
        for key in _IDS:
            for number in _listed(part.get(key)):
                if isinstance(number, bool) or not isinstance(number, int):
                    doubts.append(f"{file}: {key} is not a number")
                elif number < 0 or (isinstance(rows, int) and number >= rows):
                    doubts.append(f"{file}: {key} {number} is outside the vocabulary of {rows} rows")
                elif known is not None and number not in known:
                    doubts.append(f"{file}: {key} {number} is not a token of the tokenizer")
    doubts += _unheard_end({**text, **config, **generation}.get("eos_token_id"), tokenizer, tokens)
    return list(dict.fromkeys(doubts))


def _unheard_end(stops: Any, tokenizer: Mapping[str, Any], tokens: Mapping[str, int] | None) -> Iterable[str]:
    """Say it if the tokenizer's own end of text is none of the ids at which generation stops."""
    token = tokenizer.get("eos_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    if tokens is None or not isinstance(token, str):
        return
    shown = repr(token[:_SHOWN]) if is_clear(token) else ascii(token[:_SHOWN])
    if token not in tokens:
        yield f"tokenizer_config.json: eos_token {shown} is not a token of the tokenizer"
    elif tokens[token] not in _listed(stops):
        ids = ", ".join(map(ascii, _listed(stops))) or "no id"
        yield f"generation stops at {ids}, but the tokenizer's eos_token {shown} is {tokens[token]}"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
