"""`mmt publish`: a checkpoint's or a dataset's folder to the Hub."""

from typing import Any

from modeling_mmt.commands.terminal import print_json
from modeling_mmt.hub.publish import publish


def main(folder: str, repository: str, as_json: bool = False, **options: Any):
    """Push a folder, and print where it is.

    Args:
        folder: of a checkpoint or a dataset.
        repository: `org/name`.
        as_json: print JSON.
        options: of `modeling_mmt.hub.publish.publish`.
    """
    commit, tag = publish(folder, repository, **options), options.get("tag")
    if as_json:
        print_json({"repository": repository, "commit": commit, "tag": tag})
    else:
        print(f"{repository} is at {tag or options.get('revision', 'main')}, commit {commit}")
