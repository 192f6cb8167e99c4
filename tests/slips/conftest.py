"""The working folder of somebody who has models, deltas, results, a registry, and things of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.environment import REGISTRY_VARIABLE
from tests.conftest import make_family
from tests.support.models import tuned, weights, write_model


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file below, links followed to files and not to folders, hidden ones too."""
    found = {}
    for at, _, files in os.walk(root):
        for name in files:
            path = Path(at, name)
            found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def make_home(root: Path) -> None:
    """Fill a home folder; ``work`` in it is where commands are run."""
    work = root / "work"
    family = make_family(work)
    pd.extract(family.base, family.post, work / "old-delta", version="0.9.0", license="mit", threads=1)
    pd.extract(family.base, family.target, work / "other-delta", name="post-delta", threads=1)
    pd.apply(family.target, (family.delta, 0.5), work / "old-result", threads=1)
    pd.apply(family.target, family.delta, work / "new-model", threads=1)
    pd.publish(family.delta, "org/delta", registry=work / "registry")
    pd.catalog(work / "registry", work / "site")
    pd.write_report(pd.inspect(family.delta), work / "report.html")
    (work / "carry.txt").write_text("carry score\n")
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter.tex").write_text("three years")
    (root / "letters.txt").write_text("dear")

    # What is ours, and not only ours.
    shutil.copytree(work / "old-delta", work / "annotated-delta")
    (work / "annotated-delta" / "notes.txt").write_text("mine")
    shutil.copytree(work / "old-delta", work / "carded-delta")
    (work / "carded-delta" / "README.md").write_text("# What this is\n\nWritten by hand.\n")
    shutil.copytree(work / "old-delta", work / "changed-delta")
    shard = next((work / "changed-delta").glob("delta-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    shutil.copytree(work / "old-result", work / "edited-result")
    with (work / "edited-result" / "README.md").open("a") as card:
        card.write("\nWhat I found out about it.\n")
    shutil.copytree(work / "old-result", work / "trained-result")
    tensors = load_file(work / "trained-result" / "model.safetensors")
    save_file(tuned(tensors, 99), work / "trained-result" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(work / "trained-result", work / "timed-result")
    for file in (work / "timed-result").iterdir():
        os.utime(file, (1_700_000_000, 1_700_000_000))
    shutil.copytree(work / "old-result", work / "cached-result")
    (work / "cached-result" / ".cache" / "huggingface").mkdir(parents=True)
    (work / "cached-result" / ".cache" / "huggingface" / "token").write_text("hf_mine")
    shutil.copytree(work / "old-result", work / "tracked-result")
    (work / "tracked-result" / ".git").mkdir()
    (work / "tracked-result" / ".git" / "HEAD").write_text("ref: refs/heads/main")
    shutil.copytree(work / "old-result", work / "configured-result")
    (work / "configured-result" / "config.json").write_text('{"model_type": "llama", "mine": true}')
    shutil.copytree(work / "site", work / "edited-site")
    (work / "edited-site" / "about.html").write_text("<p>mine</p>")
    shutil.copytree(work / "old-delta", work / "base" / "inner-delta")
    (work / "edited-report.html").write_bytes((work / "report.html").read_bytes().replace(b"<h1>", b"<h1>My "))
    (work / "model.safetensors").write_bytes((family.target / "model.safetensors").read_bytes())
    (work / "link-to-thesis").symlink_to("thesis")
    (work / "link-to-delta").symlink_to("old-delta")
    (work / "download.partial").mkdir()
    (work / "download.partial" / "weights.part").write_bytes(b"half of it")

    # Models that are easily mixed up, and names that are easily misspelled.
    write_model(work / "twin", weights(0), config={"model_type": "llama"})
    write_model(work / "stranger", weights(77), config={"model_type": "llama"})
    classifier = {**tuned(weights(0), 5), "score.weight": weights(3)["model.layers.0.mlp.weight"]}
    write_model(work / "classifier", classifier, config={"model_type": "llama"})


@dataclass(frozen=True)
class Home:
    """A home folder of this test's own."""

    root: Path

    @property
    def work(self) -> Path:
        """The working folder."""
        return self.root / "work"

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command, and return its exit code and all that it printed."""
        done = CliRunner().invoke(main, arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home") / "me"
    root.mkdir()
    make_home(root)
    return root


@pytest.fixture
def home(shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    root = tmp_path / "me"
    shutil.copytree(shared_home, root, symlinks=True)
    monkeypatch.chdir(root / "work")
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)
    return Home(root)
