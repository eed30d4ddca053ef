"""A report on checkpoints: `report.html`, which needs nothing else, `README.md` with figures, and `report.json`."""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from PIL import Image as Pictures

from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.files import write_text
from modeling_mmt.evaluation.checkpoint_recipe import RECIPE, recipe_file
from modeling_mmt.evaluation.evaluate import Corpus, evaluate, open_checkpoint
from modeling_mmt.report.measures import measure
from modeling_mmt.report.sections import Reporter

VERSIONS = ("modeling_mmt", "torch", "transformers", "datasets", "numpy")


def write_report(
    checkpoints: Mapping[str, str],
    corpus: Corpus,
    output_dir: str | Path,
    *,
    zero_shot: str | None = None,
    translate_train: str | None = None,
    revision: str | None = None,
    command: str = "",
    progress: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Measure, and write the three files.

    Args:
        checkpoints: name in the report -> folder, or name on the Hub; the first is what the report is about.
        corpus: what they search.
        output_dir: folder to write to.
        zero_shot: name of the one fine-tuned on English alone without pre-training,
        translate_train: and of the one trained on every language: the two ends of the gap; None for neither.
        revision: tag or commit of checkpoints on the Hub.
        command: how the report is made, for people.
        progress: show a bar on the standard error stream.

    Returns:
        The numbers of `report.json`, and the path of the HTML file.
    """
    evaluations = []
    for name, checkpoint in checkpoints.items():
        model, processor = open_checkpoint(checkpoint, revision)
        evaluations.append(evaluate(model, processor, corpus, name, progress=progress))
    measures = measure(evaluations, corpus, zero_shot, translate_train)
    measures["versions"] = {name: version(name) for name in VERSIONS}
    commands = {f"checkpoint {name}": training_command(path, revision) for name, path in checkpoints.items()}
    commands |= {"this report": command} if command else {}
    commands |= {"versions": ", ".join(f"{name} {number}" for name, number in measures["versions"].items())}
    page = Reporter(measures, evaluations, corpus, pictures_of(corpus.rows), commands).page()
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    page.save_figures(folder)
    write_text(folder / "README.md", page.markdown())
    text = json.dumps(measures, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "report.json", text + "\n")
    write_text(folder / "report.html", page.html())
    return measures, folder / "report.html"


def training_command(checkpoint: str, revision: str | None = None) -> str:
    """How a checkpoint was made, as its recipe tells."""
    path = recipe_file(checkpoint, revision)
    if path is None:
        return f"not known: no {RECIPE} in {checkpoint}"
    shown = Path(checkpoint, RECIPE).as_posix() if Path(checkpoint).exists() else f"{RECIPE} of {checkpoint}"
    return f"mmt train {shown} --seed {json.loads(path.read_text(encoding='utf-8'))['seed']}"


def pictures_of(rows: Dataset) -> Callable[[int], Pictures.Image | None]:
    """A row's picture: the middle frame of a film strip, or the first column of pictures; None where there is none."""
    columns = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if {"frames", "num_frames"} <= set(rows.column_names) and "frames" in columns:

        def middle(row: int) -> Pictures.Image | None:
            frames = frames_of(rows[row])
            return frames[len(frames) // 2]

        return middle
    return lambda row: rows[row][columns[0]] if columns else None
