"""Terminal input and output: options, JSON, and colours if a person is watching."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from modeling_mmt.data.errors import InputError


def print_json(value: Any):
    """JSON on the standard output; a number that JSON has not is an error."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def is_watched(stream: IO[str]) -> bool:
    """Whether a person sees the stream as it is written."""
    return stream.isatty()


def be_quiet_unless_watched():
    """Progress bars of the libraries go to terminals alone; what is not imported yet reads its variable then."""
    if is_watched(sys.stderr):
        return
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    if "transformers" in sys.modules:  # and with its bars those of huggingface_hub
        sys.modules["transformers"].utils.logging.disable_progress_bar()


class OptionParser(argparse.ArgumentParser):
    """A grammar whose errors are bad input like any other: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an `InputError`."""
        raise InputError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


class Paint:
    """Colours on a terminal, plain text elsewhere and where NO_COLOR is set (https://no-color.org)."""

    def __init__(self, stream: IO[str], environment: Mapping[str, str] = os.environ):
        dumb = environment.get("TERM") == "dumb"
        self.is_on = is_watched(stream) and not environment.get("NO_COLOR") and not dumb

    def bold(self, text: str) -> str:
        """For headings."""
        return self._paint("1", text)

    def blue(self, text: str) -> str:
        """For averages."""
        return self._paint("34", text)

    def grey(self, text: str) -> str:
        """For what matters less."""
        return self._paint("90", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.is_on else text
