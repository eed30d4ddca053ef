"""`mmt`: train, search with, measure and publish models that find clips by text in many languages.

Examples:
  mmt demo                                                          a model to start with, in 5 to 15 minutes: demo/
  mmt extract my_media --output_dir features/mine --num_frames 8    features of videos and pictures, or of a dataset
  mmt extract my_media --output_dir features/mine --cluster 10.0.0.1:6379    by the nodes of a Ray cluster
  mmt build own_clips --data_dir my_clips --output_dir data/mine    a corpus from files, with a card
  mmt convert old_features --output_dir features/old                features that other code made
  mmt recipes                                                       the recipes that come with the package
  mmt import openai/clip-vit-base-patch32 --output_dir runs/clip    a dual encoder as a checkpoint
  mmt train emoji9/mmp_en --output_dir runs/mmp_en                  train as a recipe says
  mmt index my_media --model runs/mmp_en --output_dir index         an index of your files; run again: updates it
  mmt evaluate runs/mmp_en                                          figures in every language
  mmt evaluate runs/mmp_en --languages sw vi --json                 for two languages, as JSON
  mmt search runs/mmp_en "con mèo" "骑自行车的人" --top 5             clips for queries in any language
  mmt search my_index "con mèo" --contact_sheet found.png           moments from an index, and a picture of them
  mmt report runs/mmp_en --compare runs/none_en                     an HTML report: strengths and weaknesses
  mmt cost paper/xlmr_mmp_en --card h200 --clips 1200000 --hours 134472    hours, bytes and money of a recipe
  mmt export runs/mmp_en --output_dir onnx/mmp_en                   ONNX files that need no torch
  mmt publish runs/mmp_en org/name --tag v1.0                       a Hub repository with a card and figures

Every command has its own --help. To use several processes: torchrun --nproc_per_node 4 -m mmt ... Exit codes: 0 done,
1 a dry run found problems, 2 bad input (explained in one line), 3 too many clips failed, 75 stopped by a signal after
saving a checkpoint, 130 interrupted.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from io import TextIOWrapper
from typing import Any, NoReturn

# Verbs whose words another grammar reads: a recipe's fields, or those of the corpus or the format that is named.
PASSED_ON = {
    "train": "train a model as a recipe says",
    "build": "build a corpus from its official files, or from your own",
    "convert": "convert features from .npy, .npz or HDF5 files to a feature store",
}


MODULES = {"import": "import_dual_encoder"}  # of verbs that are words of Python
WORKERS = "processes that decode (one per core; with --cluster one per task)"


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
    strange = next((word for word in words if not is_utf8(word)), None)
    if strange is not None and verb != "search":  # which reads pictures of any name, and says so of a query
        print(f"mmt: {strange!r} has bytes that are not UTF-8; rename that file or folder", file=sys.stderr)
        return 2
    if verb in PASSED_ON:
        words.remove(verb)
        traceback = "--traceback" in words
        options["argv"] = [word for word in words if word != "--traceback"]
    else:
        options = vars(parse(words))
        verb, traceback = options.pop("verb"), options.pop("traceback", False)
    # What follows imports torch and transformers; help, a wrong option, recipes and an index as it was come without.
    if "modeling_mmt" not in sys.modules and verb in ("index", "recipes"):
        postpone("modeling_mmt")
    from modeling_mmt.commands import errors, terminal

    terminal.be_quiet_unless_watched()
    if verb == "train":
        return import_module("modeling_mmt.commands.train").command(words, "mmt")
    module = f"modeling_mmt.commands.{MODULES.get(verb, verb)}"
    return errors.exit_code_of("mmt", lambda: import_module(module).main(**options), traceback)


def is_utf8(word: str) -> bool:
    """Whether a word of the command line is text; in one that is not, Python keeps bytes as halves of surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def postpone(name: str):
    """Let a package's modules be imported before what its `__init__` imports is; that is, once a name of it is asked.

    Args:
        name: of the package, which is not imported yet.
    """
    spec = find_spec(name)
    package = module_from_spec(spec)  # type: ignore[arg-type]

    def load(attribute: str) -> Any:
        del package.__getattr__
        spec.loader.exec_module(package)  # type: ignore[union-attr]
        return getattr(package, attribute)

    package.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[name] = package


class OneLineParser(argparse.ArgumentParser):
    """A grammar that says in one line what is wrong, as the verbs do, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage, and exit with code 2."""
        given, _, known = message.partition("(choose from")
        wrong = given.partition("'")[2].rpartition("'")[0]
        matches = get_close_matches(wrong, re.findall(r"[\w.-]+", known), n=1)
        remedy = f"did you mean {matches[0]}?" if matches else f"see {self.prog} --help"
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}; {remedy}\n")


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
    anywhere = OneLineParser(add_help=False, argument_default=argparse.SUPPRESS)
    anywhere.add_argument("--traceback", action="store_true", help="show where bad input was found")
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser("mmt", description=__doc__, formatter_class=layout, parents=[anywhere])
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
    add_cost(verb("cost", "count what a recipe costs on a card: hours, bytes and money"))
    add_export(verb("export", "write both towers as ONNX, and an int8 text tower"))
    add_publish(verb("publish", "push a checkpoint, a dataset, an index or a feature store to the Hub, with its card"))
    return parser


def add_demo(parser: argparse.ArgumentParser):
    """`mmt demo`."""
    checkpoint = "new folder for the checkpoint (%(default)s)"
    parser.add_argument("--output_dir", default="demo", metavar="FOLDER", help=checkpoint)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of training (%(default)s)")


def add_extract(parser: argparse.ArgumentParser):
    """`mmt extract`."""
    source = (
        "folder of videos and pictures, or a list of them (.txt, .csv, .tsv, .jsonl); or a dataset: emoji9, a Hub "
    )
    source += "name, or a folder that holds .parquet files or a dataset card (a README.md that begins with ---)"
    parser.add_argument("source", metavar="SOURCE", help=source)
    store = "new folder for the feature store, or a URL to copy it to once it is complete (s3://..., hf://...)"
    parser.add_argument("--output_dir", required=True, metavar="FOLDER-OR-URL", help=store)
    parser.add_argument("--dataset_revision", metavar="REVISION", help="tag or commit of a dataset on the Hub")
    encoder = "name of a packaged encoder, Hub name, folder, or .pth file of S3D or R(2+1)D (%(default)s)"
    parser.add_argument("--encoder", default="efficientnet-lite0", metavar="NAME", help=encoder)
    sides = "side of a frame (the encoder's own; 128 for film strips)"
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help=sides)
    parser.add_argument("--num_frames", type=int, metavar="N", help="frames per video, spread evenly (8)")
    parser.add_argument(
        "--frames_per_second", type=float, metavar="RATE", help="sample at this rate instead (at most 240)"
    )
    longest = "with --frames_per_second: a video with more frames fails (%(default)s)"
    parser.add_argument("--max_frames", type=int, default=4096, metavar="N", help=longest)
    batch = "steps that the encoder processes at once (%(default)s)"
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help=batch)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N clips of each split, or N files")
    device = "device of the encoder, such as cuda (%(default)s); each process of torchrun uses its own"
    parser.add_argument("--device", default="cpu", help=device)
    parser.add_argument("--num_workers", type=int, metavar="N", help=WORKERS)
    timeout = "longest time that decoding one clip may take (%(default)g)"
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help=timeout)
    decoder = "decoder of videos (PyAV if it is installed)"
    parser.add_argument("--decoder", choices=["torchcodec", "pyav"], help=decoder)
    shards = "clips per shard (%(default)s); a run that is killed loses at most one shard"
    parser.add_argument("--shard_size", type=int, default=256, metavar="N", help=shards)
    failures = "how many clips may fail: a number such as 10, or a fraction such as 0.05 (%(default)s)"
    parser.add_argument("--max_failures", type=number, default=0.05, metavar="N", help=failures)
    add_cluster(parser)


def add_index(parser: argparse.ArgumentParser):
    """`mmt index`; an option that is left out keeps the index's value, at first the default in brackets."""
    media = (
        "folder of videos and pictures; with --embeddings: a table, one line per vector (video_id, file, start, ...)"
    )
    parser.add_argument("media", metavar="MEDIA", help=media)
    parser.add_argument("--output_dir", required=True, metavar="INDEX", help="folder of the index")
    vectors = ".npy file of vectors made by another model, in the order of the table; --model then names that model"
    parser.add_argument("--embeddings", metavar="FILE", help=vectors)
    parser.add_argument("--model", metavar="CHECKPOINT", help="folder of a checkpoint, or its name on the Hub")
    parser.add_argument("--revision", metavar="REVISION", help="tag or commit of a checkpoint on the Hub")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="length of a window (4; with --shots 8)")
    stride = "distance between the starts of two windows (4, or the window if that is shorter)"
    parser.add_argument("--stride", type=float, metavar="SECONDS", help=stride)
    shots = "end windows at shot changes, and divide long shots into windows; needs the extra `shots`"
    parser.add_argument("--shots", action="store_true", default=None, help=shots)
    parser.add_argument(
        "--frames_per_second", type=float, metavar="RATE", help="frames sampled per second (2; at most 240)"
    )
    encoder = "encoder of the features, if the checkpoint reads features and does not name it; as in `mmt extract`"
    parser.add_argument("--encoder", dest="encoders", nargs="+", default=[], metavar="NAME", help=encoder)
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help="side of the frames that it reads")
    batch = "steps that the encoder processes at once (%(default)s)"
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help=batch)
    parser.add_argument(
        "--device", default="cpu", help="device of the encoder and the model, such as cuda (%(default)s)"
    )
    parser.add_argument("--num_workers", type=int, metavar="N", help=WORKERS)
    timeout = "longest time that decoding a piece of a file may take (%(default)g)"
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help=timeout)
    engine = "also build or update this search engine beside the index, as in `mmt search`"
    parser.add_argument("--engine", metavar="NAME", help=engine)
    add_cluster(parser)
    status = "only print what an update would do; changes nothing"
    parser.add_argument("--status", action="store_true", help=status)
    add_json(parser)


def add_recipes(parser: argparse.ArgumentParser):
    """`mmt recipes`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to print, such as emoji9/mmp_en")
    add_json(parser)


def add_evaluate(parser: argparse.ArgumentParser):
    """`mmt evaluate`."""
    place = "folder of a checkpoint, its name on the Hub, or the folder of an index; an index is measured on the "
    place += "moments that the rows of --dataset give by file, start and end"
    parser.add_argument("checkpoint", metavar="CHECKPOINT-OR-INDEX", help=place)
    add_evaluation_options(parser)
    add_json(parser)


def add_search(parser: argparse.ArgumentParser):
    """`mmt search`."""
    place = "folder of an index; or folder of a checkpoint, or its name on the Hub"
    parser.add_argument("place", metavar="CHECKPOINT-OR-INDEX", help=place)
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="text in any language")
    add_evaluation_options(parser)
    parser.add_argument(
        "--index", metavar="FOLDER", help="for a checkpoint: index of its clips, built if it does not exist"
    )
    engine = (
        "exact, faiss:FACTORY such as faiss:IVF256,SQ8, lancedb, lancedb:IVF_PQ, qdrant, or qdrant:URL (%(default)s)"
    )
    parser.add_argument("--engine", default="exact", metavar="NAME", help=engine)
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="largest number of results per query (%(default)s)"
    )
    where = "only search rows that match; values of one column are alternatives, different columns must all match"
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=VALUE", help=where)
    parser.add_argument(
        "--windows", action="store_true", help="show single windows instead of joining them to moments"
    )
    parser.add_argument(
        "--by_picture", action="append", default=[], metavar="FILE", help="search with a picture; may be repeated"
    )
    parser.add_argument(
        "--by_video", metavar="FILE", help="search with a video, or with what it shows at the time --at"
    )
    parser.add_argument("--at", type=float, metavar="SECONDS", help="time in --by_video, from its first frame")
    parser.add_argument("--contact_sheet", metavar="FILE", help="write a picture of the results (.png)")
    parser.add_argument("--save_moments", metavar="FOLDER", help="write each moment to a file in a new folder")
    add_json(parser)


def add_report(parser: argparse.ArgumentParser):
    """`mmt report`."""
    other = "[NAME=]CHECKPOINT"
    add_checkpoint(parser)
    add_evaluation_options(parser)
    parser.add_argument("--name", metavar="NAME", help="name of the checkpoint in the report (from its path)")
    parser.add_argument("--compare", nargs="+", default=[], metavar=other, help="other checkpoints to compare with")
    parser.add_argument(
        "--zero_shot", metavar=other, help="a checkpoint fine-tuned on English only, without pre-training, "
    )
    ceiling = "and one trained on every language; the report shows how much of the gap between the two is closed"
    parser.add_argument("--translate_train", metavar=other, help=ceiling)
    parser.add_argument("--output_dir", default="report", metavar="FOLDER", help="folder to write to (%(default)s)")
    add_json(parser)


def add_cost(parser: argparse.ArgumentParser):
    """`mmt cost`; what is left out is assumed as the brackets say, and every assumption is printed."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe's file, or a bundled one such as paper/xlmr_mmp_en")
    parser.add_argument("--card", required=True, metavar="NAME", help="h200, h100, a100 or l4")
    parser.add_argument("--clips", type=int, required=True, metavar="N", help="clips or videos of an epoch")
    parser.add_argument(
        "--hours", type=float, required=True, metavar="HOURS", help="hours of video to extract features from"
    )
    rate = "frames encoded per second of video (%(default)g), each by a ViT-B/16"
    parser.add_argument("--frames_per_second", type=float, default=1.0, metavar="RATE", help=rate)
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of a caption (the recipe's max_text_length)")
    steps = "feature steps of a clip (one per second of the mean of clip_seconds, else 32)"
    parser.add_argument("--steps", type=int, metavar="N", help=steps)
    parser.add_argument("--windows", type=int, metavar="N", help="vectors to search (as many as clips)")
    parser.add_argument("--cards", type=int, default=1, metavar="N", help="cards that share the work (%(default)s)")
    share = "share of the card's bf16 rate that is reached (%(default)g, an assumption)"
    parser.add_argument("--utilisation", type=float, default=0.35, metavar="SHARE", help=share)
    parser.add_argument(
        "--price_per_hour", type=float, metavar="PRICE", help="price of a card, in any currency (none: no money)"
    )
    add_json(parser)


def add_import(parser: argparse.ArgumentParser):
    """`mmt import`."""
    parser.add_argument("name", metavar="NAME", help="dual encoder: a Hub name or a folder")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="new folder to write to")
    parser.add_argument("--revision", metavar="REVISION", help="its tag or commit on the Hub")
    vision = "if NAME is a sentence-transformers text model: the dual encoder whose space it shares"
    parser.add_argument("--vision_model", metavar="NAME", help=vision)
    parser.add_argument("--vision_revision", metavar="REVISION", help="tag or commit of the vision model on the Hub")


def add_export(parser: argparse.ArgumentParser):
    """`mmt export`."""
    add_checkpoint(parser)
    parser.add_argument("--revision", metavar="REVISION", help="tag or commit of a checkpoint on the Hub")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="folder to write to")
    add_json(parser)


def add_publish(parser: argparse.ArgumentParser):
    """`mmt publish`."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder of a checkpoint, a dataset, an index or a feature store"
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="repository on the Hub; created if it does not exist")
    kind = "kind of repository (model; an index or a feature store becomes a dataset)"
    parser.add_argument("--repo_type", choices=("model", "dataset"), help=kind)
    parser.add_argument("--model", metavar="ORG/NAME", help="for an index: the published checkpoint that made it")
    parser.add_argument("--model_revision", metavar="REVISION", help="its tag or commit")
    parser.add_argument("--revision", default="main", help="branch to commit to (%(default)s)")
    parser.add_argument("--tag", metavar="NAME", help="name of this version, such as v1.0; a tag never moves")
    script = "script that built the dataset; may be repeated"
    parser.add_argument("--script", action="append", dest="scripts", default=[], metavar="FILE", help=script)
    parser.add_argument("--private", action="store_true", default=None, help="make a private repository")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    add_json(parser)


def add_checkpoint(parser: argparse.ArgumentParser):
    """The checkpoint that a verb works on."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a checkpoint, or its name on the Hub")


def add_cluster(parser: argparse.ArgumentParser):
    """The Ray cluster whose nodes do the work."""
    cluster = "let the nodes of a Ray cluster decode and encode: HOST:PORT of its head, auto for the cluster of this "
    cluster += "machine, or local for a temporary one; needs the extra `cluster`"
    parser.add_argument("--cluster", metavar="ADDRESS", help=cluster)


def add_json(parser: argparse.ArgumentParser):
    """The answer as JSON."""
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def add_evaluation_options(parser: argparse.ArgumentParser):
    """The options that say what is searched; by default what the checkpoint's recipe.json says."""
    group = parser.add_argument_group("what is searched (default: as in the checkpoint's recipe.json)")
    group.add_argument("--revision", metavar="REVISION", help="tag or commit of the checkpoint or index on the Hub")
    group.add_argument("--dataset", metavar="NAME", help="folder, Hub name, or emoji9, which comes with the package")
    group.add_argument("--dataset_revision", metavar="REVISION", help="tag or commit of the dataset on the Hub")
    group.add_argument(
        "--features", nargs="+", metavar="FOLDER", help="feature stores, concatenated; a folder, or org/name@revision"
    )
    group.add_argument(
        "--video_column", metavar="COLUMN", help="column of the videos, for a checkpoint with a vision encoder"
    )
    group.add_argument("--split", metavar="NAME", help="split of the dataset, such as test")
    group.add_argument("--text_column", metavar="KIND", help="kind of text: the columns are <KIND>_<language>")
    group.add_argument("--languages", nargs="+", metavar="CODE", help="languages of the queries, such as en sw")
    group.add_argument(
        "--exclude_column", metavar="COLUMN", help="boolean column of clips to leave out in a second set of figures"
    )


def number(text: str) -> int | float:
    """A count or, with a decimal point, a fraction."""
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    sys.exit(main())
