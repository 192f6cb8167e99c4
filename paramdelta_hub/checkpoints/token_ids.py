"""Check that a model's begin, end and padding ids are tokens of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paramdelta_hub.checkpoints.config_merge import TEXT_CONFIGS
from paramdelta_hub.fileio.names import is_clear

__all__ = ["token_id_warnings"]

_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHOWN = 60


def token_id_warnings(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    tokens: Mapping[str, int] | None,
) -> list[str]:
    """Return warnings about ids that would make generation never stop, or that have no row in the embedding.

    The config's ``vocab_size`` must be what the tensors have. A file that is not there is an empty mapping, and
    ``tokens`` (token → id) is None where the tokenizer's are not known.
    """
    text = next((part for name in TEXT_CONFIGS if isinstance(part := config.get(name), Mapping)), {})
    rows = config.get("vocab_size", text.get("vocab_size"))
    known = None if tokens is None else set(tokens.values())
    warnings = []
    for file, part in (("config.json", config), ("config.json", text), ("generation_config.json", generation)):
        for key in _ID_KEYS:
            for number in _as_list(part.get(key)):
                if isinstance(number, bool) or not isinstance(number, int):
                    warnings.append(f"{file}: {key} is not a number")
                elif number < 0 or (isinstance(rows, int) and number >= rows):
                    warnings.append(f"{file}: {key} {number} is outside the vocabulary of {rows} rows")
                elif known is not None and number not in known:
                    warnings.append(f"{file}: {key} {number} is not a token of the tokenizer")
    warnings += _end_token_warnings({**text, **config, **generation}.get("eos_token_id"), tokenizer, tokens)
    return list(dict.fromkeys(warnings))


def _end_token_warnings(stops: Any, tokenizer: Mapping[str, Any], tokens: Mapping[str, int] | None) -> Iterable[str]:
    """Yield a warning if generation does not stop at the tokenizer's end-of-text token."""
    token = tokenizer.get("eos_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    if tokens is None or not isinstance(token, str):
        return
    quoted = repr(token[:_SHOWN]) if is_clear(token) else ascii(token[:_SHOWN])
    if token not in tokens:
        yield f"tokenizer_config.json: eos_token {quoted} is not a token of the tokenizer"
    elif tokens[token] not in _as_list(stops):
        ids = ", ".join(map(ascii, _as_list(stops))) or "no id"
        yield f"generation stops at {ids}, but the tokenizer's eos_token {quoted} is {tokens[token]}"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
