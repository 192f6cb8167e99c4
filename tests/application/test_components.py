"""Repositories of several components: the real libraries load the result, and every value is computed anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.errors import CheckpointError, MismatchError
from paramdelta_hub.outputs.applied_model import verify_result
from scripts.tools.convert_pickle import convert
from tests.support.kinds import FILES, kind, remedied, rules_of
from tests.support.models import apply_in, assert_same, extract_in, reference


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor below a folder, by its file's folder and its own name."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.rglob("*.safetensors")):
        folder = file.parent.relative_to(path).as_posix()
        found |= {name if folder == "." else f"{folder}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def vary(path: Path, out: Path, seed: int, folders: tuple[str, ...] | None = None) -> Path:
    """Copy a model with noise on its weights, or only on those of some components."""
    shutil.copytree(path, out)
    noise = torch.Generator().manual_seed(seed)
    for file in sorted(out.rglob("*.safetensors")):
        if folders is not None and file.parent.relative_to(out).as_posix() not in folders:
            continue
        tensors = {
            name: (t.float() + 0.01 * torch.randn(t.shape, generator=noise)).to(t.dtype) if t.is_floating_point() else t
            for name, t in load_file(file).items()
        }
        save_file(tensors, file, {"format": "pt"})
    return out


def assert_sum(root: Path) -> None:
    """Check every tensor of ``out`` against promise 2, and that ``out`` has just the target's weight files."""
    base, post, target, out = (read_all(root / name) for name in ("base", "post", "target", "out"))
    assert_same(
        out,
        {
            name: reference(base[name], post[name], tensor) if tensor.is_floating_point() else post[name]
            for name, tensor in target.items()
        },
    )
    files = [
        {file.relative_to(root / name) for file in (root / name).rglob("*") if "safetensors" in file.name}
        for name in ("target", "out")
    ]
    assert files[0] == files[1]


def make(root: Path, folders: tuple[str, ...] | None = None) -> None:
    vary(root / "base", root / "post", 1, folders)
    vary(root / "base", root / "target", 2)


def write(path: Path, files: Mapping[str, Any]) -> Path:
    """Write a folder: tensors by name, or JSON."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(content, path / name, {"format": "pt"})
        elif isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            (path / name).write_text(json.dumps(content))
    return path


def dense(seed: int, **files: Any) -> dict[str, Any]:
    """Return a model of two components as sentence-transformers has them."""
    noise = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    return {
        "model.safetensors": {"encoder.weight": torch.randn(8, 4, generator=noise).bfloat16()},
        "config.json": {"model_type": "bert"},
        "modules.json": rows,
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "word_embedding_dimension": 4},
        "2_Dense/model.safetensors": {"linear.weight": torch.randn(2, 4, generator=noise)},
        "2_Dense/config.json": {"in_features": 4, "out_features": 2, "activation_function": "torch.nn.Identity"},
    } | files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "base", dense(0))
    make(tmp_path)
    return tmp_path


@kind(
    FILES,
    "several components with files of one name",
    works="each tensor is called by its folder, `2_Dense/linear.weight`",
)
def test_every_component_is_summed(root: Path) -> None:
    report = extract_in(root)
    assert {record.name for record in report.manifest.tensors} == {"encoder.weight", "2_Dense/linear.weight"}
    assert {file.path for file in report.manifest.base.files} == {"model.safetensors", "2_Dense/model.safetensors"}
    assert pd.verify(root / "delta", base=root / "base", post=root / "post")
    made = apply_in(root)
    assert_sum(root)
    assert {file.path for file in made.companions.files} == {
        "config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json",
    }  # fmt: skip
    assert verify_result(root / "out").whole
    assert apply_in(root, "base", "delta", "again").is_post
    assert_same(read_all(root / "again"), read_all(root / "post"))
    apply_in(root, overwrite=True)


@kind(FILES, "a component that did not change", works="a line of the manifest, and no bytes")
def test_an_unchanged_component_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path / "base", dense(0))
    make(tmp_path, ("2_Dense",))
    records = extract_in(tmp_path).manifest.tensors
    assert {record.name: (record.codec, record.nbytes > 0) for record in records} == {
        "encoder.weight": ("zero", False),
        "2_Dense/linear.weight": (next(r.codec for r in records if r.changed), True),
    }


@kind(FILES, "configs of components", works="what post changed is laid over the target's; never names of code")
def test_configs_of_components_are_merged(root: Path) -> None:
    write(root / "post", {
        "1_Pooling/config.json": {"pooling_mode_cls_token": False, "word_embedding_dimension": 4},
        "2_Dense/config.json": {"in_features": 4, "out_features": 2, "activation_function": "os.getcwd", "bias": True},
        "modules.json": [],
    })  # fmt: skip
    write(root / "post", {"modules.json": [*dense(0)["modules.json"], {"path": "3_Normalize", "type": "x.Normalize"}]})
    notes = extract_in(root).notes
    assert any(note.startswith("modules.json: post's differs") for note in notes)
    made = apply_in(root).companions
    assert json.loads((root / "out/1_Pooling/config.json").read_text())["pooling_mode_cls_token"] is False
    merged = json.loads((root / "out/2_Dense/config.json").read_text())
    assert merged == {"in_features": 4, "out_features": 2, "activation_function": "torch.nn.Identity", "bias": True}
    assert "code" in made.configs["2_Dense/config.json"].kept["activation_function"]


@kind(FILES, "a tokenizer in a component", works="the result has post's")
def test_posts_tokenizer_of_a_component(root: Path) -> None:
    for name in ("base", "post", "target"):
        write(root / name, {"2_Dense/tokenizer.json": {"of": name}, "2_Dense/notes.txt": name.encode()})
    extract_in(root)
    apply_in(root)
    assert json.loads((root / "out/2_Dense/tokenizer.json").read_text()) == {"of": "post"}
    assert (root / "out/2_Dense/notes.txt").read_text() == "target"
    shutil.rmtree(root / "target/2_Dense")
    write(root / "target", {"modules.json": []})
    made = apply_in(root, "target", "delta", "less", rules=pd.Rules(skips=["^2_Dense/"]))
    assert not (root / "less/2_Dense").exists()
    assert any("no such folder" in warning for warning in made.companions.warnings)


@kind(
    FILES,
    "a component that only post has",
    refused="base has no such tensors",
    remedy="`--carry '^2_Dense/'`; for a target without it `--skip '^2_Dense/'`",
)
def test_a_component_that_only_one_side_has(root: Path) -> None:
    shutil.rmtree(root / "base/2_Dense")
    write(root / "base", {"modules.json": dense(0)["modules.json"][:2]})
    with pytest.raises(MismatchError, match="2_Dense/linear") as refused:
        extract_in(root)
    with remedied(refused.value, "--carry REGEX stores what only post has"):
        extract_in(root, rules=pd.Rules(carries=["^2_Dense/"]))
        apply_in(root)
        out, post = (load_file(root / name / "2_Dense/model.safetensors") for name in ("out", "post"))
        assert_same(out, post)
    with pytest.raises(MismatchError, match="2_Dense") as caught:
        apply_in(root, "base", "delta", "no")
    with remedied(caught.value, "--skip '^2_Dense/'"):
        apply_in(root, "base", "delta", "no", rules=rules_of(caught.value))
        assert_same(read_all(root / "no"), load_file(root / "post/model.safetensors"))


@kind(
    FILES,
    "a component as a pickle, or without weights",
    refused="a pickle is never opened",
    remedy="`scripts/tools/convert_pickle.py`, once",
)
def test_a_component_in_pickle_is_refused(root: Path) -> None:
    component, post = root / "post/2_Dense", read_all(root / "post")
    (component / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the component '2_Dense' has no safetensors weights") as caught:
        extract_in(root)
    torch.save({"linear.weight": post["2_Dense/linear.weight"]}, component / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"2_Dense/pytorch_model\.bin: a pickled checkpoint") as pickled:
        extract_in(root)
    for error in (caught.value, pickled.value):
        with remedied(error, "scripts/tools/convert_pickle.py"):
            convert(component, root / "converted")
            shutil.copy(root / "converted/model.safetensors", component)
            (component / "pytorch_model.bin").unlink(missing_ok=True)
            extract_in(root, overwrite=True)
            assert apply_in(root, "base", overwrite=True).is_post
            assert_same(read_all(root / "out"), post)
            torch.save({"linear.weight": post["2_Dense/linear.weight"]}, component / "pytorch_model.bin")
            shutil.rmtree(root / "converted")


def test_names_of_tensors_are_no_paths(root: Path) -> None:
    """A tensor called ``../../x`` lies in the file that it lies in, and nothing else is written."""
    for name in ("base", "post", "target"):
        tensors = load_file(root / name / "model.safetensors") | {"../../x": torch.ones(3), "/etc/x": torch.ones(2)}
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    before = {path.name for path in root.parent.iterdir()}
    extract_in(root)
    apply_in(root)
    assert_sum(root)
    assert {path.name for path in root.parent.iterdir()} == before


@kind(
    FILES,
    "a model of sentence-transformers with `2_Dense`",
    works="both components get their sums; SentenceTransformer loads the result, and encodes as post does",
)
def test_sentence_transformers(tmp_path: Path) -> None:
    """SentenceTransformer itself makes the models and loads the result."""
    import sentence_transformers as library
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    modules = [transformer, Pooling(16), Dense(16, 6)]
    library.SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "base"))
    make(tmp_path)
    extract_in(tmp_path)
    apply_in(tmp_path)
    assert_sum(tmp_path)
    loaded = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    wanted = read_all(tmp_path / "out")
    assert torch.equal(loaded[2].linear.weight, wanted["2_Dense/linear.weight"])
    assert loaded.encode(["the cat"]).shape == (1, 6)
    apply_in(tmp_path, "base", "delta", "again")
    again, post = (library.SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("again", "post"))
    assert (again.encode(["the cat sat"]) == post.encode(["the cat sat"])).all()


@kind(
    FILES,
    "a pipeline of diffusers, each component in one file or in shards with its own index",
    works="all components, under the target's file names; the pipeline loads, with post's scheduler",
)
@pytest.mark.parametrize("sharded", [False, True])
def test_diffusers(tmp_path: Path, sharded: bool) -> None:
    """DiffusionPipeline itself makes the models and loads the result, from one file a component and from several."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "base", **({"max_shard_size": "20KB"} if sharded else {}))
    write(tmp_path / "base", {"vae/config.json": {"_class_name": "AutoencoderKL"}})
    write(tmp_path / "base", {"vae/diffusion_pytorch_model.safetensors": {"x": torch.randn(4)}})
    assert len(list((tmp_path / "base/unet").glob("*.index.json"))) == sharded
    make(tmp_path)
    scheduler = tmp_path / "post/scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    extract_in(tmp_path)
    apply_in(tmp_path)
    assert_sum(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    wanted = read_all(tmp_path / "out/unet")
    assert_same(dict(loaded.unet.state_dict()), wanted)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert verify_result(tmp_path / "out").whole
    pd.extract(tmp_path / "base/unet", tmp_path / "post/unet", tmp_path / "unet-delta")
    pd.apply(tmp_path / "target/unet", tmp_path / "unet-delta", tmp_path / "unet-out")
    assert_same(read_all(tmp_path / "unet-out"), wanted)
    diffusers.UNet2DModel.from_pretrained(tmp_path / "unet-out")
