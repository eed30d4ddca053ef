"""Words of messages: what depends on a number, and what is not to be shown."""

import re

PASSWORD = re.compile(r"://[^/:@\s]*(:[^/\s]+@)")


def counted(number: int, noun: str) -> str:
    """A number with a regular noun: `1 file`, `2,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def without_passwords(text: str) -> str:
    """A text with stars for the passwords of the URLs in it, wherever they stand: `ftp://name:***@host/folder`."""
    for password in set(PASSWORD.findall(text)):
        text = text.replace(password, ":***@")
    return text
