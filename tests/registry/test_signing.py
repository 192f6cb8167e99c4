"""Signatures: who signed is known, what was signed can't be passed off as anything else, and nobody is asked for it.

No test here may open a connection; what goes by a Hub on loopback does so in processes of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import hashing, signing, verifying

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.environment import KEYS_VARIABLE, PASSWORD_VARIABLE, REQUIRE_VARIABLE
from paramdelta_hub.registry.keys import read_private_key, read_public_key
from paramdelta_hub.registry.signing import Trust, sign_manifest
from tests.attacks.outcomes import change_manifest
from tests.conftest import Family
from tests.registry.packages import altered, id_of, labelled, tree
from tests.support import paramdelta as forked
from tests.support.hub import Account, LoopbackHub

REPO = "acme/instruct"
pytestmark = pytest.mark.usefixtures("no_fsync")


def write_pair(folder: Path, name: str, key: Any, encryption: KeySerializationEncryption | None = None) -> Path:
    """Write NAME.pem and NAME.pub.pem, and return the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    private = folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public_of(private).write_bytes(public)
    return private


def public_of(private: Path) -> Path:
    return private.with_suffix(".pub.pem")


def trusting(*private: Path) -> Trust:
    return Trust(tuple(read_public_key(public_of(path)) for path in private))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs of acme and of mallory."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("acme", "mallory"):
        write_pair(folder, name, ec.generate_private_key(ec.SECP256R1()))
    return folder


@pytest.fixture
def acme(keys: Path) -> Path:
    return keys / "acme.pem"


@pytest.fixture
def mallory(keys: Path) -> Path:
    return keys / "mallory.pem"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's trusted keys, none yet; nothing of this machine's user is looked at."""
    for name in (KEYS_VARIABLE, PASSWORD_VARIABLE, REQUIRE_VARIABLE, "PARAMDELTA_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "config/paramdelta/trusted_keys"


@pytest.fixture(autouse=True)
def _no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def believe(home: Path, *private: Path, org: str = "") -> None:
    """Put public keys into the user's configuration."""
    for path in private:
        (home / org).mkdir(parents=True, exist_ok=True)
        shutil.copy(public_of(path), home / org / path.name)


@pytest.fixture
def package(shared_family: Family, tmp_path: Path) -> Path:
    return labelled(shared_family.delta, tmp_path / "package")


@pytest.fixture
def root(package: Path, acme: Path, tmp_path: Path) -> Path:
    """A registry with a version that acme signed."""
    pd.publish(package, REPO, registry=tmp_path / "registry", sign=acme)
    return tmp_path / "registry"


def lying(root: Path, version: str = "1.0.0") -> Path:
    return root / REPO / version


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exit_code == code, (found.output, found.exception)
    return found


def refused(words: str, *arguments: str | Path, code: int = 5, kind: str = "signature") -> None:
    error = json.loads(run(*arguments, "--json", code=code).stdout)["error"]
    assert error["kind"] == kind
    assert words in error["what"], error
    assert error["remedy"]


# What a signature is worth.


def test_published_signed_and_pulled_by_who_trusts_the_key(root: Path, acme: Path, home: Path, tmp_path: Path) -> None:
    believe(home, acme)
    pulled = pd.pull(REPO, tmp_path / "copy", registry=root, require_signature=True)
    assert pulled.signed_by is not None
    assert pulled.signed_by.startswith("acme.pem (sha256 ")
    assert (tmp_path / "copy/manifest.json.sig").read_bytes() == (lying(root) / "manifest.json.sig").read_bytes()
    told = run("pull", root / REPO, "-o", tmp_path / "other", "--require-signature").stdout
    assert "signed    by acme.pem (sha256 " in told
    told = run("verify", tmp_path / "copy", "--trusted-key", public_of(acme)).stdout
    assert "sig   by acme.pub.pem" in told
    assert f"for {REPO}" in told
    assert pd.verify(tmp_path / "copy", threads=1).signed_by is None, "nobody asked"


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_curve_and_encrypted_keys(
    curve: type[ec.EllipticCurve], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write_pair(tmp_path, "key", ec.generate_private_key(curve()), BestAvailableEncryption(b"secret"))
    with pytest.raises(pd.SourceError, match="encrypted") as caught:
        read_private_key(key)
    assert PASSWORD_VARIABLE in str(caught.value.remedy)
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(pd.SourceError, match=PASSWORD_VARIABLE):
        read_private_key(key)
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    pd.publish(package, REPO, registry=tmp_path / "registry", sign=key)
    assert pd.verify(lying(tmp_path / "registry"), trusted_keys=[public_of(key)], threads=1).signed_by
    plain = write_pair(tmp_path, "plain", ec.generate_private_key(curve()))
    assert read_private_key(plain).password is None, "a password that the key does not need is not used"
    content = (package / "manifest.json").read_bytes()
    assert trusting(plain).check(content, sign_manifest(content, REPO, read_private_key(plain)), "here", REPO)


def test_unsigned_is_refused_and_nothing_is_written(
    package: Path, root: Path, acme: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme)
    (lying(root) / "manifest.json.sig").unlink()
    refused("not signed", "pull", root / REPO, "-o", tmp_path / "copy", "--require-signature")
    refused("not signed", "pull", root / REPO, "--require-signature")
    refused("not signed", "verify", lying(root), "--require-signature")
    refused("not signed", "verify", f"{root}/{REPO}@1.0.0", "--trusted-key", public_of(acme))
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "cache").exists()


def test_a_stranger_s_key_is_refused_also_if_it_comes_with_the_package(
    package: Path, acme: Path, mallory: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme)
    root = tmp_path / "registry"
    pd.publish(package, REPO, registry=root, sign=mallory)
    shutil.copy(public_of(mallory), lying(root) / "trusted_keys.pem")
    refused("by none of your 1 trusted keys", "pull", root / REPO, "--require-signature")
    refused("by none of your 1 trusted keys", "verify", lying(root), "--trusted-key", public_of(acme))
    (lying(root) / "trusted_keys.pem").unlink()
    pd.verify(lying(root), trusted_keys=[public_of(acme), public_of(mallory)], threads=1)


def test_a_changed_manifest_is_refused(root: Path, acme: Path, home: Path, tmp_path: Path) -> None:
    believe(home, acme)
    change_manifest(lying(root), lambda manifest: manifest.update(license="none"))
    refused("for another manifest", "pull", root / REPO, "--require-signature")
    refused("for another manifest", "verify", lying(root), "--require-signature")
    pd.verify(lying(root), threads=1)  # whole it is, and that is all that a digest can say


def test_every_changed_byte_of_a_signature_is_noticed(package: Path, acme: Path) -> None:
    """Or it means nothing: then the answer is the same."""
    content, trust = (package / "manifest.json").read_bytes(), trusting(acme)
    good = sign_manifest(content, REPO, read_private_key(acme))
    said = trust.check(content, good, "here", REPO)
    refusals = 0
    for place in range(0, len(good), 3):
        bad = good[:place] + bytes([good[place] ^ (1 << place % 7)]) + good[place + 1 :]
        try:
            assert trust.check(content, bad, "here", REPO) == said
        except pd.SignatureError:
            refusals += 1
    assert refusals > len(good) / 3 * 0.9
    for cut in range(0, len(good), 40):
        with pytest.raises(pd.SignatureError):
            trust.check(content, good[:cut], "here", REPO)


def test_a_signature_of_another_package_does_not_fit(
    shared_family: Family, root: Path, acme: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme)
    other = altered(shared_family.delta, tmp_path / "other", "2.0.0")
    pd.publish(other, REPO, registry=root, sign=acme)
    shutil.copy(lying(root, "2.0.0") / "manifest.json.sig", lying(root) / "manifest.json.sig")
    refused("for another manifest", "pull", f"{root}/{REPO}@1.0.0", "--require-signature")


def test_a_signed_package_can_t_be_passed_off_as_another(root: Path, acme: Path, home: Path, tmp_path: Path) -> None:
    """Both are acme's, both are signed; a registry that is not honest gives one for the other."""
    believe(home, acme)
    shutil.copytree(root / REPO, root / "acme/harmless")
    refused(f"signed for {REPO}, not for acme/harmless", "pull", root / "acme/harmless", "--require-signature")
    refused(f"signed for {REPO}", "verify", f"{root}/acme/harmless@1.0.0", "--trusted-key", public_of(acme))
    # Published anew there, it is signed for there.
    pd.publish(lying(root), "acme/other", registry=root, sign=acme)
    assert pd.pull("acme/other", registry=root, require_signature=True).signed_by


def test_a_signature_in_somebody_else_s_name_is_not_genuine(
    root: Path, acme: Path, mallory: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme)
    place = lying(root) / "manifest.json.sig"
    named = json.loads(place.read_bytes())["verificationMaterial"]
    change_manifest(lying(root), lambda manifest: manifest.update(license="none"))
    forged = json.loads(sign_manifest((lying(root) / "manifest.json").read_bytes(), REPO, read_private_key(mallory)))
    place.write_text(json.dumps({**forged, "verificationMaterial": named}))
    refused("not genuine", "pull", root / REPO, "--require-signature")


def by_library(folder: Path, key: Path, config: hashing.Config | None = None) -> bytes:
    """Return a signature that model-signing makes of a folder."""
    place = folder.parent / "by-library.sig"
    signer = signing.Config().use_elliptic_key_signer(private_key=key)
    signer.set_hashing_config(config or hashing.Config()).sign(folder, place)
    return place.read_bytes()


def test_what_the_key_signed_otherwise_is_no_signature_of_the_package(
    package: Path, acme: Path, tmp_path: Path
) -> None:
    """Whoever has the key may have signed models with it; none of that is to be taken for this."""
    content, trust = (package / "manifest.json").read_bytes(), trusting(acme)
    ignoring = hashing.Config().set_ignored_paths(paths=[Path("manifest.json")])
    for signature in (by_library(package, acme), by_library(package, acme, ignoring)):
        with pytest.raises(pd.SignatureError, match=r"manifest\.json alone"):
            trust.check(content, signature, "here")
    alone = tmp_path / "instruct"  # the manifest alone, but for no repository
    alone.mkdir()
    shutil.copy(package / "manifest.json", alone)
    with pytest.raises(pd.SignatureError, match="for one repository"):
        trust.check(content, by_library(alone, acme), "here")


def test_other_tools_make_and_check_the_same_signatures(root: Path, acme: Path, tmp_path: Path) -> None:
    """As docs/signing.md says, for keys in hardware and for those who don't want our word for it."""
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_of(acme)).set_ignore_unsigned_files(True)
    verifier.verify(lying(root), lying(root) / "manifest.json.sig")
    folder = tmp_path / REPO.replace("/", "%2F")
    folder.mkdir()
    shutil.copy(lying(root) / "manifest.json", folder)
    (lying(root) / "manifest.json.sig").write_bytes(by_library(folder, acme))
    assert pd.pull(REPO, registry=root, trusted_keys=[public_of(acme)]).signed_by


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff", b'{"a": 1, "a": 2}', b'{"dsseEnvelope": null}', b"[" * 5000, b"1e999"]
)
def test_rubbish_is_refused(text: bytes, acme: Path) -> None:
    with pytest.raises(pd.SignatureError):
        trusting(acme).check(b"{}", text, "here")


def test_a_keyless_signature_is_told_from_one_by_a_key(acme: Path) -> None:
    bundle = {"verificationMaterial": {"certificate": {"rawBytes": ""}}, "dsseEnvelope": {"payload": ""}}
    with pytest.raises(pd.SignatureError, match="with a certificate") as caught:
        trusting(acme).check(b"{}", json.dumps(bundle).encode(), "here")
    assert "signing.md" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("subject", 0, "name"), "../../etc"),
        (("subject", 0, "name"), "acme%2F..%2Finstruct"),
        (("subject", 0, "name"), "acme%2Finstr\u202euct"),
        (("predicate", "resources", 0, "name"), "README.md"),
        (("predicate", "resources", 0, "algorithm"), "blake2"),
        (("predicate", "resources", 0, "digest"), "0" * 63 + "\n"),
        (("predicateType",), "https://model_signing/Digests/v0.1"),
        (("_type",), "https://in-toto.io/Statement/v0.1"),
    ],
)
def test_other_statements_are_refused_before_their_words_are_shown(
    at: tuple[str | int, ...], value: str, package: Path, acme: Path
) -> None:
    content = (package / "manifest.json").read_bytes()
    bundle = json.loads(sign_manifest(content, REPO, read_private_key(acme)))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    node = statement
    for step in at[:-1]:
        node = node[step]
    node[at[-1]] = value
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    with pytest.raises(pd.SignatureError) as caught:
        trusting(acme).check(content, json.dumps(bundle).encode(), "here")
    assert value not in str(caught.value)


# What is not listed does not slip in.


def test_a_file_beside_what_is_signed_does_not_slip_in(root: Path, acme: Path, home: Path, tmp_path: Path) -> None:
    believe(home, acme)
    (lying(root) / "companions").mkdir()
    for name in ("modeling.py", "delta-00002-of-00002.safetensors", "companions/chat_template.jinja"):
        (lying(root) / name).write_text("evil")
    pd.pull(REPO, tmp_path / "copy", registry=root, require_signature=True)
    assert not [name for name, content in tree(tmp_path / "copy").items() if content == b"evil"]
    assert len(pd.verify(lying(root), require_signature=True, threads=1).beside) == 3
    with pytest.raises(pd.IntegrityError, match="not vouched for"):
        pd.verify(lying(root), require_signature=True, strict=True, threads=1)


def test_with_a_signature_required_a_package_is_not_used_where_others_can_change_it(
    root: Path, acme: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme)
    assert pd.pull(REPO, registry=root).path == lying(root)
    copied = pd.pull(REPO, registry=root, require_signature=True).path
    assert copied.is_relative_to(tmp_path / "cache")
    assert id_of(copied) == id_of(lying(root))


# Whom to trust.


def test_a_key_can_be_trusted_for_one_organisation_alone(
    root: Path, acme: Path, mallory: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme, org="acme")
    believe(home, mallory, org="mallory")
    assert pd.pull(REPO, registry=root, require_signature=True).signed_by
    evil = labelled(lying(root), tmp_path / "evil", "3.0.0")
    pd.publish(evil, REPO, registry=root, sign=mallory)
    refused("trust only for mallory", "pull", root / REPO, "--require-signature")
    refused("trust only for mallory", "verify", lying(root, "3.0.0"), "--require-signature")
    pd.publish(evil, "mallory/instruct", registry=root, sign=mallory)
    assert pd.pull("mallory/instruct", registry=root, require_signature=True).signed_by
    believe(home, mallory)  # for all
    assert pd.pull(f"{REPO}@1.0.0", registry=root, require_signature=True).signed_by
    assert pd.pull("mallory/instruct", registry=root, require_signature=True).signed_by


def test_keys_named_in_the_environment_replace_the_configuration_s(
    root: Path, acme: Path, mallory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believe(home, acme)
    monkeypatch.setenv(KEYS_VARIABLE, str(public_of(mallory)))
    refused("by none of your 1", "pull", root / REPO, "--require-signature")
    monkeypatch.setenv(KEYS_VARIABLE, os.pathsep.join([str(public_of(mallory)), str(home), "/nowhere"]))
    assert pd.pull(REPO, registry=root, require_signature=True).signed_by


def test_no_key_is_trusted(root: Path, home: Path) -> None:
    refused("there is no trusted key", "pull", root / REPO, "--require-signature", code=2, kind="option")


def test_all_commands_can_be_told_to_require_signatures(
    root: Path, acme: Path, home: Path, shared_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believe(home, acme)
    monkeypatch.setenv(REQUIRE_VARIABLE, "1")
    reference = f"{root}/{REPO}@1.0.0"
    assert pd.apply(shared_family.base, reference, tmp_path / "out", threads=1).is_post
    (lying(root) / "manifest.json.sig").unlink()
    for arguments in (["pull"], ["inspect"], ["verify"], ["apply", shared_family.base, "-o", tmp_path / "other"]):
        refused("not signed", *arguments, reference)
    assert not (tmp_path / "other").exists()
    monkeypatch.setenv(REQUIRE_VARIABLE, "0")
    run("inspect", reference)


def test_keys_that_are_none(keys: Path, acme: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish.pem").write_text("-----BEGIN PUBLIC KEY-----\nrubbish\n-----END PUBLIC KEY-----\n")
    (tmp_path / "long.pem").write_bytes(b"\n" * 70_000)
    others = {
        "rsa": rsa.generate_private_key(65537, 2048),
        "bitcoin": ec.generate_private_key(ec.SECP256K1()),
    }
    for name, key in others.items():
        private = write_pair(tmp_path, name, key)
        for read in (
            lambda path=private: read_private_key(path),
            lambda path=private: read_public_key(public_of(path)),
        ):
            with pytest.raises(pd.SourceError, match="P-256") as caught:
                read()
            assert "openssl" in str(caught.value.remedy)
    for path, words in {
        acme: "a private key; a public key is needed",
        tmp_path / "rubbish.pem": "not a public key",
        tmp_path / "long.pem": "70000 bytes",
        tmp_path / "missing.pem": "can't be opened",
    }.items():
        with pytest.raises(pd.SourceError, match=words):
            read_public_key(path)
    with pytest.raises(pd.SourceError, match="not a private key"):
        read_private_key(public_of(acme))


def test_a_key_that_can_t_be_read_stops_everything(root: Path, acme: Path, home: Path) -> None:
    believe(home, acme)
    (home / "broken.pem").write_text("rubbish")
    with pytest.raises(pd.SourceError, match=r"broken\.pem"):
        pd.pull(REPO, registry=root, require_signature=True)


def test_without_the_extra_it_says_what_to_install(
    root: Path, acme: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believe(home, acme)
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    for call in (
        lambda: pd.pull(REPO, registry=root, require_signature=True),
        lambda: pd.publish(lying(root), REPO, registry=root, sign=acme),
        lambda: pd.verify(lying(root), trusted_keys=[public_of(acme)]),
    ):
        with pytest.raises(pd.OptionError, match="not installed") as caught:
            call()
        assert "paramdelta-hub[sign]" in str(caught.value.remedy)
    pd.verify(lying(root), threads=1)  # and nobody else needs it


# Rollback.


def test_a_registry_that_goes_back_is_noticed(
    shared_family: Family, root: Path, acme: Path, home: Path, tmp_path: Path
) -> None:
    """Old versions were signed, too: what was pulled once is pinned, and a signature does not loosen it."""
    believe(home, acme)
    pd.publish(labelled(shared_family.delta, tmp_path / "1.1.0", "1.1.0"), REPO, registry=root, sign=acme)
    copy = tmp_path / "copy"
    pd.pull(f"{REPO}@1.1.0", copy, registry=root, require_signature=True)
    held = tree(copy)
    shutil.rmtree(lying(root, "1.1.0"))  # the newest there is the old one now
    for reference in (REPO, f"{REPO}@1.0.0"):
        with pytest.raises(pd.DestinationError, match=r"holds 1\.1\.0"):
            pd.pull(reference, copy, registry=root, require_signature=True)
    other = altered(shared_family.delta, tmp_path / "other", "1.1.0")
    pd.publish(other, REPO, registry=root, sign=acme)
    with pytest.raises(pd.IntegrityError, match="never replaced"):
        pd.pull(f"{REPO}@1.1.0", copy, registry=root, require_signature=True)
    assert tree(copy) == held


def test_an_unsigned_version_does_not_take_the_place_of_a_signed_one(
    shared_family: Family, root: Path, acme: Path, home: Path, tmp_path: Path
) -> None:
    believe(home, acme)
    pd.pull(REPO, tmp_path / "copy", registry=root, require_signature=True)
    held = tree(tmp_path / "copy")
    pd.publish(labelled(shared_family.delta, tmp_path / "2.0.0", "2.0.0"), REPO, registry=root)
    refused("not signed", "pull", f"{root}/{REPO}@2.0.0", "-o", tmp_path / "copy", "--require-signature")
    assert tree(tmp_path / "copy") == held


# Publishing.


def test_publishing_again_keeps_the_signature(package: Path, root: Path, acme: Path) -> None:
    before = (lying(root) / "manifest.json.sig").read_bytes()
    assert pd.publish(package, REPO, registry=root, sign=acme).uploaded is False
    assert pd.publish(package, REPO, registry=root).uploaded is False
    assert (lying(root) / "manifest.json.sig").read_bytes() == before


def test_a_signature_in_the_folder_goes_along(package: Path, root: Path, acme: Path, tmp_path: Path) -> None:
    signature = (lying(root) / "manifest.json.sig").read_bytes()
    (package / "manifest.json.sig").write_bytes(signature)
    for number, key in enumerate([None, acme]):  # one of this key for this repository need not be made anew
        pd.publish(package, REPO, registry=tmp_path / f"mirror-{number}", sign=key)
        assert (lying(tmp_path / f"mirror-{number}") / "manifest.json.sig").read_bytes() == signature


def test_what_is_published_unsigned_stays_unsigned(
    package: Path, acme: Path, mallory: Path, root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    pd.publish(package, REPO, registry=other, sign=mallory)
    with pytest.raises(pd.PublishError, match="without this signature") as caught:
        pd.publish(package, REPO, registry=other, sign=acme)
    assert "sign the next version" in str(caught.value.remedy)
    pd.publish(package, "acme/unsigned", registry=root)
    refused("not signed", "publish", package, root / "acme/unsigned", "--sign", acme, code=8, kind="publish")
    assert not (root / "acme/unsigned/1.0.0/manifest.json.sig").exists()


def test_a_signature_for_another_repository_is_not_published(package: Path, root: Path, tmp_path: Path) -> None:
    (package / "manifest.json.sig").write_bytes((lying(root) / "manifest.json.sig").read_bytes())
    mirror = tmp_path / "mirror"
    refused(f"for {REPO}, not for acme/other", "publish", package, mirror / "acme/other")
    assert not (mirror / "acme/other").exists()
    (package / "manifest.json.sig").unlink()  # as the message says
    assert pd.publish(package, mirror / "acme/other").uploaded
    assert [found.version for found in pd.versions(mirror / "acme/other")] == ["1.0.0"]


def test_an_unsigned_version_after_a_signed_one_is_told(
    shared_family: Family, root: Path, acme: Path, tmp_path: Path
) -> None:
    newer = labelled(shared_family.delta, tmp_path / "2.0.0", "2.0.0")
    done = pd.publish(newer, REPO, registry=root)
    assert [note for note in done.notes if "version 1.0.0 is signed, and 2.0.0 is not" in note]
    signed = labelled(shared_family.delta, tmp_path / "3.0.0", "3.0.0")
    assert not [note for note in pd.publish(signed, REPO, registry=root, sign=acme).notes if "is signed" in note]


def test_a_signature_that_no_longer_fits_is_made_anew(package: Path, root: Path, acme: Path) -> None:
    shutil.copy(lying(root) / "manifest.json.sig", package)
    change_manifest(package, lambda manifest: manifest.update(version="1.1.0"))
    pd.publish(package, REPO, registry=root, sign=acme)
    signature = json.loads((lying(root, "1.1.0") / "manifest.json.sig").read_bytes())
    (resource,) = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))["predicate"]["resources"]
    assert resource["digest"] == hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()
    assert not {path.name for path in (root / REPO).iterdir()} - {"1.0.0", "1.1.0"}


def test_a_key_that_can_t_sign_publishes_nothing(package: Path, acme: Path, tmp_path: Path) -> None:
    refused(
        "not a private key", "publish", package, tmp_path / "r" / REPO, "--sign", public_of(acme), code=3, kind="source"
    )
    assert not (tmp_path / "r").exists()


# By the Hub.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub().running() as hub:
        hub.accounts |= {"hf_me": Account("me", ("acme",))}
        yield hub


Paramdelta = Callable[..., tuple[int, Any]]


@pytest.fixture
def paramdelta(hub: LoopbackHub, tmp_path: Path) -> Paramdelta:
    """The command line in a process of its own."""

    def call(*arguments: str | Path, **extra: str) -> tuple[int, Any]:
        environment = hub.environment(tmp_path / "home", "hf_me", XDG_CACHE_HOME=str(tmp_path / "cache"), **extra)
        done = forked.paramdelta([*arguments, "--json"], env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout or "null")

    return call


def test_signed_by_the_hub(hub: LoopbackHub, paramdelta: Paramdelta, package: Path, acme: Path, tmp_path: Path) -> None:
    public = public_of(acme)
    # A publisher who died before the tag, and had not signed: the commit is there, and lacks the signature alone.
    made = hub.add(REPO)
    before = made.add(dict(tree(package))).id
    assert paramdelta("publish", package, REPO, "--sign", acme)[1]["uploaded"] is True
    assert made.head.parent == before
    assert made.tags == {"1.0.0": made.head.id}
    code, told = paramdelta("pull", f"{REPO}@1.0.0", "-o", tmp_path / "copy", "--trusted-key", public)
    assert code == 0, told
    assert told["signed_by"].startswith("acme.pub.pem")
    pd.verify(tmp_path / "copy", trusted_keys=[public], threads=1)
    # Offline, from the cache; and a signature that says so of another repository.
    offline = ["pull", f"{REPO}@1.0.0", "--manifest-only", "--trusted-key", public]
    assert paramdelta(*offline, HF_HUB_OFFLINE="1")[1]["signed_by"] == told["signed_by"]
    hub.add("acme/harmless").add(dict(tree(tmp_path / "copy")))
    code, told = paramdelta("verify", "acme/harmless@main", "--trusted-key", public)
    assert (code, told["error"]["kind"]) == (5, "signature"), told
    assert "signed for acme/instruct" in told["error"]["what"]


def test_unsigned_by_the_hub(paramdelta: Paramdelta, package: Path, acme: Path) -> None:
    assert paramdelta("publish", package, REPO)[1]["uploaded"] is True
    code, told = paramdelta("pull", REPO, "--trusted-key", public_of(acme))
    assert (code, told["error"]["what"]) == (5, "not signed")
    code, told = paramdelta("publish", package, REPO, "--sign", acme)
    assert (code, told["error"]["kind"]) == (8, "publish"), told
