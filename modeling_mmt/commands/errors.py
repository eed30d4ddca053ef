"""A command's errors: what was asked wrongly is one line and exit code 2, anything else keeps its traceback."""

import os
import sys
from collections.abc import Callable

from modeling_mmt.commands.terminal import be_quiet_unless_watched, printable
from modeling_mmt.data.features import MissingClipError

BAD_INPUT, INTERRUPTED = 2, 130
EXPECTED = (ValueError, OSError, MissingClipError, ImportError)


def run(command: Callable[[], int | None], program: str, traceback: bool = False) -> int:
    """Do a command; returns its exit code.

    Args:
        command: what is done; returns an exit code, or None for 0.
        program: its name, before the line that says what was asked wrongly.
        traceback: raise such an error, so that it shows where it was found.
    """
    be_quiet_unless_watched()
    try:
        code = command()
        sys.stdout.flush()
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError):  # `mmt ... | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if traceback:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{program}: {printable(message)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code or 0
