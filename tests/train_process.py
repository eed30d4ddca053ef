"""Runs of `train.main` in processes of their own: a forked copy of one that has imported everything costs nothing.

They are whole processes, with `torchrun`'s environment, and are killed as such.
"""

import multiprocessing
import os
import signal
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch --use_fsdp` sets
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["modeling_mmt.commands.train"])


class Group:
    """`world_size` processes that run one recipe; use as a context, which leaves none of them behind.

    `env` is for these processes alone.
    """

    def __init__(self, argv, world_size=1, env=None):
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
        os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # for the server, when it starts
        try:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            self.steps, theirs = CONTEXT.Pipe(duplex=False)
            self.processes = [
                CONTEXT.Process(
                    target=run, args=(list(argv), rank, world_size, port, None if rank else theirs, env or {})
                )
                for rank in range(world_size)
            ]
            for process in self.processes:
                process.start()
            theirs.close()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def wait_for(self, stage, step):
        """Return once the first process has taken that step of that stage."""
        while True:
            if not self.steps.poll(180):
                raise TimeoutError(f"no step for three minutes while waiting for {stage} {step}")
            if self.steps.recv() == (stage, step):  # EOFError: it ended before
                return

    def kill(self, signal_number=signal.SIGKILL, ranks=None):
        """Send a signal to all that live, or to some ranks; wait for the end after SIGKILL."""
        for rank, process in enumerate(self.processes):
            if process.is_alive() and (ranks is None or rank in ranks):
                os.kill(process.pid, signal_number)
        if signal_number == signal.SIGKILL:
            self.join()

    def join(self):
        """Wait for the end; returns the exit codes, minus the signal's number for the killed."""
        for process in self.processes:
            process.join(300)
        return [process.exitcode for process in self.processes]


def run(argv, rank, world_size, port, steps, env):
    """One process of a group: what `python train.py` does, and each step told through a pipe."""
    os.environ |= env
    import torch

    from modeling_mmt.commands import train
    from modeling_mmt.training import stage

    log = os.open(f"{argv[0]}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    if torch.accelerator.is_available():  # elsewhere train.py finds out by itself
        os.environ["ACCELERATE_USE_CPU"] = "true"

    class Bar(stage.tqdm):
        def update(self, n=1):
            super().update(n)
            if steps is not None:
                steps.send((self.desc, self.n))

    stage.tqdm = Bar
    train.main(argv)
