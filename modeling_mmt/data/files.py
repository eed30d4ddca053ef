"""Files: written completely or not at all, hashed, locked; without torch (`weights.py` has tensors)."""

import errno
import glob
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha1, sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import FileLock, Timeout

PARTIAL = re.compile(r".+\.(?P<machine>\w*)-(?P<process>\d+)-[0-9a-f]{8}\.partial")


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def file_hash(path: Path, like: str) -> str:
    """A file's SHA-256, or git's name for it where `like` is no SHA-256 (40 digits: a file kept in git itself)."""
    if len(like) == 64:
        return file_sha256(path)
    with open(path, "rb") as file:
        return file_digest(file, lambda: sha1(b"blob %d\0" % path.stat().st_size)).hexdigest()


def state_of(folder: Path) -> str:
    """SHA-256 of the names, sizes and times of a folder's files: another one once any of them is written again."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextmanager
def locked(path: str | os.PathLike, busy: Exception | None = None) -> Iterator[None]:
    """Hold a lock that lies in a file, which is removed after.

    Args:
        path: of the lock.
        busy: raised at once where another process holds the lock; None waits for it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if busy is None else 0)
    except Timeout as error:
        raise busy or error from error
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)
        lock.release()


@contextmanager
def writing_file(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes to the path that it is given, which then becomes `path`.

    The name is this writer's own, so that two do not meet: the last one's file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors makes a new file, for its owner alone
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Write a folder whole or not at all, as `writing_file` does a file.

    Args:
        path: of the folder.
        replace: whether one that is there gives way, at the end.

    Raises:
        FileExistsError: one is there that may not be replaced, perhaps another writer's since this one began.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _partial(path), _partial(path)
    partial.mkdir()
    try:
        yield partial
        while not _placed(partial, path, old if replace else None):
            pass  # another writer came between
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _placed(partial: Path, path: Path, old: Path | None) -> bool:
    """Whether a folder could be given its name; the one that has it is moved to `old`, or stays where that is None."""
    if path.exists() and old is None:
        raise FileExistsError(f"{path} already exists; remove it, or choose another folder")
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(path, old)
    try:
        put_in_place(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if old is not None and old.exists():
            os.replace(old, path)
        raise
    return True


def remove_partials(path: Path) -> None:
    """Remove what killed writers of a path left beside it; whoever calls it holds the lock of all writers."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        _remove(leftover)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what killed writers of this machine left in a folder, which need not exist; others may be writing."""
    for leftover in Path(folder).glob("*.partial"):
        written = PARTIAL.fullmatch(leftover.name)
        if written and written["machine"] == _machine() and not _is_running(int(written["process"])):
            _remove(leftover)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _machine() -> str:
    return re.sub(r"\W", "_", platform.node())


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file or folder its name once its bytes are on the disk; after a power cut it is whole, or not there."""
    if partial.is_dir():
        apply_umask(partial)
        for inner in partial.rglob("*"):
            _flush(inner)
    _flush(partial)
    os.replace(partial, path)
    _flush(path.parent)


def apply_umask(folder: Path) -> None:
    """Give a folder's files the mode that its own says: safetensors makes them for their owner alone (mode 0600)."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | mode)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{_machine()}-{os.getpid()}-{token_hex(4)}.partial")


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # which Windows does not open
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with writing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
