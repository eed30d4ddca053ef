"""`mmt report`: an HTML report about a checkpoint, compared with others."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from modeling_mmt.commands.evaluation_options import EvaluationOptions
from modeling_mmt.commands.terminal import is_watched, print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.evaluation.evaluate import check_checkpoint


def main(
    checkpoint: str,
    name: str | None = None,
    compare: Sequence[str] = (),
    zero_shot: str | None = None,
    translate_train: str | None = None,
    output_dir: str = "report",
    as_json: bool = False,
    **options: Any,
):
    """Write a report, and print where it is.

    Args:
        checkpoint: folder, or name on the Hub.
        name: what the checkpoint is called in the report; None takes it from its path.
        compare: other checkpoints, as `CHECKPOINT` or `NAME=CHECKPOINT`.
        zero_shot: one, fine-tuned on English alone without pre-training;
        translate_train: and one trained on every language: the two ends of the gap.
        output_dir: folder to write to.
        as_json: print the report's numbers.
        options: of `EvaluationOptions`.

    Raises:
        InputError: two checkpoints have one name, only one end of the gap is given, or `output_dir` is a file.
        InputError: matplotlib is not installed.
    """
    if bool(zero_shot) != bool(translate_train):
        raise InputError("--zero_shot and --translate_train are the two ends of a gap; give both or neither")
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; name a folder")
    try:
        from modeling_mmt.report.write import write_report
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'modeling_mmt[report]'") from error
    first = f"{name}={checkpoint}" if name else checkpoint
    names = label(list(dict.fromkeys([first, *compare, *filter(None, (zero_shot, translate_train))])))
    for source in names:
        check_checkpoint(path_of(source))
    evaluation = EvaluationOptions(**options)
    explicit = {"name": name, "compare": compare, "zero_shot": zero_shot, "translate_train": translate_train}
    measures, page = write_report(
        {label: path_of(source) for source, label in names.items()},
        evaluation.open(checkpoint),
        output_dir,
        zero_shot=names.get(zero_shot or ""),
        translate_train=names.get(translate_train or ""),
        revision=evaluation.revision,
        command=command_of(checkpoint, explicit | options | {"output_dir": output_dir}),
        progress=is_watched(sys.stderr),
    )
    if as_json:
        print_json(measures)
    else:
        print(page)


def label(sources: Sequence[str]) -> dict[str, str]:
    """What each checkpoint is called: the name before `=`, or the parts of its path that the others do not share.

    Raises:
        InputError: two would be called the same.
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
        name, sign, _ = source.rpartition("=")
        names[source] = name if sign else "/".join(of[shared_start : len(of) - shared_end])
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise InputError(f"two checkpoints are called {twice[0]!r}; name them, as in --compare first=FOLDER")
    return names


def path_of(source: str) -> str:
    """The checkpoint of `NAME=CHECKPOINT` or `CHECKPOINT`."""
    return source.rpartition("=")[2]


def command_of(checkpoint: str, options: dict[str, Any]) -> str:
    """The command line that gives these options."""
    words = ["mmt", "report", checkpoint]
    for key, value in options.items():
        if value:
            words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)
