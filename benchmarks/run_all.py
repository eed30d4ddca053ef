"""Every benchmark, one after the other: `make bench`.

    python benchmarks/run_all.py           # the sizes of the claims; an hour or so on 2 cores
    python benchmarks/run_all.py --quick   # that they run
    python benchmarks/run_all.py --output results/benchmarks --open_clip LOSS_PY    # what is committed

Each prints ours, its peers, the ratio and the physical limit, and fails on memory or correctness alone; so does this.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WITH_OPEN_CLIP = ("b1_infonce", "b2_sigmoid", "b3_gradient_ratio", "b4_training_step")
BENCHMARKS = (
    *WITH_OPEN_CLIP,
    "compiled_step",
    "b5_search",
    "b7_features",
    "b8_decoding",
    "retrieval_metrics",
    "b9_pretraining",
    "b10_extraction",
    "b11_short_media",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--output", type=Path, help="folder to write a JSON file of each to")
    parser.add_argument(
        "--open_clip", type=Path, help="loss.py of an open_clip newer than the one installed (B1 to B4)"
    )
    arguments = parser.parse_args(argv)
    failed = []
    for name in BENCHMARKS:
        print(f"\n# {name}\n", flush=True)
        command = [sys.executable, str(FOLDER / f"{name}.py"), *(["--quick"] if arguments.quick else [])]
        if arguments.output:
            command += ["--output", str(arguments.output / f"{name}.json")]
        if arguments.open_clip and name in WITH_OPEN_CLIP:
            command += ["--open-clip", str(arguments.open_clip)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
