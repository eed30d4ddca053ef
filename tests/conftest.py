"""A tiny model of every kind, in memory: ten words in two languages, 16 wide, weights large enough to tell rows apart.

The builders are plain functions, so that `make_golden.py` can call them too; tests ask for the fixtures below them.
"""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, at import; `local_hub.py` is the only Hub

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor, MMTVideoFeatureExtractor

WORDS = {"en": ["red", "dog", "runs", "fast", "home"], "de": ["roter", "Hund", "rennt", "schnell", "heim"]}
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", *WORDS["en"], *WORDS["de"], ",", "query", ":", "<mask>"]
FEATURE_DIMS = [3, 5]
TEXT_DIM = 16


def build_tokenizer(vocabulary=VOCABULARY, **overrides) -> PreTrainedTokenizerFast:
    """One token a word, `<s> ... </s>` around them, XLM-R's names and ids of the special ones."""
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    special = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special, **overrides)


def build_text_config(model_type: str = "bert", **overrides) -> dict:
    """A 3-layer encoder of any BERT-like family, dropout off unless asked for."""
    config = {
        "model_type": model_type,
        "vocab_size": len(VOCABULARY),
        "hidden_size": TEXT_DIM,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return config | overrides


def build_config(text: dict | None = None, **overrides) -> MMTConfig:
    """The paper's shape in miniature: the encoder's lower layers and embeddings frozen, TP heads of 2 layers."""
    fields = {
        "text_config": build_text_config() if text is None else text,
        "video_feature_dims": FEATURE_DIMS,
        "text_output_layer": None,
        "freeze_text_layers": 2,
        "hidden_size": 24,
        "intermediate_size": 20,
        "max_video_length": 12,
        "projection_dim": 10,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return MMTConfig(**(fields | overrides))


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0, sharpness: float = 5) -> torch.nn.Module:
    """Draw every parameter anew and large: with the usual 0.02 at width 16 all outputs are nearly the same.

    Queries and keys are the largest (`sharpness`), so that attention chooses; words weigh more than their positions.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name in ("logit_scale", "logit_bias"):
            continue
        if parameter.dim() == 1:
            parameter.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)
        elif "embedding" in name:
            parameter.copy_(noise if "word" in name else 0.3 * noise)
        else:
            chooses = any(part in name for part in ("query", "key", "q_proj", "k_proj"))
            parameter.copy_(noise * (sharpness if chooses else 2) * parameter.shape[1] ** -0.5)
    for name, buffer in sorted(model.named_buffers()):
        if name.endswith("input_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("input_std"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def build_model(
    text: dict | None = None, attention: str = "sdpa", seed: int = 0, sharpness: float = 5, **overrides
) -> MMTModel:
    """A model in eval mode with large random weights."""
    model = randomize(MMTModel(build_config(text, **overrides)), seed, sharpness).eval()
    model.set_attn_implementation(attention)
    return model


def build_processor(tokenizer=None, max_video_length: int = 12, **overrides) -> MMTProcessor:
    """Of the tiny model."""
    extractor = MMTVideoFeatureExtractor(sum(FEATURE_DIMS), max_video_length)
    return MMTProcessor(extractor, tokenizer or build_tokenizer(), **overrides)


def build_clips(lengths=(4, 7, 1, 5), seed: int = 0) -> list[np.ndarray]:
    """One `(F, 8)` float32 array a clip."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((length, sum(FEATURE_DIMS))).astype(np.float32) for length in lengths]


def build_rows(num_rows: int = 6) -> list[dict]:
    """A corpus in the wide layout: captions and keywords of two languages, features in the row."""
    generator = np.random.default_rng(1)
    rows = []
    for row in range(num_rows):
        texts = {
            f"caption_{language}": [" ".join(generator.permutation(words)[:3]) for _ in range(2)]
            for language, words in WORDS.items()
        }
        keywords = {f"keywords_{language}": list(words) for language, words in WORDS.items()}
        features = generator.standard_normal((2 + row % 4, sum(FEATURE_DIMS))).astype(np.float32)
        rows.append({"video_id": f"clip-{row}", "video_features": features} | texts | keywords)
    return rows


def build_batch(with_pairs: bool = True, with_noise: bool = True, with_video: bool = True) -> dict:
    """A ragged training batch of four clips, as the collator would make it; some rows are padded, some are not."""
    processor = build_processor()
    text = processor.tokenize(["red dog", "dog runs fast home", "home", "fast red dog runs"])
    paired = processor.tokenize(["roter Hund rennt", "Hund", "heim schnell", "rennt roter"])
    video = processor(video_features=build_clips())
    batch = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
    if with_video:
        batch |= {"video_features": video["video_features"], "video_mask": video["video_mask"]}
    if with_pairs:
        batch |= {"paired_input_ids": paired["input_ids"], "paired_attention_mask": paired["attention_mask"]}
    if with_noise:
        mask_id = VOCABULARY.index("<mask>")
        for name in [key for key in batch if key.endswith("input_ids")]:
            batch[f"noised_{name}"] = batch[name].clone()
            batch[f"noised_{name}"][:, 1] = mask_id
        if with_video:
            batch["noised_video_features"] = batch["video_features"].clone()
            batch["noised_video_features"][[0, 1, 3], 0] = 0
    return batch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products lose time on threads, and their sums then depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_config():
    return build_config


@pytest.fixture
def make_text_config():
    return build_text_config


@pytest.fixture
def make_model():
    return build_model


@pytest.fixture
def make_processor():
    return build_processor


@pytest.fixture
def make_tokenizer():
    return build_tokenizer


@pytest.fixture
def make_rows():
    return build_rows


@pytest.fixture
def make_clips():
    return build_clips


@pytest.fixture
def make_batch():
    return build_batch


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with all that `train.py` reads; see `tiny_corpus.py`."""
    from tiny_corpus import build_corpus

    return build_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def pixels(corpus):
    """The corpus with a column of files, and a vision encoder beside it; see `tiny_pixels.py`."""
    from tiny_pixels import build_pixels

    return build_pixels(corpus)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of this test's own, and this process's clients pointed at it; what it refused fails the test."""
    from local_hub import LocalHub, point_clients_at

    with LocalHub(tmp_path / "hub") as hub:
        point_clients_at(hub, tmp_path / "home", monkeypatch)
        yield hub
        assert hub.refused == []


def pytest_addoption(parser):
    parser.addoption("--real_data", help="folder of the real files that the builders are run on (make test-real)")


@pytest.fixture(scope="session")
def real_data(request) -> Path:
    """The folder of the real files; one that is named and not there fails, so that nothing is skipped unseen."""
    folder = request.config.getoption("--real_data")
    if not folder or not Path(folder).is_dir():
        pytest.fail(f"--real_data is {folder!r}; make test-real DATA=<folder with annotations/, storybook8/, ...>")
    return Path(folder).resolve()
