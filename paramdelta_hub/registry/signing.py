"""Signatures over a package's manifest, made and checked offline by model-signing.

``manifest.json.sig`` is a Sigstore bundle (OpenSSF model signing). It signs one file, the manifest, which holds the
sha256 of all other files. It also signs the name of the repository, so one signed delta can't be passed off as another
one by the same publisher.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from paramdelta_hub.environment import REQUIRE_VARIABLE
from paramdelta_hub.errors import PackageError, SignatureError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import expand, io_errors, read_small
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import MANIFEST_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import Package
from paramdelta_hub.registry.keys import PrivateKey, PublicKey, configured_keys, read_public_key, require_model_signing
from paramdelta_hub.registry.materialize import SIGNATURE_NAME
from paramdelta_hub.registry.names import is_id, is_repo

__all__ = ["Trust", "check_made_for", "read_manifest", "read_signature", "sign_manifest", "trust"]


_BY_CERTIFICATE = "signed with a certificate, not with a key"


@dataclass(frozen=True)
class Trust:
    """The trusted keys. A package must be signed by one of them."""

    keys: tuple[PublicKey, ...]

    def check(self, manifest: bytes, signature: bytes | None, where: str, repo: str | None = None) -> str:
        """Check the signature of a manifest offline; return a description of the key that signed it.

        ``repo`` is the repository that the package came from; None for a package in a plain folder.

        Raises:
            SignatureError: there is no signature; or it was altered, is by a key that is not trusted, for another
                manifest or for another repository.
            OptionError: model-signing is not installed.
        """
        if signature is None:
            remedy = "ask its publisher to sign it with pd-publish --sign"
            raise SignatureError("not signed", where=where, remedy=remedy)
        statement = _parse_bundle(signature, where)
        keys = [key for key in self.keys if key.fingerprint == statement.fingerprint]
        if not keys:
            raise SignatureError(
                f"signed by none of your {len(self.keys)} trusted keys, but by sha256 {statement.fingerprint[:16]}…",
                where=where,
                remedy="if you have the key from its owner, and not from the place of the package, trust it with"
                " --trusted-key",
            )
        if statement.digest != hashlib.sha256(manifest).hexdigest():
            raise SignatureError(
                f"the signature is for another manifest (id {statement.digest[:16]}…)",
                where=where,
                remedy="the package was changed after signing, or this signature belongs to another package",
            )
        _verify(manifest, signature, keys[0], where)
        if repo not in (None, statement.repo):
            raise SignatureError(
                f"signed for {statement.repo}, not for {repo}",
                where=where,
                remedy="it may be another delta under this name; if it has moved, its publisher must sign it again",
            )
        org = statement.repo.partition("/")[0]
        trusted = [key for key in keys if key.org in (None, org)]
        if not trusted:
            raise SignatureError(
                f"signed for {statement.repo} by a key that you trust only for {keys[0].org}: {keys[0].path}",
                where=where,
                remedy=f"if the key may sign for {org} too, copy it into a folder {org} next to its own",
            )
        return f"{trusted[0].path.name} (sha256 {statement.fingerprint[:16]}…), for {statement.repo}"

    def check_package(self, package: Package) -> str:
        """Do what :meth:`check` does for the package in a folder; PackageError if its files can't be read any more."""
        return self.check(read_manifest(package), read_signature(package.path), str(package.path))


def trust(keys: Sequence[str | Path] = (), *, require: bool | None = None) -> Trust | None:
    """Return the keys that a package must be signed by, or None if no signature is required.

    If files of public keys are given, these are the only trusted keys. Otherwise ``require``, and by default
    PARAMDELTA_REQUIRE_SIGNATURE, decides whether a signature by a configured key is required.

    Raises:
        SourceError: a key can't be read.
        OptionError: no key is configured; or model-signing is not installed.
    """
    if keys:
        return Trust(tuple(read_public_key(expand(path)) for path in keys))
    if require is None:
        require = os.environ.get(REQUIRE_VARIABLE, "0") not in ("", "0")
    return Trust(configured_keys()) if require else None


def check_made_for(signature: bytes, manifest: bytes, repo: str, where: str) -> None:
    """Check that a signature is for this manifest in this repository, whoever made it, before it is published.

    Raises:
        SignatureError: it is not, so it could never be verified.
    """
    remedy = "sign it for this repository with --sign KEY, or delete manifest.json.sig"
    try:
        statement = _parse_bundle(signature, where)
    except SignatureError as error:
        if error.what == _BY_CERTIFICATE:  # which we can't read, and others can
            return
        raise SignatureError(error.what, where=where, remedy=remedy) from None
    if statement.repo != repo:
        raise SignatureError(f"the signature is for {statement.repo}, not for {repo}", where=where, remedy=remedy)
    if statement.digest != hashlib.sha256(manifest).hexdigest():
        raise SignatureError("the signature is for another manifest", where=where, remedy=remedy)


def sign_manifest(manifest: bytes, repo: str, key: PrivateKey) -> bytes:
    """Return a signature stating that this is the manifest of a version of ``repo``.

    Raises:
        StorageError: a temporary file can't be written.
    """
    from model_signing import signing

    with io_errors("signing"), tempfile.TemporaryDirectory() as scratch:
        # model-signing signs a folder, and the folder's name.
        folder, signature = Path(scratch, quote(repo, safe="")), Path(scratch, SIGNATURE_NAME)
        folder.mkdir()
        (folder / MANIFEST_NAME).write_bytes(manifest)
        password: Any = key.password  # model-signing declares text, but cryptography needs bytes
        signer = signing.Config().use_elliptic_key_signer(private_key=key.path, password=password)
        signer.set_hashing_config(_hashing_config()).sign(folder, signature)
        return signature.read_bytes()


def read_manifest(package: Package) -> bytes:
    """Return the content of a package's manifest, which must be the same as when the package was opened.

    Raises:
        PackageError: it was deleted.
        IntegrityError: it was changed.
    """
    content = read_small(resolve_inside(package.path, MANIFEST_NAME), MANIFEST_BYTES)
    check_digest(hashlib.sha256(content).hexdigest(), package.digest, f"the file {MANIFEST_NAME!r}", str(package.path))
    return content


def read_signature(folder: Path) -> bytes | None:
    """Return the signature in a package's folder, or None if there is none.

    Raises:
        PackageError: it is not a regular file, or too large.
    """
    if not os.path.lexists(folder / SIGNATURE_NAME):
        return None
    return read_small(resolve_inside(folder, SIGNATURE_NAME), SIGNATURE_BYTES)


@dataclass(frozen=True)
class _Statement:
    """What a signature states. It is not to be trusted before :func:`_verify`."""

    fingerprint: str
    digest: str
    repo: str


def _parse_bundle(signature: bytes, where: str) -> _Statement:
    """Return what a Sigstore bundle states, without checking its signature."""
    payload_json = None
    try:
        match strict_json.parse(signature):
            case {
                "verificationMaterial": {"publicKey": {"hint": str(fingerprint)}},
                "dsseEnvelope": {"payload": str(payload)},
            }:
                payload_json = strict_json.parse(base64.b64decode(payload, validate=True))
            case {"verificationMaterial": {"certificate": _} | {"x509CertificateChain": _}}:
                raise SignatureError(
                    _BY_CERTIFICATE,
                    where=where,
                    remedy="check it with the command of model-signing, see docs/signing.md",
                )
    except (PackageError, binascii.Error) as error:
        raise SignatureError(f"the signature can't be read: {error}", where=where) from None
    match payload_json:
        case {
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": "https://model_signing/signature/v1.0",
            "subject": [{"name": str(name)}],
            "predicate": {"resources": [{"name": "manifest.json", "algorithm": "sha256", "digest": str(digest)}]},
        } if is_repo(unquote(name)) and is_id(digest) and is_id(fingerprint):
            return _Statement(fingerprint, digest, unquote(name))
    raise SignatureError(
        "the signature must cover manifest.json alone, for one repository",
        where=where,
        remedy="sign with pd-publish --sign, or as described in docs/signing.md",
    )


def _verify(manifest: bytes, signature: bytes, key: PublicKey, where: str) -> None:
    """Let model-signing check copies of the bytes that were read, so that nobody can change them meanwhile."""
    require_model_signing()
    from model_signing import verifying

    with io_errors("checking the signature"), tempfile.TemporaryDirectory() as scratch:
        folder, signature_file, public = (Path(scratch, name) for name in ("package", SIGNATURE_NAME, "key.pem"))
        folder.mkdir()
        (folder / MANIFEST_NAME).write_bytes(manifest)
        signature_file.write_bytes(signature)
        public.write_bytes(key.pem)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public).set_hashing_config(_hashing_config())
        try:
            verifier.verify(folder, signature_file)
        except Exception as problem:  # from four libraries, which do not document what broken bundles raise
            raise SignatureError(
                "the signature is not genuine: it was altered, or was not made with the key that it names",
                where=where,
                remedy="do not use the package; get it again, and tell its publisher if the error stays",
            ) from problem


def _hashing_config() -> Any:
    """Return the hashing options: every file counts, also git's files, which model-signing ignores by default."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)
