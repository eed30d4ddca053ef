"""`mmt index`: build or update an index of a folder of videos and pictures."""

import sys
from contextlib import redirect_stdout
from typing import Any

from modeling_mmt.commands.errors import printable
from modeling_mmt.commands.terminal import is_watched, print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.uploads import is_url
from modeling_mmt.data.wording import counted
from modeling_mmt.search.media_index import IndexOptions, IndexStatus, index_status, update_index

MOST_LISTED = 20  # files a line each, of those that cannot be read


def main(
    media: str,
    output_dir: str,
    embeddings: str | None = None,
    engine: str | None = None,
    status: bool = False,
    as_json: bool = False,
    **options: Any,
):
    """Bring an index in step with a folder, or say how they stand; or make one of vectors.

    Args:
        media: folder of videos and pictures.
        output_dir: of the index.
        embeddings: vectors that were made elsewhere, of the clips that the table `media` lists.
        engine: that is brought in step with the index, by its name in `modeling_mmt.search.engines`.
        status: only say how they stand.
        as_json: print JSON.
        options: of `IndexOptions`.
    """
    if is_url(output_dir):
        raise InputError(f"{output_dir}: an index is kept in a folder; give one, and mmt publish or copy it")
    if engine is not None:
        from modeling_mmt.search.engines import check_engine  # imports torch

        check_engine(engine)
    if embeddings is not None and status:
        raise InputError("--status is of an index of media; leave it out with --embeddings")
    if embeddings is not None:
        index_vectors(media, embeddings, output_dir, options.get("model"), as_json)
        keep_engine(output_dir, engine)
        return
    done: dict[str, Any] = {}
    if not status:
        chosen = IndexOptions(**options, progress=is_watched(sys.stderr))
        with redirect_stdout(sys.stderr):  # Ray tells there of nodes that died; the answer alone is for this stream
            report = update_index(media, output_dir, chosen)
        done = {"done": vars(report) | {"seconds_of_video": round(report.seconds_of_video, 3)}}
        keep_engine(output_dir, engine)
    now = index_status(media, output_dir)
    if as_json:
        print_json(done | vars(now))
        return
    if not status:
        print(
            f"{counted(report.added, 'file')} added, {report.replaced} replaced, {report.dropped} dropped, "
            f"{report.recognised} recognised by content"
        )
    print_status(output_dir, now)


def keep_engine(folder: str, engine: str | None):
    """Build an engine beside an index, or bring it in step with the rows."""
    if engine is None:
        return
    from modeling_mmt.search.index import SearchIndex  # imports torch, which a folder that is as it was needs not

    SearchIndex.load(folder, engine=engine)


def index_vectors(table: str, embeddings: str, folder: str, model: str | None, as_json: bool):
    """Make an index of vectors, and say what it is."""
    if not model:
        raise InputError("--embeddings needs --model: name the model that made the vectors")
    from modeling_mmt.search.vectors import (
        index_of_vectors,
    )  # imports datasets, which a folder that is as it was needs not

    index = index_of_vectors(table, embeddings, model)
    index.save(folder)
    if as_json:
        print_json({"rows": len(index), "dim": index.embeddings.shape[1], "model": model})
    else:
        print(f"{folder}: {counted(len(index), 'row')} of {index.embeddings.shape[1]} numbers, by {printable(model)}")


def print_status(folder: str, now: IndexStatus):
    """An index in words, for people."""
    print(
        f"{folder}: {counted(now.files, 'file')} in {counted(now.rows, 'row')}, {now.num_bytes / 2**20:.1f} MiB, by "
        f"{printable(now.model)}"
    )
    if not now.is_current:
        print(f"to do: {len(now.new)} new, {len(now.changed)} changed, {len(now.gone)} gone")
    if now.failed:
        print(f"{counted(len(now.failed), 'file')} could not be read, to be tried again after a change:")
    for file, reason in list(now.failed.items())[:MOST_LISTED]:
        print("  " + printable(reason if reason.startswith(file) else f"{file}: {reason}"))
    if len(now.failed) > MOST_LISTED:
        print(f"  and {len(now.failed) - MOST_LISTED} more (--json lists all)")
