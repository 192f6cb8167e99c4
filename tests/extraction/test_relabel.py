"""Relabel: other labels and nothing else, whole or not at all, without the models."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.registry.cards.generated import END, own_text
from tests.attacks.outcomes import change_manifest, shard_of
from tests.conftest import Family
from tests.registry.packages import id_of, labelled, tree
from tests.robustness.calls import Fault
from tests.robustness.commands import Commands
from tests.support.models import assert_same, read_weights


@pytest.fixture(autouse=True)
def _no_registry_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)


@pytest.fixture
def package(shared_family: Family, tmp_path: Path) -> Path:
    return labelled(shared_family.delta, tmp_path / "package", name="instruct", license=None)


def test_other_labels_and_nothing_else(package: Path, shared_family: Family, tmp_path: Path) -> None:
    before = tree(package)
    out = tmp_path / "out"
    report = pd.relabel(package, out, version="1.1.0", license="Apache-2.0", name="better")
    assert (report.manifest.name, report.manifest.version, report.manifest.license) == ("better", "1.1.0", "apache-2.0")
    assert report.id == id_of(out) != report.id_before == id_of(package)
    assert report.changes == {
        "name": ("instruct", "better"), "version": ("1.0.0", "1.1.0"), "license": (None, "apache-2.0"),
    }  # fmt: skip
    assert tree(package) == before
    made = tree(out)
    old, new = json.loads(before.pop("manifest.json")), json.loads(made.pop("manifest.json"))
    assert made == before
    earlier = [{"id": report.id_before, "name": "instruct", "version": "1.0.0"}]
    labels = {"name": "better", "version": "1.1.0", "license": "apache-2.0"}
    assert old["relabeled_from"] == []
    assert new == {**old, **labels, "relabeled_from": earlier}
    assert list(new) == list(old)
    assert pd.verify(out, base=shared_family.base, post=shared_family.post, threads=1).id == report.id
    pd.apply(shared_family.base, out, tmp_path / "post", threads=1)
    assert_same(read_weights(tmp_path / "post"), read_weights(shared_family.post))
    # And back: the labels are all that made it another package.
    back = pd.relabel(out, tmp_path / "back", name="instruct", version="1.0.0", license="mit")
    assert back.manifest.license == "mit"
    assert [(made.id, made.name, made.version) for made in back.manifest.relabeled_from] == [
        (report.id_before, "instruct", "1.0.0"), (report.id, "better", "1.1.0"),
    ]  # fmt: skip


def test_what_a_copy_was_before_is_told(package: Path, tmp_path: Path) -> None:
    pd.relabel(package, tmp_path / "second", name="theirs")
    pd.relabel(tmp_path / "second", tmp_path / "third", name="mine", version="3.0.0")
    ids = [id_of(package), id_of(tmp_path / "second")]
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "third")]).stdout
    assert f"relabeled     from theirs 1.0.0 (id {ids[1][:16]}…)\n  relabeled     from instruct 1.0.0" in shown
    told = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "third"), "--json"]).stdout)
    assert [earlier["id"] for earlier in told["relabeled_from"]] == ids
    pd.publish(tmp_path / "third", "acme/mine", registry=tmp_path / "registry")
    card = (tmp_path / "registry/acme/mine/3.0.0/README.md").read_text()
    assert f"- Relabeled from theirs 1.0.0 (id `{ids[1][:16]}`).\n- Relabeled from instruct 1.0.0" in card
    page = tmp_path / "page.html"
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "third"), "--html", str(page)]).exit_code == 0
    assert page.read_text().index("theirs") < page.read_text().index(ids[0][:16])


def test_a_package_is_not_relabeled_without_end(package: Path, tmp_path: Path) -> None:
    def often(manifest: dict[str, object]) -> None:
        manifest["relabeled_from"] = [{"id": "0" * 64, "name": "n", "version": "1.0.0"}] * 100

    change_manifest(package, often)
    with pytest.raises(pd.OptionError, match="relabeled 100 times"):
        pd.relabel(package, tmp_path / "out", name="better")
    assert not (tmp_path / "out").exists()


def test_what_does_not_come_along(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    (package / "README.md").write_text("---\ntags: [mine]\n---\nMy own words.\n")
    pd.publish(package, "acme/instruct", registry=root)
    pulled = pd.pull("acme/instruct", tmp_path / "copy", registry=root).path
    (pulled / "manifest.json.sig").write_text("{}")
    assert (pulled / "paramdelta.lock").exists()
    pd.relabel(pulled, tmp_path / "out", version="2.0.0")
    made = tree(tmp_path / "out")
    assert not {"manifest.json.sig", "paramdelta.lock"} & made.keys()
    card = made["README.md"].decode()
    assert own_text(card, "") == "My own words.\n"
    assert END not in card
    assert "1.0.0" not in card.partition("My own words.")[2]
    pd.publish(tmp_path / "out", "acme/instruct", registry=root)
    published = (root / "acme/instruct/2.0.0/README.md").read_text()
    assert own_text(published, "") == "My own words.\n"
    assert "mine" in published
    # A card that its author wrote alone stays as it is; one without a word of his has nothing to say.
    pd.relabel(package, tmp_path / "own", version="2.0.0")
    assert (tmp_path / "own/README.md").read_bytes() == (package / "README.md").read_bytes()
    (package / "README.md").unlink()
    pd.relabel(package, tmp_path / "none", version="2.0.0")
    assert not (tmp_path / "none/README.md").exists()


def test_a_delta_in_a_registry(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    pd.publish(package, "acme/instruct", registry=root)
    pd.publish(labelled(package, tmp_path / "next", "1.1.0"), "acme/instruct", registry=root)
    for delta, registry in ((f"{root}/acme/instruct@1.0.0", None), ("acme/instruct@1.0.0", root)):
        report = pd.relabel(delta, tmp_path / "out", version="3.0.0", registry=registry, overwrite=True)
        assert (report.before.version, report.manifest.version) == ("1.0.0", "3.0.0")
    with pytest.raises(pd.RegistryError):
        pd.relabel("acme/nothing@1.0.0", tmp_path / "other", version="3.0.0", registry=root)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({}, "no label would change"),
        ({"version": "1.0.0"}, "no label would change"),
        ({"name": "instruct", "version": "1.0.0"}, "no label would change"),
        ({"version": "1.1"}, "did you mean 1.1.0?"),
        ({"version": ""}, "not a semantic version"),
        ({"name": ""}, "can't be used"),
        ({"license": "apache2"}, "did you mean apache-2.0?"),
        ({"license": ""}, "is unknown"),
    ],
)
def test_what_makes_no_sense(package: Path, tmp_path: Path, labels: dict[str, str], says: str) -> None:
    with pytest.raises(pd.OptionError) as caught:
        pd.relabel(package, tmp_path / "out", **labels)  # type: ignore[arg-type]
    assert says in caught.value.what
    assert caught.value.remedy
    assert set(tmp_path.iterdir()) == {package}


def test_a_license_of_a_stranger_is_no_obstacle(package: Path, tmp_path: Path) -> None:
    odd = labelled(package, tmp_path / "odd", license="as you like it")
    assert pd.relabel(odd, tmp_path / "out", version="1.1.0").manifest.license == "as you like it"


def test_damage_is_not_handed_on(package: Path, tmp_path: Path) -> None:
    shard = shard_of(package)
    content = shard.read_bytes()
    for damaged in (content[:-1], content + b"x", content[:-1] + bytes([content[-1] ^ 1])):
        shard.write_bytes(damaged)
        with pytest.raises(pd.IntegrityError, match="delta-00001"):
            pd.relabel(package, tmp_path / "out", version="1.1.0")
        assert not (tmp_path / "out").exists()
    shard.write_bytes(content)
    assert pd.relabel(package, tmp_path / "out", version="1.1.0").manifest.version == "1.1.0"
    assert not (tmp_path / "out.partial").exists()


def test_what_is_there_stays(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    pd.relabel(package, out, version="1.1.0")
    before = tree(out)
    with pytest.raises(pd.DestinationError, match="exists"):
        pd.relabel(package, out, version="1.2.0")
    assert tree(out) == before
    assert pd.relabel(package, out, version="1.2.0", overwrite=True).id == id_of(out)
    monkeypatch.chdir(package)
    (tmp_path / "link").symlink_to(package)
    before = tree(tmp_path)
    for place in (package, package / "inner", tmp_path, ".", "..", tmp_path / "link", tmp_path / "link/inner"):
        with pytest.raises(pd.DestinationError, match=r"the package that is relabeled|the working folder"):
            pd.relabel(package, place, version="1.2.0", overwrite=True)
    assert tree(tmp_path) == before


def run(*arguments: str | Path, code: int = 0) -> str:
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exit_code == code, (found.output, found.exception)
    return found.stdout if code == 0 else found.stderr


def test_the_command(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("relabel", package, "-o", tmp_path / "out", "--version", "1.1.0", "--license", "MIT")
    assert text.splitlines()[:3] == [
        f"instruct 1.1.0 → {tmp_path}/out", "  version   1.0.0 → 1.1.0", "  license   not stated → mit",
    ]  # fmt: skip
    assert id_of(tmp_path / "out") in text
    told = json.loads(run("relabel", package, "-o", tmp_path / "other", "--name", "math", "--json"))
    assert told["id"] == id_of(tmp_path / "other") == pd.inspect(tmp_path / "other").id
    assert told["changes"] == {"name": ["instruct", "math"]}
    assert (told["name"], told["version"], told["license"]) == ("math", "1.0.0", None)
    error = run("relabel", package, "-o", tmp_path / "third", "--version", "1.0", code=2)
    assert error.startswith("error: '1.0' is not a semantic version; did you mean 1.0.0?\n")
    assert run("relabel", package, "-o", tmp_path / "out", "--name", "x", code=6)
    assert "pd-relabel " in run("relabel", "--help").rpartition("Examples:")[2]
    monkeypatch.setenv("HOME", str(tmp_path))
    run("relabel", "~/package", "-o", "~/home", "--version", "4.0.0")
    assert (tmp_path / "home/manifest.json").exists()


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    started = Commands()
    yield started
    started.close()


def test_killed_at_any_point_nothing_is_seen(package: Path, commands: Commands, tmp_path: Path) -> None:
    out, tape = tmp_path / "place/out", tmp_path / "tape"
    out.parent.mkdir()
    command = ["relabel", str(package), "-o", str(out), "--version", "1.1.0", "-q"]
    assert commands.run(command, Fault(among="changes"), tape) == (0, "")
    whole, count = tree(out), len(tape.read_text().splitlines())
    assert count > 15
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    commands.warm_up(command)
    seen = 0
    for number in range(1, count + 1):
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        half = bool(number % 2)
        assert commands.run(command, Fault("signal", number, signal.SIGKILL, half)).status == -signal.SIGKILL
        if out.exists():
            assert tree(out) == whole, number
            seen += 1
            continue
        ended = commands.run(command)
        assert ended == (0, ""), number
        assert tree(out) == whole, number
        assert [path.name for path in out.parent.iterdir()] == ["out"], number
    assert seen < count // 3
