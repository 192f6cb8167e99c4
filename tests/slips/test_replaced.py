"""What ``--overwrite`` does replace: an older output of the same kind, as we made it. And then all of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.outputs.replacing import Replacement
from tests.registry.packages import tree
from tests.slips.conftest import Home, digests
from tests.slips.table import AREAS, slip

COMMANDS = {
    "a package by a package": ("extract", "base", "post", "-o", "old-delta"),
    "a result by a result": ("apply", "target", "delta", "-o", "old-result"),
    "a catalog by a catalog": ("catalog", "registry", "-o", "site", "--title", "Another"),
    "a package by a relabeled one": ("relabel", "delta", "-o", "old-delta", "--version", "2.0.0"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_older_one_of_the_same_kind(home: Home, command: tuple[str, ...]) -> None:
    out = home.work / command[command.index("-o") + 1]
    place = command.index("-o") + 1
    code, text = home.run(*command[:place], "fresh", *command[place + 1 :])
    assert code == 0, text
    assert home.run(*command)[0] == 6, "not without being asked"
    before = digests(home.root)
    code, text = home.run(*command, "--overwrite")
    assert code == 0, text
    assert tree(out) == tree(home.work / "fresh")
    outside = {name: digest for name, digest in before.items() if not name.startswith(f"work/{out.name}/")}
    assert {name: digests(home.root).get(name) for name in outside} == outside


def test_an_empty_folder(home: Home) -> None:
    (home.work / "empty").mkdir()
    assert home.run("extract", "base", "post", "-o", "empty", "--overwrite")[0] == 0
    assert tree(home.work / "empty") == tree(home.work / "delta")


@slip(AREAS[0], "extract over a link to an older package", "the link stays, what it leads to is replaced")
def test_a_link_to_an_older_one_is_followed(home: Home) -> None:
    assert home.run("extract", "base", "post", "-o", "link-to-delta", "--overwrite")[0] == 0
    assert os.readlink(home.work / "link-to-delta") == "old-delta"
    assert tree(home.work / "old-delta") == tree(home.work / "delta")


def test_a_report_of_ours(home: Home) -> None:
    before = (home.work / "report.html").read_bytes()
    assert home.run("inspect", "old-delta", "--html", "report.html", "--overwrite")[0] == 0
    assert (home.work / "report.html").read_bytes() != before


def test_a_statement_and_a_bill_of_ours(home: Home) -> None:
    files = ("--statement", "new.intoto.json", "--bom", "new.cdx.json")
    assert home.run("verify", "old-result", *files)[0] == 0
    old = (home.work / "new.intoto.json").read_bytes()
    assert home.run("verify", "new-model", *files)[0] == 6
    assert home.run("verify", "new-model", "--statement", "new.cdx.json", "--overwrite")[0] == 6, "of another kind"
    assert home.run("verify", "new-model", *files, "--overwrite")[0] == 0
    assert (home.work / "new.intoto.json").read_bytes() != old


def test_a_pulled_package_is_ours_until_it_is_edited(home: Home) -> None:
    assert (
        home.run("pull", "registry/org/delta", "-o", "pulled")[0] == 0
        or home.run("pull", "./registry/org/delta", "-o", "pulled")[0] == 0
    )
    shutil.copytree(home.work / "pulled", home.work / "edited")
    card = home.work / "edited" / "README.md"
    card.write_text(card.read_text().replace("delta", "gift"))
    assert home.run("extract", "base", "post", "-o", "pulled", "--overwrite")[0] == 0
    code, text = home.run("extract", "base", "post", "-o", "edited", "--overwrite")
    assert code == 6
    assert "README.md" in text


def test_copies_are_ours_whatever_their_times(home: Home) -> None:
    """A copy has new times: then digests decide, and not the clock."""
    for name, kind in (("old-delta", "package"), ("old-result", "model"), ("site", "catalog")):
        copy = home.work / f"{name}-copy"
        shutil.copytree(home.work / name, copy, copy_function=shutil.copy)
        for file in copy.rglob("*"):
            os.utime(file)
        Replacement(kind)(copy)  # type: ignore[arg-type]


def test_a_linked_weight_file_is_an_input_wherever_it_lies(home: Home) -> None:
    """The base model is a folder of links into a result of ours: replacing that would take the base away."""
    linked = home.work / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(home.work / "old-result" / "model.safetensors")
    code, text = home.run("apply", "linked", "delta", "-o", "old-result", "--overwrite", "--force")
    assert code == 6
    assert "weights of the target" in text


def test_what_is_put_there_while_we_work_is_not_replaced(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_hub.application import apply as module

    write_file = module.write_file

    def slow(path: Path, content: bytes) -> None:
        (home.work / "old-result" / "notes.txt").write_text("mine")
        write_file(path, content)

    monkeypatch.setattr(module, "write_file", slow)
    with pytest.raises(pd.DestinationError, match=r"notes\.txt"):
        pd.apply(home.work / "target", home.work / "delta", home.work / "old-result", overwrite=True)
    assert (home.work / "old-result" / "notes.txt").read_text() == "mine"
