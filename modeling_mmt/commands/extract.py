"""`mmt extract`: clips to a feature store."""

import os
import sys
from typing import Any

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import MANIFEST
from modeling_mmt.data.uploads import built_for, is_url
from modeling_mmt.extraction.extract import extract
from modeling_mmt.extraction.shards import TooManyFailuresError

TOO_MANY_FAILURES = 3


def main(source: str, output_dir: str, **options: Any) -> int:
    """Extract; returns 3 where too many clips failed.

    Args:
        source: folder or list of videos, or a dataset.
        output_dir: folder of the store, or a URL to copy it to.
        options: of `modeling_mmt.extraction.extract.extract`.
    """
    if is_url(output_dir) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{output_dir}: a URL is written by one process; leave torchrun out, or use --cluster")
    try:
        with built_for(output_dir, MANIFEST) as folder:
            extract(source, folder, **options)
    except TooManyFailuresError as error:
        print(f"mmt: {error}", file=sys.stderr)
        return TOO_MANY_FAILURES
    return 0
