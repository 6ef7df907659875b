"""The folder beside an unfinished output: the job, its finished segments, and locks against other processes."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stif_rt.files import remove
from stif_rt.video.notices import Notices

SUFFIX = ".segments"
NAME_MAX = 255
"""Bytes that file systems allow for one name."""
JOB = "job.json"
PLAN = "plan.json"
NOTICES = "notices"
"""Start of the names of files with what was wrong with the input, one file for each process."""
PARTIAL = "partial-"
"""Start of the names of unfinished files; whoever holds the lock may delete those of others."""


class Busy(RuntimeError):
    """Another process works on the same output."""


def workspace_path(target: Path) -> Path:
    """The folder for the segments of ``target``, on the same file system."""
    target = target.absolute()
    name = target.name + SUFFIX
    if len(os.fsencode(name)) > NAME_MAX:
        name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32] + SUFFIX
    return target.with_name(name)


class Workspace:
    """The files of one unfinished output. Made by ``open_workspace``, which holds its lock.

    Segments are numbered from 0. One appears under its own name only when it is complete and on the disk, so that a
    crash, a full disk or a power cut costs the segment that was being written and no other.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path = path
        self.suffix = suffix

    def segment(self, index: int) -> Path:
        """The file, or for images the folder, of a finished segment."""
        return self.path / f"{index:06d}{self.suffix}"

    def finished(self) -> list[int]:
        """The numbers of the finished segments, ascending."""
        names = (path.name.removesuffix(self.suffix) for path in self.path.iterdir() if path.suffix == self.suffix)
        return sorted(int(name) for name in names if len(name) == 6 and name.isascii() and name.isdigit())

    @contextlib.contextmanager
    def writing(self, index: int) -> Iterator[Path]:
        """A path to write a segment to, which becomes finished when the context ends without an exception."""
        with self.temporary(f"{index:06d}{self.suffix}") as path:
            yield path
            flush_to_disk(path)
            path.rename(self.segment(index))

    @contextlib.contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """A path of this process for ``name``; what is still there when the context ends is deleted."""
        path = self.path / f"{PARTIAL}{os.getpid()}-{name}"
        try:
            yield path
        finally:
            remove(path)

    def job(self) -> dict[str, Any] | None:
        """The job that the segments belong to, None where the folder is new. ValueError where it cannot be read."""
        try:
            return json.loads((self.path / JOB).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.path / JOB} is damaged; delete the folder {self.path} to start anew") from error

    def begin(self, job: dict[str, Any]) -> None:
        """Stores the job; the segments of another one are deleted."""
        for path in self.path.iterdir():
            if path.suffix != ".lock":
                remove(path)
        with self.temporary(JOB) as path:
            path.write_text(json.dumps(job, indent=1), "utf-8")
            flush_to_disk(path)
            path.replace(self.path / JOB)

    def claim(self, job: dict[str, Any]) -> None:
        """Stores the job of several processes that share a new workspace, each of which writes the same."""
        with self.temporary(JOB) as path:
            path.write_text(json.dumps(job, indent=1), "utf-8")
            path.replace(self.path / JOB)

    def keep_notices(self, notices: Notices, process: int = 0) -> None:
        """Stores what was wrong with the input so far, for whoever joins the segments."""
        if not len(notices):
            return
        with self.temporary(NOTICES) as path:
            path.write_text(json.dumps([[notice.text, notice.places] for notice in notices]), "utf-8")
            path.replace(self.path / f"{NOTICES}-{process}.json")

    def recall_notices(self, notices: Notices) -> None:
        """Adds what other processes, and earlier runs, have found wrong with the input."""
        for path in sorted(self.path.glob(f"{NOTICES}-*.json")):
            try:
                stored = json.loads(path.read_text("utf-8"))
            except ValueError:  # a power cut; the pictures are what counts
                continue
            for text, places in stored:
                for place in places or [""]:
                    notices.add(text, place)

    def delete(self) -> None:
        """Removes the folder with all in it."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def open_workspace(target: Path, suffix: str, shard: int | None = None, keep: bool = False) -> Iterator[Workspace]:
    """The workspace of ``target``, locked; made where there is none, and removed again where nothing was finished.

    Args:
        target: the output.
        suffix: of segments: that of a video file, or "" for folders of images.
        shard: the number of this process, where several work on different segments at once; None to have it alone.
        keep: leave the folder even if nothing is finished.

    Raises:
        Busy: another process works on the same output, or on the same shard.
        ValueError: something else has the folder's name.
    """
    path = workspace_path(target)
    while True:
        with contextlib.ExitStack() as locks:
            try:
                if not path.is_dir():
                    path.mkdir()
                if not _is_workspace(path):
                    raise FileExistsError
                locks.enter_context(_locked(path / "all.lock", shared=shard is not None))
                if shard is not None:
                    locks.enter_context(_locked(path / f"shard-{shard}.lock", shared=False))
            except BlockingIOError as error:
                which = "" if shard is None else f" (shard {shard})"
                raise Busy(f"another process is working on {target}{which}; wait for it, or stop it") from error
            except FileExistsError:
                raise ValueError(f"{path} is in the way of unfinished segments; rename or delete it") from None
            except FileNotFoundError:
                if path.parent.is_dir():
                    continue  # another process has finished and removed the folder between these lines
                raise
            workspace = Workspace(path, suffix)
            if shard is None:
                for partial in path.glob(f"{PARTIAL}*"):  # of a process that was killed
                    remove(partial)
            try:
                yield workspace
            finally:
                if path.is_dir() and shard is None and not keep and not workspace.finished():
                    workspace.delete()
            return


def _is_workspace(path: Path) -> bool:
    """Whether a folder holds nothing but what this module puts there."""
    if not path.is_dir() or path.is_symlink():
        return False
    return all(
        child.name in (JOB, PLAN)
        or child.name.startswith(NOTICES)
        or child.suffix == ".lock"
        or child.name.startswith(PARTIAL)
        or child.stem.isdigit()
        for child in path.iterdir()
    )


@contextlib.contextmanager
def _locked(path: Path, shared: bool) -> Iterator[None]:
    """Holds a lock file; the system frees it however the process ends. BlockingIOError where another one holds it."""
    while True:
        with path.open("a+b") as file:
            _lock(file, shared)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    yield
                    return
        # its last holder has deleted the file that this process waited for: take the new one


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes], shared: bool) -> None:
        if not shared:  # Windows has no shared locks of this kind; shards still exclude each other
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError as error:
                raise BlockingIOError(str(error)) from error

else:
    import fcntl

    def _lock(file: IO[bytes], shared: bool) -> None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def flush_to_disk(path: Path) -> None:
    """Waits until a file, or every file of a folder, would survive a power cut."""
    for file in path.iterdir() if path.is_dir() else (path,):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
