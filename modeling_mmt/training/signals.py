"""Stops a run after the current step when a signal asks for it, with a checkpoint."""

import logging
import signal
import threading
from typing import Any

import torch
from accelerate import Accelerator

logger = logging.getLogger(__name__)

STOPPED = 75  # exit code: run the same command again, and it goes on


class StopSignals:
    """While entered, SIGTERM and a first Ctrl-C set `requested`; a second Ctrl-C interrupts at once.

    Outside of the main thread, where no handler may be set, signals are left alone.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: Any):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _request(self, number: int, frame: Any):
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.info("stopping after this step, with a checkpoint; Ctrl-C stops at once")

    def requested_of_any(self, accelerator: Accelerator) -> bool:
        """Whether any process got the signal: they get it at different steps, and must stop after the same one."""
        requested = torch.tensor([int(self.requested)], device=accelerator.device)
        return bool(accelerator.gather(requested).any())
