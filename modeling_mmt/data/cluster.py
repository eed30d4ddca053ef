"""Calls a function on the nodes of a Ray cluster.

    with ClusterPool("10.0.0.1:6379") as pool:
        for result in pool.map(function, arguments):
            write(result)

Nodes compute, and the process that asks writes: so there is one lock, one rule for going on after a stop, and the
bytes of a run on one machine. What a node was at when it died, Ray has another one do. Media are not sent: every node
reads them by the path that they have on this machine. Nothing but a pool that is entered imports Ray.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

from modeling_mmt.data.errors import PACKAGE, InputError

LOCAL, AUTO = "local", "auto"
ADDRESS = "RAY_ADDRESS"  # the environment's, which Ray takes for `auto`
RETRIES = 5  # of a call whose node dies, or runs out of memory
CALLS_A_SLOT = 2  # under way or waiting to be taken, for each that can run at once
CONNECT_SECONDS = 10.0
PATIENCE = "RAY_gcs_server_port_wait_time_s"  # Ray's: how often it tries to connect, each time for 40 seconds (20)
PACKAGES = ("torch", "transformers", "numpy", "pillow", "av")  # beside this one: what can change a result


class ClusterError(InputError):
    """A cluster cannot be used, or a node of it cannot do its part."""


class ClusterPool:
    """The nodes of a cluster, which call functions. Use it as a context manager.

    Args:
        address: `HOST:PORT` of a cluster's head; `auto` for the one that RAY_ADDRESS names, or that this machine is a
            node of; `local` for one of this machine's cores, which ends with the pool. A program that has called
            `ray.init` keeps its own.
        num_cpus: cores that a call occupies.
        num_gpus: likewise.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: nothing answers at the address, or it has no room for a call.
    """

    def __init__(self, address: str, num_cpus: int = 1, num_gpus: int = 0):
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus
        self._ray: Any = None
        self._function: Any = None
        self._shared: list[Any] = []  # its reference; in a list, so that a call gets the reference

    def __enter__(self) -> ClusterPool:
        self._ray, self._is_own = _connected(self.address)
        try:
            self.num_slots = self._count_slots()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_own:
            self._ray.shutdown()

    def _count_slots(self) -> int:
        resources = self._ray.cluster_resources()
        slots = resources.get("CPU", 0) // self.num_cpus
        if self.num_gpus:
            slots = min(slots, resources.get("GPU", 0) // self.num_gpus)
        if slots < 1:
            wanted = f"{self.num_cpus} CPUs" + (f" and {self.num_gpus} GPUs" if self.num_gpus else "")
            found = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            lacks_cards = resources.get("GPU", 0) < self.num_gpus
            raise ClusterError(
                f"--cluster {self.address}: a task needs {wanted}, and its nodes have {found} in all; start nodes "
                f"with `ray start --address`, or {'give --device cpu' if lacks_cards else 'lower --num_workers'}"
            )
        return int(slots)

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """The function's results in the order of the arguments, which are asked for when there is room.

        Args:
            function: anything that can be pickled; a worker process unpickles it once, for all its calls.
            arguments: one for each call; they are pickled too.

        Raises:
            ClusterError: a node cannot do its part, or a call died with its node again and again.
            Exception: what a call raised: an `InputError` or `OSError` as it was, others with the node's traceback.
        """
        if function is not self._function:
            self._function, self._shared = function, [self._ray.put(function)]
        call = self._ray.remote(
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            max_retries=RETRIES,
            retry_exceptions=False,
            max_calls=0,  # else a process with a GPU ends after a call, and the next unpickles again
            name=getattr(function, "__name__", type(function).__name__),  # for `ray list tasks`
        )(_by_value())
        waiting: deque[Any] = deque()
        try:
            for argument in arguments:
                waiting.append(call.remote(self._shared, versions(), argument))
                if len(waiting) >= CALLS_A_SLOT * self.num_slots:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            for unfinished in waiting if self._ray.is_initialized() else ():
                self._ray.cancel(unfinished, force=True)

    def _result(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            check_read_here_too(getattr(error.cause, "unread", None))
            if isinstance(error.cause, InputError | OSError):
                raise error.cause from None
            if isinstance(error.cause, ImportError):
                raise ClusterError(f"--cluster {self.address}: {error.cause}") from None
            raise
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(
                f"--cluster {self.address}: a task was lost, and so were its {RETRIES} repetitions ({reason}); see "
                "whether the nodes live and have memory to spare, and run the command again"
            ) from error


def _connected(address: str) -> tuple[Any, bool]:
    """Ray, connected, and whether it was this call that did it."""
    check_answers(address)
    import ray

    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    hurried = address != LOCAL and PATIENCE not in os.environ
    if hurried:
        os.environ[PATIENCE] = "1"
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        reason = str(error.__cause__ or error).strip()
        if "Traceback" in reason:
            reason = reason.splitlines()[-1]
        remedy = (
            "give HOST:PORT of a head that `ray start --head` started, make this machine a node of it with "
            "`ray start --address=HOST:PORT`, or give local"
        )
        if isinstance(error, ray.exceptions.AuthenticationError):
            remedy = "export RAY_AUTH_MODE=token, with the head's token in ~/.ray/auth_token"
        raise ClusterError(f"--cluster {address}: {' '.join(reason.split())}; {remedy}") from error
    finally:
        if hurried:
            del os.environ[PATIENCE]
    return ray, True


def check_answers(address: str) -> None:
    """Refuse at once an address where nothing listens; Ray tries for a minute.

    A command calls this before it opens a model or writes a file. What is connected already is not asked again.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: nothing answers at the address.
    """
    if find_spec("ray") is None:
        raise ImportError("--cluster needs Ray: pip install modeling_mmt[cluster]")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    named = f"--cluster {address}"
    if address == AUTO and ADDRESS in os.environ:
        address = os.environ[ADDRESS]
        named += f" is {ADDRESS}={address}, which"
    if address in (LOCAL, AUTO):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not (host and colon and port.isdecimal()):
            raise ValueError("no HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ClusterError(
            f"{named} cannot be reached ({error}); give HOST:PORT of a head that `ray start --head` "
            "started, auto or local"
        ) from error


# --- on a node


def _by_value() -> Callable[[Any, Mapping[str, str], Any], Any]:
    """What Ray calls. As a function inside a function it is sent itself, so that it runs where this package is not."""

    def call(shared: Any, theirs: Mapping[str, str], argument: Any) -> Any:
        try:
            from modeling_mmt.data.cluster import answer
        except ImportError as error:
            from platform import node

            raise ImportError(
                f"node {node()} cannot import modeling_mmt ({error}); install the same version there"
            ) from None
        return answer(shared, theirs, argument)

    return call


_functions: dict[str, Callable[[Any], Any]] = {}  # of the calls of this process, by its reference: one


def answer(shared: Any, theirs: Mapping[str, str], argument: Any) -> Any:
    """A call on a node.

    Args:
        shared: a list of the reference to the function.
        theirs: `versions` of the process that asks.
        argument: of the function.

    Raises:
        ClusterError: this node has other versions.
    """
    import ray

    for package, wanted in theirs.items():
        if (own := versions().get(package, "missing")) != wanted:
            raise ClusterError(
                f"node {platform.node()} has {package} {own}, and this machine {wanted}; install the same everywhere"
            )
    (reference,) = shared
    if (key := reference.hex()) not in _functions:
        _functions.clear()
        _functions[key] = ray.get(reference)
    try:
        return _functions[key](argument)
    except OSError as error:
        error.unread = unread(error.filename)  # type: ignore[attr-defined]
        raise


@cache
def versions() -> dict[str, str]:
    """What must be the same on all machines, with its version; of this package, also a hash of its code."""
    import modeling_mmt

    digest = sha256()
    for path in sorted(file for name in (PACKAGE.name, "datasets_scripts") for file in _modules(name)):
        digest.update(path.encode() + (PACKAGE.parent / path).read_bytes())
    found = {"modeling_mmt": f"{modeling_mmt.__version__} (code {digest.hexdigest()[:12]})"}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]  # a build for CPUs is the same release
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _modules(package: str) -> Iterator[str]:
    folder = PACKAGE.parent / package
    return (path.relative_to(PACKAGE.parent).as_posix() for path in folder.rglob("*.py"))


class Unread(NamedTuple):
    """A file that a node cannot read.

    Attributes:
        node: the name of that machine.
        path: of the file.
    """

    node: str
    path: str


def unread(path: Any) -> Unread | None:
    """What is to be said of a file that could not be used, if this machine cannot so much as open it.

    Args:
        path: of the file; what is no path (bytes, rows) has come with the call, and is there.
    """
    if not isinstance(path, str | os.PathLike) or os.access(path, os.R_OK):
        return None
    return Unread(platform.node(), os.fspath(path))


def check_read_here_too(unread: Unread | None) -> None:
    """Where the nodes' results are taken: tell a node without the media from a file that is nowhere.

    Raises:
        ClusterError: this machine can read what the node cannot.
    """
    if unread is not None and os.access(unread.path, os.R_OK):
        raise ClusterError(
            f"node {unread.node} cannot read {unread.path}, and this machine can; mount its folder at the same path "
            "on every node"
        )
