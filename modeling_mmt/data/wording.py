"""Words of messages that depend on a number."""


def counted(number: int, noun: str) -> str:
    """A number with a regular noun: `1 file`, `2,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
