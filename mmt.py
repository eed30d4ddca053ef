"""`mmt`: measure, search with, report on and publish a checkpoint.

Examples:
  mmt evaluate runs/demo/mmp_en                              figures in every language, on what its recipe names
  mmt evaluate runs/demo/mmp_en --languages sw vi --json     of two languages, as JSON
  mmt search runs/demo/mmp_en "con mèo" "骑自行车的人" --top 5  clips for queries in any language
  mmt report runs/demo/mmp_en --compare runs/demo/none_en    one HTML file that shows where it is good and where not
  mmt publish runs/demo/mmp_en org/name --tag v1.0           a Hub repository with card and figures
  mmt import openai/clip-vit-base-patch32 --output_dir runs/clip  a dual encoder as a checkpoint that searches video

Each command has its own --help. Exit codes: 0 done, 2 bad input (one line says which), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    Args:
        argv: a command's name and options; None takes the command line's.
    """
    parser = argparse.ArgumentParser("mmt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traceback", action="store_true", help="show where bad input was found")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_evaluate, add_search, add_report, add_publish, add_import):
        add(commands)
    arguments = parser.parse_args(argv)
    from modeling_mmt.commands import cli  # which imports torch and transformers; help and a wrong option come without

    return cli.run(getattr(cli, f"{arguments.command}_command"), arguments, parser.prog)


def add_evaluate(commands: Any):
    """`mmt evaluate`."""
    parser = _command(commands, "evaluate", "R@1, R@5, R@10, MedR and MRR in every language")
    add_question(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, as in a checkpoint's metrics.json")


def add_search(commands: Any):
    """`mmt search`."""
    parser = _command(commands, "search", "clips for queries in any language")
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="text in any language")
    add_question(parser)
    parser.add_argument(
        "--index", type=Path, metavar="FOLDER", help="searched if it is there, else built and kept there"
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="clips a query (%(default)s)")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="COLUMN=VALUE", help="only clips of which this holds"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_report(commands: Any):
    """`mmt report`."""
    parser = _command(commands, "report", "one HTML file about a checkpoint, and Markdown and JSON")
    add_report_options(parser)


def add_report_options(parser: argparse.ArgumentParser):
    """What `mmt report` takes; the checkpoint is a positional argument of the parser already."""
    add_question(parser)
    other = "[NAME=]CHECKPOINT"
    parser.add_argument("--name", help="what the checkpoint is called in the report; default: from its path")
    parser.add_argument("--compare", nargs="+", default=[], metavar=other, help="other checkpoints, beside it")
    parser.add_argument("--zero_shot", metavar=other, help="one fine-tuned on English alone without pre-training, ")
    parser.add_argument(
        "--translate_train", metavar=other, help="and one trained on every language: how much of the gap is closed"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("report"), help="folder to write to (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report's numbers too")


def add_publish(commands: Any):
    """`mmt publish`."""
    parser = _command(commands, "publish", "push a checkpoint to the Hub, with card and figures")
    parser.add_argument("repository", metavar="ORG/NAME", help="on the Hub; made if it is not there")
    parser.add_argument("--repo_type", choices=("model", "dataset"), default="model", help="(%(default)s)")
    parser.add_argument("--revision", default="main", help="branch to commit to (%(default)s)")
    parser.add_argument("--tag", help="name of this version, such as v1.0; a tag never moves")
    parser.add_argument("--script", action="append", default=[], help="that built the dataset; repeatable")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_import(commands: Any):
    """`mmt import`."""
    parser = _command(commands, "import", "a pretrained dual encoder (CLIP, SigLIP, ...) as a checkpoint")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="new folder to write to")
    parser.add_argument("--revision", help="tag or commit of it on the Hub")
    parser.add_argument(
        "--vision_model", metavar="CHECKPOINT", help="of a sentence-transformers text model: the CLIP of its space"
    )
    parser.add_argument("--vision_revision", help="tag or commit of that on the Hub")


def add_question(parser: argparse.ArgumentParser):
    """The options that say what is searched; what is not given is what the checkpoint's recipe.json says."""
    group = parser.add_argument_group("what is searched (default: what the checkpoint's recipe.json names)")
    group.add_argument("--revision", help="tag or commit of a checkpoint on the Hub")
    group.add_argument("--dataset", help="folder or Hub name, or emoji9, which comes with the package")
    group.add_argument("--dataset_revision", help="tag or commit of a dataset on the Hub")
    group.add_argument("--features", nargs="+", metavar="FOLDER", help="feature stores, side by side")
    group.add_argument("--video_column", metavar="COLUMN", help="of videos, for a checkpoint with a vision encoder")
    group.add_argument("--split", help="of the dataset")
    group.add_argument("--text_column", metavar="KIND", help="kind of text, the columns being <KIND>_<language>")
    group.add_argument("--languages", nargs="+", metavar="CODE", help="to search in")
    group.add_argument("--exclude_column", metavar="COLUMN", help="clips to leave out in a second set of figures")


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    examples = [line for line in (__doc__ or "").splitlines() if line.startswith(f"  mmt {name} ")]
    parser = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="\n".join(["examples:", *("  " + line.strip().split("  ")[0] for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a checkpoint, or its name on the Hub")
    return parser


if __name__ == "__main__":
    sys.exit(main())
