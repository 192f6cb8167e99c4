"""The texts that models are trained on, from Debian's archive: what a machine with apt can always get."""

from __future__ import annotations

import gzip
import os
import subprocess
import tempfile
from pathlib import Path

import torch

__all__ = ["fetch_texts", "windows"]

_PACKAGES = ("bible-kjv-text", "bible-kjv", "libreadline8", "libtinfo6", "jargon-text", "python3.11-doc")
_HELD_OUT = 20
"""One part in so many, at the end of each text, is never trained on."""


def fetch_texts(cache: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return ``bible``, ``jargon`` and ``docs``, each as (train, held out): flat uint8 tensors of text.

    They are the King James Bible, the Jargon File and Python's documentation. Downloaded once, into ``cache``.

    Raises:
        subprocess.CalledProcessError: not Debian 12, or no network.
    """
    texts = {}
    for name, write in (("bible", _bible), ("jargon", _jargon), ("docs", _docs)):
        file = cache / f"{name}.txt"
        if not file.exists():
            root = _unpacked(cache)
            part = file.with_suffix(".part")
            part.write_text(write(root), encoding="utf-8")
            part.rename(file)
        flat = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        cut = flat.numel() - flat.numel() // _HELD_OUT
        texts[name] = (flat[:cut], flat[cut:])
    return texts


def windows(text: torch.Tensor, count: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return ``count`` random pieces of ``length`` bytes, as int64 of shape (count, length)."""
    starts = torch.randint(text.numel() - length, (count, 1), generator=draw)
    return text[starts + torch.arange(length)].long()


def _unpacked(cache: Path) -> Path:
    root = cache / "unpacked"
    if not root.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            made = Path(temporary) / "root"
            subprocess.run(["apt-get", "download", "-q", *_PACKAGES], cwd=temporary, check=True)
            for package in sorted(Path(temporary).glob("*.deb")):
                subprocess.run(["dpkg", "-x", package, made], check=True)
            made.rename(root)
    return root


def _bible(root: Path) -> str:
    # Its data is compressed in a way of its own, so its reader prints it; the reader is run where it was unpacked.
    libraries = [str(folder) for folder in (*root.glob("lib/*-linux-gnu"), *root.glob("usr/lib/*-linux-gnu"))]
    command: list[str | Path] = [root / "usr/bin/bible", "-p", root / "usr/lib", "-f", "gen1:1-rev22:21"]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)}
    said = subprocess.run(command, env=environment, check=True, capture_output=True)
    return said.stdout.decode()


def _jargon(root: Path) -> str:
    return gzip.decompress((root / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()).decode()


def _docs(root: Path) -> str:
    sources = root / "usr/share/doc/python3.11/html/_sources"
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(sources.rglob("*.rst.txt")))
