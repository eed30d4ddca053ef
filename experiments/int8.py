"""What int8 costs: R@1 and time of a checkpoint's text tower as ONNX, float32 beside int8, and what a batch changes.

    python experiments/int8.py runs/table/mmp_en/seed0 --output results/emoji9/int8.json

Both search the same clips, embedded by the float32 video tower. The loss is in points of R@1, with the 95 % bootstrap
interval over clips of the paired difference. Every caption is embedded in batches of 64 and then alone: the cosine of
the two is 1 where a caption's embedding does not depend on what stands beside it. Times are of one run in one thread
order, so compare them with each other alone.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoProcessor

import modeling_mmt  # noqa: F401  registers the processor
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.metrics import average_over_languages
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.evaluation.significance import bootstrap_interval
from modeling_mmt.plugins.onnx_export import INT8, OnnxModel, export


def measure(folder: str, dataset: str, features: str, text_column: str, split: str) -> dict[str, Any]:
    """Export a checkpoint and search a split by each language's captions, one a clip.

    Args:
        folder: checkpoint.
        dataset: folder or name on the Hub.
        features: feature store of its clips.
        text_column: the columns `<text_column>_<language>` hold the captions.
        split: of the dataset.

    Returns:
        R@1 in percent by language for `float32` and `int8`, the loss in points, sizes in MiB, seconds of embedding in
        batches and one by one, and how near the two embeddings of a caption are.
    """
    rows, store = read_split(dataset, None, split), FeatureStore(features)
    results: dict[str, Any] = {"checkpoint": folder, "dataset": Path(dataset).name, "split": split, "clips": len(rows)}
    hits: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        output = export(folder, work)
        processor = AutoProcessor.from_pretrained(output)
        clips = embed_videos(OnnxModel(output), processor, [store[video_id] for video_id in rows["video_id"]])
        for precision, name in (("float32", "text_model.onnx"), ("int8", INT8)):
            model, recall = OnnxModel(output, int8=precision == "int8"), {}
            seconds = dict.fromkeys(("batches_of_64", "alone"), 0.0)
            hits[precision], cosines = [], []
            for language in LANGUAGES:
                captions, start = rows[f"{text_column}_{language}"][:], time.perf_counter()
                texts = embed_texts(model, processor, captions)
                between = time.perf_counter()
                alone = embed_texts(model, processor, captions, batch_size=1)
                seconds["batches_of_64"] += between - start
                seconds["alone"] += time.perf_counter() - between
                cosines.append((texts.double() * alone.double()).sum(dim=1).numpy())
                hit = 100.0 * (ranks(texts, clips) <= 1)
                hits[precision].append(hit)
                recall[language] = float(hit.mean())
            cosine = np.concatenate(cosines)
            results[precision] = {
                "R@1": {name: float(value) for name, value in average_over_languages(recall).items()},
                "MiB": round((output / name).stat().st_size / 2**20, 1),
                "seconds": {name: round(value, 1) for name, value in seconds.items()},
                "captions": len(cosine),
                "cosine_alone_and_in_a_batch": {"least": float(cosine.min()), "mean": float(cosine.mean())},
            }
    lost = np.mean(np.stack(hits["float32"]) - np.stack(hits["int8"]), axis=0)  # (clips,): average of the languages
    results["lost_points"] = float(lost.mean())
    results["lost_points_ci95"] = list(bootstrap_interval(lost))
    return results


def main(argv: Sequence[str] | None = None):
    """Measure, print and, with `--output`, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="checkpoint")
    parser.add_argument("--dataset", default="datasets_scripts/emoji9", help="folder or Hub name (%(default)s)")
    parser.add_argument("--features", default="runs/features/emoji9-lite0-128", help="feature store (%(default)s)")
    parser.add_argument("--text_column", default="name", help="kind of caption (%(default)s)")
    parser.add_argument("--split", default="test", help="%(default)s")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")
    results = measure(**arguments)
    results["command"] = " ".join(["python experiments/int8.py", *(sys.argv[1:] if argv is None else argv)])
    text = json.dumps(results, indent=1)
    print(text)
    if output:
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
