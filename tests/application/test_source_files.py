"""What a manifest says of the files that base and post came in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

import paramdelta_hub as pd


def test_local_files_are_hashed_on_request_alone(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(300)}, tmp_path / "base.safetensors")
    save_file({"w": torch.rand(300)}, tmp_path / "post.safetensors")
    models = tmp_path / "base.safetensors", tmp_path / "post.safetensors"
    plain = pd.extract(*models, tmp_path / "plain").manifest
    hashed = pd.extract(*models, tmp_path / "hashed", hash_files=True).manifest
    for model, without, with_ in zip(models, (plain.base, plain.post), (hashed.base, hashed.post), strict=True):
        [file] = without.files
        assert (file.path, file.size, file.sha256) == (model.name, model.stat().st_size, None)
        [file] = with_.files
        assert file.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert plain.tensors == hashed.tensors, "the tensors' digests are always there"
