"""From nothing to a nine-language search engine on a laptop: `make demo`.

Rebuilds the two encoders from their packages, extracts the clips' features, trains two rows of the table with one
seed and a short recipe (no pre-training, and MMP; both fine-tuned on English names), and prints their search figures
in nine languages, the seconds of each stage and where the checkpoint is. Interrupted, it goes on where it was.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import run
import tables

from modeling_mmt.commands import train
from modeling_mmt.extraction.extract import extract
from modeling_mmt.extraction.packaged_encoders import packaged_encoder

ROWS = ("none_en", "mmp_en")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the demo; returns the seconds of each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args(argv)
    seconds: dict[str, float] = {}

    with timed("encoders", seconds):
        for encoder in ("multilingual-e5-small", "efficientnet-lite0"):
            packaged_encoder(encoder)
    with timed("features", seconds):
        recipe = run.read_recipe(ROWS[0])
        features = recipe["data"]["features"][0]
        extract(recipe["data"]["dataset"], features, image_size=int(features.rsplit("-", 1)[1]))
    outputs = {}
    for name in ROWS:
        with timed(f"train {name}", seconds):
            one = run.Run(
                run.changed(run.read_recipe(name), run.QUICK),
                arguments.seed,
                arguments.work_dir / "demo" / name,
                arguments.work_dir,
            )
            if not one.is_done():
                one.write_recipe()
                train.main(one.words)
                one.finish(0.0)
            outputs[name, arguments.seed] = one.read()
    results = run.provenance([arguments.seed]) | run.gather_table(outputs, ROWS, [arguments.seed])
    print("\nText-to-video R@1 (%) on 300 test clips, names as queries, one seed, short recipe:\n")
    print(tables.metric_table([row for row in results["rows"] if row["split"] == "test"]))
    print("\nSeconds: " + ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    print(f"Checkpoint: {arguments.work_dir / 'demo' / ROWS[-1]}")
    return seconds


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and keep its wall time."""
    print(f"--- {stage}", flush=True)
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started


if __name__ == "__main__":
    main()
