r"""Features that you have to a feature store: a folder of .npy, an HDF5 file, or .npz archives.

    mmt convert s3d_npy/ --output_dir data/features/msrvtt-s3d \
        --extractor S3D-HowTo100M-MIL-NCE --revision 1.0 --rate 1

Each array is a clip's `(F, D_v)`; `(D_v,)` is a clip of one step, `(1, F, D_v)`, as VATEX' I3D files have it, the clip
within. A clip's id is its file's path in the folder, without the ending, or its key in HDF5 and .npz. Every value is
checked. A file that is damaged, not finite or of another width stops the conversion, or, with `--on_error skip`, is
left out and counted, up to `--max_skipped` of all; nothing is ever replaced by zeros.

Pickles (.pth, .pt, .pkl, .pickle, object arrays in .npy) are refused: they run code when they are read.
"""

import tokenize
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling_mmt.data.feature_store import FeatureStore, FeatureStoreError
from modeling_mmt.data.feature_store_writer import FeatureStoreWriter
from modeling_mmt.data.folders import counted, files_below, kind_of
from modeling_mmt.data.sources import SourceError, checked_id

# What numpy raises on a damaged .npy: its header is a Python literal, and may ask for any amount of memory.
DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    MemoryError,
    zipfile.BadZipFile,
)
MAX_CLIP_BYTES = 2**30  # of one clip's array, once it is unpacked
PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin")
OUTSIDE = "a store may be published, so nothing from outside is read: copy the array itself into this file"
REMEDY = """a pickle, which can run any code when it is read. Where you trust it, turn it into .npy files yourself:
    import numpy, torch
    for video_id, features in torch.load(PATH, weights_only=True).items():
        numpy.save(f"npy/{video_id}.npy", numpy.asarray(features))
and convert that folder (a .pth with "2d" and "3d" inside holds two extractors: two folders, two stores)"""


class UnreadableClipError(SourceError):
    """One clip's array cannot be read; the others may."""


def read_arrays(source: str | Path) -> Iterator[tuple[str, np.ndarray | UnreadableClipError]]:
    """The clips of a folder of .npy, an .npz, or an HDF5 file, as they are, by id; an error in place of a damaged one.

    Raises:
        FileNotFoundError: the source is missing, or is a folder without .npy files.
        SourceError: it is a pickle or of an unknown kind, or a file that cannot be opened.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a folder of .npy, an .npz or an HDF5 file")
    if source.is_dir():
        yield from _read_folder(source)
    elif source.suffix in PICKLES:
        raise SourceError(f"{source}: {REMEDY}")
    elif source.suffix == ".npz":
        yield from _read_npz(source)
    elif source.suffix in (".h5", ".hdf5"):
        yield from _read_hdf5(source)
    else:
        raise SourceError(
            f"{source}: kind {source.suffix!r} is unknown; give a folder of .npy, an .npz or an HDF5 file"
        )


def _read_folder(folder: Path) -> Iterator[tuple[str, np.ndarray | UnreadableClipError]]:
    left: Counter[str] = Counter()
    paths = files_below(folder, left)
    for path in paths:
        if path.suffix in PICKLES and path.parent == folder:
            raise SourceError(f"{path}: {REMEDY}")
    arrays = [path for path in paths if path.suffix == ".npy"]
    left.update(kind_of(path) for path in paths if path.suffix != ".npy")
    print(f"{folder}: taken: {len(arrays):,} npy; left out: {counted(left)}")
    if not arrays:
        raise FileNotFoundError(f"{folder} has no .npy file; one clip a file, named <video_id>.npy")
    for path in arrays:
        video_id = checked_id(path.relative_to(folder).with_suffix("").as_posix(), str(path), in_folders=True)
        if too_large := _too_large(path.stat().st_size, str(path)):
            yield video_id, too_large
            continue
        try:
            yield video_id, np.load(path, allow_pickle=False)
        except DAMAGE as error:
            if "allow_pickle" in str(error):
                raise SourceError(f"{path}: an array of objects, {REMEDY}") from error
            yield (
                video_id,
                UnreadableClipError(f"{path}: not a complete .npy file ({error}); extract this clip again"),
            )


def _read_npz(path: Path) -> Iterator[tuple[str, np.ndarray | UnreadableClipError]]:
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise SourceError(f"{path}: not a complete .npz file ({error}); copy it again") from error
    with archive:
        for key in archive.files:
            video_id = checked_id(key, f"{path}, key")
            member = f"{key}.npy" if f"{key}.npy" in archive.zip.namelist() else key
            if too_large := _too_large(archive.zip.getinfo(member).file_size, f"{path}, {key!r}"):
                yield video_id, too_large
                continue
            try:
                yield video_id, archive[key]
            except DAMAGE as error:
                if "allow_pickle" in str(error):
                    raise SourceError(f"{path}, {key!r}: an array of objects, {REMEDY}") from error
                yield video_id, UnreadableClipError(f"{path}, {key!r}: {error}; extract this clip again")


def _read_hdf5(path: Path) -> Iterator[tuple[str, np.ndarray | UnreadableClipError]]:
    try:
        import h5py  # an extra: only these files need it
    except ModuleNotFoundError as error:
        raise SourceError(f"{path}: h5py is not installed: pip install 'modeling_mmt[data]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: not a complete HDF5 file ({error}); copy it again") from error
    with file, _naming_damage(path):
        for key in file:
            video_id, link = checked_id(key, f"{path}, key"), file.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise SourceError(f"{path}, {key!r} is a link to another file, {link.filename!r}; {OUTSIDE}")
            item = file.get(key)
            if not isinstance(item, h5py.Dataset):
                raise SourceError(f"{path}, {key!r} is not a dataset; one dataset a clip is read, at the top")
            if item.file != file or item.external or item.is_virtual:  # a soft link may lead over an external one
                raise SourceError(f"{path}, {key!r} has its numbers elsewhere, perhaps in another file; {OUTSIDE}")
            if too_large := _too_large(item.nbytes, f"{path}, {key!r}"):
                yield video_id, too_large
                continue
            try:
                yield video_id, item[()]
            except OSError as error:
                yield video_id, UnreadableClipError(f"{path}, {key!r}: {error}; extract this clip again")


def _too_large(num_bytes: int, where: str) -> UnreadableClipError | None:
    """What is wrong with an array of so many bytes."""
    if num_bytes <= MAX_CLIP_BYTES:
        return None
    return UnreadableClipError(f"{where}: an array of {num_bytes:,} bytes; a clip has at most {MAX_CLIP_BYTES:,}")


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Let what the HDF5 library says of a damaged file, in errors of many classes, be one line that names it."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not a complete HDF5 file ({error}); copy it again") from error


def as_clip(array: Any, where: str) -> np.ndarray:
    """`(F, D_v)` of what people store: `(D_v,)`, `(F, D_v)` or `(1, F, D_v)`."""
    if array.ndim == 1:
        return array[None]
    if array.ndim == 3 and array.shape[0] == 1:
        return array[0]
    if array.ndim != 2:
        raise UnreadableClipError(f"{where}: shape {array.shape}; a clip is (steps, width): reshape it")
    return array


def convert(
    source: str | Path,
    output_dir: str | Path,
    *,
    extractor: str,
    revision: str,
    rate: float | None,
    dtype: str = "float16",
    file_format: str = "parquet",
    skip: bool = False,
    max_skipped: float = 0.01,
) -> tuple[FeatureStore, list[str]]:
    """Writes the store; returns it, and what was left out and why.

    Args:
        source: as `read_arrays` takes it.
        output_dir: of the store; must not exist.
        extractor: what made the features.
        revision: which version of it.
        rate: steps a second, or None.
        dtype: of the stored values.
        file_format: `parquet` or `arrow`.
        skip: leave out a clip that cannot be read or stored, instead of stopping.
        max_skipped: the largest share of clips to leave out.

    Raises:
        FileNotFoundError, SourceError: as `read_arrays`, or too many clips were left out.
        FeatureStoreError: a value is not as a store needs it.
    """
    skipped: list[str] = []
    num_clips = 0
    settings: dict[str, Any] = {"extractor": extractor, "revision": revision, "rate": rate, "dtype": dtype}
    origin = {"converted_from": Path(source).name}
    with FeatureStoreWriter(output_dir, **settings, file_format=file_format, source=origin) as writer:
        for video_id, array in tqdm(read_arrays(source), unit="clip", desc=str(output_dir)):
            num_clips += 1
            try:
                if isinstance(array, UnreadableClipError):
                    raise array
                writer.add(video_id, as_clip(array, f"{source}, {video_id!r}"))
            except (UnreadableClipError, FeatureStoreError) as error:
                if not skip:
                    raise
                skipped.append(str(error))
        if len(skipped) > max_skipped * num_clips:
            raise SourceError(
                f"{source}: {len(skipped):,} of {num_clips:,} clips cannot be used, more than --max_skipped "
                f"{max_skipped}; the first: {skipped[0]}"
            )
    return FeatureStore(output_dir), skipped
