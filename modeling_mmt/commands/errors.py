"""What a program says when something is wrong: our own errors in one line, all others with their traceback."""

import os
import sys
from collections.abc import Callable

DONE, PROBLEMS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes; a run that a signal stopped has its own, 75


def exit_code_of(program: str, call: Callable[[], int | None], traceback: bool = False) -> int:
    """Do what a program does; an error of what it was given becomes one line on the standard error stream.

    Args:
        program: its name, which the line begins with.
        call: does it; may return an exit code.
        traceback: raise such errors too, to show where they were found.

    Returns:
        The exit code: the call's own or 0, 2 for bad input, 130 where Ctrl-C interrupted it.

    Raises:
        Exception: every error that is not of our own types, as it is.
    """
    try:
        code = call() or DONE
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `mmt ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if traceback or not is_ours(error):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"{program}: {printable(words)}", file=sys.stderr)
        return BAD_INPUT


def is_ours(error: Exception) -> bool:
    """Whether an error says, in one line, what is wrong with what was given."""
    from modeling_mmt.data.errors import InputError  # now that something has gone wrong, time is no matter
    from modeling_mmt.video_decoding_mmt import VideoDecodingError  # ships with checkpoints, where there is no data/

    return isinstance(error, InputError | VideoDecodingError)


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
