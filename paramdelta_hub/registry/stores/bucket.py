"""A registry in a bucket or in any other fsspec store: ``ROOT/org/name/VERSION/`` is the package itself.

Such stores can't rename. The order of writes makes a version complete and unique:

1. The claim ``ROOT/org/name/.claims/VERSION.json`` names the package's id. It is created *exclusively* (S3:
   ``If-None-Match: *``) and never removed. If several people publish the same version, one of them wins, and the others
   read who did. So everybody who writes below ``VERSION/`` has the same id, and writes the same bytes under the same
   names. It does no harm if two of them do, or if one dies and another continues.
2. The files are uploaded, each completely or not at all. Existing files of the right size are kept. (A store that
   shows half of a file shows a smaller one, which is uploaded again.)
3. The claim is read again. Then ``manifest.json`` is created, exclusively as well. Readers ignore a folder without a
   manifest. In a folder with one, they check every byte.

A publisher that dies leaves a claim without a version. The same package can continue from there; another package needs
another version. Some stores accept a request for exclusive creation and overwrite the file, so this is tried first
with a test file. Some fsspec file systems (SFTP, for example) only check whether the file exists and then write it.
There, two publishers in the same instant can both believe that they won. Then the second reading of the claim tells
one of them, and readers refuse a version whose files do not match its manifest.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from datetime import timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paramdelta_hub import limits
from paramdelta_hub.errors import PackageError, ParamdeltaError, PublishError, RegistryError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import shown, without_secrets
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import COPY_BYTES, KIB, STORE_BLOCK_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import Package
from paramdelta_hub.tasks.progress import Progress

__all__ = ["BucketStore"]

_CLAIMS, _PROBE, _CLAIM_BYTES = ".claims", "exclusive", 4 * KIB
_STORE_TRIES = 3
"""How often the client of S3 sends a request that fails for a moment, or is not answered."""
_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([^/\s\"?]+)")


class BucketStore:
    """Reads and writes below an fsspec URL.

    Raises:
        OptionError: the URL holds credentials.
        RegistryError: the kind of URL is unknown, or needs a package that is not installed.
    """

    missing = "there is nothing at this address"

    def __init__(self, url: str) -> None:
        # Imported here because registries in folders do not need it.
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            # No cache of listings, so that new publications are seen at once.
            self._store, path = url_to_fs(self.url, use_listings_cache=False, **_patience(self.url))
        except ImportError as error:
            hint = (
                "pip install 'paramdelta-hub[s3]'" if self.url.startswith("s3") else "install the package named above"
            )
            raise RegistryError(f"this kind of URL can't be opened: {error}", where=url, remedy=hint) from None
        except ValueError as error:
            raise RegistryError(f"not a valid URL: {error}", where=url, remedy="write s3://BUCKET/PREFIX") from None
        if hasattr(self._store, "retries"):  # s3fs repeats what its client has already repeated
            self._store.retries = 1
        self._root = str(path).rstrip("/")

    def exists(self) -> bool:
        """Whether there is anything at the URL. Most stores know no empty folders."""
        with self._translate_errors(""):
            if self._store.isfile(self._root):
                raise RegistryError(
                    "a registry must be a folder, and this is a file", where=self.url, remedy="name the folder"
                )
            if self._store.exists(self._root):
                return True
            self._check_bucket()
        return False

    def check_apart(self, repo: str) -> None:
        """Do nothing: other outputs are never written to a bucket."""

    def list_folder(self, folder: str) -> dict[str, bool]:
        """Return the names in ``folder``, and whether each is a folder; empty if there is no such folder."""
        entries = []
        path = self._path(folder)
        with self._translate_errors(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            entries = self._store.ls(path, detail=True)
        found = ((str(entry["name"]).rstrip("/"), entry["type"] == "directory") for entry in entries)
        return {name.rpartition("/")[2]: is_folder for name, is_folder in found if name != path}

    def read(self, folder: str, name: str, limit: int) -> bytes | None:
        """Return the content of a file, or None if it does not exist; PackageError if it is larger than ``limit``."""
        if self._size(folder, name) is None:
            return None
        content = bytearray()
        for chunk in self.chunks(folder, name):
            content += chunk
            if len(content) > limit:
                raise PackageError(f"larger than the limit of {limit} bytes", where=self._address(f"{folder}/{name}"))
        return bytes(content)

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content in pieces; PackageError if there is no such file."""
        with self._translate_errors(f"{folder}/{name}"):
            try:
                file = self._store.open(self._path(f"{folder}/{name}"), "rb", block_size=STORE_BLOCK_BYTES)
            except FileNotFoundError:
                raise PackageError(f"the file {name!r} is missing", where=self._address(folder)) from None
            with file:
                while chunk := file.read(COPY_BYTES):
                    yield chunk

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC, if the store knows."""
        with self._translate_errors(folder), contextlib.suppress(NotImplementedError, FileNotFoundError):
            moment = self._store.modified(self._path(f"{folder}/{MANIFEST_NAME}"))
            utc = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
            return str(utc.isoformat(timespec="seconds"))
        return None

    def local_path(self, folder: str) -> Path | None:
        """Return None: a bucket is not on this machine."""
        return None

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Write a small file of a repository's folder, or replace it."""
        with self._translate_errors(f"{folder}/{name}"):
            self._store.pipe_file(self._path(f"{folder}/{name}"), content)

    def remove(self, folder: str, name: str) -> None:
        """Remove a small file of a repository's folder, if it is there."""
        with self._translate_errors(f"{folder}/{name}"), contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._path(f"{folder}/{name}"))

    def put(
        self, package: Package, folder: str, manifest: bytes, extras: Mapping[str, bytes], progress: Progress
    ) -> None:
        """Publish a version completely or not at all. RegistryError also if publishing to this store is not safe."""
        repo, _, version = folder.rpartition("/")
        claims = f"{repo}/{_CLAIMS}"
        self._make_folder(folder)
        self._make_folder(claims)
        if self._create(claims, _PROBE, b"") and self._create(claims, _PROBE, b""):
            raise RegistryError(
                "the store overwrites files although it is told not to, so publishing is not safe",
                where=self.url,
                remedy="publish to the Hub, to a folder, or to a store with If-None-Match (S3, GCS, recent MinIO)",
            )
        self._create(claims, f"{version}.json", strict_json.canonical({"id": package.digest}))
        self._check_claim(claims, version, package.digest)
        self._put_files(package, folder, extras, progress)
        self._check_claim(claims, version, package.digest)
        if not self._create(folder, MANIFEST_NAME, manifest) and (
            self.read(folder, MANIFEST_NAME, len(manifest)) != manifest
        ):
            raise PublishError("somebody else published it first", where=self._address(folder))

    def _put_files(self, package: Package, folder: str, extras: Mapping[str, bytes], progress: Progress) -> None:
        missing = [file for file in package.manifest.files if self._size(folder, file.path) != file.size]
        progress.start("upload", sum(file.size for file in missing))
        try:
            for file in missing:
                with self._translate_errors(f"{folder}/{file.path}"):
                    self._store.put_file(
                        str(resolve_inside(package.path, file.path)),
                        self._path(f"{folder}/{file.path}"),
                        callback=_callback(progress),
                    )
        finally:
            progress.finish()
        for name, content in extras.items():
            with self._translate_errors(f"{folder}/{name}"):
                self._store.pipe_file(self._path(f"{folder}/{name}"), content)

    def _check_claim(self, claims: str, version: str, package_id: str) -> None:
        where = self._address(f"{claims}/{version}.json")
        claim = strict_json.parse(self.read(claims, f"{version}.json", _CLAIM_BYTES) or b"{}", PackageError, where)
        if claim != {"id": package_id}:
            raise PublishError(
                "somebody else has claimed this version, with other content",
                where=where,
                remedy="choose another version; or delete the claim, if that publication was given up",
            )

    def _make_folder(self, folder: str) -> None:
        """Create a folder if the store has folders. A bucket is never created: its name may be a typing error."""
        with self._translate_errors(folder):
            self._check_bucket()
            self._store.makedirs(self._path(folder), exist_ok=True)

    def _check_bucket(self) -> None:
        top = self._root.partition("/")[0] or "/"
        if "://" not in self._root and not self._store.exists(top):
            raise RegistryError(
                "there is no such bucket, or you may not see it",
                where=self.url,
                remedy="check the spelling, or create the bucket first",
            )

    def _create(self, folder: str, name: str, content: bytes) -> bool:
        """Create a file unless it exists; return whether it was created."""
        with self._translate_errors(f"{folder}/{name}"):
            try:
                self._store.pipe_file(self._path(f"{folder}/{name}"), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # Servers report this in several ways, such as 412, or 409 if two clients create it at once.
                if error.errno not in (errno.EINVAL, errno.EIO) or self._size(folder, name) is None:
                    raise
                return False
        return True

    def _size(self, folder: str, name: str) -> int | None:
        with self._translate_errors(f"{folder}/{name}"), contextlib.suppress(FileNotFoundError):
            found = self._store.info(self._path(f"{folder}/{name}"))
            return int(found["size"]) if found["type"] == "file" else None
        return None

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _address(self, path: str) -> str:
        return f"{self.url}/{path}"

    @contextlib.contextmanager
    def _translate_errors(self, path: str) -> Iterator[None]:
        """Turn the errors of the store's client into ours, with a remedy."""
        try:
            yield
        except ParamdeltaError:
            raise
        except FileNotFoundError:
            raise RegistryError("does not exist", where=self._address(path), remedy="check the address") from None
        except Exception as error:  # clients raise classes of their own, without a common base class
            host, said = self._host(error), _words(error)
            if isinstance(error, PermissionError):
                raise RegistryError(
                    f"{host} does not allow this{said}",
                    where=self._address(path),
                    remedy="check the credentials (S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID with its secret) and the"
                    " rights",
                ) from None
            silent = "Timeout" in type(error).__name__ or isinstance(error, TimeoutError)
            failed = f"{host} does not answer" if silent else f"the request to {host} failed"
            raise RegistryError(
                f"{failed} ({type(error).__name__}){said}",
                where=self._address(path),
                remedy="check the address, the connection and the credentials, then run the same command again",
            ) from error

    def _host(self, error: Exception) -> str:
        """Return the server that an error is about, as far as it is known."""
        if found := _HOST.search(str(error)):
            return found[1]
        client = getattr(self._store, "_s3", None)
        return urlsplit(str(client.meta.endpoint_url)).netloc if client else "the store"


def _words(error: BaseException) -> str:
    """Return what a server of S3 itself says. What clients say is not shown, because some of it holds signed URLs."""
    match getattr(error.__cause__, "response", None):
        case {"Error": {"Code": code, "Message": message}}:
            text = without_secrets(" ".join(f"{code}: {message}".split()))[:300]
            return f": {shown(text)}"
    return ""


def _patience(url: str) -> dict[str, Any]:
    """Return the options of a store by which a server that never answers is given up within a minute."""
    if url.partition("://")[0].lower() not in ("s3", "s3a"):
        return {}
    seconds = limits.SILENT_SECONDS * limits.SILENT_TRIES / _STORE_TRIES
    retries = {"total_max_attempts": _STORE_TRIES, "mode": "standard"}
    return {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds, "retries": retries}}


def _callback(progress: Progress) -> Any:
    """Return an fsspec callback that reports uploaded bytes to ``progress``."""
    from fsspec.callbacks import Callback

    class Forward(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            progress.advance(inc)

    return Forward()
