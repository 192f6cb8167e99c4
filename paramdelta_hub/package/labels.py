"""Check the labels of a new package: name, version and license.

An existing manifest may state any license, because it can't be changed. A new package must state a known one.
"""

from __future__ import annotations

import difflib
import re

from pydantic import TypeAdapter, ValidationError

from paramdelta_hub.errors import OptionError
from paramdelta_hub.package.records import Labels, SemanticVersion, Text

__all__ = ["HUB_LICENSES", "check_labels", "check_license"]

_HUB_LICENSE_NAMES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
HUB_LICENSES = frozenset(_HUB_LICENSE_NAMES.split())
"""What the Hub takes as ``license`` (its documentation, "Licenses"): it refuses a card that says anything else."""

_TEXT: TypeAdapter[str] = TypeAdapter(Text)
_VERSION: TypeAdapter[str] = TypeAdapter(SemanticVersion)
_PARTS = re.compile(r"[vV]?(\d+(?:\.\d+){0,2})([-+].*)?")
_SHOWN = 80


def check_labels(name: str, version: str, license_name: str | None) -> Labels:
    """Return the labels of a package that is to be made.

    Raises:
        OptionError: the name can't be used, the version is none, or the license is unknown.
    """
    if not name.strip() or not _accepts(_TEXT, name):
        raise OptionError(
            f"the name {name[:_SHOWN]!r} can't be used",
            remedy="give one line of 1 to 1024 characters that can be seen, such as --name math-delta",
        )
    if not _accepts(_VERSION, version):
        intended = _intended_version(version)
        raise OptionError(
            f"{version[:_SHOWN]!r} is not a semantic version" + (f"; did you mean {intended}?" if intended else ""),
            remedy=f"versions have three numbers, such as --version {intended or '1.2.0'} (semver.org)",
        )
    return Labels(name=name, version=version, license=None if license_name is None else check_license(license_name))


def check_license(text: str) -> str:
    """Return a license as a manifest states it: the Hub's name in lower case, else an SPDX expression in SPDX's case.

    Raises:
        OptionError: neither; the nearest names are told.
    """
    if (name := text.strip().lower()) in HUB_LICENSES:
        return name
    if spdx := _spdx(text):
        return spdx
    parts = [part.strip() for part in re.split(r"[,;/&|]", text)]
    if len(parts) > 1 and (names := [spdx for part in parts if (spdx := _spdx(part))]) and len(names) == len(parts):
        raise OptionError(
            f"the license {text[:_SHOWN]!r} is a list, and does not say how its licenses go together",
            remedy=f"write '{' OR '.join(names)}' where one may be chosen, '{' AND '.join(names)}' where all hold",
        )
    near = _nearest(text)
    raise OptionError(
        f"the license {text[:_SHOWN]!r} is unknown" + (f"; did you mean {' or '.join(near)}?" if near else ""),
        remedy="give an SPDX expression such as Apache-2.0, a license name of the Hub such as llama3.2, or"
        " LicenseRef-NAME for one of your own",
    )


def _spdx(text: str) -> str | None:
    """Return an SPDX expression in SPDX's case, or None if it is none."""
    # Imported here: only whoever labels a package needs it.
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return None


def _nearest(text: str) -> list[str]:
    """Return up to three names of the Hub's that look like what was typed: ``GPLv3`` like gpl-3.0.

    Where a number was typed, ``bsd3``, those of the same stem with any number come first.
    """
    typed = re.sub(r"[\s_]+", "-", text.strip().lower()).removesuffix("-license")
    spaced = re.sub(r"([a-z])-?v?(\d)", r"\1-\2", typed)
    exact = [guess for guess in (typed, spaced, f"{typed}.0", f"{spaced}.0") if guess in HUB_LICENSES]
    stem = re.match(r"(\D+?)-?\d", spaced)
    family = [name for name in sorted(HUB_LICENSES) if stem and re.match(rf"{re.escape(stem[1])}-?\d", name)]
    related = difflib.get_close_matches(spaced, family, 3, 0.0)
    return exact[:1] or related or difflib.get_close_matches(typed, sorted(HUB_LICENSES), 3, 0.7)


def _intended_version(version: str) -> str | None:
    """Return the semantic version that was probably meant: ``1.0`` is 1.0.0, ``v1.2.0`` is 1.2.0."""
    if not (match := _PARTS.fullmatch(version.strip())):
        return None
    numbers = [str(int(part)) for part in match[1].split(".")]
    guess = ".".join([*numbers, "0", "0"][:3]) + (match[2] or "")
    return guess if _accepts(_VERSION, guess) else None


def _accepts(kind: TypeAdapter[str], value: str) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True
