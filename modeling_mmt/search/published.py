"""An index on the Hub: a copy of the current rows, without anything from this machine, and how to open it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from modeling_mmt.data.reading import pinned_snapshot
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.manifest import INDEX, SearchIndexError

CARD = """---
configs:
- config_name: default
  data_files: segments/*/clips.parquet
tags:
- text-to-video-retrieval
- search-index
- mmt
---
# {name}

A search index of {rows:,} rows{of_files}, made by `{model}` (fingerprint `{fingerprint:.12}...`).

```
mmt search {name} "con mèo"{revision}
```

`segments/*/embeddings.safetensors` has a unit vector for each row, `clips.parquet` describes the rows (`video_id`; for
a window of a video also `file`, and `start` and `end` in seconds), and `thumbnails.parquet` has a picture of each. The
videos and pictures themselves are not included.
"""


def write_copy(folder: Path, target: Path, name: str, model: str | None, model_revision: str | None, tag: str | None):
    """Write the copy of an index that is published, with its card.

    Rows that were dropped, the identity of files, and where things lie on this machine stay behind.

    Args:
        folder: of the index, which is checked.
        target: folder that is made.
        name: `org/name` of the repository, for the card.
        model: name on the Hub of the checkpoint that made it; None is what the index says.
        model_revision: tag or commit of that.
        tag: of the index, for the card.

    Raises:
        SearchIndexError: the index is damaged, or its checkpoint has no name on the Hub.
    """
    index = SearchIndex.load(folder)
    if model is not None:
        index.model, index.revision = model, model_revision
    if not index.model or Path(index.model).exists() or index.model.count("/") != 1:
        raise SearchIndexError(
            f"{folder} was made by {index.model or 'a model without a name'}, a folder of this machine; publish that "
            "checkpoint, and name it with --model org/name"
        )
    index.media_folder = None
    for encoder in index.settings.get("encoders", []):
        encoder["name"] = Path(encoder["name"]).name if Path(encoder["name"]).exists() else encoder["name"]
    index.save(target)
    own = folder / "README.md"
    files = len(set(index.clips["file"]) - {None})
    card = CARD.format(
        name=name,
        rows=len(index),
        of_files=f" of {files:,} files" if files else "",
        model=index.model,
        fingerprint=index.fingerprint,
        revision=f" --revision {tag}" if tag else "",
    )
    (target / "README.md").write_text(own.read_text("utf-8") if own.is_file() else card, encoding="utf-8")


def downloaded_index(name: str, revision: str | None = None) -> Path | None:
    """The folder of a published index in the cache, each file checked; None where the Hub has no index of this name.

    Args:
        name: `org/name`.
        revision: tag, branch or commit; None is `main`.

    Raises:
        SnapshotError: as `pinned_snapshot`.
    """
    try:
        hf_hub_download(name, INDEX, repo_type="dataset", revision=revision)
    except (LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    return pinned_snapshot(name, revision=revision, repo_type="dataset")
