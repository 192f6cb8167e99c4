"""``paramdelta.lock``: pulling again gives the same, or what the user named; never lower, or other, unasked."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paramdelta_hub as pd
from paramdelta_hub.errors import DestinationError, IntegrityError, PackageError, SourceError
from paramdelta_hub.registry.lockfile import LOCK_NAME, Lock, pin, read_lock
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.attacks.names import HOSTILE
from tests.attacks.outcomes import reseal
from tests.conftest import Family
from tests.registry.packages import altered, id_of, labelled, tree

REPO = "acme/instruct"
pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def registry(shared_family: Family, tmp_path: Path) -> StoreRegistry:
    """Versions 1.0.0, 1.1.0, and 2.0.0, which has a file that the others lack, and a card."""
    registry = StoreRegistry(tmp_path / "registry")
    for version in ("1.0.0", "1.1.0"):
        registry.publish(altered(shared_family.delta, tmp_path / version, version), REPO, version)
    later = labelled(shared_family.delta, tmp_path / "2.0.0", "2.0.0")
    (later / "README.md").write_text("# Two\n")
    (later / "companions").mkdir()
    (later / "companions/chat_template.jinja").write_text("{{ messages }}")
    manifest = json.loads((later / "manifest.json").read_text())
    digest = "bd0c5ba7e2ad2ae2d2ff9ac6ef1bd5ee9e16d0a7a1d1b4ae6b1cc4f4b9b1e7cb"
    manifest["companions"] = [{"path": "companions/chat_template.jinja", "size": 14, "sha256": digest}]
    (later / "manifest.json").write_text(json.dumps(manifest))
    reseal(later)
    registry.publish(later, REPO, "2.0.0")
    return registry


def holds(folder: Path, package: Path) -> None:
    """Check that a folder is a copy of a package, with its lock and nothing else."""
    lock = read_lock(folder)
    assert lock is not None
    assert lock.id == id_of(package)
    assert {name: content for name, content in tree(folder).items() if name != LOCK_NAME} == tree(package)


def test_it_names_everything(registry: StoreRegistry, tmp_path: Path) -> None:
    registry.pull(REPO, "1.0.0", tmp_path / "copy")
    manifest = pd.inspect(tmp_path / "1.0.0").manifest
    assert read_lock(tmp_path / "copy") == Lock(
        registry=str(tmp_path / "registry"),
        repo=REPO,
        version="1.0.0",
        revision=id_of(tmp_path / "1.0.0"),
        id=id_of(tmp_path / "1.0.0"),
        files={file.path: file.sha256 for file in manifest.files},
        extras={},
    )
    assert pd.inspect(tmp_path / "copy").id == id_of(tmp_path / "1.0.0"), "a copy with its lock is a package"
    assert read_lock(tmp_path) is None


def test_a_later_version_if_it_is_named(registry: StoreRegistry, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    registry.pull(REPO, "1.0.0", out)
    with pytest.raises(DestinationError, match=r"holds 1\.0\.0; the newest version is 2\.0\.0") as caught:
        registry.pull(REPO, None, out)
    assert f"{REPO}@2.0.0" in str(caught.value)
    holds(out, tmp_path / "1.0.0")
    for version in ("1.1.0", "2.0.0"):
        registry.pull(REPO, version, out)
        holds(out, tmp_path / version)
    assert registry.pull(REPO, None, out).downloaded_nbytes == 0


def test_a_lower_version_only_if_that_is_allowed(registry: StoreRegistry, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    registry.pull(REPO, None, out)
    for named in ("1.1.0", id_of(tmp_path / "1.1.0")):
        with pytest.raises(DestinationError, match=r"newer than 1\.1\.0"):
            registry.pull(REPO, named, out)
        holds(out, tmp_path / "2.0.0")
    registry.pull(REPO, "1.1.0", out, allow_downgrade=True)
    holds(out, tmp_path / "1.1.0")


def test_a_version_that_was_replaced_is_refused(registry: StoreRegistry, tmp_path: Path, shared_family: Family) -> None:
    out, version = tmp_path / "copy", tmp_path / "registry" / REPO / "1.0.0"
    registry.pull(REPO, "1.0.0", out)
    before = tree(out)
    other = labelled(shared_family.delta, tmp_path / "other")
    for name, content in tree(other).items():
        (version / name).write_bytes(content)
    for named in ("1.0.0", id_of(other)):
        with pytest.raises(IntegrityError, match="never replaced"):
            registry.pull(REPO, named, out, allow_downgrade=True)
    assert tree(out) == before


def test_a_folder_of_another_delta(registry: StoreRegistry, tmp_path: Path, shared_family: Family) -> None:
    registry.publish(labelled(shared_family.delta, tmp_path / "math", name="math"), "acme/math", "1.0.0")
    registry.pull("acme/math", "1.0.0", tmp_path / "copy")
    with pytest.raises(DestinationError, match=r"holds acme/math 1\.0\.0 from"):
        registry.pull(REPO, "2.0.0", tmp_path / "copy")
    holds(tmp_path / "copy", tmp_path / "math")


def test_a_copy_made_by_hand_is_taken_over(registry: StoreRegistry, tmp_path: Path) -> None:
    assert registry.pull(REPO, "1.0.0", tmp_path / "1.0.0").downloaded_nbytes == 0
    holds(tmp_path / "1.0.0", tmp_path / "registry" / REPO / "1.0.0")
    with pytest.raises(DestinationError, match="something else"):
        registry.pull(REPO, "2.0.0", tmp_path / "1.1.0")


def test_the_same_from_a_mirror(registry: StoreRegistry, tmp_path: Path) -> None:
    registry.pull(REPO, "1.0.0", tmp_path / "copy")
    mirror = StoreRegistry(tmp_path / "mirror")
    mirror.publish(tmp_path / "1.0.0", "elsewhere/instruct", "1.0.0")
    assert mirror.pull("elsewhere/instruct", "1.0.0", tmp_path / "copy").downloaded_nbytes == 0
    lock = read_lock(tmp_path / "copy")
    assert lock is not None
    assert (lock.registry, lock.repo) == (str(tmp_path / "mirror"), "elsewhere/instruct")


def a_lock(**changes: Any) -> dict[str, Any]:
    lock = Lock(registry="r", repo=REPO, version="1.0.0", revision="x", id="0" * 64, files={"a": "0" * 64}, extras={})
    return {**lock.model_dump(mode="json"), **changes}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        json.dumps(a_lock(lock_version=2)),
        json.dumps(a_lock(more=1)),
        json.dumps(a_lock(id="0")),
        json.dumps(a_lock(version="1")),
        json.dumps(a_lock(repo="a\x1b[2Jb")),
        json.dumps(a_lock())[:-1] + ', "repo": "twice"}',
        json.dumps(a_lock(files={"a": "0" * 64, "A": "0" * 64})),
        json.dumps(a_lock(extras={"notes.txt": "0" * 64})),
        json.dumps(a_lock(extras={"README.md": "0"})),
        *(json.dumps(a_lock(files={name: "0" * 64})) for name in ("../x", "/etc/passwd", ".hidden", "a/../../b")),
    ],
)
def test_what_is_no_lock(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(PackageError) as caught:
        read_lock(tmp_path)
    assert caught.value.where == str(tmp_path / LOCK_NAME)


def test_hostile_names_in_a_lock_remove_nothing(registry: StoreRegistry, tmp_path: Path) -> None:
    """A folder from a stranger: its lock lists what a pull of another version would remove."""
    out = tmp_path / "copy"
    registry.pull(REPO, "1.0.0", out)
    text, before = (out / LOCK_NAME).read_text(), tree(tmp_path)
    for name in HOSTILE:
        lock = json.loads(text)
        lock["files"][name] = "0" * 64
        (out / LOCK_NAME).write_text(json.dumps(lock))
        with pytest.raises(SourceError):
            registry.pull(REPO, "2.0.0", out)
    (out / LOCK_NAME).write_text(text)
    assert tree(tmp_path) == before


@given(changes=st.dictionaries(st.sampled_from(sorted(a_lock())), st.none() | st.integers() | st.text(max_size=8)))
def test_any_change_of_a_lock_is_an_error_of_ours_or_a_lock(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / LOCK_NAME).write_text(json.dumps(a_lock(**changes)))
    try:
        lock = read_lock(folder)
    except PackageError:
        assert changes
    else:
        assert lock is not None
        assert lock.model_dump(mode="json") == a_lock(**changes)


def test_death_while_changing_versions(
    registry: StoreRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment a mixture looks like a package; running again finishes."""
    out = tmp_path / "copy"

    class Killed(BaseException):
        """Passes through every handler, as death does."""

    unlink, deaths = Path.unlink, 0
    for allowed in range(10):
        registry.pull(REPO, "2.0.0", out)
        left = [allowed]

        def failing(path: Path, *arguments: Any, left: list[int] = left, **options: Any) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            unlink(path, *arguments, **options)

        monkeypatch.setattr(Path, "unlink", failing)
        with contextlib.suppress(Killed):
            registry.pull(REPO, "1.1.0", out, allow_downgrade=True)
            left[0] = -1
        monkeypatch.setattr(Path, "unlink", unlink)
        if left[0] == 0:
            deaths += 1
            if (out / "manifest.json").exists():
                holds(out, tmp_path / "2.0.0")
        registry.pull(REPO, "1.1.0", out, allow_downgrade=True)
        holds(out, tmp_path / "1.1.0")
    assert deaths > 3


def test_pin_by_itself(tmp_path: Path, shared_family: Family) -> None:
    inspected = pd.inspect(shared_family.delta)
    lock = Lock.of(
        inspected.manifest, inspected.id, registry="https://huggingface.co", repo=REPO, revision="c" * 40, extras={}
    )
    pin(tmp_path, lock, named=False)
    assert read_lock(tmp_path) == lock
    moved = lock.model_copy(update={"revision": "d" * 40})
    pin(tmp_path, moved, named=False)
    assert read_lock(tmp_path) == moved
