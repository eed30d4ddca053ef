"""Decoding of text files from any program: Unicode, or else the Windows code page of their language."""

import codecs

from modeling_mmt.data.sources import SourceError

# The longer marks first: UTF-32's begins as UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
CODE_PAGES = {
    **dict.fromkeys(("cs", "hr", "hu", "pl", "ro", "sk", "sl"), "cp1250"),
    **dict.fromkeys(("be", "bg", "mk", "ru", "sr", "uk"), "cp1251"),
    **dict.fromkeys(("ar", "fa", "ur"), "cp1256"),
    **{"el": "cp1253", "tr": "cp1254", "he": "cp1255", "vi": "cp1258", "th": "cp874"},
    **{"zh-Hant": "big5", "zh-TW": "big5", "zh-HK": "big5hkscs", "zh": "gb18030", "ja": "cp932", "ko": "cp949"},
}


def decode(data: bytes, where: str, language: str | None = None) -> tuple[str, str]:
    """A file's text and the encoding that it was read in.

    Args:
        data: the whole file. A byte order mark decides; else zeros at every second place say UTF-16; else it is UTF-8
            if it can be, and if not, in the code page of its language.
        where: the file, for the message.
        language: of the text, as a BCP 47 tag; None is one of Western Europe.

    Raises:
        SourceError: it is none of these, or UTF-8 with some bytes damaged.
    """
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark) or _without_mark(data, where, language)
    try:
        return data[len(mark) :].decode(encoding), encoding
    except UnicodeDecodeError as error:
        place = f"byte {len(mark) + error.start}"
        raise SourceError(f"{where}: {place} is not {encoding} ({error.reason}); save the file as UTF-8") from error


def _without_mark(data: bytes, where: str, language: str | None) -> str:
    head = data[:4096]
    if 3 * head[1::2].count(0) > len(head[1::2]) > 3 * head[::2].count(0):
        return "utf-16-le"
    if 3 * head[::2].count(0) > len(head[::2]) > 3 * head[1::2].count(0):
        return "utf-16-be"
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", errors="replace")
        damaged = text.count("\ufffd")
        if sum(char > "\x7f" for char in text) > 2 * damaged:
            reason = f"byte {error.start} is not UTF-8, as the rest of the file is ({error.reason})"
            raise SourceError(f"{where}: {reason}; correct it, and save the file as UTF-8") from error
    tag = language or ""
    return CODE_PAGES.get(tag) or CODE_PAGES.get(tag.partition("-")[0]) or "cp1252"
