"""A registry in a bucket, or wherever else fsspec reaches: ``ROOT/org/name/VERSION/`` is the package itself.

Such stores can't rename, so what makes a version whole and unique is the order of writes:

1. ``ROOT/org/name/.claims/VERSION.json``, which names the package's id, is created *exclusively* (S3: ``If-None-Match:
   *``), and never removed. Of several publishers one wins; the others read who did. So all who ever write below
   ``VERSION/`` hold the same id, hence the same bytes under the same names: it does no harm if two of them do, or if
   one dies and another goes on.
2. The files are put, each whole or not at all; those of the right size are there already. (A store that shows half
   of a file shows a smaller one, which is put again.)
3. The claim is read once more, then ``manifest.json`` is created, exclusively too. Readers take a folder
   without one for nothing at all, and check every byte of one that has it.

A publisher that dies leaves a claim without a version: the same content goes on from there, other content is told to
take another version. That a store honours exclusive creation is tried first, on a file of our own, since some accept
the request and overwrite. Where fsspec itself only asks whether the file exists and then writes it (SFTP, say), two
publishers in the same instant can still both believe they won: then the second reading of the claim tells one of them,
and readers refuse a version whose files do not fit its manifest.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from datetime import timezone
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import PackageError, ParamdeltaError, PublishError, RegistryError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.limits import COPY_BYTES, KIB, STORE_BLOCK_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import Package
from paramdelta_hub.registry.names import check_address
from paramdelta_hub.tasks.progress import Progress

__all__ = ["BucketStore"]

_CLAIMS, _PROBE, _CLAIM_BYTES = ".claims", "exclusive", 4 * KIB


class BucketStore:
    """Reads and writes below an fsspec URL.

    Raises:
        OptionError: credentials in the URL.
        RegistryError: a kind of URL that is unknown, or needs a package which is not installed.
    """

    absent = "nothing is there under this address"

    def __init__(self, url: str) -> None:
        # Imported here: registries that are folders do without it.
        from fsspec.core import url_to_fs

        self.url = check_address(url.rstrip("/"))
        try:
            # Listings are not cached: what others publish must be seen.
            self._store, path = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            hint = "pip install 'paramdelta-hub[s3]'" if self.url.startswith("s3") else "install what the message names"
            raise RegistryError(f"can't be reached from here: {error}", where=url, remedy=hint) from None
        except ValueError as error:
            raise RegistryError(f"not an address: {error}", where=url, remedy="write s3://BUCKET/PREFIX") from None
        self._root = str(path).rstrip("/")

    def exists(self) -> bool:
        """Whether there is anything at the address: a store without folders knows no empty ones, but for the bucket.

        Raises:
            RegistryError: a file is, or no such bucket; not reachable, not allowed.
        """
        with self._asking(""):
            if self._store.isfile(self._root):
                raise RegistryError("a file, where a registry is a folder", where=self.url, remedy="name its folder")
            if self._store.exists(self._root):
                return True
            self._check_bucket()
        return False

    def check_apart(self, repo: str) -> None:
        """Do nothing: what we make lies on this machine."""

    def names(self, folder: str) -> list[str]:
        """Return what lies in ``folder``, files too; hidden ones not.

        Raises:
            RegistryError: not reachable, not allowed.
        """
        entries = []
        path = self._path(folder)
        with self._asking(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            entries = self._store.ls(path, detail=False)
        names = (str(entry).rstrip("/").rpartition("/")[2] for entry in entries if entry.rstrip("/") != path)
        return sorted(name for name in names if not name.startswith("."))

    def below(self, folder: str) -> list[str]:
        """Return the names of the folders in ``folder``; none where there is no such folder.

        Raises:
            RegistryError: not reachable, not allowed.
        """
        entries = []
        with self._asking(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            entries = self._store.ls(self._path(folder), detail=True)
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]

    def read(self, folder: str, name: str, most: int) -> bytes | None:
        """Return the content of a small file, or None where there is none.

        Raises:
            PackageError: larger than ``most``.
            RegistryError: not reachable, not allowed.
        """
        if self._size(folder, name) is None:
            return None
        content = bytearray()
        for chunk in self.chunks(folder, name):
            content += chunk
            if len(content) > most:
                raise PackageError(f"more than the {most} bytes that make sense", where=self._shown(f"{folder}/{name}"))
        return bytes(content)

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece.

        Raises:
            PackageError: there is no such file.
            RegistryError: not reachable, not allowed.
        """
        with self._asking(f"{folder}/{name}"):
            try:
                file = self._store.open(self._path(f"{folder}/{name}"), "rb", block_size=STORE_BLOCK_BYTES)
            except FileNotFoundError:
                raise PackageError(f"the file {name!r} is missing", where=self._shown(folder)) from None
            with file:
                while chunk := file.read(COPY_BYTES):
                    yield chunk

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC, if the store tells."""
        with self._asking(folder), contextlib.suppress(NotImplementedError, FileNotFoundError):
            moment = self._store.modified(self._path(f"{folder}/{MANIFEST_NAME}"))
            utc = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
            return str(utc.isoformat(timespec="seconds"))
        return None

    def place(self, folder: str) -> Path | None:
        """Return None: it does not lie on this machine."""
        return None

    def put(
        self, package: Package, folder: str, text: bytes, extras: Mapping[str, bytes], progress: Progress | None
    ) -> None:
        """Make a version visible, whole or not at all; ``text`` is its manifest, ``extras`` what goes with it.

        Raises:
            PublishError: somebody else claimed the version, with other content.
            RegistryError: not reachable, not allowed, or a store where publishing is not safe.
        """
        repo, _, version = folder.rpartition("/")
        claims = f"{repo}/{_CLAIMS}"
        self._prepare(folder)
        self._prepare(claims)
        if self._create(claims, _PROBE, b"") and self._create(claims, _PROBE, b""):
            raise RegistryError(
                "the store overwrites files even where it is told not to, so publishing is not safe",
                where=self.url,
                remedy="publish to the Hub, a folder, or a store that honours If-None-Match (S3, GCS, recent MinIO)",
            )
        self._create(claims, f"{version}.json", strict_json.canonical({"id": package.digest}))
        self._check_claim(claims, version, package.digest)
        self._put_files(package, folder, extras, progress)
        self._check_claim(claims, version, package.digest)
        if not self._create(folder, MANIFEST_NAME, text) and self.read(folder, MANIFEST_NAME, len(text)) != text:
            raise PublishError("somebody else was faster", where=self._shown(folder))

    def _put_files(self, package: Package, folder: str, extras: Mapping[str, bytes], progress: Progress | None) -> None:
        progress = progress or Progress()
        missing = [file for file in package.manifest.files if self._size(folder, file.path) != file.size]
        progress.start("upload", sum(file.size for file in missing))
        try:
            for file in missing:
                with self._asking(f"{folder}/{file.path}"):
                    self._store.put_file(
                        str(settle(package.path, file.path)),
                        self._path(f"{folder}/{file.path}"),
                        callback=_told(progress),
                    )
        finally:
            progress.finish()
        for name, content in extras.items():
            with self._asking(f"{folder}/{name}"):
                self._store.pipe_file(self._path(f"{folder}/{name}"), content)

    def _check_claim(self, claims: str, version: str, package_id: str) -> None:
        where = self._shown(f"{claims}/{version}.json")
        claim = strict_json.parse(self.read(claims, f"{version}.json", _CLAIM_BYTES) or b"{}", PackageError, where)
        if claim != {"id": package_id}:
            raise PublishError(
                "the version is claimed by somebody who publishes other content",
                where=where,
                remedy="take another version; or, if that publication was given up for good, delete the claim",
            )

    def _prepare(self, folder: str) -> None:
        """Make a folder where the store has such things; never a bucket, whose name may be a slip of the pen."""
        with self._asking(folder):
            self._check_bucket()
            self._store.makedirs(self._path(folder), exist_ok=True)

    def _check_bucket(self) -> None:
        top = self._root.partition("/")[0] or "/"
        if "://" not in self._root and not self._store.exists(top):
            raise RegistryError(
                "no such bucket, or no right to see it",
                where=self.url,
                remedy="check the spelling; a bucket has to be made before anything is published to it",
            )

    def _create(self, folder: str, name: str, content: bytes) -> bool:
        """Create a file unless there is one; return whether it was created."""
        with self._asking(f"{folder}/{name}"):
            try:
                self._store.pipe_file(self._path(f"{folder}/{name}"), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # Servers have several ways to say so: 412 without the condition, or 409 where two create at once.
                if error.errno not in (errno.EINVAL, errno.EIO) or self._size(folder, name) is None:
                    raise
                return False
        return True

    def _size(self, folder: str, name: str) -> int | None:
        with self._asking(f"{folder}/{name}"), contextlib.suppress(FileNotFoundError):
            found = self._store.info(self._path(f"{folder}/{name}"))
            return int(found["size"]) if found["type"] == "file" else None
        return None

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _shown(self, path: str) -> str:
        return f"{self.url}/{path}"

    @contextlib.contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        """Turn what the store's client raises into an error that says what helps."""
        try:
            yield
        except ParamdeltaError:
            raise
        except PermissionError:
            raise RegistryError(
                "not allowed",
                where=self._shown(path),
                remedy="check the credentials (for S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret) and rights",
            ) from None
        except FileNotFoundError:
            raise RegistryError("not there", where=self._shown(path), remedy="check the address") from None
        except Exception as error:  # clients raise kinds of their own, with no common root
            # Their texts are not shown: some hold signed addresses.
            raise RegistryError(
                f"the store did not do as asked ({type(error).__name__})",
                where=self._shown(path),
                remedy="check the address, the connection and the credentials, then run the same command again",
            ) from error


def _told(progress: Progress) -> Any:
    """Return an fsspec callback that tells ``progress`` of bytes as they go."""
    from fsspec.callbacks import Callback

    class Told(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            progress.advance(inc)

    return Told()
