"""Folders that are built on this machine and copied to an object store: `s3://`, `hf://`, whatever fsspec knows."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.wording import without_passwords


def is_url(place: str | os.PathLike) -> bool:
    """Whether a place is a URL, and no path."""
    return "://" in os.fspath(place)


@contextmanager
def built_for(place: str, last: str) -> Iterator[Path]:
    """Let a folder be built for a place: the place itself, or of a URL a folder here, which is copied at the end.

    The folder stands in the working directory, named after the URL, so that the same command goes on with it after a
    stop. A copy that was interrupted begins anew; until its last file is there, nobody takes it for whole.

    Args:
        place: a path or URL; `file://` is a path.
        last: name of the file that makes the folder whole, and is copied last.

    Raises:
        FileExistsError: the URL has that file already.
        InputError: the URL cannot be read or written.
    """
    if not is_url(place):
        yield Path(place)
        return
    from fsspec import url_to_fs  # an index in a folder, which asks `is_url`, has no need of it

    with naming_input(place):
        files, remote = url_to_fs(place)
    if "file" in files.protocol:
        yield Path(remote)
        return
    remote = remote.rstrip("/")
    with naming_input(place):
        is_there = files.exists(f"{remote}/{last}")
    if is_there:
        raise FileExistsError(f"{place} already has a {last}; choose another URL, or delete what is there")
    with naming_input(place):
        try_to_write(files, remote)
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    folder = Path(f"{remote.rpartition('/')[2] or 'upload'}-{digest}")
    print(f"{without_passwords(place)}: built in ./{folder}, then copied")
    yield folder
    if not (folder / last).is_file():
        raise InputError(f"{folder} is not complete, so that nothing was copied to {place}; run the command again")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with naming_input(f"{place}: ./{folder} is complete, but was not copied"):
        for name in sorted(names, key=lambda name: name == last):
            files.put_file(str(folder / name), f"{remote}/{name}")
    shutil.rmtree(folder)
    print(f"{without_passwords(place)}: {len(names)} files copied; ./{folder} removed")


def try_to_write(files: Any, remote: str) -> None:
    """Find out before the work what would stop the copy after it.

    Args:
        files: a file system of fsspec.
        remote: the folder in it, which is made where a store has folders.

    Raises:
        ValueError: no folder is named.
        FileNotFoundError: its bucket, repository or first folder does not exist.
        Exception: what the store says.
    """
    names = [name for name in remote.split("/") if name]
    if len(names) < 2 or ".." in names:
        raise ValueError("give a bucket and a folder in it, without ..")
    if "hf" in files.protocol:  # where each file that is written is a commit
        files.resolve_path(remote)
        return
    probe = f"{remote}/.{uuid.uuid4().hex}"
    try:
        files.pipe_file(probe, b"")
    except Exception as error:
        if not files.exists(remote[: remote.index(names[0])] + names[0]):  # makedirs would make a bucket
            raise FileNotFoundError(f"{names[0]} does not exist or cannot be read; make it first") from error
        files.makedirs(remote, exist_ok=True)
        files.pipe_file(probe, b"")
    files.rm_file(probe)
