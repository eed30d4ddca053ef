"""What a program prints when something is wrong: one line for bad input, a traceback for a bug of ours."""

import errno
import os
import sys
from collections.abc import Callable

OURS = {"modeling_mmt", "datasets_scripts"}
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
        Exception: every error that is not about bad input, unchanged.
    """
    try:
        code = call() or DONE
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `mmt ... | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if traceback or not is_bad_input(error):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        words += remedy_of(error)
        from modeling_mmt.data.wording import without_passwords

        print(f"{program}: {printable(without_passwords(words))}", file=sys.stderr)
        return BAD_INPUT


def is_bad_input(error: Exception) -> bool:
    """Whether an error says, in one line, what is wrong with the input.

    So do ours (`InputError` and its kinds, and the `ValueError`s of the files that ship with a checkpoint, where there
    is no data/), and an `OSError`, whoever raises it: the cause is a file, the disk or the Hub. A `ValueError`
    that a library raises is a fault of the line that called it.
    """
    from modeling_mmt.data.errors import InputError  # now that something has gone wrong, time is no matter

    if isinstance(error, InputError | OSError):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals["__name__"] if last is not None else ""
    is_plain = isinstance(error, ValueError) or type(error) is ImportError  # which names the extra to install
    return is_plain and module.partition(".")[0] in OURS


def remedy_of(error: BaseException) -> str:
    """What helps where the libraries' cache cannot be written, as in a home that is read-only; else nothing."""
    from huggingface_hub.constants import HF_HOME

    cause: BaseException | None = error
    while cause is not None:
        is_denied = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if is_denied and str(getattr(cause, "filename", "")).startswith(HF_HOME):
            return "; set HF_HOME to a folder that can be written to"
        cause = cause.__cause__ or cause.__context__
    return ""


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
