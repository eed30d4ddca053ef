"""A report on a checkpoint: `report.html`, which needs nothing else, `README.md` with its figures, and `report.json`.

Examples:
  python -m modeling_mmt.report.write runs/demo/mmp_en
  python -m modeling_mmt.report.write runs/demo/mmp_en --compare runs/demo/none_en --output_dir reports/mmp_en
  python -m modeling_mmt.report.write runs/mmp_en --zero_shot runs/none_en --translate_train runs/none_all

`mmt report` is the same.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from datasets import Dataset, Image
from PIL import Image as Pictures

from mmt import add_report_options
from modeling_mmt.commands.cli import is_watched, open_question, report_command, run
from modeling_mmt.data.clips import frames_of
from modeling_mmt.evaluation.evaluate import RECIPE, check_checkpoint, evaluate, open_checkpoint
from modeling_mmt.report.measures import measure
from modeling_mmt.report.sections import Reporter

VERSIONS = ("modeling_mmt", "torch", "transformers", "datasets", "numpy")


def write_report(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """Measure, and write the three files.

    Args:
        arguments: of `mmt.add_report_options`.

    Returns:
        The numbers of `report.json`, and the path of the HTML file.

    Raises:
        ValueError: two checkpoints have one name, or only one end of the gap is given.
    """
    if bool(arguments.zero_shot) != bool(arguments.translate_train):
        raise ValueError("--zero_shot and --translate_train are the two ends of a gap; give both or neither")
    folder = arguments.output_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder")
    given = [arguments.checkpoint if not arguments.name else f"{arguments.name}={arguments.checkpoint}"]
    given += [*arguments.compare, *filter(None, (arguments.zero_shot, arguments.translate_train))]
    names = label(list(dict.fromkeys(given)))
    for source in names:
        check_checkpoint(path_of(source))
    _, corpus = open_question(arguments)
    evaluations = []
    for source, name in names.items():
        model, processor = open_checkpoint(path_of(source), arguments.revision)
        evaluations.append(evaluate(model, processor, corpus, name, progress=is_watched(sys.stderr)))
    measures = measure(evaluations, corpus, names.get(arguments.zero_shot), names.get(arguments.translate_train))
    measures["versions"] = {name: version(name) for name in VERSIONS}
    commands = {f"checkpoint {name}": training_command(path_of(source)) for source, name in names.items()}
    commands |= {"this report": shlex.join(command_of(arguments))}
    commands |= {"versions": ", ".join(f"{name} {number}" for name, number in measures["versions"].items())}
    page = Reporter(measures, evaluations, corpus, pictures_of(corpus.rows), commands).page()
    folder.mkdir(parents=True, exist_ok=True)
    page.save_figures(folder)
    (folder / "README.md").write_text(page.markdown(), encoding="utf-8")
    text = json.dumps(measures, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page.html(), encoding="utf-8")
    return measures, folder / "report.html"


def label(sources: Sequence[str]) -> dict[str, str]:
    """What each checkpoint is called: the name before `=`, or the parts of its path that the others do not share.

    Raises:
        ValueError: two would be called the same.
    """
    parts = {source: PurePath(path_of(source)).parts for source in sources}
    shared_start = shared_end = 0
    if len(parts) > 1:
        shortest = min(map(len, parts.values())) - 1
        while shared_start < shortest and len({of[shared_start] for of in parts.values()}) == 1:
            shared_start += 1
        while shared_end < shortest - shared_start and len({of[-1 - shared_end] for of in parts.values()}) == 1:
            shared_end += 1
    else:
        shared_start = len(next(iter(parts.values()))) - 1
    names = {}
    for source, of in parts.items():
        given, sign, _ = source.rpartition("=")
        names[source] = given if sign else "/".join(of[shared_start : len(of) - shared_end])
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise ValueError(f"two checkpoints are called {twice[0]!r}; name them, as in --compare first=FOLDER")
    return names


def path_of(source: str) -> str:
    """The checkpoint of `NAME=CHECKPOINT` or `CHECKPOINT`."""
    return source.rpartition("=")[2]


def training_command(folder: str) -> str:
    """How a checkpoint was made, as its recipe tells."""
    path = Path(folder) / RECIPE
    if not path.is_file():
        return f"not known: no {RECIPE} in {folder}"
    return f"python train.py {path.as_posix()} --seed {json.loads(path.read_text(encoding='utf-8'))['seed']}"


def command_of(arguments: argparse.Namespace) -> list[str]:
    """The command that these arguments came from."""
    words = ["mmt", "report", arguments.checkpoint]
    for key, value in vars(arguments).items():
        if key in ("checkpoint", "command", "json", "traceback") or not value:
            continue
        words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def pictures_of(rows: Dataset) -> Callable[[int], Pictures.Image | None]:
    """A row's picture: the middle frame of a film strip, or the first column of pictures; None where there is none."""
    columns = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if {"frames", "num_frames"} <= set(rows.column_names) and "frames" in columns:

        def middle(row: int) -> Pictures.Image | None:
            frames = frames_of(rows[row])
            return frames[len(frames) // 2]

        return middle
    return lambda row: rows[row][columns[0]] if columns else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m modeling_mmt.report.write",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a checkpoint, or its name on the Hub")
    parser.add_argument("--traceback", action="store_true", help="show where bad input was found")
    add_report_options(parser)
    return run(report_command, parser.parse_args(argv), parser.prog)


if __name__ == "__main__":
    sys.exit(main())
