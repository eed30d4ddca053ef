"""Calls a function in worker processes that may crash or hang, losing only the call that does.

A decoder is C code that meets strangers' files: one in a million brings its process down, or never returns. Here it
brings down a worker, which is started anew, and its file alone has failed. Each worker has a pipe of its own, so that
one that is killed while it sends its pixels harms no other. In `pebble.ProcessPool` (5.2.3) all share one pipe and its
lock: an idle worker's death breaks the pool, and after the death of one that was sending, no call is ever answered.
"""

import multiprocessing
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

START_SECONDS = 600  # for a worker's imports, on a machine that is busy
ORPHAN_SECONDS = 60  # how long after its call's time a hanging worker ends by itself, should the pool be gone


class CallFailedError(RuntimeError):
    """A call failed; the message says how: what it raised, how its process ended, or that it took too long."""


class _WorkerDiedError(CallFailedError):
    """A worker process ended before it answered."""


class WorkerPool:
    """Worker processes, each with a thread here that waits for it. Use it as a context manager.

    Args:
        function: what the workers call: anything that can be sent to a process. Its `ValueError` and `OSError` are a
            call's failures; any other exception ends the worker, and is a failure as well.
        num_workers: how many processes; at least one, whatever is given, since nothing protects this one from a crash.
        timeout: seconds a call may take.
    """

    def __init__(self, function: Callable[[Any], Any], num_workers: int, timeout: float):
        self.num_workers = max(1, num_workers)
        self._workers = [_Worker(function, timeout) for _ in range(self.num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="worker_pool")

    def map(self, arguments: Iterable[Any], ahead: int) -> Iterator[Any]:
        """The results in the order of the arguments, of which at most `ahead` are under way or waiting to be taken.

        A call that failed yields its `CallFailedError` in place of a result. Nothing starts before the first result
        is asked for.
        """
        waiting: deque[Future] = deque()
        for argument in arguments:
            waiting.append(self._threads.submit(self._call, argument))
            if len(waiting) >= max(ahead, 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _call(self, argument: Any) -> Any:
        worker = self._idle.get()
        try:
            try:
                return worker.call(argument)
            except _WorkerDiedError:  # perhaps of what the call before it left behind: a fresh one tells
                return worker.call(argument)
        except CallFailedError as error:
            return error
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True)


class _Worker:
    """One process and the pipe to it; it is started by its first call."""

    def __init__(self, function: Callable[[Any], Any], timeout: float):
        self.function, self.timeout = function, timeout
        self.process: Any = None
        self.connection: Connection | None = None
        self._closed = threading.Event()

    def call(self, argument: Any) -> Any:
        """The function's result.

        Raises:
            CallFailedError: it raised, or took too long.
            _WorkerDiedError: the process ended.
        """
        connection = self._start()
        try:
            connection.send(argument)
            if not connection.poll(self.timeout):
                self._stop()
                raise CallFailedError(f"took longer than {self.timeout:g} seconds")
            good, value = connection.recv()
        except (EOFError, OSError) as error:
            raise _WorkerDiedError(f"its process ended {self._stop()}") from error
        if not good:
            raise CallFailedError(value)
        return value

    def _start(self) -> Connection:
        if self._closed.is_set():
            raise CallFailedError("the pool is closed")
        if self.process is not None and self.process.is_alive() and self.connection is not None:
            return self.connection
        self._stop()
        context = _context(self.function)
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.function, theirs, self.timeout), daemon=True)
        with _children_deaf_to_ctrl_c():
            process.start()
        self.process = process
        theirs.close()
        if self._closed.is_set():  # while the process started, so that `close` did not see it
            self._stop()
            raise CallFailedError("the pool is closed")
        if not self.connection.poll(START_SECONDS) or self.process.exitcode is not None:
            raise RuntimeError(f"a worker process did not start: it ended {self._stop()}; its message stands above")
        self.connection.recv()
        return self.connection

    def _stop(self) -> str:
        """Ends the process; says how it had ended, if it had."""
        if self.process is None:
            return "before it began"
        self.process.join(1)  # its end is known a moment after its pipe's
        code = self.process.exitcode
        self.process.kill()
        self.process.join(1)  # not for ever: a process that waits for a disk cannot be killed
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None
        if code is None:
            return "without an answer"
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"

    def close(self) -> None:
        """Ends the process, whatever it does; a call under way fails."""
        self._closed.set()
        process = self.process
        if process is not None:
            process.kill()


def start_imports(function: type) -> None:
    """Have the server that workers are forked from import what they need, while this process does other things.

    Args:
        function: the class of what the workers will call.
    """
    context = _context(function)
    if context.get_start_method() == "forkserver":
        with _children_deaf_to_ctrl_c():
            forkserver.ensure_running()


@contextmanager
def _children_deaf_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C is this process's to hear: the fork server that is started here, and so its workers, inherit the mask."""
    resource_tracker.ensure_running()  # now: when it is started it would lift the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _context(function: Callable[[Any], Any]) -> Any:
    """Fork servers start a worker in milliseconds, and without the threads and devices of the process that asks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    module = getattr(function, "__module__", None) or type(function).__module__
    context.set_forkserver_preload(["__main__", __name__, module])  # heard by the first worker's server alone
    return context


def _serve(function: Callable[[Any], Any], connection: Connection, timeout: float) -> None:
    """A worker's life: an answer for each argument, until there is no one to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _sent(connection, "ready"):
        return
    while True:
        try:
            argument = connection.recv()
        except (EOFError, ConnectionError):
            return
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, timeout + ORPHAN_SECONDS)  # no handler: it ends the process
        answer: tuple[bool, Any]
        try:
            answer = True, function(argument)
        except (ValueError, OSError) as error:
            answer = False, _reason(error)
        if not _sent(connection, answer):
            return


def _sent(connection: Connection, value: Any) -> bool:
    """Whether there was someone to send it to; a pool that is killed leaves its workers alone."""
    try:
        connection.send(value)
    except ConnectionError:
        return False
    return True


def _reason(error: Exception) -> str:
    return f"{error}" or type(error).__name__
