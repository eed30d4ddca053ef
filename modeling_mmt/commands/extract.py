"""`mmt extract`: clips to a feature store."""

import sys
from typing import Any

from modeling_mmt.extraction.extract import extract
from modeling_mmt.extraction.shards import TooManyFailuresError

TOO_MANY_FAILURES = 3


def main(source: str, output_dir: str, **options: Any) -> int:
    """Extract; returns 3 where too many clips failed.

    Args:
        source: folder or list of videos, or a dataset.
        output_dir: folder of the store.
        options: of `modeling_mmt.extraction.extract.extract`.
    """
    try:
        extract(source, output_dir, **options)
    except TooManyFailuresError as error:
        print(f"mmt: {error}", file=sys.stderr)
        return TOO_MANY_FAILURES
    return 0
