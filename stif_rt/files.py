"""Files that appear under their name only when they are complete, and the user's cache folder."""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

CHECKSUM_BYTES = 32
"""Length of the SHA-256 that precedes the content of a cached file."""


@contextlib.contextmanager
def whole_file(target: Path, overwrite: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all.

    The block writes to the path that it is given, which lies beside ``target`` and belongs to nobody else. Without an
    exception the file becomes ``target`` when the block ends, with the permissions of any new file (the umask's);
    otherwise it is removed and ``target`` is left as it was.

    Args:
        target: the file to write. Its folder must exist.
        overwrite: whether a file that has the name when the block ends is replaced.

    Raises:
        FileNotFoundError: the folder of ``target`` does not exist.
        FileExistsError: ``target`` is something else than a file, or exists and is not to be overwritten.
    """
    check_target(target, overwrite)
    temporary = _temporary_path(target)
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask leaves; some libraries write files as 0600
    try:
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        publish(temporary, target, overwrite)
    finally:
        remove(temporary)


def write_whole(target: Path, content: bytes | str, overwrite: bool = True) -> None:
    """Write ``content``, text as UTF-8, by ``whole_file``, with its errors."""
    with whole_file(target, overwrite) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder whole or not at all.

    Without an exception the folder that the block is given becomes ``target`` when the block ends; otherwise it is
    removed and ``target`` is left as it was.

    Args:
        target: the folder to write. The folder around it must exist.
        overwrite: whether a folder that has the name is replaced, with everything in it.

    Raises:
        FileNotFoundError: the folder around ``target`` does not exist.
        FileExistsError: ``target`` exists and is not to be overwritten.
    """
    target = target.absolute()
    check_parent(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; give --overwrite to replace it")
    temporary, old = _temporary_path(target), _temporary_path(target)
    temporary.mkdir()
    try:
        yield temporary
        if overwrite and target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError as error:
            if old.exists():
                old.rename(target)
            raise FileExistsError(f"{target} has appeared meanwhile; give --overwrite to replace it") from error
    finally:
        remove(temporary)
        remove(old)


def check_target(target: Path, overwrite: bool) -> None:
    """Raise the errors of ``whole_file`` that are known before anything is computed."""
    check_parent(target)
    if target.is_dir():
        raise FileExistsError(f"{target} is a folder; choose another name for the file")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is not a regular file, so it is not replaced")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; give --overwrite to replace it")


def publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give a finished file its final name.

    Raises:
        FileExistsError: the name is taken by now and ``overwrite`` is not set.
    """
    if overwrite:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, it fails where the name is taken
    except FileExistsError as error:
        raise FileExistsError(f"{target} has appeared meanwhile; give --overwrite to replace it") from error
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(f"{target} has appeared meanwhile; give --overwrite to replace it") from None
        temporary.rename(target)
    else:
        temporary.unlink()


def remove(path: Path) -> None:
    """Delete a file or a folder; neither need exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_parent(target: Path) -> None:
    """Raise FileNotFoundError where the folder of ``target`` does not exist, NotADirectoryError where it is a file."""
    parent = target.absolute().parent
    if not parent.is_dir():
        obstacle = next((path for path in (parent, *parent.parents) if path.exists()), parent)
        if obstacle.is_file():
            raise NotADirectoryError(f"{target} cannot be written: {obstacle} is a file, not a folder")
        raise FileNotFoundError(f"the folder {parent} does not exist")


def _temporary_path(target: Path) -> Path:
    """A name beside ``target`` that nobody else uses, with its suffix, by which libraries choose formats."""
    stem = os.fsencode(target.stem)[:64].decode(errors="ignore")
    suffix = target.suffix if len(target.suffix) <= 16 else ""
    return target.with_name(f".{stem}.{uuid.uuid4().hex[:12]}.part{suffix}")


def cache_folder() -> Path | None:
    """The user's cache folder of this project, which need not exist; None where the user has no home folder."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(root):
        return Path(root, "stif-rt")
    try:
        return Path.home() / ".cache" / "stif-rt"
    except RuntimeError:
        return None


def read_cache(path: Path | None) -> bytes | None:
    """The content that ``write_cache`` stored at ``path``; None where there is none, or where it is damaged."""
    if path is None:
        return None
    try:
        stored = path.read_bytes()
    except OSError:  # absent, or another user's
        return None
    checksum, content = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        log.warning("%s is damaged and is made again", path)
        return None
    return content


def write_cache(path: Path | None, content: bytes) -> None:
    """Keep ``content`` for ``read_cache``; where that is impossible, a warning says so once for each folder."""
    if path is None:
        _warn_not_kept("there is no home folder; set XDG_CACHE_HOME to a folder for caches")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        reason = error.strerror or "it is not a file"
        _warn_not_kept(f"{path.parent} cannot be written ({reason}); set XDG_CACHE_HOME to another folder")


@functools.cache
def _warn_not_kept(reason: str) -> None:
    log.warning("what was built cannot be kept for the next time: %s", reason)
