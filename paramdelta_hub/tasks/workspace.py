"""The place of the result: ``OUT.partial/`` while work goes on, ``OUT`` by one rename.

Where ``OUT`` is replaced, the two are exchanged in one step, and the old one is deleted when the new one stands. While
work goes on, ``OUT.partial/`` holds:

- ``lock``: held by the one process that works on it, or shared by ranks (flock: it dies with the process);
- ``preparing``: held by the one rank that begins the plan, or looks whether it is its own;
- ``request.json``: what was asked for, from which a commit makes the plan again;
- ``plan.json``: what is being made, and of what; where it is, the rest is prepared;
- ``ranks/``: an empty file for each rank that ever began, named after its number and how many there are;
- ``receipts/``: one JSON file a finished task;
- ``pieces/``: files that get their final names at the end;
- ``result/``: what becomes ``OUT``;
- ``committing``: which folder is about to become ``OUT`` in place of an older one;
- ``replaced/``: that older one, where the file system can't exchange two folders.

A folder of that name which holds anything else is somebody's own, and is refused.

Ranks work on several machines that share a file system, which must know flock (NFS 4, GPFS, CephFS, Lustre mounted
with ``-o flock``). Equal tasks write equal bytes, and a commit hashes what receipts speak of: a worker that is late,
or thought dead, spoils nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from paramdelta_hub.errors import DestinationError, OptionError, PackageError, StorageError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import (
    TEMPORARY,
    exchange,
    expand,
    io_errors,
    make_folders,
    read_small,
    sync_folder,
    sync_tree,
    write_file,
)
from paramdelta_hub.fileio.names import human_bytes, shown_names
from paramdelta_hub.limits import RECEIPT_BYTES
from paramdelta_hub.tasks.models import PIECES, RESULT
from paramdelta_hub.tasks.plan import RECEIPT, Plan, Receipt

__all__ = ["PLAN_NAME", "MayReplace", "Workspace", "anything"]

PLAN_NAME = "plan.json"
_LOCK, _COMMITTING, _REPLACED = "lock", "committing", "replaced"
_RANK = re.compile(r"(\d{1,9})-of-(\d{1,9})")
_OURS = re.compile(
    r"lock|preparing|request\.json|plan\.json|ranks|receipts|pieces|result|committing|replaced"
    r"|\.(request\.json|plan\.json|committing)\.[0-9]+\.tmp"
    r"|[0-9a-f]{64}"  # a publication to a registry that is a folder, named by the package's id
    r"|tmp[a-z0-9_]{8}"  # rows that wait, where the file system knows no files without a name
)
"""What may lie directly in ``OUT.partial/``."""

MayReplace: TypeAlias = Callable[[Path], None]
"""Raises a DestinationError if the folder at a path, with every link resolved, must not be replaced."""


def anything(_: Path) -> None:
    """Let anything be replaced: for as long as it is not known yet what is about to be made, and nothing is."""


class Workspace:
    """Access to ``OUT.partial/`` for the length of a ``with`` block; the block's end releases the lock.

    A link at ``out`` is followed: what it leads to is what is made, or replaced. A finished ``out`` is replaced at the
    commit, not before, if ``may_replace`` is given and lets it be. With ``shared``, others that say so may work on the
    same plan at the same time; who shares does not commit.

    Raises:
        DestinationError: ``out`` exists and is not to be replaced, another process is writing to it, or there is a
            folder ``OUT.partial`` that is not ours.
        StorageError: the folder can't be made.
    """

    def __init__(self, out: Path, *, may_replace: MayReplace | None = None, shared: bool = False) -> None:
        if not str(out).strip() or not os.path.basename(os.path.abspath(out)) or "\0" in str(out):
            raise OptionError("can't be the name of an output folder", where=repr(str(out)))
        self.given, self.out = out, Path(os.path.realpath(expand(out)))
        self.work_dir = self.out.with_name(self.out.name + ".partial")
        self.result = self.work_dir / RESULT
        self.pieces = self.work_dir / PIECES
        self.plan_path, self.request_path = self.work_dir / PLAN_NAME, self.work_dir / "request.json"
        self.may_replace, self._shared = may_replace, shared
        self._lock: int | None = None

    def __enter__(self) -> Workspace:
        self.check()
        with io_errors("making the output folder"):
            while self._lock is None:
                make_folders(self.work_dir)
                self._lock = self._try_lock()
        try:
            with io_errors("restoring the output after an interrupted run"), self._alone():
                self._recover()
            self.check()  # somebody may have finished while we waited for nothing
        except DestinationError:
            # A folder of our own making: leave nothing behind. Beside others it need not be ours.
            if not (self._shared or self.plan_path.exists()):
                self.clear()
            self._release()
            raise
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def check(self) -> None:
        """Raise a DestinationError if ``out`` is finished and must not be replaced, or foreign files are in the way."""
        if os.path.islink(expand(self.given)) and not os.path.exists(self.out):
            raise DestinationError(
                f"a link to {os.readlink(expand(self.given))}, which does not exist",
                where=str(self.given),
                remedy="remove the link, or choose another name",
            )
        if os.path.lexists(self.out):
            if self.may_replace is None:
                raise DestinationError(
                    "exists already", where=str(self.given), remedy="choose another name, or give --overwrite"
                )
            self.may_replace(self.out)
        self._check_work_dir()

    def _check_work_dir(self) -> None:
        """Refuse a folder ``OUT.partial`` that somebody else made: all that lies in it would be deleted at the end."""
        if os.path.islink(self.work_dir):
            raise DestinationError(
                "a link, but a folder is needed here for the work",
                where=str(self.work_dir),
                remedy="remove it, or choose another name",
            )
        try:
            names = sorted(os.listdir(self.work_dir))
            if _LOCK not in names:
                names = sorted(os.listdir(self.work_dir))  # a run that ends just now deletes its lock last
        except OSError:
            return  # what is no folder, or can't be read, is told of when the folder is made
        foreign = [name for name in names if not (_OURS.fullmatch(name) and self._may_be_ours(name))]
        if foreign or (names and _LOCK not in names):
            raise DestinationError(
                f"holds files that are not from an interrupted run: {shown_names(foreign or names)}",
                where=str(self.work_dir),
                remedy="move that folder elsewhere, or choose another name for the output",
            )

    def _may_be_ours(self, name: str) -> bool:
        """Whether what has a name of ours is also of our kind: no link, an empty lock, files and folders as we make."""
        try:
            about = os.lstat(self.work_dir / name)
        except FileNotFoundError:  # of a run that ends just now
            return True
        if stat.S_ISDIR(about.st_mode):
            return name not in (_LOCK, _COMMITTING, PLAN_NAME) and not name.startswith("tmp")
        return stat.S_ISREG(about.st_mode) and not (name == _LOCK and about.st_size)

    def _try_lock(self) -> int | None:
        """Return the held lock, or None if the folder was replaced while we waited, so that we must look again."""
        path = self.work_dir / _LOCK
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
        """Raise a StorageError unless ``needed`` bytes fit, counting what an interrupted run has already written."""
        if needed > (space := self.space()):
            raise StorageError(
                f"needs {human_bytes(needed)}; {human_bytes(space)} are free",
                where=str(self.out.parent),
                remedy="free some space, or write to another disk",
            )

    def space(self) -> int:
        """Return how many bytes the result may take, those that an interrupted run has already written among them."""
        present = sum(file.stat().st_blocks * 512 for file in self.work_dir.rglob("*") if file.is_file())
        there = next(folder for folder in (self.work_dir, *self.work_dir.parents) if folder.is_dir())
        return shutil.disk_usage(there).free + present

    def resume(self, plan: Plan, prepare: Callable[[], None] = lambda: None) -> dict[int, Receipt]:
        """Have the place ready for ``plan``: return the receipts that there are of just this plan, or start afresh.

        ``prepare`` makes the files that tasks write to; called again, it keeps what they hold.

        Raises:
            DestinationError: others are at work on another plan.
        """
        with io_errors("preparing the output folder"), self._alone():
            begun, agreed = self.holds(plan), self._is_asked(plan)
            if self._shared and begun and agreed:
                return self._receipts(plan)
            if self._shared and self.plan_path.exists():
                raise DestinationError(
                    "another plan was started here by a rank with another command, other inputs or another version",
                    where=str(self.work_dir),
                    remedy="give all ranks the same command; to discard the other plan, delete the folder",
                )
            for torn in self.work_dir.rglob(TEMPORARY):  # a file that was being written when we were killed
                torn.unlink()
            if not begun and self.plan_path.exists() and self.ranks():
                raise DestinationError(
                    "ranks have started another plan here",
                    where=str(self.work_dir),
                    remedy="let them finish, then commit; to discard their work, delete the folder",
                )
            if not begun:
                # The old plan goes first and the new one comes last: where there is a plan, the rest is of its making.
                self.plan_path.unlink(missing_ok=True)
                for entry in (self.work_dir / "ranks", self.work_dir / "receipts", self.pieces, self.result):
                    if entry.exists():
                        shutil.rmtree(entry)
                    entry.mkdir()
            prepare()
            if not agreed:
                write_file(self.request_path, plan.request_text, durable=False)
            if not begun:
                write_file(self.plan_path, plan.text, durable=False)
            return self._receipts(plan)

    def start_afresh(self) -> None:
        """Have an empty ``result`` for what is made in one go, without a plan.

        Raises:
            DestinationError: a plan has been begun here, by another command for the same place.
        """
        if self.plan_path.exists():
            raise DestinationError(
                "another command has started work here",
                where=str(self.work_dir),
                remedy="run that command again to finish it, or delete the folder",
            )
        with io_errors("preparing the output folder"):
            _remove(self.result)
            self.result.mkdir()

    def check_reach(self) -> None:
        """Raise what entering the place would, without making anything: for a dry run.

        Raises:
            DestinationError: another process is writing to it.
            StorageError: the folder can't be made.
        """
        parent = next(path for path in self.work_dir.parents if os.path.lexists(path))
        with io_errors("making the output folder"):
            if not parent.is_dir() or (os.path.lexists(self.work_dir) and not self.work_dir.is_dir()):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.work_dir))
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))
            if (self.work_dir / _LOCK).exists():
                self._lock = self._try_lock()
                self._release()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other ranks from preparing the place for the length of the block. Who does not share is alone."""
        if not self._shared:
            yield
            return
        descriptor = os.open(self.work_dir / "preparing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def holds(self, plan: Plan) -> bool:
        """Whether work on just this plan has begun here."""
        path = self.plan_path
        return self.result.is_dir() and path.is_file() and path.read_bytes() == plan.text

    def _is_asked(self, plan: Plan) -> bool:
        return self.request_path.is_file() and self.request_path.read_bytes() == plan.request_text

    def enlist(self, rank: int, world: int) -> None:
        """Record that a rank works on the plan."""
        with io_errors("recording the rank"):
            (self.work_dir / "ranks").mkdir(exist_ok=True)
            (self.work_dir / "ranks" / f"{rank:05d}-of-{world:05d}").touch()

    def ranks(self) -> set[tuple[int, int]]:
        """Return every (rank, world) that ever began."""
        names = (entry.name for entry in (self.work_dir / "ranks").glob("*"))
        return {(int(found[1]), int(found[2])) for name in names if (found := _RANK.fullmatch(name))}

    def _receipts(self, plan: Plan) -> dict[int, Receipt]:
        receipts = {}
        for path in sorted((self.work_dir / "receipts").glob("*.json")):
            try:
                receipt = RECEIPT.validate_json(read_small(path, RECEIPT_BYTES))
            except (PackageError, ValueError):
                continue  # torn by a crash of the machine: the task is done again
            if receipt.plan == plan.digest:
                receipts[receipt.task] = receipt
        return receipts

    def keep(self, receipt: Receipt) -> None:
        """Store a finished task's receipt: a claim, not a fact, since what it speaks of is hashed on resuming."""
        with io_errors("writing a receipt"):
            write_file(
                self.work_dir / "receipts" / f"{receipt.task:06d}.json", RECEIPT.dump_json(receipt), durable=False
            )

    def commit(self) -> None:
        """Make the result visible under its final name, durably, and remove what only the work needed.

        An older ``out`` changes places with the new one in a single step, and is deleted after it. Where the file
        system can't do that, it is moved aside first; a crash between the two moves is made good by the next run.

        Raises:
            DestinationError: ``out`` must not be replaced: somebody has put something there since we began.
        """
        with io_errors("finishing the output"):
            sync_tree(self.result)
            if os.path.lexists(self.out):
                if self.may_replace is None:
                    raise DestinationError(
                        "appeared during the run",
                        where=str(self.out),
                        remedy="check what it is, then move it or choose another name",
                    )
                self.may_replace(self.out)
                self._replace()
            else:
                os.rename(self.result, self.out)
            sync_folder(self.work_dir)
            sync_folder(self.out.parent)
        self.clear()

    def _replace(self) -> None:
        about = os.stat(self.result)
        write_file(self.work_dir / _COMMITTING, strict_json.compact([about.st_dev, about.st_ino]))
        if not exchange(self.result, self.out):
            os.rename(self.out, self.work_dir / _REPLACED)
            os.rename(self.result, self.out)

    def _recover(self) -> None:
        """Make good what a crash in :meth:`_replace` has left: the new one stands, or else the old one does."""
        if not (self.work_dir / _COMMITTING).exists():
            return
        if not os.path.lexists(self.out) and (self.work_dir / _REPLACED).exists():
            os.rename(self.work_dir / _REPLACED, self.out)
            sync_folder(self.out.parent)
        if not self._is_new(self.result):
            # The new one has left this place: it stands at ``out``, or did until somebody took it elsewhere. What lies
            # here under its name is the old one, and must not be taken for work that was begun.
            for name in sorted(set(os.listdir(self.work_dir)) - {_LOCK, _COMMITTING}):
                _remove(self.work_dir / name)
        (self.work_dir / _COMMITTING).unlink()

    def _is_new(self, folder: Path) -> bool:
        """Whether a folder is the very one that was about to be put in the place of an older one."""
        try:
            about = os.stat(folder)
            wanted = strict_json.parse(read_small(self.work_dir / _COMMITTING, RECEIPT_BYTES))
        except (FileNotFoundError, PackageError):
            return False
        return bool(wanted == [about.st_dev, about.st_ino])

    def clear(self) -> None:
        """Delete ``OUT.partial/``, which nothing needs any more, its lock last: by that it is known as ours."""
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.work_dir), key=lambda name: (name == _LOCK, name)):
                _remove(self.work_dir / name)
            self.work_dir.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
