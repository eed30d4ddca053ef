"""`mmt demo`: from nothing to a nine-language search engine for one's own pictures and videos.

Rebuilds two encoders from packages, extracts the features of emoji9's drawings, trains two rows of the table with one
seed and a short recipe (no pre-training, and MMP; both fine-tuned on English names) and prints how they search in nine
languages. Then it trains `photo9/both`, which does well on photographs and has seen none, writes it as a checkpoint
with its picture encoder inside, and lets it search pictures that scikit-image's wheel holds. Run again after an
interruption, it continues.
"""

import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from modeling_mmt.commands import index, search, train
from modeling_mmt.commands.build import build
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import writing_folder
from modeling_mmt.data.wheels import SCIKIT_IMAGE, download_wheel
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.evaluation.metrics import average_over_languages
from modeling_mmt.extraction.extract import extract
from modeling_mmt.extraction.name_features import write_name_features
from modeling_mmt.extraction.packaged_encoders import packaged_encoder
from modeling_mmt.search.media_encoder import load_encoders, recorded_encoders, with_encoders

RUNS = Path("runs")  # where recipes look for features
FEATURES = RUNS / "features"
DRAWINGS = FEATURES / "emoji9-lite0-128"  # of the table's rows
NAMES_ENCODER = "efficientnet-lite0-names"
SHORT = ["--finetuning.num_train_epochs", "10", "--finetuning.evaluations", "10"]
SHORT_MMP = ["--pretraining.num_train_epochs", "15", "--pretraining.sources[0].keyword_pool_size", "2"]
SHORT_MMP += ["--finetuning.sources[1].keyword_pool_size", "2"]
ROWS = {  # name -> recipe, and what makes it short
    "none_en": ["emoji9/none_en", *SHORT],
    "mmp_en": ["emoji9/mmp_en", *SHORT, *SHORT_MMP],
    "photos": ["photo9/both"],
}
QUERIES = (  # one a language, and what they mean
    "a cat",
    "eine Tasse Kaffee",
    "une fusée",
    "kosmonaut",
    "马",  # a horse
    "трава",  # grass
    "tường gạch",  # a brick wall
    "kamera",  # a camera
    "galaxias",  # galaxies
)
PICTURES = "astronaut brick camera cell chelsea coffee grass gravel horse hubble_deep_field rocket".split()


def main(output_dir: str = "demo", seed: int = 0):
    """Run the demo, and print the seconds of each stage.

    Args:
        output_dir: of the checkpoint that searches pictures and videos; what it is made of goes to `runs/`.
        seed: of training.

    Raises:
        InputError: the folder holds something else.
    """
    folder = Path(output_dir)
    if folder.exists() and not (folder / "config.json").is_file():
        raise InputError(f"--output_dir {folder} is there, and no checkpoint; name a new folder")
    seconds: dict[str, float] = {}
    with timed("encoders", seconds):
        for encoder in ("multilingual-e5-small", "efficientnet-lite0", NAMES_ENCODER):
            packaged_encoder(encoder)
    with timed("features", seconds):
        extract("emoji9", DRAWINGS)
        write_features(packaged_encoder(NAMES_ENCODER))
    rows = {name: RUNS / "demo" / name for name in ROWS}
    for name, row in rows.items():
        with timed(f"train {name}", seconds):
            if not (row / "README.md").is_file():  # what a run writes last
                options = ["--seed", str(seed), "--output_dir", str(row), "--work_dir", str(RUNS / "stages")]
                train.main([*ROWS[name], *options])
    with timed("checkpoint from pixels", seconds):
        if not folder.exists():
            write_checkpoint(rows["photos"], folder)
    with timed("pictures", seconds):
        sheet = search_pictures(folder, RUNS / "demo" / "pictures")
    print_figures(rows)
    print("\nSeconds: " + ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    print(f"Checkpoint: {folder}; what it found among scikit-image's pictures: {sheet}")


def write_features(encoder: Path, features: Path = FEATURES, data: Path = RUNS / "data", name: str = NAMES_ENCODER):
    """Write what `photo9/both` learns from, where it is missing.

    Args:
        encoder: folder of the picture encoder.
        features: folder of drawings' and names' features.
        data: folder of the corpus of ImageNet's classes.
        name: of the encoder, for `mmt extract`.
    """
    drawings = extract("emoji9", features / "emoji9-lite0-names-224", encoder=name, image_size=224)
    if drawings is None:
        return  # other processes are at it
    if not (names := features / "emoji9-names").is_dir():
        write_name_features("emoji9", names, encoder, drawings)
    if not (classes := data / "imagenet_prototypes" / "features").is_dir():
        options = ["--encoder", str(encoder), "--like", str(drawings.folder), "--output_dir", str(classes.parent)]
        build("imagenet_prototypes", options)


def write_checkpoint(trained: Path, folder: Path):
    """Write a checkpoint that was trained on features as one from pixels, with their encoder inside."""
    model, processor = open_checkpoint(str(trained))
    whole = with_encoders(model, processor, load_encoders(recorded_encoders(processor, str(trained), None), "cpu"))
    with writing_folder(folder) as partial:
        whole.save_pretrained(partial)
        processor.save_pretrained(partial)


def search_pictures(checkpoint: Path, folder: Path) -> Path:
    """Index pictures of scikit-image's wheel, search them in nine languages, and draw what is found.

    Returns:
        The picture of it.
    """
    pictures, sheet = folder / "scikit-image", folder / "found.webp"
    if not pictures.is_dir():
        with TemporaryDirectory() as scratch, writing_folder(pictures) as partial:
            with zipfile.ZipFile(download_wheel(SCIKIT_IMAGE, Path(scratch))) as wheel:
                for member in wheel.namelist():
                    if (path := Path(member)).parent == Path("skimage/data") and path.stem in PICTURES:
                        (partial / path.name).write_bytes(wheel.read(member))
    index.main(str(pictures), str(folder / "index"), model=str(checkpoint))
    search.main(str(folder / "index"), QUERIES, top=1, contact_sheet=str(sheet))
    return sheet


def print_figures(rows: dict[str, Path]):
    """R@1 of each row in each language, on emoji9's test clips."""
    print("\nText-to-video R@1 (%) on 300 test clips of emoji9, names as queries, one seed, short recipe:\n")
    for number, (name, row) in enumerate(rows.items()):
        figures = json.loads((row / "metrics.json").read_text(encoding="utf-8"))["figures"]["test"]
        recalls = average_over_languages({key: of["R@1"] for key, of in figures["all"]["t2v"].items()})
        if number == 0:
            print(f"{'':10}" + "".join(f"{key:>12}" for key in recalls))
        print(f"{name:10}" + "".join(f"{value:12.1f}" for value in recalls.values()))


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and keep its wall time."""
    print(f"--- {stage}", flush=True)
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started
