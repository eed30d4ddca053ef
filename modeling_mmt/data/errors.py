"""The base class of errors about bad input, which programs print in one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


class InputError(ValueError):
    """A file, a value or an option cannot be used; the message is one line that names it, and the remedy."""


@contextmanager
def naming_input(name: str, error_type: type[InputError] = InputError) -> Iterator[None]:
    """Make whatever a library raises while it reads somebody else's files an error that names these.

    Only where such files are opened: what somebody else wrote may be wrong in any way, so every exception is caught.

    Args:
        name: of what is opened; put before words that do not have it.
        error_type: of the error.

    Raises:
        InputError: the library's words in one line, and where it said them, or words of this package alone. An
            `InputError` that has the name stays.
    """
    try:
        yield
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        is_clear = isinstance(error, (ValueError, OSError, ImportError))
        words = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, InputError):
            if isinstance(error, error_type) or (name in words and type(error) is not InputError):
                raise
            raise error_type(words if name in words else f"{name}: {words}") from error
        if not is_clear:
            words = f"{type(error).__name__}: {words}; check that the file is complete and of the expected kind"
        words = words if name in words else f"{name}: {words}"
        is_ours = Path(last.filename).is_relative_to(PACKAGE)
        place = "" if is_ours else f" ({Path(last.filename).name}, line {last.lineno})"
        raise error_type(words + place) from error
