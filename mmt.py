"""`mmt`: train, search with, measure and publish models that find clips by text in many languages.

Examples:
  mmt demo                                                          a model to start with, in 5 to 15 minutes: demo/
  mmt extract my_media --output_dir features/mine --num_frames 8    videos and pictures, or a dataset's, to features
  mmt build own_clips --data_dir my_clips --output_dir data/mine    a corpus from files, with a card
  mmt convert old_features --output_dir features/old                other people's features
  mmt recipes                                                       the recipes that come with the package
  mmt import openai/clip-vit-base-patch32 --output_dir runs/clip    a dual encoder as a checkpoint
  mmt train emoji9/mmp_en --output_dir runs/mmp_en                  a recipe's stages, one after the other
  mmt index my_media --model runs/mmp_en --output_dir index         an index of my files; again: what changed
  mmt evaluate runs/mmp_en                                          figures in every language, as its recipe says
  mmt evaluate runs/mmp_en --languages sw vi --json                 of two languages, as JSON
  mmt search runs/mmp_en "con mèo" "骑自行车的人" --top 5             clips for queries in any language
  mmt search my_index "con mèo" --contact_sheet found.png           moments of an index, and a picture of them
  mmt report runs/mmp_en --compare runs/none_en                     one HTML file: where it is good and where not
  mmt export runs/mmp_en --output_dir onnx/mmp_en                   ONNX files that need no torch
  mmt publish runs/mmp_en org/name --tag v1.0                       a Hub repository with card and figures

Each command has its own --help; on several processes: torchrun --nproc_per_node 4 -m mmt ... Exit codes: 0 done, 1 a
dry run found problems, 2 bad input (one line says which), 3 too many clips failed, 75 stopped by a signal with a
checkpoint, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

# Verbs whose words another grammar reads: a recipe's fields, or those of the corpus or the format that is named.
PASSED_ON = {
    "train": "train a model as a recipe says",
    "build": "build a corpus of a kind that is named, from its official files",
    "convert": "convert features from .npy, .npz or HDF5",
}


MODULES = {"import": "import_dual_encoder"}  # of verbs that are words of Python


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    Args:
        argv: a command's name and options; None takes the command line's.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal of one code page shows ? for what it does not have
        sys.stdout.reconfigure(errors="replace")
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), "")
    options: dict[str, Any] = {}
    if verb in PASSED_ON:
        words.remove(verb)
        traceback = "--traceback" in words
        options["argv"] = [word for word in words if word != "--traceback"]
    else:
        options = vars(parse(words))
        verb, traceback = options.pop("verb"), options.pop("traceback", False)
    # What follows imports torch and transformers; help and a wrong option come without.
    from modeling_mmt.commands import errors, terminal

    terminal.be_quiet_unless_watched()
    if verb == "train":
        return import_module("modeling_mmt.commands.train").command(words, "mmt")
    module = f"modeling_mmt.commands.{MODULES.get(verb, verb)}"
    return errors.exit_code_of("mmt", lambda: import_module(module).main(**options), traceback)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options; queries may stand on both sides of them, which argparse does not manage before Python 3.13."""
    parser = build_parser()
    options, rest = parser.parse_known_args(words)
    if rest and (not hasattr(options, "queries") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.queries += rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """The grammar: what a verb works on comes first, as words; where it writes is `--output_dir`."""
    anywhere = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    anywhere.add_argument("--traceback", action="store_true", help="show where bad input was found")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("mmt", description=__doc__, formatter_class=layout, parents=[anywhere])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, about: str) -> argparse.ArgumentParser:
        examples = [line.strip() for line in (__doc__ or "").splitlines() if line.startswith(f"  mmt {name}")]
        epilog = "\n".join(["examples:", *("  " + example.partition("  ")[0] for example in examples)])
        about = about[0].upper() + about[1:] + "."
        return verbs.add_parser(
            name, help=about, description=about, epilog=epilog, formatter_class=layout, parents=[anywhere]
        )

    for name, about in PASSED_ON.items():
        verb(name, about)
    add_demo(verb("demo", "make a model to start with, from packages alone, and search pictures with it"))
    add_extract(
        verb("extract", "extract features from videos and pictures, or a dataset's clips, by a frozen encoder")
    )
    add_import(verb("import", "write a pretrained dual encoder (CLIP, SigLIP, ...) as a checkpoint"))
    add_recipes(verb("recipes", "list the recipes that come with the package, or show one"))
    add_index(verb("index", "keep an index of a folder of videos and pictures in step with it"))
    add_evaluate(verb("evaluate", "measure R@1, R@5, R@10, MedR and MRR in every language"))
    add_search(verb("search", "find moments and clips for queries in any language"))
    add_report(verb("report", "write one HTML file about a checkpoint, and Markdown and JSON"))
    add_export(verb("export", "write both towers as ONNX, and an int8 text tower"))
    add_publish(verb("publish", "push a checkpoint, a dataset, an index or a feature store to the Hub, with its card"))
    return parser


def add_demo(parser: argparse.ArgumentParser):
    """`mmt demo`."""
    parser.add_argument("--output_dir", default="demo", metavar="FOLDER", help="of the checkpoint (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of training (%(default)s)")


def add_extract(parser: argparse.ArgumentParser):
    """`mmt extract`."""
    source = (
        "folder of videos and pictures, or a list of them (.txt, .csv, .tsv, .jsonl); or a dataset: emoji9, a Hub "
    )
    source += "name, or a folder that holds .parquet files or a dataset card (a README.md that begins with ---)"
    parser.add_argument("source", metavar="SOURCE", help=source)
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="of the feature store")
    parser.add_argument("--dataset_revision", help="tag or commit of a dataset on the Hub")
    encoder = "packaged encoder, Hub name, folder, or .pth file of S3D or R(2+1)D (%(default)s)"
    parser.add_argument("--encoder", default="efficientnet-lite0", help=encoder)
    parser.add_argument("--image_size", type=int, help="side of a frame; the encoder's own, 128 for film strips")
    parser.add_argument("--num_frames", type=int, help="frames of a video, spread evenly (8)")
    parser.add_argument("--frames_per_second", type=float, help="instead of --num_frames: frames per second")
    parser.add_argument("--max_frames", type=int, default=4096, help="with --frames_per_second: longer videos fail")
    parser.add_argument(
        "--batch_size", type=int, default=16, help="steps that the encoder takes together (%(default)s)"
    )
    parser.add_argument("--limit", type=int, help="clips of each split, or videos (all)")
    parser.add_argument("--device", default="cpu", help="where the encoder runs; cuda: each process has its own")
    parser.add_argument("--num_workers", type=int, help="processes that decode (one a core)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a clip's decoding may take")
    parser.add_argument("--decoder", choices=["torchcodec", "pyav"], help="of videos (PyAV where it is installed)")
    parser.add_argument("--shard_size", type=int, default=256, help="clips a shard; a killed run loses at most one")
    failures = "clips that may fail: a number, or with a point a share of all (%(default)s)"
    parser.add_argument("--max_failures", type=number, default=0.05, help=failures)


def add_index(parser: argparse.ArgumentParser):
    """`mmt index`; what is not given is what the index was made with, and else the default in brackets."""
    media = (
        "folder of videos and pictures; with --embeddings: a table with a line a vector (video_id, file, start, ...)"
    )
    parser.add_argument("media", metavar="MEDIA", help=media)
    parser.add_argument("--output_dir", required=True, metavar="INDEX", help="folder of the index")
    vectors = "vectors made elsewhere, as .npy, in the order of the table's lines; --model then names what made them"
    parser.add_argument("--embeddings", metavar="FILE", help=vectors)
    parser.add_argument("--model", metavar="CHECKPOINT", help="folder of a checkpoint, or its name on the Hub")
    parser.add_argument("--revision", help="tag or commit of a checkpoint on the Hub")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="length of a window (8)")
    parser.add_argument(
        "--stride", type=float, metavar="SECONDS", help="from the start of one window to the next (half a window)"
    )
    shots = "cut at shot changes, and long shots into windows; needs the extra `shots`"
    parser.add_argument("--shots", action="store_true", default=None, help=shots)
    parser.add_argument("--frames_per_second", type=float, help="frames sampled per second of video (2)")
    encoder = "of a checkpoint from features that does not name it: what made them; as `mmt extract`'s"
    parser.add_argument("--encoder", dest="encoders", nargs="+", default=[], metavar="NAME", help=encoder)
    parser.add_argument("--image_size", type=int, help="side of its frames in pixels")
    parser.add_argument(
        "--batch_size", type=int, default=16, help="steps that an encoder takes together (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="where encoder and model run (%(default)s)")
    parser.add_argument("--num_workers", type=int, help="processes that decode (one a core)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a piece of a file may take")
    parser.add_argument("--status", action="store_true", help="change nothing; say how folder and index stand")
    add_json(parser)


def add_recipes(parser: argparse.ArgumentParser):
    """`mmt recipes`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as emoji9/mmp_en: show it")
    add_json(parser)


def add_evaluate(parser: argparse.ArgumentParser):
    """`mmt evaluate`."""
    place = "folder of a checkpoint, its name on the Hub, or the folder of an index: how well it finds the moments "
    place += "that the rows of a --dataset name by file, start and end"
    parser.add_argument("checkpoint", metavar="CHECKPOINT-OR-INDEX", help=place)
    add_evaluation_options(parser)
    add_json(parser)


def add_search(parser: argparse.ArgumentParser):
    """`mmt search`."""
    place = "folder of a checkpoint, its name on the Hub, or the folder of an index, which tells its checkpoint"
    parser.add_argument("place", metavar="CHECKPOINT-OR-INDEX", help=place)
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="text in any language")
    add_evaluation_options(parser)
    parser.add_argument("--index", metavar="FOLDER", help="index to search; built there if it does not exist")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="moments or clips a query (%(default)s)")
    where = "only clips that match; values for one column are alternatives, different columns must all match"
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=VALUE", help=where)
    parser.add_argument("--windows", action="store_true", help="windows of videos as they are, not joined to moments")
    parser.add_argument("--by_picture", action="append", default=[], metavar="FILE", help="a picture as a query")
    parser.add_argument("--by_video", metavar="FILE", help="a video as a query, or what it shows --at a time")
    parser.add_argument("--at", type=float, metavar="SECONDS", help="from the first frame of --by_video")
    parser.add_argument("--contact_sheet", metavar="FILE", help="write a picture of what was found (.png)")
    parser.add_argument("--save_moments", metavar="FOLDER", help="make a folder with a file of each moment")
    add_json(parser)


def add_report(parser: argparse.ArgumentParser):
    """`mmt report`."""
    other = "[NAME=]CHECKPOINT"
    add_checkpoint(parser)
    add_evaluation_options(parser)
    parser.add_argument("--name", help="what the checkpoint is called in the report (from its path)")
    parser.add_argument("--compare", nargs="+", default=[], metavar=other, help="other checkpoints, beside it")
    parser.add_argument("--zero_shot", metavar=other, help="one fine-tuned on English alone without pre-training, ")
    ceiling = "and one trained on every language: how much of the gap is closed"
    parser.add_argument("--translate_train", metavar=other, help=ceiling)
    parser.add_argument("--output_dir", default="report", metavar="FOLDER", help="to write to (%(default)s)")
    add_json(parser)


def add_import(parser: argparse.ArgumentParser):
    """`mmt import`."""
    parser.add_argument("name", metavar="NAME", help="of a dual encoder: on the Hub, or a folder")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="new folder to write to")
    parser.add_argument("--revision", help="tag or commit of it on the Hub")
    vision = "NAME is a sentence-transformers text model; the dual encoder whose space it shares"
    parser.add_argument("--vision_model", metavar="NAME", help=vision)
    parser.add_argument("--vision_revision", help="tag or commit of that on the Hub")


def add_export(parser: argparse.ArgumentParser):
    """`mmt export`."""
    add_checkpoint(parser)
    parser.add_argument("--revision", help="tag or commit of a checkpoint on the Hub")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="to write to")
    add_json(parser)


def add_publish(parser: argparse.ArgumentParser):
    """`mmt publish`."""
    parser.add_argument("folder", metavar="FOLDER", help="of a checkpoint, a dataset, an index or a feature store")
    parser.add_argument("repository", metavar="ORG/NAME", help="on the Hub; made if it does not exist")
    kind = "what FOLDER is (model; an index and a feature store are a dataset)"
    parser.add_argument("--repo_type", choices=("model", "dataset"), help=kind)
    parser.add_argument("--model", metavar="ORG/NAME", help="of an index: the published checkpoint that made it")
    parser.add_argument("--model_revision", help="tag or commit of that")
    parser.add_argument("--revision", default="main", help="branch to commit to (%(default)s)")
    parser.add_argument("--tag", help="name of this version, such as v1.0; a tag never moves")
    script = "that built the dataset; repeatable"
    parser.add_argument("--script", action="append", dest="scripts", default=[], help=script)
    parser.add_argument("--private", action="store_true", default=None, help="make a private repository")
    parser.add_argument("--message", help="of the commit")
    add_json(parser)


def add_checkpoint(parser: argparse.ArgumentParser):
    """The checkpoint that a verb works on."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a checkpoint, or its name on the Hub")


def add_json(parser: argparse.ArgumentParser):
    """The answer as JSON."""
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def add_evaluation_options(parser: argparse.ArgumentParser):
    """The options that say what is searched; what is not given is what the checkpoint's recipe.json says."""
    group = parser.add_argument_group("what is searched (default: what the checkpoint's recipe.json names)")
    group.add_argument("--revision", help="tag or commit of a checkpoint, or of an index, on the Hub")
    group.add_argument("--dataset", help="folder or Hub name, or emoji9, which comes with the package")
    group.add_argument("--dataset_revision", help="tag or commit of a dataset on the Hub")
    group.add_argument(
        "--features", nargs="+", metavar="FOLDER", help="feature stores, side by side; or org/name@revision"
    )
    group.add_argument("--video_column", metavar="COLUMN", help="of videos, for a checkpoint with a vision encoder")
    group.add_argument("--split", help="of the dataset")
    group.add_argument("--text_column", metavar="KIND", help="kind of text, the columns being <KIND>_<language>")
    group.add_argument("--languages", nargs="+", metavar="CODE", help="to search in")
    group.add_argument("--exclude_column", metavar="COLUMN", help="clips to leave out in a second set of figures")


def number(text: str) -> int | float:
    """A count, or with a point a share."""
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    sys.exit(main())
