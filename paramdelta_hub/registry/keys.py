"""Keys of elliptic curves in PEM files: those that the user trusts, and the one that the user signs with.

Trusted keys are the user's, never a package's: files and folders named in PARAMDELTA_TRUSTED_KEYS, or the folder
``~/.config/paramdelta/trusted_keys``, in which ``*.pem`` is trusted for every repository, and ``ORG/*.pem`` for those
of ORG alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paramdelta_hub.environment import KEYS_VARIABLE, PASSWORD_VARIABLE
from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.limits import KEY_BYTES, TRUSTED_KEYS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = [
    "PrivateKey",
    "PublicKey",
    "configured_keys",
    "need_libraries",
    "read_private_key",
    "read_public_key",
]

_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
"""Those that Sigstore's bundles know, and model-signing takes."""
_HOW_TO_MAKE = "make one by `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"
_PUBLIC_HALF = "write its public half by `openssl ec -in key.pem -pubout -out key.pub.pem`"


@dataclass(frozen=True)
class PublicKey:
    """A public key, and whose packages it may sign."""

    path: Path
    org: str | None
    """None: everybody's."""
    pem: bytes
    fingerprint: str
    """sha256 of the PEM text, as signatures name it."""


@dataclass(frozen=True)
class PrivateKey:
    """A private key, which stays in its file."""

    path: Path
    public: PublicKey
    password: bytes | None
    """None: the file is not encrypted."""


def read_public_key(path: Path, org: str | None = None) -> PublicKey:
    """Return the public key of a PEM file.

    Raises:
        SourceError: it can't be read, or is none of a curve that signatures are made with.
        OptionError: model-signing is not installed.
    """
    need_libraries()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_small(path, KEY_BYTES, SourceError, follow=True)
    try:
        key = load_pem_public_key(content)
    except Exception:  # ValueError for most, UnsupportedAlgorithm and others for some
        what = "a private key, where a public one is needed" if b"PRIVATE KEY" in content else "no public key in PEM"
        raise SourceError(what, where=str(path), remedy=_PUBLIC_HALF) from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise _other_kind(path)
    return _public(key, path, org)


def read_private_key(path: Path) -> PrivateKey:
    """Return the private key of a PEM file; PARAMDELTA_KEY_PASSWORD opens an encrypted one.

    Raises:
        SourceError: it can't be read or opened, or is none of a curve that signatures are made with.
        OptionError: model-signing is not installed.
    """
    need_libraries()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_small(path, KEY_BYTES, SourceError, follow=True)
    password = None
    if b"ENCRYPTED" in content:
        password = os.environ.get(PASSWORD_VARIABLE, "").encode()
        if not password:
            raise SourceError("an encrypted key", where=str(path), remedy=f"set {PASSWORD_VARIABLE}")
    try:
        key = load_pem_private_key(content, password)
    except Exception:  # as above
        what = f"no private key that {PASSWORD_VARIABLE} opens" if password else "no private key in PEM"
        raise SourceError(what, where=str(path), remedy=_HOW_TO_MAKE) from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _other_kind(path)
    return PrivateKey(path, _public(key.public_key(), path, None), password)


def configured_keys() -> tuple[PublicKey, ...]:
    """Return the keys of the user's configuration, at least one.

    Raises:
        OptionError: there is none; or model-signing is not installed.
        SourceError: one can't be read: better no answer than one that leaves out a key.
    """
    places = _places()
    found = tuple(read_public_key(path, org) for place in places for path, org in _keys_in(place))
    if not found:
        raise OptionError(
            "a signature is required, and no key is trusted",
            where=os.pathsep.join(map(str, places)),
            remedy=f"put public keys (*.pem) there, or name them in {KEYS_VARIABLE}, or by --trusted-key",
        )
    return found


def need_libraries() -> None:
    """Import what signatures stand on: here and not above, since it takes a second.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"signatures need a package that is not installed ({error})",
            remedy="pip install 'paramdelta-hub[sign]'",
        ) from None


def _places() -> list[Path]:
    if named := os.environ.get(KEYS_VARIABLE):
        return [Path(name).expanduser() for name in named.split(os.pathsep) if name]
    home = os.environ.get("XDG_CONFIG_HOME", "")
    config = Path(home) if os.path.isabs(home) else Path("~/.config").expanduser()
    return [config / "paramdelta" / "trusted_keys"]


def _keys_in(place: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the keys of a file or folder, and the organisation for which each is trusted."""
    if not place.is_dir():
        if os.path.lexists(place):
            yield place, None
        return
    for count, path in enumerate(sorted([*place.glob("*.pem"), *place.glob("*/*.pem")])):
        if count == TRUSTED_KEYS:
            raise OptionError(f"more than {TRUSTED_KEYS} keys", where=str(place))
        yield path, path.parent.name if path.parent != place else None


def _public(key: EllipticCurvePublicKey, path: Path, org: str | None) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if key.curve.name not in _CURVES:
        raise _other_kind(path)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(path, org, pem, hashlib.sha256(pem).hexdigest())


def _other_kind(path: Path) -> SourceError:
    return SourceError("no key of the curves P-256, P-384 or P-521", where=str(path), remedy=_HOW_TO_MAKE)
