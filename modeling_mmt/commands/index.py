"""`mmt index`: an index of a folder of videos and pictures, brought in step with it."""

import sys
from typing import Any

from modeling_mmt.commands.errors import printable
from modeling_mmt.commands.terminal import is_watched, print_json
from modeling_mmt.search.media_index import IndexOptions, IndexStatus, index_status, update_index

MOST_LISTED = 20  # files a line each, of those that cannot be read


def main(media: str, output_dir: str, status: bool = False, as_json: bool = False, **options: Any):
    """Bring an index in step with a folder, or say how they stand.

    Args:
        media: folder of videos and pictures.
        output_dir: of the index.
        status: only say how they stand.
        as_json: print JSON.
        options: of `IndexOptions`.
    """
    done: dict[str, Any] = {}
    if not status:
        report = update_index(media, output_dir, IndexOptions(**options, progress=is_watched(sys.stderr)))
        done = {"done": vars(report) | {"seconds_of_video": round(report.seconds_of_video, 3)}}
    now = index_status(media, output_dir)
    if as_json:
        print_json(done | vars(now))
        return
    if not status:
        print(
            f"{report.added} files added, {report.replaced} replaced, {report.dropped} dropped; {report.recognised} "
            "known by their content"
        )
    print_status(output_dir, now)


def print_status(folder: str, now: IndexStatus):
    """An index in words, for people."""
    print(f"{folder}: {now.files} files in {now.rows} rows, {now.num_bytes / 2**20:.1f} MiB, by {now.model}")
    if not now.is_current:
        print(f"to do: {len(now.new)} new, {len(now.changed)} changed, {len(now.gone)} gone")
    if now.failed:
        print(f"{len(now.failed)} files cannot be read, and are tried again once they change:")
    for file, reason in list(now.failed.items())[:MOST_LISTED]:
        print(f"  {printable(file)}: {printable(reason)}")
    if len(now.failed) > MOST_LISTED:
        print(f"  and {len(now.failed) - MOST_LISTED} more (--json lists all)")
