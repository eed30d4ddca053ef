"""`mmt convert`: .npy, .npz or HDF5 features to a feature store."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from modeling_mmt.commands.terminal import OptionParser
from modeling_mmt.data.feature_store import DTYPES, FILE_FORMATS
from modeling_mmt.data.wording import counted


def main(argv: Sequence[str]) -> int:
    """Convert features into a store, and say what was left out.

    Args:
        argv: the source and the options.

    Raises:
        InputError: a file or value is invalid, too many clips were left out, or h5py is not installed.
        OSError: the source is missing, or the store already exists.
    """
    from datasets_scripts import convert_features

    arguments = vars(grammar().parse_args(argv))
    source, output_dir = arguments.pop("source"), arguments.pop("output_dir")
    skip = arguments.pop("on_error") == "skip"
    store, skipped = convert_features.convert(source, output_dir, skip=skip, **arguments)
    for reason in skipped:
        print(f"left out: {reason}")
    print(f"{output_dir}: {counted(len(store), 'clip')} of width {store.dim}; {len(skipped):,} left out")
    return 0


def grammar() -> argparse.ArgumentParser:
    """What reads the command line of `mmt convert`."""
    from datasets_scripts import convert_features

    parser = OptionParser(
        "mmt convert", description=convert_features.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of .npy files, or an .npz or HDF5 file")
    parser.add_argument("--output_dir", required=True, type=Path, help="new folder for the feature store")
    parser.add_argument(
        "--extractor", required=True, help="name of the network that made the features, such as a Hub id"
    )
    parser.add_argument("--revision", required=True, help="its version: a commit, or the SHA-256 of the weights")
    parser.add_argument("--rate", type=float, help="steps per second of video; without it, steps have no times")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float16", help="type of the stored values (%(default)s)"
    )
    parser.add_argument(
        "--file_format", choices=FILE_FORMATS, default="parquet", help="arrow files are memory-mapped (%(default)s)"
    )
    parser.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with a clip that cannot be used (%(default)s)",
    )
    parser.add_argument(
        "--max_skipped", type=float, default=0.01, help="largest fraction of clips to skip (%(default)s)"
    )
    return parser
