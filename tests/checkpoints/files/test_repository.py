"""Which files a model consists of: as the real libraries choose them, and nothing else without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.checkpoint import INDEX, Checkpoint, open_checkpoint
from paramdelta_hub.errors import CheckpointError
from tests.support.kinds import FILES, SAVES, TIES, kind, remedied
from tests.support.models import apply_in, assert_same, extract_in, tuned, weights, write_model

Tensors = dict[str, torch.Tensor]
A, B = {"a.weight": torch.ones(2, 2)}, {"b.weight": torch.ones(3)}


def write(path: Path, **files: Any) -> Path:
    """Write files of a model; ``__`` stands for a slash."""
    for name, content in files.items():
        place = path / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif place.suffix == ".safetensors":
            save_file(content, place, {"format": "pt"})
        else:
            place.write_text(json.dumps(content))
    return path


def read(path: Path) -> tuple[set[str], set[str], str]:
    """Return names of tensors and files, and all notes in one text."""
    opened = open_checkpoint(path)
    return set(opened.tensors), {file.name for file in opened.files}, "\n".join(opened.notes)


def values(opened: Checkpoint) -> Tensors:
    return {name: load_file(file.path)[name.removeprefix(file.prefix)] for name, (file, _) in opened.tensors.items()}


def llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)).bfloat16()


def loaded_by_transformers(path: Path) -> Tensors:
    from transformers import LlamaForCausalLM

    return dict(LlamaForCausalLM.from_pretrained(path, dtype="auto").state_dict())


@kind(
    FILES,
    "`model.safetensors` beside `model.safetensors.index.json`",
    works="the single file is read, as transformers does; told",
)
@pytest.mark.parametrize("newer", ["single", "shards"])
def test_a_single_file_and_an_index(tmp_path: Path, newer: str) -> None:
    """transformers takes the single file, whichever of the two is the newer one."""
    llama(1).save_pretrained(tmp_path / "model", max_shard_size="5KB")
    if newer == "single":
        llama(2).save_pretrained(tmp_path / "x")
    else:
        llama(3).save_pretrained(tmp_path / "x")
    (tmp_path / "x/model.safetensors").rename(tmp_path / "model/model.safetensors")
    opened = open_checkpoint(tmp_path / "model")
    assert_same(values(opened), loaded_by_transformers(tmp_path / "model"))
    (note,) = opened.notes
    assert note.startswith("read model.safetensors; model.safetensors.index.json beside it and")


@kind(FILES, "`transformers_weights` in `config.json`", works="the file that it names, as transformers does; told")
def test_a_file_that_the_config_names(tmp_path: Path) -> None:
    llama(1).save_pretrained(tmp_path / "model")
    llama(2).save_pretrained(tmp_path / "x")
    (tmp_path / "x/model.safetensors").rename(tmp_path / "model/other.safetensors")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    opened = open_checkpoint(tmp_path / "model")
    assert_same(values(opened), loaded_by_transformers(tmp_path / "model"))
    assert any("config.json names" in note for note in opened.notes)


@kind(
    FILES,
    "`diffusion_pytorch_model.safetensors` beside its index",
    works="the shards are read, as diffusers does; told",
)
def test_diffusers_takes_the_index(tmp_path: Path) -> None:
    import diffusers

    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = diffusers.UNet2DModel(sample_size=8, **sizes, **blocks)
    model.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    single = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    save_file(single, tmp_path / "model/diffusion_pytorch_model.safetensors", {"format": "pt"})
    opened = open_checkpoint(tmp_path / "model")
    assert_same(values(opened), dict(diffusers.UNet2DModel.from_pretrained(tmp_path / "model").state_dict()))
    assert any("as diffusers does" in note for note in opened.notes)


@kind(
    TIES,
    "an index that names a tied head which no file holds",
    works="read; the result's index does not name it, and transformers loads it",
)
def test_an_index_that_names_a_tied_head(tmp_path: Path) -> None:
    """transformers loads it; an untied model without its head it does not, so that this is refused."""
    model = llama(1)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "model", max_shard_size="5KB")
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    assert "lm_head.weight" not in index["weight_map"]
    index["weight_map"]["lm_head.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    write(tmp_path / "model", **{INDEX: index})
    names, _, notes = read(tmp_path / "model")
    assert "lm_head.weight" not in names
    assert "lm_head.weight, which no file holds: it is tied to model.embed_tokens.weight" in notes
    post = tmp_path / "post"
    write_model(post, tuned({k: v for k, v in loaded_by_transformers(tmp_path / "model").items() if k in names}, 1))
    pd.extract(tmp_path / "model", post, tmp_path / "delta")
    made = apply_in(tmp_path, "model")
    assert "lm_head.weight" not in json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert made.is_post
    out = loaded_by_transformers(tmp_path / "out")
    assert_same({name: out[name] for name in names}, load_file(post / "model.safetensors"))
    assert torch.equal(out["lm_head.weight"], out["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "model/config.json").read_text())
    write(tmp_path / "model", **{"config.json": {**config, "tie_word_embeddings": False}})
    with pytest.raises(CheckpointError, match=r"names 1 tensor\(s\) that no file holds: lm_head"):
        open_checkpoint(tmp_path / "model")


@kind(
    FILES,
    "an index that names tensors which no file holds",
    refused="the model may be incomplete",
    remedy="complete the files, or remove these names from the index",
)
def test_an_index_that_names_what_no_file_holds(tmp_path: Path) -> None:
    post = tuned(weights(0), 1)
    write_model(tmp_path / "base", weights(0))
    write_model(tmp_path / "post", post, shards=2)
    index = json.loads((tmp_path / "post" / INDEX).read_text())
    named = {**index, "weight_map": {**index["weight_map"], "gone.weight": "model-00001-of-00002.safetensors"}}
    write(tmp_path / "post", **{INDEX: named})
    with pytest.raises(CheckpointError, match=r"names 1 tensor\(s\) that no file holds: gone\.weight") as caught:
        extract_in(tmp_path)
    with remedied(caught.value, "get the model again", "remove these names from the index"):
        write(tmp_path / "post", **{INDEX: index})
        extract_in(tmp_path)
        assert apply_in(tmp_path, "base").is_post
        assert_same(load_file(tmp_path / "out/model.safetensors"), post)


@kind(
    FILES,
    "a shard that no index names, with tensors of its own (`model-mtp-…`)",
    works="part of the model: it gets the sum, and stays a file of its own",
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_file_that_no_index_names_is_part_of_the_model(tmp_path: Path, shards: int) -> None:
    sides = {"base": weights(0), "post": tuned(weights(0), 1), "target": tuned(weights(0), 2)}
    for number, (name, tensors) in enumerate(sides.items()):
        write_model(tmp_path / name, tensors, shards)
        write(tmp_path / name, **{"model-mtp-of-00005.safetensors": {"mtp.weight": torch.full((4, 4), 1.0 + number)}})
    extract_in(tmp_path)
    made = apply_in(tmp_path)
    assert any("model-mtp-of-00005.safetensors too" in note for note in made.notes)
    out = load_file(tmp_path / "out/model-mtp-of-00005.safetensors")
    assert torch.equal(out["mtp.weight"], torch.full((4, 4), 4.0))
    for index in (tmp_path / "target").glob("*.index.json"):
        assert (tmp_path / "out" / index.name).read_bytes() == index.read_bytes()


NOT_READ = {
    "a variant": ("model.fp16.safetensors", A, "a variant"),
    "shards of a variant": ("model.fp16-00001-of-00002.safetensors", B, "a variant"),
    "another layout": ("consolidated.safetensors", B, "a copy in another layout"),
    "an adapter": ("adapter_model.safetensors", B, "an adapter"),
    "a training's state": ("optimizer.safetensors", B, "the state of a training"),
    "a copy": ("model-00001-of-00001.safetensors", A, "all its tensors lie in the files that are read"),
    "a pickle": ("pytorch_model.bin", b"x", "not safetensors"),
    "original": ("original__model.safetensors", B, "a copy of the weights"),
    "original pickles": ("original__consolidated.00.pth", b"x", "a copy of the weights"),
    "openvino": ("openvino__openvino_model.bin", b"x", "a copy of the weights"),
    "a step": ("checkpoint-500__model.safetensors", B, "a copy of the weights"),
    "a copy in a folder": ("best__model.safetensors", A, "a copy with the names and shapes"),
    "a delta": ("delta__delta-00001-of-00001.safetensors", B, "a delta package"),
}


@kind(
    FILES,
    "`original/`, `consolidated*`, variants, `checkpoint-500/`, pickles, adapters, states of a training",
    works="not read, and each named in a note",
)
@pytest.mark.parametrize("case", sorted(NOT_READ))
def test_what_is_not_read_is_named(tmp_path: Path, case: str) -> None:
    name, content, reason = NOT_READ[case]
    write(tmp_path / "m", **{"model.safetensors": A, "training_args.bin": b"x", name: content})
    if case == "a delta":
        write(tmp_path / "m/delta", **{"manifest.json": {}})
    names, files, notes = read(tmp_path / "m")
    assert (names, files) == (set(A), {"model.safetensors"})
    assert_same(values(open_checkpoint(tmp_path / "m")), A)
    shown = name.replace("__", "/")
    assert f"not read: {shown if '/' not in shown else shown.split('/')[0] + '/'}: {reason}" in notes
    assert "training_args" not in notes


@kind(
    FILES,
    "an index that names shards which are not there",
    refused="the download is not complete",
    remedy="get the missing files",
)
def test_a_missing_shard(tmp_path: Path) -> None:
    post = tuned(weights(0), 1)
    write_model(tmp_path / "base", weights(0))
    shard = write_model(tmp_path / "post", post, shards=3) / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"names 1 missing file\(s\): model-00002-of-00003") as caught:
        extract_in(tmp_path)
    with remedied(caught.value, "get the missing files"):
        shard.write_bytes(content)
        extract_in(tmp_path)
        assert apply_in(tmp_path, "base").is_post
        assert_same(load_file(tmp_path / "out/model.safetensors"), post)


@kind(
    FILES,
    "a folder of several models",
    refused="it has no weights itself",
    remedy="one of the folders with weights, which the error names",
)
def test_a_folder_of_models(tmp_path: Path) -> None:
    path = write(tmp_path / "models", **{"one__model.safetensors": A, "two__model.safetensors": B})
    with pytest.raises(CheckpointError, match="in this folder itself") as caught:
        open_checkpoint(path)
    with remedied(caught.value, "give one of the folders with weights: one, two"):
        assert_same(values(open_checkpoint(path / "two")), B)


@kind(
    FILES,
    "a GGUF file, or a folder of them",
    refused="it is rounded to a few bits",
    remedy="the release in safetensors that it was made from",
)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_gguf_file(tmp_path: Path, as_file: bool) -> None:
    gguf = write(tmp_path / "m", **{"model.gguf": b"GGUF" + bytes(40)}) / "model.gguf"
    with pytest.raises(CheckpointError, match="GGUF") as caught:
        open_checkpoint(gguf if as_file else gguf.parent)
    with remedied(caught.value, "use the 16- or 32-bit safetensors release of the model"):
        write(tmp_path / "release", **{"model.safetensors": A})
        assert_same(values(open_checkpoint(tmp_path / "release")), A)


@kind(FILES, "a folder of weights that no config names", works="part of the model; told")
def test_folders_that_nothing_names(tmp_path: Path) -> None:
    """A folder with weights of its own is part of the model, as speech_tokenizer/ is of a model that speaks."""
    names, files, notes = read(write(tmp_path / "m", **{"model.safetensors": A, "speech__model.safetensors": B}))
    assert names == {"a.weight", "speech/b.weight"}
    assert files == {"model.safetensors", "speech/model.safetensors"}
    assert_same(values(open_checkpoint(tmp_path / "m")), {**A, "speech/b.weight": B["b.weight"]})
    assert notes == "read speech/ too, as a part of the model"
    with pytest.raises(CheckpointError, match="in this folder itself") as caught:
        open_checkpoint(write(tmp_path / "models", one__model=b"", **{"one__model.safetensors": A}))
    assert caught.value.remedy == "give one of the folders with weights: one"


@kind(
    FILES,
    "only variants of the weights, two of them (`model.fp16…`, `model.bf16…`)",
    refused="either may be meant",
    remedy="a copy of the folder with one of them, which is read",
)
def test_only_variants(tmp_path: Path) -> None:
    path = write(tmp_path / "m", **{"model.fp16.safetensors": A, "model.bf16.safetensors": B})
    with pytest.raises(CheckpointError, match="only variants of the weights, and 2 of them: bf16, fp16") as caught:
        open_checkpoint(path)
    with remedied(caught.value, "give a copy of the folder with one of them"):
        shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("*bf16*"))
        names, _, notes = read(tmp_path / "copy")
        assert names == set(A)
        assert "the variant 'fp16'" in notes
        assert_same(values(open_checkpoint(tmp_path / "copy")), A)
    index = {"metadata": {}, "weight_map": {"a.weight": "model.fp16-00001-of-00002.safetensors",
                                            "b.weight": "model.fp16-00002-of-00002.safetensors"}}  # fmt: skip
    sharded = write(tmp_path / "s", **{
        "model.safetensors.index.fp16.json": index, "model.fp16-00001-of-00002.safetensors": A,
        "model.fp16-00002-of-00002.safetensors": B,
    })  # fmt: skip
    assert read(sharded)[0] == {*A, *B}


@kind(FILES, "one file of any name", works="that file is read")
@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "anything.safetensors", "diffusion_pytorch_model.safetensors"]
)
def test_one_file_of_any_name(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / "m", **{name: A})) == (set(A), {name}, "")
    assert_same(values(open_checkpoint(tmp_path / "m")), A)


@kind(
    FILES,
    "a file that has some tensors of the others, and some that they lack",
    refused="no library would say which are right",
    remedy="a copy of the folder without it",
)
def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "m", **{"model.safetensors": A, "more.safetensors": {**A, **B}})
    with pytest.raises(CheckpointError, match=r"more\.safetensors holds tensors that .* hold too") as caught:
        open_checkpoint(path)
    with remedied(caught.value, "give a copy of the model's folder without it"):
        shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("more*"))
        assert_same(values(open_checkpoint(tmp_path / "copy")), A)
    two = write_model(tmp_path / "two", weights(0), shards=2)
    one, other = (two / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    save_file(load_file(one) | load_file(other), one, {"format": "pt"})
    with pytest.raises(CheckpointError, match="is in two files"):
        open_checkpoint(two)


@kind(
    FILES,
    "a single file beside the folders of a pipeline",
    works="the folders are read, as diffusers does; the file by its own path",
)
def test_a_single_file_beside_the_folders_of_a_pipeline(tmp_path: Path) -> None:
    """As many repositories of Stable Diffusion have: diffusers reads the folders, other programs the file."""
    path = write(tmp_path / "m", **{
        "model_index.json": {"_class_name": "X", "unet": ["diffusers", "UNet"], "safety_checker": [None, None]},
        "unet__diffusion_pytorch_model.safetensors": A, "unet__config.json": {"_class_name": "UNet"},
        "unet__diffusion_pytorch_model.non_ema.safetensors": A, "sd_xl_base_1.0.safetensors": B,
        "scheduler__scheduler_config.json": {},
    })  # fmt: skip
    names, _, notes = read(path)
    assert names == {"unet/a.weight"}
    assert "sd_xl_base_1.0.safetensors: a copy in one file" in notes
    assert "unet/diffusion_pytorch_model.non_ema.safetensors: a variant" in notes
    assert_same(values(open_checkpoint(path)), {"unet/a.weight": A["a.weight"]})
    assert_same(values(open_checkpoint(path / "sd_xl_base_1.0.safetensors")), B)
    write(path, vae__x=b"", **{"vae__config.json": {}, "model_index.json": {"vae": ["diffusers", "X"]}})
    with pytest.raises(CheckpointError, match="the component 'vae' has no safetensors weights"):
        open_checkpoint(write(path, **{"model_index.json": {"unet": ["diffusers", "U"], "vae": ["diffusers", "X"]}}))


def test_links_in_a_circle(tmp_path: Path) -> None:
    path = write(tmp_path / "m", **{"model.safetensors": A, "part__model.safetensors": B})
    (path / "part/round").symlink_to(path)
    (path / "again").symlink_to(path / "part")
    assert read(path)[0] == {"a.weight", "again/b.weight"} or read(path)[0] == {"a.weight", "part/b.weight"}


@kind(
    SAVES,
    "a git-lfs pointer in the place of weights, config or tokenizer",
    refused="the download is not complete",
    remedy="`git lfs pull`",
)
def test_a_pointer_of_git_lfs_in_the_place_of_any_file(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    post = tuned(weights(0), 1)
    write_model(tmp_path / "post", post, config={})
    write_model(tmp_path / "base", weights(0), config={})
    for name in ("tokenizer.json", "tokenizer.model", "config.json", "model.safetensors"):
        write(tmp_path / "post", **{name: pointer})
        with pytest.raises(CheckpointError, match="a git-lfs pointer, not the file itself") as caught:
            extract_in(tmp_path)
        assert name in str(caught.value.where)
        if name != "model.safetensors":
            (tmp_path / "post" / name).unlink()
    with remedied(caught.value, "git lfs pull"):  # which puts the file in the pointer's place
        write_model(tmp_path / "post", post, config={})
        extract_in(tmp_path)
        assert apply_in(tmp_path, "base").is_post
        assert_same(load_file(tmp_path / "out/model.safetensors"), post)
