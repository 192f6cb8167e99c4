"""Who made a package: a signature over its manifest, made and checked by model-signing, offline.

``manifest.json.sig`` is a Sigstore bundle (OpenSSF model signing). It signs one file, the manifest, which has the
sha256 of all others; and one name, that of the repository for which it was made, so that a signed delta can't be passed
off as another signed delta of the same publisher.
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
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.limits import MANIFEST_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import Package
from paramdelta_hub.registry.keys import PrivateKey, PublicKey, configured_keys, need_libraries, read_public_key
from paramdelta_hub.registry.materialize import SIGNATURE_NAME
from paramdelta_hub.registry.names import is_id, is_repo

__all__ = ["Trust", "read_manifest", "read_signature", "sign", "trust"]


@dataclass(frozen=True)
class Trust:
    """The keys by one of which a package must be signed."""

    keys: tuple[PublicKey, ...]

    def check(self, manifest: bytes, signature: bytes | None, where: str, repo: str | None = None) -> str:
        """Check the signature of a manifest, offline; return in words which key holds good for it.

        Args:
            manifest: the very bytes that will be used.
            signature: what lies beside it; None if nothing does.
            where: the package, for messages.
            repo: the repository it is given out for; None where it lies in a folder of no registry.

        Raises:
            SignatureError: unsigned; by a key that is not trusted; over another manifest; for another repository;
                altered.
            OptionError: model-signing is not installed.
        """
        if signature is None:
            raise SignatureError("not signed", where=where, remedy="ask its publisher to sign it, by pd-publish --sign")
        claim = _claim(signature, where)
        keys = [key for key in self.keys if key.fingerprint == claim.fingerprint]
        if not keys:
            raise SignatureError(
                f"signed by a key that is not among the {len(self.keys)} you trust (sha256 {claim.fingerprint[:16]}…)",
                where=where,
                remedy="if you have that key from its owner, and not from where the package is, trust it: pd-verify"
                " --trusted-key",
            )
        if claim.digest != hashlib.sha256(manifest).hexdigest():
            raise SignatureError(
                f"the signature is over another manifest (id {claim.digest[:16]}…)",
                where=where,
                remedy="the package was changed after it was signed, or the signature is another package's",
            )
        _verify(manifest, signature, keys[0], where)
        if repo not in (None, claim.repo):
            raise SignatureError(
                f"signed to be {claim.repo}, and not {repo}",
                where=where,
                remedy="it may be passed off as another; if it has moved, its publisher must sign it again",
            )
        org = claim.repo.partition("/")[0]
        trusted = [key for key in keys if key.org in (None, org)]
        if not trusted:
            raise SignatureError(
                f"signed to be {claim.repo} by a key that you trust for {keys[0].org} alone: {keys[0].path}",
                where=where,
                remedy=f"if it may sign for {org}, too, copy it into the folder {org} beside",
            )
        return f"{trusted[0].path.name} (sha256 {claim.fingerprint[:16]}…), to be {claim.repo}"

    def check_package(self, package: Package) -> str:
        """Check the signature that lies in a package's folder; return what :meth:`check` does.

        Raises:
            SignatureError: see :meth:`check`.
            PackageError: its files can't be read any more.
        """
        return self.check(read_manifest(package), read_signature(package.path), str(package.path))


def trust(keys: Sequence[str | Path] = (), *, require: bool | None = None) -> Trust | None:
    """Return whom a package must be signed by, or None where nobody asks for a signature.

    Args:
        keys: files of public keys, which are then the only trusted ones.
        require: whether the keys of the user's configuration are to be asked; by default as
            PARAMDELTA_REQUIRE_SIGNATURE says.

    Raises:
        SourceError: a key can't be read.
        OptionError: no key is configured; or model-signing is not installed.
    """
    if keys:
        return Trust(tuple(read_public_key(expand(path)) for path in keys))
    if require is None:
        require = os.environ.get(REQUIRE_VARIABLE, "0") not in ("", "0")
    return Trust(configured_keys()) if require else None


def sign(manifest: bytes, repo: str, key: PrivateKey) -> bytes:
    """Return the signature that says: this manifest is that of a version of ``repo``.

    Raises:
        StorageError: no temporary file can be written.
    """
    from model_signing import signing

    with io_errors("signing"), tempfile.TemporaryDirectory() as scratch:
        # model-signing signs a folder, under its own name.
        folder, signature = Path(scratch, quote(repo, safe="")), Path(scratch, SIGNATURE_NAME)
        folder.mkdir()
        (folder / MANIFEST_NAME).write_bytes(manifest)
        password: Any = key.password  # annotated as text; the library below it takes bytes alone
        signer = signing.Config().use_elliptic_key_signer(private_key=key.path, password=password)
        signer.set_hashing_config(_every_file()).sign(folder, signature)
        return signature.read_bytes()


def read_manifest(package: Package) -> bytes:
    """Return the content of a package's manifest, as it was when the package was opened.

    Raises:
        PackageError: it is no more.
    """
    content = read_small(settle(package.path, MANIFEST_NAME), MANIFEST_BYTES)
    check_digest(hashlib.sha256(content).hexdigest(), package.digest, f"the file {MANIFEST_NAME!r}", str(package.path))
    return content


def read_signature(folder: Path) -> bytes | None:
    """Return the signature that lies in a package's folder, or None if there is none.

    Raises:
        PackageError: no regular file, or too large.
    """
    if not os.path.lexists(folder / SIGNATURE_NAME):
        return None
    return read_small(settle(folder, SIGNATURE_NAME), SIGNATURE_BYTES)


@dataclass(frozen=True)
class _Claim:
    """What a signature says of itself; not to be believed before :func:`_verify`."""

    fingerprint: str
    digest: str
    repo: str


def _claim(signature: bytes, where: str) -> _Claim:
    statement = None
    try:
        match strict_json.parse(signature):
            case {
                "verificationMaterial": {"publicKey": {"hint": str(fingerprint)}},
                "dsseEnvelope": {"payload": str(payload)},
            }:
                statement = strict_json.parse(base64.b64decode(payload, validate=True))
            case {"verificationMaterial": {"certificate": _} | {"x509CertificateChain": _}}:
                raise SignatureError(
                    "signed with a certificate, and not with a key",
                    where=where,
                    remedy="check it by model-signing's own command: see docs/signing.md",
                )
    except (PackageError, binascii.Error) as error:
        raise SignatureError(f"the signature can't be read: {error}", where=where) from None
    match statement:
        case {
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": "https://model_signing/signature/v1.0",
            "subject": [{"name": str(name)}],
            "predicate": {"resources": [{"name": "manifest.json", "algorithm": "sha256", "digest": str(digest)}]},
        } if is_repo(unquote(name)) and is_id(digest) and is_id(fingerprint):
            return _Claim(fingerprint, digest, unquote(name))
    raise SignatureError(
        "the signature is not one over manifest.json alone, for a repository",
        where=where,
        remedy="sign it by pd-publish --sign, or as docs/signing.md says",
    )


def _verify(manifest: bytes, signature: bytes, key: PublicKey, where: str) -> None:
    """Let model-signing check copies of what was read, so that nobody changes it meanwhile."""
    need_libraries()
    from model_signing import verifying

    with io_errors("checking the signature"), tempfile.TemporaryDirectory() as scratch:
        folder, beside, public = Path(scratch, "package"), Path(scratch, SIGNATURE_NAME), Path(scratch, "key.pem")
        folder.mkdir()
        (folder / MANIFEST_NAME).write_bytes(manifest)
        beside.write_bytes(signature)
        public.write_bytes(key.pem)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public).set_hashing_config(_every_file())
        try:
            verifier.verify(folder, beside)
        except Exception as problem:  # of four libraries, and what they raise on broken bundles is not listed
            raise SignatureError(
                "the signature is not genuine: it was altered, or made without the key that it names",
                where=where,
                remedy="do not use the package; get it again, and tell its publisher if it stays so",
            ) from problem


def _every_file() -> Any:
    """Return how to hash: every file, also those of git, which model-signing passes over unless told."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)
