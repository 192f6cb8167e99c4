"""Names, versions and licenses, as people type them."""

from __future__ import annotations

import pytest

from paramdelta_hub.errors import OptionError
from paramdelta_hub.package.labels import HUB_LICENSES, check_labels, check_license


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("apache-2.0", "apache-2.0"),
        ("Apache-2.0", "apache-2.0"),
        ("MIT", "mit"),
        (" mit\n", "mit"),
        ("llama3.2", "llama3.2"),
        ("Gemma", "gemma"),
        ("openrail++", "openrail++"),
        ("other", "other"),
        ("0BSD", "0BSD"),
        ("apache-2.0 or mit", "Apache-2.0 OR MIT"),
        ("gpl-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("LicenseRef-mine", "LicenseRef-mine"),
    ],
)
def test_licenses(text: str, stated: str) -> None:
    assert check_license(text) == stated
    assert check_license(stated) == stated
    assert check_labels("delta", "1.0.0", text).license == stated


def test_the_hubs_names_stand_as_they_are() -> None:
    assert len(HUB_LICENSES) > 70
    assert {check_license(name) for name in HUB_LICENSES} == HUB_LICENSES


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("apache2", "apache-2.0"),
        ("Apache 2.0", "apache-2.0"),
        ("apache-2", "apache-2.0"),
        ("GPLv3", "gpl-3.0"),
        ("MIT License", "mit"),
        ("llama-3.2", "llama3.2"),
        ("cc_by_4.0", "cc-by-4.0"),
        ("opernrail", "openrail"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(text: str, near: str) -> None:
    with pytest.raises(OptionError, match=r"is unknown; did you mean") as caught:
        check_license(text)
    assert near in caught.value.what.partition("did you mean")[2].rstrip("?").split()
    assert "SPDX" in str(caught.value.remedy)


@pytest.mark.parametrize("text", ["", " ", "(mit", "mit and", "proprietary", "my own words", "x" * 5000, "a\x1b[2J"])
def test_what_is_no_license(text: str) -> None:
    with pytest.raises(OptionError, match="is unknown") as caught:
        check_license(text)
    assert len(caught.value.what) < 250
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "meant"),
    [
        ("1.0", "1.0.0"),
        ("1", "1.0.0"),
        ("v1.2.0", "1.2.0"),
        ("V2", "2.0.0"),
        ("1.2-rc.1", "1.2.0-rc.1"),
        ("01.2.3", "1.2.3"),
        (" 1.2.3 ", "1.2.3"),
        ("1.0+build", "1.0.0+build"),
    ],
)
def test_a_version_that_is_nearly_one(version: str, meant: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_labels("delta", version, None)
    assert caught.value.what == f"{version!r} is not a semantic version; did you mean {meant}?"
    assert check_labels("delta", meant, None).version == meant
    assert f"--version {meant}" in str(caught.value.remedy)


@pytest.mark.parametrize("version", ["1.0.0-0", "1.0.0-rc.0", "1.0.0-01a.-0", "1.0.0+01", "10.20.30-a-.0b+c.d"])
def test_a_version_of_every_kind(version: str) -> None:
    assert check_labels("delta", version, None).version == version


@pytest.mark.parametrize(
    "version", ["", "latest", "1.2.3.4", "1.x", "1.0.0-", "1,0", "1.0.0 beta", "9" * 500, "1.0.0-rc.01"]
)
def test_a_version_that_is_none(version: str) -> None:
    with pytest.raises(OptionError, match="is not a semantic version") as caught:
        check_labels("delta", version, None)
    assert "did you mean" not in caught.value.what
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 1025, "a\x1b[2Jb"])
def test_a_name_that_can_not_be_used(name: str) -> None:
    with pytest.raises(OptionError, match=r"the name .* can't be used") as caught:
        check_labels(name, "1.0.0", None)
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)
