"""Official files of a corpus: every byte hashed, every id checked, every rule counted.

A file that is missing, cut short, not UTF-8 or not what its name says is an error that names file, place and remedy.
A text that a rule covers (empty, not a text, far too long) is changed or dropped as the rule says, and counted.
"""

import gzip
import hashlib
import io
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from modeling_mmt.data.errors import InputError
from modeling_mmt.inputs_mmt import is_blank

Row = dict[str, Any]

MAX_CAPTION = 10_000  # characters; the longest subtitle of an hour is far below
MAX_FILE_BYTES = 2**30  # of a file that is read whole, once it is unpacked; larger official ones are read in pieces
RULES = {
    "not_text": "a caption that is not text (a number, null, half of a surrogate pair): dropped",
    "empty": "an empty caption, or one of invisible characters alone: dropped",
    "too_long": f"a caption of more than {MAX_CAPTION:,} characters: dropped",
    "spaces": "tabs, line ends, control characters and repeated spaces in a caption: one space each",
    "no_caption": "a clip without any caption left: dropped",
    "no_features": "a clip with captions and without features, under --missing_features skip: dropped",
    "features_unused": "a clip with features and without captions: its features are not used",
}


class SourceError(InputError):
    """An official file is not as its layout says; the message names file, field, value and remedy."""


class Tally:
    """How often each rule was applied.

    Args:
        rules: the builder's own, {name: sentence}, beside `RULES`.
    """

    def __init__(self, rules: Mapping[str, str] | None = None):
        self.rules: dict[str, str] = {**(rules or {}), **RULES}
        self.counts: Counter[str] = Counter(dict.fromkeys(self.rules, 0))

    def count(self, rule: str, times: int = 1) -> None:
        """Adds to a rule's count; a rule that is not stated is a KeyError."""
        self.counts[rule] += times if rule in self.rules else self._unknown(rule)

    def _unknown(self, rule: str) -> int:
        raise KeyError(f"no rule {rule!r}; state it first: {', '.join(self.rules)}")

    def lines(self) -> Iterator[str]:
        """A line for each rule that was applied."""
        return (f"  {count:,} x {self.rules[rule]}" for rule, count in self.counts.items() if count)


class Sources:
    """The files of `--data_dir`; `sha256` has the hash of each that was read, as it lies there.

    Args:
        folder: that holds the files.
        layout: which they are, for error messages.
    """

    def __init__(self, folder: str | Path, layout: str = ""):
        self.folder, self.layout = Path(folder), layout
        self.sha256: dict[str, str] = {}

    def find(self, *names: str) -> str:
        """The first of the names that is there.

        Raises:
            FileNotFoundError: none is.
        """
        for name in names:
            if (self.folder / name).is_file():
                return name
        raise FileNotFoundError(
            f"{self.folder / names[0]} does not exist{' (nor ' + ', '.join(names[1:]) + ')' if names[1:] else ''}; "
            f"--data_dir must hold the official files:\n{self.layout}"
        )

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.folder / name).is_file()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The file's bytes as a stream, decompressed if it ends in `.gz`; read to its end, it is hashed.

        Raises:
            FileNotFoundError: it does not exist.
            SourceError: it is a damaged or cut gzip file.
        """
        path = self.folder / self.find(name)
        with path.open("rb") as raw:
            hashing = _Hashing(raw)
            stream: Any = gzip.GzipFile(fileobj=hashing) if name.endswith(".gz") else hashing
            try:
                yield stream
                while hashing.read(1 << 20):
                    pass
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise SourceError(f"{path}: not a complete gzip file ({error}); download it again") from error
        self.sha256[name] = hashing.digest.hexdigest()

    def content(self, name: str) -> bytes:
        """All of a file.

        Raises:
            SourceError: it is larger than `MAX_FILE_BYTES` once it is unpacked.
        """
        with self.open(name) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise SourceError(f"{self.folder / name}: more than {MAX_FILE_BYTES:,} bytes; split it")
        return data

    def text(self, name: str) -> str:
        """The whole file.

        Raises:
            SourceError: it is not UTF-8.
        """
        try:
            return self.content(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.folder / name}: byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error

    def picture(self, name: str) -> bytes:
        """The bytes of a picture.

        Raises:
            SourceError: it cannot be decoded.
        """
        data = self.content(name)
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except (UnidentifiedImageError, OSError) as error:
            raise SourceError(f"{self.folder / name} is not a readable picture ({error}); copy it again") from error
        return data

    def lines(self, name: str) -> list[str]:
        """The file's lines, as `wc -l` counts them, whether or not the last has an end."""
        text = self.text(name).replace("\r\n", "\n")
        return text.removesuffix("\n").split("\n") if text else []

    def json(self, name: str) -> Any:
        """The file's value.

        Raises:
            SourceError: it is cut short or no JSON, or an object has a key twice.
        """
        where = self.folder / name

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            value = dict(pairs)
            if len(value) < len(pairs):
                double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
                raise SourceError(f"{where}: key {double!r} appears twice in one object; remove one of them")
            return value

        try:
            return json.loads(self.text(name), object_pairs_hook=once)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SourceError(f"{where}: incomplete or invalid JSON ({error}); download it again") from error


class _Hashing(io.RawIOBase):
    """A stream of bytes that hashes what is read."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.digest = stream, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.digest.update(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def checked_id(value: Any, where: str, in_folders: bool = False) -> str:
    """A clip's id that may be part of a file's name.

    Args:
        value: the id.
        where: it stands, for the message.
        in_folders: whether it may have folders, as `mmt extract` makes of them: `kitchen/cat`.

    Raises:
        SourceError: it is not a string, empty, longer than 200 bytes, or a path (with folders: one that does not
            lead down) or a control sequence.
    """
    parts = value.split("/") if isinstance(value, str) and in_folders else [value]
    if not all(map(_is_name, parts)):
        shown = repr(value) if len(repr(value)) < 100 else repr(value)[:100] + "..."
        without = "empty folders, backslashes" if in_folders else "slashes"
        raise SourceError(
            f"{where}: {shown} is not a valid clip id; give 1 to 200 bytes without {without}, control characters "
            "and outer spaces"
        )
    return value


def _is_name(part: Any) -> bool:
    return (
        isinstance(part, str)
        and part not in ("", ".", "..")
        and part == part.strip()
        and not any(char in "/\\" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in part)
        and len(part.encode()) <= 200
    )


def checked_language(value: Any, where: str, languages: Sequence[str] | None = None) -> str:
    """A language code such as `en` or `pt-BR`.

    Raises:
        SourceError: it is none, or not one of `languages`.
    """
    if value == "cz":
        raise SourceError(f"{where}: language 'cz' is a country; Czech is 'cs': rename it")
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", value):
        raise SourceError(f"{where}: language is {value!r}; write its BCP-47 code, such as en or sw")
    if languages is not None and value not in languages:
        raise SourceError(f"{where}: language {value!r} is unknown; known are {', '.join(languages)}")
    return value


def clean_text(value: Any, tally: Tally) -> str | None:
    """A caption as it is stored: single spaces, no control characters; None where a rule drops it."""
    if not isinstance(value, str):
        tally.count("not_text")
        return None
    if len(value) > MAX_CAPTION:
        tally.count("too_long")
        return None
    text = value
    if not (value.isascii() and value.isprintable() and "  " not in value and value.strip() == value):
        if any("\ud800" <= char <= "\udfff" for char in value):
            tally.count("not_text")
            return None
        spaced = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in value)
        text = "" if is_blank(spaced) else " ".join(spaced.split())
        if text != value and text:
            tally.count("spaces")
    if not text:
        tally.count("empty")
        return None
    return text


def clean_texts(values: Sequence[Any], tally: Tally) -> list[str]:
    """The captions that no rule drops."""
    return [text for text in (clean_text(value, tally) for value in values) if text is not None]


def as_list(value: Any, where: str) -> list[Any]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise SourceError(f"{where}: {type(value).__name__} instead of a list; see the official layout")
    return value


def as_object(value: Any, where: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """The value, which must be an object with these fields."""
    if not isinstance(value, dict):
        raise SourceError(f"{where}: {type(value).__name__} instead of an object; see the official layout")
    for one in fields:
        if one not in value:
            raise SourceError(f"{where}: field {one!r} is missing; it has {', '.join(map(str, value)) or 'none'}")
    return value


def json_object(text: str, where: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """A line of JSON Lines, which must be an object with these fields."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"{where}: not valid JSON ({error}); write one object a line") from error
    return as_object(value, where, fields)


def id_list(sources: Sources, name: str) -> list[str]:
    """A file with one id a line; empty lines and a file ending such as `.jpg` or `.mp4` are left out.

    Raises:
        SourceError: an id is bad, or there twice.
    """
    ids: dict[str, int] = {}
    for number, line in enumerate(sources.lines(name), start=1):
        if not line.strip():
            continue
        where = f"{sources.folder / name}, line {number}"
        video_id = checked_id(without_ending(line.strip()), where)
        if video_id in ids:
            raise SourceError(f"{where}: {video_id!r} is on line {ids[video_id]} already; remove one of them")
        ids[video_id] = number
    return list(ids)


def without_ending(name: str) -> str:
    """A file's name without `.mp4`, `.avi`, `.webm`, `.mkv`, `.jpg`, `.jpeg` or `.png`."""
    return re.sub(r"\.(mp4|avi|webm|mkv|mov|jpe?g|png)$", "", name, flags=re.IGNORECASE)
