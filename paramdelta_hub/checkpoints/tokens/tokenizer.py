"""Read a tokenizer's tokens and ids from its files, without building or running it, and check a model's ids by them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paramdelta_hub.checkpoints.config_merge import TEXT_CONFIGS
from paramdelta_hub.errors import CheckpointError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import file_digest, read_small
from paramdelta_hub.fileio.lfs import refuse_pointer
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import COMPANION_BYTES, TOKENIZER_VALUES, VOCABULARY_ROWS

__all__ = ["Vocabulary", "has_tokenizer", "read_vocabulary", "same_tokenizer", "token_id_warnings"]

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""Files that hold a vocabulary. The first that is there decides, as in transformers."""
_ADDITIONS = ("added_tokens.json", "tokenizer_config.json")
"""Files that add tokens to those of any other file than ``tokenizer.json``, which holds its own."""
_SAVE = "save the tokenizer as tokenizer.json: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
_SHIFTED_IDS = re.compile(r"(Pegasus|BigBirdPegasus)Tokenizer(Fast)?")
"""Of the classes that read ``spiece.model``, those whose code shifts its ids to make room for tokens of their own."""
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
# No group repeats here: such a pattern would take memory for every character of a hostile string.
_PAIR_STRING_OR_MARK = re.compile(rb'\[\s*"[^"\\]*"\s*,\s*"[^"\\]*"\s*\]|"[^"\\]*"|["\[\]]')
_QUOTE_OR_ESCAPE = re.compile(rb'"|\\.', re.DOTALL)
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHOWN = 60
"""Characters of a token that a warning shows."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens and their ids. No two tokens have the same id."""

    tokens: Mapping[str, int]
    """Token → id, added tokens included."""
    where: str
    """The file, for messages."""
    special: frozenset[str] = frozenset()
    """Tokens that no text contains: those that the tokenizer itself calls special, such as ends of turns."""

    @cached_property
    def by_id(self) -> dict[int, str]:
        """Id → token."""
        return {row: token for token, row in self.tokens.items()}

    @property
    def size(self) -> int:
        """One more than the highest id: the rows that an embedding needs. Padding may make it longer."""
        return max(self.tokens.values(), default=-1) + 1

    @cached_property
    def digest(self) -> str:
        """The identity of the table: sha256 of its canonical JSON, which order and file layout don't change."""
        return hashlib.sha256(strict_json.canonical(dict(self.tokens))).hexdigest()


def same_tokenizer(a: Path, b: Path) -> bool:
    """Whether two folders' vocabularies are equal by the bytes of their files; False where there are none.

    Equal tables in other bytes count as different: :func:`read_vocabulary` tells.
    """
    files, others = (
        [(path.name, file_digest(path, CheckpointError, follow=True)) for path in _files_of(folder)]
        for folder in (a, b)
    )
    return bool(files) and files == others


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary."""
    return bool(_files_of(folder))


def _files_of(folder: Path) -> list[Path]:
    """Return the file that decides, and those that add to it; none where there is no tokenizer."""
    deciding = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if deciding is None:
        return []
    added = () if deciding.name == "tokenizer.json" else _ADDITIONS
    return [deciding, *(folder / name for name in added if (folder / name).exists())]


def read_vocabulary(folder: Path, error: type[SourceError] = CheckpointError) -> Vocabulary | None:
    """Return the vocabulary of a tokenizer's folder, or None where there is none.

    ``tokenizer.json`` (BPE, WordPiece, WordLevel, Unigram) decides; else a sentencepiece model, ``vocab.json`` or
    ``vocab.txt``, with the tokens of ``added_tokens.json`` and ``tokenizer_config.json``. An added token takes the id
    it names from the token that had it. In a list, a token that stands twice has its last id, as in the libraries.

    Raises:
        SourceError: (as ``error``) no such table, a token at two ids, two at one, or absurdly large; a sentencepiece
            model where the package sentencepiece is not installed, or whose ids are not its rows.
    """
    files = _files_of(folder)
    if not files:
        return None
    path, *additions = files
    where = str(path)
    content = read_small(path, COMPANION_BYTES, error, follow=True)
    refuse_pointer(content, error, str(path))
    settings = {
        file.name: _parse(read_small(file, COMPANION_BYTES, error, follow=True), error, str(file)) for file in additions
    }
    added: list[tuple[object, object]] = []
    entries: list[JsonObject] = []
    if path.suffix == ".model":
        tokens = _read_sentencepiece(content, path, settings.get("tokenizer_config.json", {}), error)
    elif path.name == "vocab.txt":
        tokens = _read_lines(content, where, error)
    else:
        value = _parse(_without_merges(content), error, where)
        if path.name == "vocab.json":
            tokens = _check_table(value, where, error)
        else:
            tokens = _read_model(value.get("model"), where, error)
            entries = _dicts_in(value.get("added_tokens"))
            added = [(token.get("content"), token.get("id")) for token in entries]
    added += settings.get("added_tokens.json", {}).items()
    decoder = settings.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        added += [
            (token.get("content"), int(row) if re.fullmatch("[0-9]{1,10}", row) else row)
            for row, token in decoder.items()
            if isinstance(token, dict)
        ]
        entries += _dicts_in(list(decoder.values()))
    _merge_added(tokens, added, where, error)
    special = {str(token["content"]) for token in entries if token.get("special") is True and "content" in token}
    return Vocabulary(tokens, where, frozenset(special & tokens.keys()))


def _parse(text: bytes, error: type[SourceError], where: str) -> JsonObject:
    return strict_json.parse_object(text, error, where, TOKENIZER_VALUES, long_integers=True)


def _dicts_in(value: Any) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _without_merges(text: bytes) -> bytes:
    """Return a tokenizer's JSON with its merges made an empty list: most of the file, and no tokens are in it.

    In JSON, ``"merges"`` before a colon can only be a key. Text that is not JSON stays so, but for what is cut out.
    """
    merges = _MERGES.search(text)
    if not merges:
        return text
    depth, at = 0, merges.end() - 1
    while item := _PAIR_STRING_OR_MARK.search(text, at):
        mark, at = item.group(), item.end()
        if mark == b'"':  # of a string with escapes
            while (part := _QUOTE_OR_ESCAPE.search(text, at)) and part.group() != b'"':
                at = part.end()
            at = part.end() if part else len(text)
        depth += (mark == b"[") - (mark == b"]")
        if not depth:
            return text[: merges.end()] + text[at - 1 :]
    return text


def _read_model(model: Any, where: str, error: type[SourceError]) -> dict[str, int]:
    """Return the table in a ``tokenizer.json``: an object of ids, or Unigram's list of [token, score]."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list) and all(isinstance(item, list) and item for item in vocab):
        return _check_table({item[0]: row for row, item in enumerate(vocab) if isinstance(item[0], str)}, where, error)
    if isinstance(vocab, dict):
        return _check_table(vocab, where, error)
    raise error("no vocabulary that paramdelta can read", where=where)


def _read_lines(content: bytes, where: str, error: type[SourceError]) -> dict[str, int]:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise error("not UTF-8", where=where) from None
    # Not splitlines(), which also splits at characters that are tokens.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return _check_table({token: row for row, token in enumerate(lines)}, where, error)


def _read_sentencepiece(
    content: bytes, path: Path, settings: Mapping[str, Any], error: type[SourceError]
) -> dict[str, int]:
    """Return the pieces of a sentencepiece model, by the ecosystem's library."""
    named = settings.get("tokenizer_class")
    if path.name == "sentencepiece.bpe.model" or (isinstance(named, str) and _SHIFTED_IDS.fullmatch(named)):
        raise error(
            "a sentencepiece model whose ids are changed by the tokenizer's class", where=str(path), remedy=_SAVE
        )
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        remedy = "pip install 'paramdelta-hub[sentencepiece]'"
        raise error(
            "a sentencepiece model needs a package that is not installed", where=str(path), remedy=remedy
        ) from None
    try:
        model = SentencePieceProcessor(model_proto=content)
        pieces = model.id_to_piece(list(range(model.get_piece_size())))
        if not pieces:
            raise ValueError("empty")
    except (RuntimeError, ValueError):
        # Llama 3's original tokenizer.model is one of those: it is tiktoken's.
        raise error("not a sentencepiece model", where=str(path), remedy=_SAVE) from None
    return _check_table({piece: row for row, piece in enumerate(pieces)}, str(path), error)


def _check_table(table: Mapping[str, Any], where: str, error: type[SourceError]) -> dict[str, int]:
    """Return token → id, every id a small integer that only one token has."""
    by_id: dict[int, str] = {}
    for token, row in table.items():
        _check_id(token, row, where, error)
        if by_id.setdefault(row, token) is not token:
            raise error(f"the tokens {by_id[row][:60]!r} and {token[:60]!r} both have id {row}", where=where)
    return dict(table)


def _check_id(token: object, row: object, where: str, error: type[SourceError]) -> None:
    if not isinstance(token, str) or type(row) is not int or not 0 <= row < VOCABULARY_ROWS:
        raise error(f"the token {str(token)[:60]!r} has the id {str(row)[:20]!r}", where=where)


def _merge_added(
    tokens: dict[str, int], added: Iterable[tuple[object, object]], where: str, error: type[SourceError]
) -> None:
    """Merge added tokens into a table. Each replaces the token that had its id, unless that one was added too."""
    by_id = {row: token for token, row in tokens.items()}
    new: dict[object, object] = {}
    for token, row in added:
        _check_id(token, row, where, error)
        if (other := new.setdefault(row, token)) != token:
            raise error(f"the added tokens {str(other)[:60]!r} and {str(token)[:60]!r} both have id {row}", where=where)
    for row, token in new.items():
        assert isinstance(token, str)
        assert isinstance(row, int)
        if (other_row := tokens.get(token, row)) != row:
            # Programs disagree about which id counts, so neither row can be trusted.
            raise error(f"the token {token[:60]!r} has the ids {other_row} and {row}", where=where)
        tokens.pop(by_id.get(row, token), None)
        tokens[token] = row


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
