"""The files of a folder and of the folders that it links to; those left out are counted.

A link to a folder is the user's own: it is followed, wherever it leads. Each folder is read once, under its own name
before a link's, so that links in a circle end, and nothing comes twice; a link to a folder around the one that is read
would bring in everything beside it, and is left out.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HIDDEN, UNREADABLE = "hidden", "folder that cannot be read"
OTHER = "without an ending"
LINK, BROKEN, SPECIAL = "link to a folder", "broken link", "device or pipe"


def files_below(folder: str | Path, left: Counter[str]) -> list[Path]:
    """The files of a folder and of the folders in it, in the order of their paths; `folder` begins each path.

    Args:
        folder: to read.
        left: counts what is left out: hidden files and folders, links to folders that are read already or lie around
            `folder`, broken links, folders that cannot be read, devices and pipes.
    """
    return sorted(map(Path, _files(os.fspath(folder), left)), key=lambda path: path.relative_to(folder).parts)


def _files(root: str, left: Counter[str]) -> Iterator[str]:
    real_root = os.path.realpath(root)
    seen = set(map(str, Path(real_root).parents))  # of links, the folders that they may not lead to
    folders, links = [root], list[str]()
    while folders or links:
        is_link = not folders
        folder = links.pop(0) if is_link else folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            left[LINK] += is_link
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left[UNREADABLE] += 1
            continue
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link that leads to itself
                is_folder = is_file = False
            if entry.name.startswith("."):
                left[HIDDEN] += 1
            elif is_folder:
                (links if entry.is_symlink() else folders).append(entry.path)
            elif is_file:
                yield entry.path
            else:
                left[BROKEN if entry.is_symlink() else SPECIAL] += 1


def counted(kinds: Counter[str]) -> str:
    """Kinds with their numbers, the most frequent first: `12 mp4, 3 jpg`; `nothing` for none."""
    most_first = sorted((-number, kind) for kind, number in kinds.items() if number)
    shown = [f"{-number:,} {_plural(kind) if number < -1 else kind}" for number, kind in most_first]
    return ", ".join(shown) or "nothing"


def _plural(kind: str) -> str:
    """Of the kinds that are words; an ending has none."""
    return {
        UNREADABLE: "folders that cannot be read",
        LINK: "links to folders",
        BROKEN: "broken links",
        SPECIAL: "devices or pipes",
    }.get(kind, kind)


def kind_of(name: str | Path) -> str:
    """A file's ending in lower case, without its dot, for `counted`; one of other signs than letters is not shown."""
    ending = Path(name).suffix.lower().lstrip(".")
    return (ending if ending.isalnum() and len(ending) <= 10 else "of a strange ending") if ending else OTHER
