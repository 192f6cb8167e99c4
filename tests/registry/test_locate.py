"""What the user types: which registry, which repository, which version, or only a path."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import OptionError, RegistryError
from paramdelta_hub.registry.locate import Reference, open_registry, parse_reference
from paramdelta_hub.registry.names import check_repo, is_repo
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.attacks.names import HOSTILE

ID = "0123456789abcdef" * 4
PARTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,12}", fullmatch=True).filter(lambda part: is_repo(f"x/{part}"))
NUMBERS = st.integers(0, 10**6)
VERSIONS = st.builds(
    lambda a, b, c, before, build: f"{a}.{b}.{c}{before}{build}",
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.sampled_from(["", "-alpha", "-alpha.1", "-alpha.beta", "-rc.1", "-rc.11", "-0.3.7"]),
    st.sampled_from(["", "+build", "+exp.sha.5114f85"]),
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the working folder decides, so there is nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Reference(None, "org/name", None)),
        ("org/name@1.2.0", Reference(None, "org/name", "1.2.0")),
        ("org/name@main", Reference(None, "org/name", "main")),
        ("org/name@refs/pr/3", Reference(None, "org/name", "refs/pr/3")),
        ("org/name@" + ID[:40], Reference(None, "org/name", ID[:40])),
        ("./registry/org/name", Reference("./registry", "org/name", None)),
        ("registry/org/name@1.2.0-rc.1+x", Reference("registry", "org/name", "1.2.0-rc.1+x")),
        ("registry/org/name/", Reference("registry", "org/name", None)),
        ("./org/name", Reference(".", "org/name", None)),
        ("org/name/", Reference(".", "org/name", None)),
        ("/org/name@1.0.0", Reference("/", "org/name", "1.0.0")),
        ("/srv/me@work/org/name@1.0.0", Reference("/srv/me@work", "org/name", "1.0.0")),
        ("~/registry/org/name", Reference("/home/somebody/registry", "org/name", None)),
        ("file:///srv/a%20b/org/name@1.0.0", Reference("/srv/a b", "org/name", "1.0.0")),
        ("file://localhost/srv/org/name", Reference("/srv", "org/name", None)),
        ("s3://bucket/org/name", Reference("s3://bucket", "org/name", None)),
        ("S3://bucket/a/b/org/name@" + ID, Reference("s3://bucket/a/b", "org/name", ID)),
        ("gs://bucket/org/name@1.0.0", Reference("gs://bucket", "org/name", "1.0.0")),
    ],
)
def test_spellings(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "./name",
        "name@1.0.0",
        "",
        "/",
        "..",
        "a/..",
        "or g/name",
        "org/na\nme",
        "org/name\0",
        "r/org/name/1.0.0",
    ],
)
def test_what_can_only_be_a_path(text: str) -> None:
    assert parse_reference(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "org/name@",
        "org/name@../x",
        "org/name@a b",
        "org/name@1@2",
        "./r/org/name@v1.2.0",
        "./r/org/name@1.2",
        "./r/org/name@",
        "s3://bucket/org/name@latest",
        "s3://bucket/name",
        "s3:///org/name",
        "s3://",
        "s3://key:secret@bucket/org/name",
        "file://elsewhere/srv/org/name",
        "file:///name",
        "s3://bucket/../..",
    ],
)
def test_what_can_not_be(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_reference(text)
    assert caught.value.remedy
    assert "secret" not in str(caught.value)


def test_the_v_of_a_tag_is_named() -> None:
    with pytest.raises(OptionError) as caught:
        parse_reference("./r/org/name@v1.2.0")
    assert caught.value.remedy == "write the version without the v"


def test_what_exists_wins(tmp_path: Path) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/config.json").touch()
    (tmp_path / "org/other@1.0.0").touch()
    assert parse_reference("org/name") is None
    assert parse_reference("org/other@1.0.0") is None
    assert parse_reference("org/name@1.0.0") == Reference(None, "org/name", "1.0.0")


@pytest.mark.parametrize("inside", [[], ["1.0.0"], ["1.0.0", "1.1.0-rc.1"], ["1.0.0.partial"], [".hidden"]])
def test_a_folder_of_versions_is_a_repository(tmp_path: Path, inside: list[str]) -> None:
    for name in inside:
        (tmp_path / "registry/org/name" / name).mkdir(parents=True)
    os.makedirs(tmp_path / "registry/org/name", exist_ok=True)
    assert parse_reference("registry/org/name") == Reference("registry", "org/name", None)
    assert parse_reference(str(tmp_path / "registry/org/name")) == Reference(f"{tmp_path}/registry", "org/name", None)


@pytest.mark.parametrize("inside", ["manifest.json", "config.json", "notes", "v1.0.0"])
def test_another_folder_is_a_path(tmp_path: Path, inside: str) -> None:
    (tmp_path / "registry/org/name/1.0.0").mkdir(parents=True)
    (tmp_path / "registry/org/name" / inside).touch()
    assert parse_reference("registry/org/name") is None
    assert parse_reference("registry/org/name/1.0.0") is None, "a version is a package, which lies here"


@given(
    root=st.none()
    | st.lists(PARTS, min_size=1, max_size=3)
    .map("/".join)
    .flatmap(
        lambda path: st.sampled_from([f"./{path}", f"/no/{path}", f"s3://{path}", f"memory://{path}", f"no/{path}"])
    ),
    org=PARTS,
    name=PARTS,
    revision=st.none() | VERSIONS | st.just(ID),
)
def test_a_reference_is_spelled_as_it_is_read(root: str | None, org: str, name: str, revision: str | None) -> None:
    reference = Reference(root, f"{org}/{name}", revision)
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=40) | st.text(string.ascii_letters + "./@:~", max_size=40))
def test_any_text_is_a_reference_a_path_or_an_error_of_ours(text: str) -> None:
    try:
        reference = parse_reference(text)
    except OptionError:
        return
    if reference is not None:
        assert is_repo(reference.repo)
        assert parse_reference(str(reference)) == reference


def test_hostile_names_are_no_repositories() -> None:
    for name in HOSTILE:
        if is_repo(name):  # a/con.json/b has three parts, and so on; what is left is harmless
            pytest.fail(name)
        with pytest.raises(OptionError):
            check_repo(name)
        assert not is_repo(f"org/{name}"), name
        assert not is_repo(f"{name}/name"), name


def test_registries_open_by_their_root(tmp_path: Path) -> None:
    assert isinstance(open_registry(str(tmp_path)), StoreRegistry)
    assert isinstance(open_registry("memory://somewhere"), StoreRegistry)
    with pytest.raises(RegistryError, match="nosuchscheme"):
        open_registry("nosuchscheme://bucket")
