"""A Ray cluster on the loopback, whose nodes are processes of this machine and can be killed."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def cluster_of(*cpus: int) -> "Iterator[Cluster]":
    """A head with the first number of cores, and a node for each of the others; they import this tree."""
    ray = pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
        try:
            for count in cpus[1:]:
                cluster.add_node(num_cpus=count)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


class Killer(threading.Thread):
    """Kills, by SIGKILL, all processes of a node that is not the driver's, while it is at a task.

    Args:
        cluster: whose node dies.
        task: the name by which Ray shows the task in the process's title.
        ready: whether it may happen.
    """

    def __init__(self, cluster: "Cluster", task: str, ready: Callable[[], bool]):
        super().__init__(daemon=True)
        self.cluster, self.task, self.ready = cluster, task, ready
        self.killed: list[psutil.Process] = []
        self._ended = threading.Event()

    def run(self):
        while not self._ended.is_set() and not self.killed:
            time.sleep(0.005)
            for node in self.cluster.worker_nodes if self.ready() else ():
                processes = processes_of(node)
                if any(self._is_at_task(process) for process in processes):
                    for process in processes:
                        process.kill()
                    self.killed = processes
                    break

    @property
    def is_done(self) -> bool:
        """Whether a node was killed, so that none of its processes runs any more."""
        dead = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return bool(self.killed) and not any(one.is_running() and one.status() not in dead for one in self.killed)

    def _is_at_task(self, process: psutil.Process) -> bool:
        try:
            return f"ray::{self.task}" in " ".join(process.cmdline())
        except psutil.Error:
            return False

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()


def processes_of(node) -> list[psutil.Process]:
    """Of a node: the one that starts its workers, and all that came of it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]
