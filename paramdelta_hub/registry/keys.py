"""Elliptic-curve keys in PEM files: the keys that the user trusts, and the key that the user signs with.

Trusted keys come from the user, never from a package: from the files and folders in PARAMDELTA_TRUSTED_KEYS, or else
from ``~/.config/paramdelta/trusted_keys``. In a folder, ``*.pem`` is trusted for every repository, and ``ORG/*.pem``
only for the repositories of ORG.
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
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

__all__ = [
    "PrivateKey",
    "PublicKey",
    "configured_keys",
    "read_private_key",
    "read_public_key",
    "require_model_signing",
]

_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
"""The curves that Sigstore bundles and model-signing support."""
_HOW_TO_MAKE = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"
_PUBLIC_HALF = "write its public half with `openssl ec -in key.pem -pubout -out key.pub.pem`"


@dataclass(frozen=True)
class PublicKey:
    """A public key, and the organization whose packages it may sign."""

    path: Path
    org: str | None
    """None: every organization."""
    pem: bytes
    fingerprint: str
    """sha256 of the PEM text. Signatures name keys by it."""


@dataclass(frozen=True)
class PrivateKey:
    """A private key. It stays in its file."""

    path: Path
    public: PublicKey
    password: bytes | None
    """None if the file is not encrypted."""


def read_public_key(path: Path, org: str | None = None) -> PublicKey:
    """Return the public key of a PEM file.

    Raises:
        SourceError: it can't be read, or its curve is not supported.
        OptionError: model-signing is not installed.
    """
    require_model_signing()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_small(path, KEY_BYTES, SourceError, follow=True)
    try:
        key = load_pem_public_key(content)
    except Exception:  # ValueError, UnsupportedAlgorithm and others
        what = "a private key; a public key is needed" if b"PRIVATE KEY" in content else "not a public key in PEM"
        raise SourceError(what, where=str(path), remedy=_PUBLIC_HALF) from None
    return _public(key, path, org)


def read_private_key(path: Path) -> PrivateKey:
    """Return the private key of a PEM file. PARAMDELTA_KEY_PASSWORD decrypts an encrypted one.

    Raises:
        SourceError: it can't be read or decrypted, or its curve is not supported.
        OptionError: model-signing is not installed.
    """
    require_model_signing()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_small(path, KEY_BYTES, SourceError, follow=True)
    password = None
    if b"ENCRYPTED" in content:
        password = os.environ.get(PASSWORD_VARIABLE, "").encode()
        if not password:
            raise SourceError("the key is encrypted", where=str(path), remedy=f"set {PASSWORD_VARIABLE}")
    try:
        key = load_pem_private_key(content, password)
    except Exception:  # as above
        what = f"{PASSWORD_VARIABLE} does not decrypt this key" if password else "not a private key in PEM"
        raise SourceError(what, where=str(path), remedy=_HOW_TO_MAKE) from None
    return PrivateKey(path, _public(key.public_key(), path, None), password)


def configured_keys() -> tuple[PublicKey, ...]:
    """Return the user's configured keys, at least one.

    Raises:
        OptionError: there is no key; or model-signing is not installed.
        SourceError: a key can't be read. No key is skipped silently.
    """
    paths = _key_paths()
    found = tuple(read_public_key(path, org) for place in paths for path, org in _keys_in(place))
    if not found:
        raise OptionError(
            "a signature is required, but there is no trusted key",
            where=os.pathsep.join(map(str, paths)),
            remedy=f"put public keys (*.pem) there, or name them with {KEYS_VARIABLE} or --trusted-key",
        )
    return found


def require_model_signing() -> None:
    """Import model-signing. It takes a second, so it is imported on demand.

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


def _key_paths() -> list[Path]:
    if named := os.environ.get(KEYS_VARIABLE):
        return [Path(name).expanduser() for name in named.split(os.pathsep) if name]
    home = os.environ.get("XDG_CONFIG_HOME", "")
    config = Path(home) if os.path.isabs(home) else Path("~/.config").expanduser()
    return [config / "paramdelta" / "trusted_keys"]


def _keys_in(place: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the key files at a path, each with the organization that it is trusted for."""
    if not place.is_dir():
        if os.path.lexists(place):
            yield place, None
        return
    for count, path in enumerate(sorted([*place.glob("*.pem"), *place.glob("*/*.pem")])):
        if count == TRUSTED_KEYS:
            raise OptionError(f"more than {TRUSTED_KEYS} keys", where=str(place))
        yield path, path.parent.name if path.parent != place else None


def _public(key: PublicKeyTypes, path: Path, org: str | None) -> PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise SourceError("the key must be on the curve P-256, P-384 or P-521", where=str(path), remedy=_HOW_TO_MAKE)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(path, org, pem, hashlib.sha256(pem).hexdigest())
