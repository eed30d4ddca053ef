"""A process that is killed before its n-th change of a file, for every n: what it leaves is whole, or made again.

The changes are counted by an audit hook: files opened to be written, renamed or removed, folders made or removed,
modes changed. What a library writes without Python (Arrow, safetensors) lies between two of them.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

CHANGES = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.link",
    "os.symlink",
    "os.truncate",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def run_killed(call: Callable[[], object], folder: Path, number: int) -> bool:
    """Whether `call`, in a forked process, came to its end before its change `number` (from 0) in `folder`."""
    child = os.fork()
    if not child:
        code = 1
        try:
            die_before_change(folder, number)
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the process failed with status {status} before change {number}"
    return status == 0


def run_at_once(calls: list[Callable[[], object]]) -> list[int]:
    """Run each in a forked process, all at once; their exit codes, 1 for an error."""
    children = []
    ready, go = os.pipe()
    for call in calls:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.close(go)
                os.read(ready, 1)  # returns when the other end is closed: all start together
                call()
                code = 0
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(child)
    os.close(go)
    os.close(ready)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def die_before_change(folder: Path, number: int):
    """Let this process end by SIGKILL before its n-th change of a file in a folder."""
    root, left = os.path.realpath(folder), [number]

    def count(event, arguments):
        if event in CHANGES and _is_change(event, arguments) and _path_of(event, arguments).startswith(root):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(count)


def _is_change(event, arguments) -> bool:
    return event != "open" or bool(arguments[2] & WRITES)


def _path_of(event, arguments) -> str:
    path = arguments[0]
    if isinstance(path, int):
        return ""
    path = os.fsdecode(path)
    if not os.path.isabs(path) and event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # shutil.rmtree's
        path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
    return os.path.abspath(path)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path inside."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
