"""Numbers that a person or a stranger's file gives: each is more than zero, and no more than makes sense."""

from collections.abc import Mapping

from modeling_mmt.data.errors import InputError

MOST = {
    "frames_per_second": 240.0,  # what cameras record for slow motion
    "image_size": 4096,  # pixels a side, through an encoder
    "num_workers": 1024,
    "timeout": 1e6,  # seconds; the system's timers take no more than some of these
}


def check_numbers(numbers: Mapping[str, int | float | None], where: str = "") -> None:
    """Refuse numbers that are not positive, or beyond `MOST`; None is not given.

    Args:
        numbers: by their names.
        where: the file that has them, for the message.

    Raises:
        InputError: a number is so.
    """
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise InputError(f"{where}{name} is {value}; give more than 0")
        if value is not None and value > (most := MOST.get(name, value)):
            raise InputError(f"{where}{name} is {value:g}; give at most {most:g}")
