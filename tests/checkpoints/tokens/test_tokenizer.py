"""Vocabularies as files hold them: against the libraries that own the formats, and against files that lie."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from paramdelta_hub.checkpoints.tokens import tokenizer as module
from paramdelta_hub.checkpoints.tokens.token_rows import match_rows
from paramdelta_hub.checkpoints.tokens.tokenizer import Vocabulary, read_vocabulary, same_tokenizer
from paramdelta_hub.errors import CheckpointError, PackageError
from scripts.weights import fetch

TEXT = ["the quick brown fox", "jumps over the lazy dog", 'a "quoted" [bracket], a \\ and a 😀'] * 20
TRAINED = {
    "BPE": (models.BPE(), trainers.BpeTrainer(vocab_size=90, special_tokens=["<s>", "</s>"])),
    "WordPiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=90)),
    "WordLevel": (models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(special_tokens=["[UNK]"])),
    "Unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"])),
}


def read(folder: Path) -> Vocabulary:
    found = read_vocabulary(folder)
    assert found is not None
    return found


def write(folder: Path, **files: Any) -> Path:
    """Write files given as ``vocab_json={…}`` or ``vocab_txt="…"``."""
    folder.mkdir(exist_ok=True)
    for key, content in files.items():
        name = ".".join(key.rsplit("_", 1))
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize("kind", TRAINED)
def test_tokenizer_json_is_read_as_its_library_reads_it(kind: str, tmp_path: Path) -> None:
    model, trainer = TRAINED[kind]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXT, trainer)
    plain = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("[PAD]", special=True)])
    tokenizer.add_tokens(["😀 added"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = read(tmp_path)
    assert found.tokens == tokenizer.get_vocab(with_added_tokens=True)
    assert found.size == tokenizer.get_vocab_size() == plain + 3
    assert found.by_id[plain] == "<|im_start|>"
    assert found.where == str(tmp_path / "tokenizer.json")


@pytest.mark.weights
def test_real_tokenizers_are_read_as_their_library_reads_them(tmp_path: Path) -> None:
    for name in ("minilm-base", "smollm2"):
        folder = fetch(name)
        theirs = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
        assert read(folder).tokens == theirs
    shutil.copy(fetch("minilm-base") / "vocab.txt", tmp_path)
    minilm = read(fetch("minilm-base"))
    assert minilm.size == 30522
    assert read(tmp_path).tokens == minilm.tokens
    assert read(tmp_path).digest == minilm.digest == read(fetch("minilm-sre")).digest
    assert match_rows(30522, 30522, minilm, read(fetch("minilm-sre"))) is None


@pytest.fixture(scope="session")
def pieces() -> bytes:
    """A sentencepiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, vocab_size=50, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


@pytest.mark.parametrize("name", ["tokenizer_model", "spiece_model"])
def test_sentencepiece_models_are_read_with_their_additions(pieces: bytes, name: str, tmp_path: Path) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    size = theirs.get_piece_size()
    table = {theirs.id_to_piece(row): row for row in range(size)}
    assert read(write(tmp_path, **{name: pieces})).tokens == table
    write(tmp_path, added_tokens_json={"[PAD]": size})
    assert read(tmp_path).tokens == {**table, "[PAD]": size}
    write(tmp_path, tokenizer_config_json={"added_tokens_decoder": {str(size + 1): {"content": "<|im_end|>"}}})
    assert read(tmp_path).tokens == {**table, "[PAD]": size, "<|im_end|>": size + 1}


def test_without_the_sentencepiece_package_the_error_says_what_to_install(
    pieces: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(write(tmp_path, tokenizer_model=pieces))
    assert caught.value.remedy == "pip install 'paramdelta-hub[sentencepiece]'"
    # Where there is a tokenizer.json, nobody needs the package.
    write(tmp_path, tokenizer_json={"model": {"type": "BPE", "vocab": {"a": 0}}})
    assert read(tmp_path).tokens == {"a": 0}


def test_sentencepiece_models_whose_ids_are_not_rows_are_refused(pieces: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="changed by the tokenizer's class") as caught:
        read_vocabulary(write(tmp_path / "xlm-roberta", **{"sentencepiece.bpe_model": pieces}))
    assert "tokenizer.json" in str(caught.value)
    pegasus = {"tokenizer_class": "PegasusTokenizer"}
    with pytest.raises(CheckpointError, match="changed by the tokenizer's class"):
        read_vocabulary(write(tmp_path / "pegasus", spiece_model=pieces, tokenizer_config_json=pegasus))


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", b"\n\x00", b"\xff" * 64, b'{"a": 0}'])
def test_what_is_no_sentencepiece_model_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        read_vocabulary(write(tmp_path, tokenizer_model=content))


def test_vocab_json_and_vocab_txt(tmp_path: Path) -> None:
    gpt2 = write(tmp_path / "gpt2", vocab_json={"b": 1, "a": 0}, merges_txt="#version: 0.2\na b\n")
    assert read(gpt2).tokens == {"a": 0, "b": 1}
    assert read(gpt2).digest == read(write(tmp_path / "again", vocab_json='{ "a":0,\n"b":1 }')).digest
    # Only line feeds end a line: U+0085 and U+2028 are tokens of real vocabularies. A token's last place counts.
    bert = write(tmp_path / "bert", vocab_txt="[PAD]\r\n\x85\r\n\u2028\r\n\r\nx\r\ny\r\nx\r\n\x85z\x85\r\n")
    assert read(bert).tokens == {"[PAD]": 0, "\x85": 1, "\u2028": 2, "": 3, "y": 5, "x": 6, "\x85z\x85": 7}
    assert read(bert).size == 8


def test_no_tokenizer_is_none_and_no_error(tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, added_tokens_json={"a": 0}, tokenizer_config_json={})) is None
    assert not same_tokenizer(tmp_path, tmp_path)


def tokenizer_json(vocab: Any, added: Any = ()) -> dict[str, Any]:
    listed = [{"content": token, "id": row} for token, row in added]
    return {"added_tokens": listed, "model": {"vocab": vocab, "merges": [["a", "b"], ["[", '"']]}}


def test_an_added_token_takes_its_id_from_the_token_that_had_it(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_json=tokenizer_json({"a": 0, "<|reserved|>": 1}, [("<|new|>", 1), ("a", 0), ("z", 7)]))
    assert read(tmp_path).tokens == {"a": 0, "<|new|>": 1, "z": 7}
    assert read(tmp_path).size == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tokenizer_json({"a": 0, "b": 0}), "'a' and 'b' both have id 0"),
        (tokenizer_json({"a": 0, "b": 1}, [("a", 1)]), "'a' has the ids 0 and 1"),
        (tokenizer_json({"a": 0}, [("b", 1), ("b", 2)]), "'b' has the ids 1 and 2"),
        (tokenizer_json({"a": 0}, [("b", 1), ("c", 1)]), "added tokens 'b' and 'c' both have id 1"),
        (tokenizer_json({"a": -1}), "'a' has the id '-1'"),
        (tokenizer_json({"a": 1 << 22}), "'a' has the id '4194304'"),
        (tokenizer_json({"a": True}), "'a' has the id 'True'"),
        (tokenizer_json({"a": 1.0}), "'a' has the id '1.0'"),
        (tokenizer_json({"a": None}), "'a' has the id 'None'"),
        (tokenizer_json({"a": 0}, [(None, 1)]), "'None' has the id '1'"),
        (tokenizer_json({"a": 0}, [([], 1)]), "has the id '1'"),
        (tokenizer_json("abc"), "no vocabulary that"),
        (tokenizer_json([["a", 0.0], []]), "no vocabulary that"),
        ({"model": []}, "no vocabulary that"),
        ([], "not a JSON object"),
        ('{"model": {"vocab": {"a": 0, "a": 1}}}', "occurs twice"),
        ('{"model": {"vocab": {"a": 0}, "merges": [["a"', "not JSON"),
        (b"\xff", "not UTF-8"),
        ("[" * 9_000_000, "JSON of more than"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)
def test_tables_that_contradict_themselves_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")) as caught:
        read_vocabulary(write(tmp_path, tokenizer_json=content))
    assert caught.value.where == str(tmp_path / "tokenizer.json")
    with pytest.raises(PackageError):
        read_vocabulary(tmp_path, PackageError)


def test_bad_additions_are_refused(tmp_path: Path) -> None:
    write(tmp_path, vocab_json={"a": 0})
    for name, content in {"added_tokens_json": {"b": "1"}, "added_tokens.json": []}.items():
        with pytest.raises(CheckpointError, match=r"has the id|not a JSON object"):
            read_vocabulary(write(tmp_path, **{name.replace(".", "_"): content}))
    (tmp_path / "added_tokens.json").unlink()
    for row in ("x", "-1", "9" * 11):
        with pytest.raises(CheckpointError, match="'b' has the id"):
            read_vocabulary(write(tmp_path, tokenizer_config_json={"added_tokens_decoder": {row: {"content": "b"}}}))


def test_an_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="the limit is"):
        read_vocabulary(tmp_path)


json_values = st.recursive(
    st.none() | st.integers(-5, 5) | st.text('[]{}",:\\m😀', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"[\\m', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.lists(st.text('[]",\\ a😀', max_size=5), min_size=2, max_size=2) | st.text('[]",\\ a', max_size=5)),
    st.dictionaries(st.text('m"merges[]:\\', max_size=9) | st.just('"merges": ['), json_values, max_size=3),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_merges_are_cut_out_and_nothing_else(
    merges: list[Any], others: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    others.pop("merges", None)
    document = {**others, "model": {"merges": merges, "vocab": others}}
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    left = json.loads(module._without_merges(text))
    assert left == {**others, "model": {"merges": [], "vocab": others}}


def test_the_same_tokenizer_is_told_by_bytes(tmp_path: Path) -> None:
    a = write(tmp_path / "a", tokenizer_json=tokenizer_json({"a": 0}), tokenizer_config_json={"chat_template": "x"})
    b = write(tmp_path / "b", tokenizer_json=tokenizer_json({"a": 0}), tokenizer_config_json={"chat_template": "y"})
    assert same_tokenizer(a, b)  # the config adds no tokens to a tokenizer.json
    write(b, tokenizer_json=tokenizer_json({"a": 0}, [("b", 1)]))
    assert not same_tokenizer(a, b)
    c = write(tmp_path / "c", vocab_json={"a": 0})
    d = write(tmp_path / "d", vocab_json={"a": 0}, added_tokens_json={"b": 1})
    assert same_tokenizer(c, c)
    assert not same_tokenizer(c, d)
    assert not same_tokenizer(a, c)
    assert not same_tokenizer(c, tmp_path)
