"""Calls in processes that crash, hang and raise."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from modeling_mmt.extraction.workers import CallFailedError, WorkerPool, _serve, start_imports


def act(what):
    """A decoder in miniature."""
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "exit":
        os._exit(7)
    if what == "bad":
        raise ValueError("bad file")
    if what == "bug":
        raise RuntimeError("a bug")
    if isinstance(what, float):
        time.sleep(what)
    return what, os.getpid()


class Parent:
    def __call__(self, _):
        return os.getppid()


def test_imports_that_started_early_serve_the_workers_and_do_not_hear_ctrl_c():
    forkserver._forkserver.__init__()  # as in a process that has none yet
    start_imports(Parent)
    server = forkserver._forkserver._forkserver_pid
    (blocked,) = [
        line for line in Path(f"/proc/{server}/status").read_text().splitlines() if line.startswith("SigBlk")
    ]
    assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1
    with WorkerPool(Parent(), 2, timeout=60) as pool:
        assert list(pool.map([0, 1], ahead=2)) == [server, server]


def outcome(result):
    return str(result) if isinstance(result, CallFailedError) else result[0]


@pytest.mark.parametrize("answers", [0, 1])
def test_a_worker_that_nobody_waits_for_any_more_ends_without_a_word(answers, capfd):
    ours, theirs = multiprocessing.Pipe()

    def live():
        ours.close()  # this process's copy
        _serve(act, theirs, 9.0)

    worker = multiprocessing.get_context("fork").Process(target=live)
    ours.send(0.2)
    if not answers:
        ours.close()
    worker.start()
    theirs.close()
    if answers:
        assert ours.recv() == "ready"
        ours.close()
    worker.join(20)
    assert worker.exitcode == 0 and capfd.readouterr().err == ""


def test_only_the_call_that_crashes_hangs_or_raises_is_lost():
    calls = [1, "crash", 2, "hang", 3, "exit", 4, "bad", 5, "bug", 6]
    with WorkerPool(act, 2, timeout=1) as pool:
        results = [outcome(result) for result in pool.map(calls, ahead=4)]
    assert results == [
        1, "its process ended by SIGSEGV", 2, "took longer than 1 seconds", 3, "its process ended with code 7", 4,
        "bad file", 5, "its process ended with code 1", 6,
    ]  # fmt: skip


def test_results_keep_the_order_and_calls_run_side_by_side():
    with WorkerPool(act, 2, timeout=30) as pool:
        list(pool.map([0, 0], ahead=2))  # both are up
        start = time.perf_counter()
        results = list(pool.map([0.4, 0.01, 0.4, 0.02], ahead=4))
        seconds = time.perf_counter() - start
    assert [value for value, _ in results] == [0.4, 0.01, 0.4, 0.02]
    assert len({process for _, process in results} | {os.getpid()}) == 3
    assert seconds < 0.83  # one after the other takes that long


def test_no_more_than_ahead_arguments_are_taken():
    taken = []

    def arguments():
        for number in range(10):
            taken.append(number)
            yield number

    with WorkerPool(act, 1, timeout=30) as pool:
        results = pool.map(arguments(), ahead=3)
        assert not taken
        next(results)
        assert len(taken) == 3
        assert [value for value, _ in results] == list(range(1, 10))


def test_a_worker_that_dies_between_two_calls_costs_neither():
    with WorkerPool(act, 1, timeout=30) as pool:
        ((_, process),) = pool.map(["first"], ahead=1)
        os.kill(process, signal.SIGKILL)
        ((value, other),) = pool.map(["second"], ahead=1)
    assert value == "second" and other != process


def test_leaving_early_ends_the_workers_at_once():
    start = time.perf_counter()
    with pytest.raises(KeyError), WorkerPool(act, 1, timeout=60) as pool:
        results = pool.map([1, "hang", 2, 3], ahead=4)
        _, process = next(results)
        raise KeyError
    assert time.perf_counter() - start < 20
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(process, 0)
            time.sleep(0.05)


def test_no_workers_are_one_so_that_a_crash_costs_one_call():
    with WorkerPool(act, 0, timeout=20) as pool:
        good, crashed, other = pool.map([1, "crash", 2], ahead=1)
    assert good[0] == 1 and good[1] != os.getpid() and other[0] == 2
    assert str(crashed) == "its process ended by SIGSEGV"


def send_much(what):
    """Megabytes; a worker that is told to die is killed while it sends them."""
    if what == "die":
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(2**28)
    return bytes(what)


def test_a_worker_that_is_killed_while_it_sends_costs_its_call_alone():
    with WorkerPool(send_much, 2, timeout=60) as pool:
        results = list(pool.map([10, "die", 2**22, 20], ahead=4))
    assert str(results[1]) == "its process ended by SIGKILL"
    assert [len(result) for result in (results[0], *results[2:])] == [10, 2**22, 20]


def test_ctrl_c_leaves_no_process_and_no_words_of_a_worker(tmp_path):
    """The signal goes to the whole group, as a terminal sends it, while the workers and what serves them start."""
    program = Path(__file__).parents[1] / "tiny_extraction.py"
    command = [sys.executable, str(program), str(tmp_path / "store"), str(tmp_path / "log"), "2", "30"]
    run = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite that runs behind `&` ignores it
    )
    while not (tmp_path / "store.partial" / "progress" / "plan.json").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGINT, said
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt"), said
    for _ in range(100):
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process was left over")
