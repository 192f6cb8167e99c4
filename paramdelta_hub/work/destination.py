"""The place of the result: ``OUT.partial/`` while work goes on, ``OUT`` by one rename.

While work goes on, ``OUT.partial/`` holds:

- ``lock``: held by the one process that works on it, or shared by ranks (flock: it dies with the process);
- ``preparing``: held by the one rank that begins the plan, or looks whether it is its own;
- ``request.json``: what was asked for, from which a commit makes the plan again;
- ``plan.json``: what is being made, and of what; where it is, the rest is prepared;
- ``ranks/``: an empty file for each rank that ever began, named after its number and how many there are;
- ``receipts/``: one JSON file a finished task;
- ``pieces/``: files that get their final names at the end;
- ``result/``: what becomes ``OUT``.

Ranks work on several machines that share a file system, which must know flock (NFS 4, GPFS, CephFS, Lustre mounted
with ``-o flock``). Equal tasks write equal bytes, and a commit hashes what receipts speak of: a worker that is late,
or thought dead, spoils nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from paramdelta_hub.errors import DestinationError, OptionError, PackageError, StorageError
from paramdelta_hub.format import jsontext
from paramdelta_hub.format.durable import (
    TEMPORARY,
    io_errors,
    make_folders,
    read_small,
    sync_folder,
    sync_tree,
    write_file,
)
from paramdelta_hub.limits import GIB, RECEIPT_BYTES
from paramdelta_hub.work.plan import Plan, Receipt

__all__ = ["PIECES", "PLAN_NAME", "RESULT", "Destination"]

PLAN_NAME, PIECES, RESULT = "plan.json", "pieces", "result"
_RANK = re.compile(r"(\d{1,9})-of-(\d{1,9})")


class Destination:
    """Access to ``OUT.partial/`` for the length of a ``with`` block; the block's end releases the lock.

    Args:
        out: the final path; it must not exist unless ``overwrite``.
        overwrite: replace a finished ``out`` at the commit, not before.
        shared: let others that say so work on the same plan at the same time; who shares does not commit.

    Raises:
        DestinationError: ``out`` exists, or another process is writing to it.
        StorageError: the folder can't be made.
    """

    def __init__(self, out: Path, *, overwrite: bool = False, shared: bool = False) -> None:
        self.given, self.out = out, Path(os.path.abspath(out))
        if not self.out.name or "\0" in self.out.name:
            raise OptionError("can't be the name of an output folder", where=repr(str(out)))
        self.books = self.out.with_name(self.out.name + ".partial")
        self.result = self.books / RESULT
        self.pieces = self.books / PIECES
        self._overwrite, self._shared = overwrite, shared
        self._lock: int | None = None

    @property
    def plan_path(self) -> Path:
        """Where the plan lies."""
        return self.books / PLAN_NAME

    @property
    def request_path(self) -> Path:
        """Where the request lies."""
        return self.books / "request.json"

    def __enter__(self) -> Destination:
        self.refuse_existing()
        with io_errors("making the output folder"):
            while self._lock is None:
                make_folders(self.books)
                self._lock = self._try_lock()
        try:
            self.refuse_existing()  # somebody may have finished while we waited for nothing
        except DestinationError:
            # A folder of our own making: leave nothing behind. Beside others it need not be ours.
            if not (self._shared or self.plan_path.exists()):
                shutil.rmtree(self.books, ignore_errors=True)
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def refuse_existing(self) -> None:
        """Raise if there is a finished ``out`` that is not to be replaced.

        Raises:
            DestinationError: there is.
        """
        if os.path.lexists(self.out) and not self._overwrite:
            raise DestinationError(
                "exists already", where=str(self.out), remedy="choose another name, or give --overwrite"
            )

    def _try_lock(self) -> int | None:
        """Return the held lock, or None if the folder was replaced while we waited, so that we must look again."""
        path = self.books / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise DestinationError(
                "another process is writing to it", where=str(self.out), remedy="wait for it, or choose another name"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)
        return None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_space(self, needed: int) -> None:
        """Check that ``needed`` more bytes fit, counting what an interrupted run has already written.

        Raises:
            StorageError: they do not.
        """
        present = sum(file.stat().st_blocks * 512 for file in self.books.rglob("*") if file.is_file())
        free = shutil.disk_usage(self.books).free
        if needed > free + present:
            raise StorageError(
                f"needs {needed / GIB:.2f} GiB and has {(free + present) / GIB:.2f} GiB free",
                where=str(self.out.parent),
                remedy="free some space, or write to another disk",
            )

    def resume(self, plan: Plan, prepare: Callable[[], None] = lambda: None) -> dict[int, Receipt]:
        """Have the place ready for ``plan``: return the receipts that there are of just this plan, or start afresh.

        Args:
            plan: what is to be made.
            prepare: makes the files that tasks write to; calling it again does no harm to what they hold.

        Raises:
            DestinationError: others are at work on another plan.
        """
        with io_errors("preparing the output folder"), self._alone():
            begun, agreed = self.holds(plan), self._is_asked(plan)
            if self._shared and begun and agreed:
                return self._receipts(plan)
            if self._shared and self.plan_path.exists():
                raise DestinationError(
                    "another plan has been begun here: by a rank with another command, other inputs or another version",
                    where=str(self.books),
                    remedy="give all ranks the same command; to give that plan up, delete the folder",
                )
            for torn in self.books.rglob(TEMPORARY):  # a file that was being written when we were killed
                torn.unlink()
            if not begun:
                # The old plan goes first and the new one comes last: where there is a plan, the rest is of its making.
                self.plan_path.unlink(missing_ok=True)
                for entry in (self.books / "ranks", self.books / "receipts", self.pieces, self.result):
                    if entry.exists():
                        shutil.rmtree(entry)
                    entry.mkdir()
            prepare()
            if not agreed:
                write_file(self.request_path, plan.request_text, durable=False)
            if not begun:
                write_file(self.plan_path, plan.to_json(), durable=False)
            return self._receipts(plan)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other ranks from preparing the place for the length of the block. Who does not share is alone."""
        if not self._shared:
            yield
            return
        descriptor = os.open(self.books / "preparing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def holds(self, plan: Plan) -> bool:
        """Whether work on just this plan has begun here."""
        path = self.plan_path
        return self.result.is_dir() and path.is_file() and path.read_bytes() == plan.to_json()

    def _is_asked(self, plan: Plan) -> bool:
        return self.request_path.is_file() and self.request_path.read_bytes() == plan.request_text

    def enlist(self, rank: int, world: int) -> None:
        """Record that a rank works on the plan."""
        with io_errors("recording the rank"):
            (self.books / "ranks").mkdir(exist_ok=True)
            (self.books / "ranks" / f"{rank:05d}-of-{world:05d}").touch()

    def ranks(self) -> set[tuple[int, int]]:
        """Return every (rank, world) that ever began."""
        names = (entry.name for entry in (self.books / "ranks").glob("*"))
        return {(int(found[1]), int(found[2])) for name in names if (found := _RANK.fullmatch(name))}

    def _receipts(self, plan: Plan) -> dict[int, Receipt]:
        receipts = {}
        for path in sorted((self.books / "receipts").glob("*.json")):
            try:
                receipt = Receipt.from_json(jsontext.parse(read_small(path, RECEIPT_BYTES), where=str(path)))
            except (PackageError, KeyError, TypeError):
                continue  # torn by a crash of the machine: the task is done again
            if receipt.plan == plan.digest:
                receipts[receipt.task] = receipt
        return receipts

    def keep(self, receipt: Receipt) -> None:
        """Store a finished task's receipt: a claim, not a fact, since what it speaks of is hashed on resuming."""
        text = jsontext.compact(receipt.to_json())
        with io_errors("writing a receipt"):
            write_file(self.books / "receipts" / f"{receipt.task:06d}.json", text, durable=False)

    def commit(self) -> None:
        """Make the result visible under its final name, durably, and remove what only the work needed.

        An older ``out`` is moved aside, not deleted, before the new one takes its name: after a crash between the two
        the old result lies whole in ``OUT.partial/replaced``, the new one in ``OUT.partial/result``, and running
        again finishes the exchange.
        """
        replaced = self.books / "replaced"
        with io_errors("finishing the output"):
            sync_tree(self.result)
            if os.path.lexists(self.out):
                if replaced.exists():
                    shutil.rmtree(replaced)
                os.rename(self.out, replaced)
            os.rename(self.result, self.out)
            sync_folder(self.books)
            sync_folder(self.out.parent)
        shutil.rmtree(self.books, ignore_errors=True)  # nothing in it matters any more
