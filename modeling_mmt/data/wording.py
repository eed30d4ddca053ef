"""Words of messages: what depends on a number, and what is not to be shown."""

import re

PASSWORD = re.compile(r"://[^/:@\s]*(:[^/\s]+@)")
SIGNATURE = re.compile(r"([?&][^=&\s]*(?:sig|token|key|secret|pass|credential)[^=&\s]*=)[^&#\s'\"]+", re.IGNORECASE)


def counted(number: int, noun: str) -> str:
    """A number with a regular noun: `1 file`, `2,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def without_passwords(text: str) -> str:
    """A text with stars for what the URLs in it keep secret: `ftp://name:***@host/folder`, `https://host/file?sig=***`.

    A password also where it stands without its URL's beginning, as a library may say it.
    """
    for password in set(PASSWORD.findall(text)):
        text = text.replace(password, ":***@")
    return SIGNATURE.sub(r"\1***", text)
