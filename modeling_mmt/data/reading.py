"""A repository's files at one revision: the same online and from the cache, checked against their hashes.

`datasets.load_dataset(name, revision=...)` ignores the revision when there is no network and loads what was cached
last. Here the revision decides: it is resolved to a commit, whose files are downloaded once and found again offline.
"""

import csv
import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Image, Video, load_dataset, load_dataset_builder
from datasets.data_files import get_data_patterns, sanitize_patterns
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import snapshot_download

from modeling_mmt.data.checks import id_problems, id_type_problems
from modeling_mmt.data.confinement import check_card, check_media, configs_of
from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.files import file_hash, write_json

TEXT_COLUMN = re.compile(r"(?!(is|has|num)_)\w+_[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")  # <kind>_<language>


class SnapshotError(InputError):
    """A downloaded file is not what its repository says; the message names it and the remedy."""


def pinned_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    repo_type: str = "model",
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """All files of a repository at one revision, in the cache.

    Args:
        repo_id: `org/name`.
        revision: tag, branch, commit or `refs/pr/N`; None is `main`. Offline it must have been downloaded before.
        repo_type: `"model"` or `"dataset"`.
        cache_dir: the cache, where it is not huggingface_hub's own.
        token: where it is not the one that `hf auth login` stored.

    Returns:
        The folder `.../snapshots/COMMIT`.

    Raises:
        SnapshotError: a file's content is not what its name in the cache says, or it lies outside the repository's
            cache; what is damaged is removed, so that the next call downloads it again.
        huggingface_hub.errors.LocalEntryNotFoundError: offline, and this revision is not in the cache.
    """
    folder = Path(
        snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            cache_dir=Path(cache_dir) if cache_dir else None,
            token=token,
        )
    )
    verify_snapshot(folder)
    return folder


def verify_snapshot(folder: str | os.PathLike):
    """Check each file of a cached snapshot against the hash that the cache names it by, once.

    What was checked is noted beside the snapshots, in `.verified`, with each file's size and times: one that has the
    same still is not read again, by any process. Where the cache cannot be written, every call reads every file.

    Raises:
        SnapshotError: as `pinned_snapshot`.
    """
    folder = Path(folder)
    repository = folder.parents[1]
    blobs, stamp = (repository / "blobs").resolve(), repository / ".verified" / f"{folder.name}.json"
    verified = _verified(stamp)
    seen: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():  # a folder; or a file system without links, where no hash was kept
            continue
        blob = path.resolve()
        if blob.parent != blobs:
            raise SnapshotError(f"{path}: points out of its repository's cache, to {blob}; delete the cache folder")
        stat, name = blob.stat(), path.relative_to(folder).as_posix()
        seen[name] = [blob.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if verified.get(name) == seen[name]:
            continue
        digest = file_hash(blob, blob.name)
        if digest != blob.name:
            path.unlink()
            blob.unlink()
            raise SnapshotError(
                f"{path}: damaged, its hash is {digest}, the repository says {blob.name}; load it again"
            )
    if seen != verified:
        with suppress(OSError):
            write_json(stamp, seen)


def _verified(stamp: Path) -> dict[str, Any]:
    """What `verify_snapshot` noted; nothing where it did not, or the note is torn."""
    try:
        noted = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def load_pinned_dataset(
    repo_id: str,
    name: str | None = None,
    *,
    revision: str | None = None,
    split: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> Any:
    """`datasets.load_dataset` at a revision that holds offline too.

    Args:
        repo_id: `org/name` of a dataset.
        name: of its config.
        revision: as `pinned_snapshot`'s.
        split: as `load_dataset`'s.
        cache_dir: of the downloads.
        token: as `pinned_snapshot`'s.
        options: others of `load_dataset`.

    Raises:
        SnapshotError, LocalEntryNotFoundError: as `pinned_snapshot`.
        ConfinementError: the card or a row names something outside the repository.
    """
    folder = pinned_snapshot(repo_id, revision=revision, repo_type="dataset", cache_dir=cache_dir, token=token)
    return _load_confined(folder, repo_id, name, split=split, **options)


def _load_confined(folder: Path, source: str, name: str | None = None, **options: Any) -> Any:
    """`datasets.load_dataset` of a folder that nothing outside it is read for, neither now nor when media are opened.

    Ids and captions of CSV files are the texts that stand there: `001` is not 1, and `null` not nothing.

    Raises:
        ConfinementError: the card or a row of the dataset, whose name is `source`, names something outside the folder.
    """
    check_card(folder)
    files = {"data_files": literal_patterns(folder, name)} if glob.has_magic(str(folder.resolve())) else {}
    options = {"cache_dir": cache_of(folder), **options}
    loaded = load_dataset(str(folder), name, **files, **csv_texts(folder, name, **files), **options)
    for rows in loaded.values() if isinstance(loaded, Mapping) else [loaded]:
        if isinstance(rows, Dataset):  # what is streamed is the caller's to look at
            check_media(rows, folder, source)
    return loaded


def cache_of(folder: Path) -> str:
    """Where `datasets` keeps what it makes of a folder's files as they are now.

    Its own cache knows a folder by its name and card: a corpus built again, or another of the same name, would be
    read as the rows of the first.
    """
    digest = sha256(str(folder.resolve()).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"\n{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"folder-{digest.hexdigest()[:16]}")


def literal_patterns(folder: Path, name: str | None) -> dict[str, list[str]]:
    """The patterns of a dataset's files by split, its folder as it is called: `datasets` takes `[`, `?`, `*` for more.

    Args:
        folder: of the dataset.
        name: of its config; None is the default one.

    Raises:
        InputError: its card names a `data_dir`.
    """
    base = glob.escape(folder.resolve().as_posix())
    configs = [config for _, config in configs_of(folder)]
    wanted = "default" if name is None else name
    configs.sort(key=lambda config: (config.get("config_name") == wanted, bool(config.get("default"))))
    config = configs[-1] if configs else {}
    if "data_dir" in config:
        raise InputError(
            f"{folder}: `datasets` takes a folder's [, ? and * for a pattern where a card has data_dir; rename it"
        )
    patterns = sanitize_patterns(config["data_files"]) if "data_files" in config else get_data_patterns(base)
    return {str(split): [f"{base}/{pattern}" for pattern in of] for split, of in patterns.items()}


def csv_texts(folder: Path, name: str | None, **files: Any) -> dict[str, Any]:
    """Options of `load_dataset` by which pandas leaves ids and texts as they stand in CSV files; none for other files.

    Args:
        folder: of the dataset.
        name: of its config.
        files: `data_files`, where the folder's name would be taken for a pattern.
    """
    builder = load_dataset_builder(str(folder), name, **files)
    if builder.name != "csv":
        return {}
    heads: set[str] = {"video_id"}
    for first, *_ in builder.config.data_files.values():
        if first.endswith((".csv", ".tsv")):
            with open(first, encoding="utf-8-sig", errors="replace", newline="") as file:
                heads.update(next(csv.reader(file, delimiter=builder.config.sep), []))
    texts = {head: str for head in sorted(heads) if head == "video_id" or TEXT_COLUMN.fullmatch(head)}
    return {"converters": texts, "keep_default_na": False, "na_values": [""]}


def check_hub_name(name: str) -> str:
    """The name of what is not here, if it may be asked of the Hub; a mistyped path may not: a stranger could own it.

    Raises:
        InputError: it begins with `.`, `/` or `~`, has a backslash or more than one slash, or its first part is a
            folder here.
    """
    first, slash, rest = name.partition("/")
    if name.startswith((".", "/", "~")) or "\\" in name or "/" in rest or (slash and Path(first).is_dir()):
        raise InputError(f"{name} does not exist, and reads as a path, so that the Hub is not asked; correct the path")
    return name


def dataset_folder(name: str) -> str:
    """The folder of a corpus that comes with the package, such as `emoji9`; any other name as it is.

    A folder of that name where the program runs goes before it. `datasets_scripts/emoji9`, as a clone has it, means
    the same from any folder.
    """
    parent, _, corpus = name.rpartition("/")
    package = find_spec("datasets_scripts")
    if not corpus.isidentifier() or parent not in ("", "datasets_scripts") or Path(name).exists() or package is None:
        return name
    inside = [Path(place, corpus) for place in package.submodule_search_locations or ()]
    return next((str(folder) for folder in inside if folder.is_dir()), name)


def read_split(name: str, revision: str | None, split: str) -> Dataset:
    """One split of a folder, of a corpus that comes with the package, or of a Hub dataset at a revision.

    Raises:
        InputError: there is no such dataset or split, a file of it is torn or is not what its name says, or ids are no
            texts.
    """
    return _read(name, revision, split)


def read_splits(name: str, revision: str | None) -> DatasetDict:
    """All splits, as `read_split` reads one."""
    return _read(name, revision, None)


def _read(name: str, revision: str | None, split: str | None) -> Any:
    name = dataset_folder(name)
    with naming_input(name):
        try:
            if Path(name).is_dir():
                loaded = _load_confined(Path(name), name, split=split)
            else:
                loaded = load_pinned_dataset(check_hub_name(name), split=split, revision=revision)
        except DatasetGenerationError as error:
            why = f"{error.__cause__ or error}".strip(". ")
            raise InputError(f"{name}: a file cannot be read ({why}); build or download the dataset again") from error
    for rows in loaded.values() if isinstance(loaded, Mapping) else [loaded]:
        for problem in id_type_problems(rows):
            raise InputError(f"{name} ({rows.split}): {problem}")
    return loaded


def load_split(name: str, revision: str | None, split: str, columns: Sequence[str]) -> Dataset:
    """One split without its pictures and videos.

    Raises:
        InputError: `video_id` or one of `columns` is missing, or an id is; as `read_split`.
    """
    rows = read_split(name, revision, split)
    for column in ("video_id", *columns):
        if column not in rows.column_names:
            remedy = "; or name feature stores, or a video_column" if column == "video_features" else ""
            raise InputError(f"{name} ({split}): no column {column}; found {', '.join(rows.column_names)}{remedy}")
    for problem in id_problems(rows):
        raise InputError(f"{name} ({split}): {problem}")
    media = [name for name, feature in rows.features.items() if isinstance(feature, (Image, Video))]
    return rows.remove_columns(media)
