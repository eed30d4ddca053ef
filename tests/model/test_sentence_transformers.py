"""sentence-transformers loads a checkpoint's folder in one line, and its embeddings are ours."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mmt import MMTModel, MMTProcessor, MMTTextModelWithProjection
from modeling_mmt.configuration_mmt import SENTENCE_TRANSFORMERS_FILES
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos

sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional peer: extra `plugins`")
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: E402

TEXTS = ["red dog", "dog runs fast home", "heim"]
STRANGER = """
import sys
sys.modules["modeling_mmt"] = None  # an installed copy is out of reach too
import numpy as np
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
clips = [{"video": clip} for clip in np.load("clips.npz").values()]
assert type(model[0].model).__module__.startswith("transformers_modules.")
np.savez("found.npz", text=model.encode(["red dog", "dog runs fast home", "heim"]), video=model.encode(clips))
model.save("again")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from conftest import build_model, build_processor

    path = tmp_path_factory.mktemp("published") / "mmt-tiny"
    build_model(sharpness=1).save_pretrained(path)  # whose roundings are not made larger
    build_processor(text_prefix="query: ").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wanted(folder):
    from conftest import build_clips, build_processor

    model, processor = MMTModel.from_pretrained(folder).eval(), build_processor(text_prefix="query: ")
    clips = build_clips()
    pictures = [clip[:1] for clip in clips]
    return {
        "text": embed_texts(model, processor, TEXTS).numpy(),
        "video": embed_videos(model, processor, clips).numpy(),
        "image": embed_videos(model, processor, pictures).numpy(),
    }


@pytest.fixture(scope="module")
def model(folder):
    return sentence_transformers.SentenceTransformer(str(folder))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert (
        torch.pdist(torch.from_numpy(np.asarray(wanted))).min() > 0.05
    )  # rows differ, so that equality says something


def test_captions_clips_and_pictures_have_our_embeddings(model, wanted, make_clips):
    clips = make_clips()
    close(model.encode(TEXTS), wanted["text"])
    close(model.encode([{"video": clip} for clip in clips]), wanted["video"])
    close(model.encode([{"image": clip[0]} for clip in clips]), wanted["image"])
    close(model.encode([{"image": clip[:1]} for clip in clips]), wanted["image"])


def test_queries_and_documents_are_a_caption_and_a_clip(model, wanted, make_clips):
    close(np.stack([model.encode_query(text) for text in TEXTS]), wanted["text"])
    found = model.encode_document([{"video": torch.from_numpy(clip)} for clip in make_clips()])
    close(found, wanted["video"])
    np.testing.assert_allclose(
        model.similarity(model.encode_query(TEXTS), found), wanted["text"] @ wanted["video"].T, atol=1e-6
    )


def test_a_stranger_gets_the_same_by_remote_code_and_what_it_saves_loads_again(folder, wanted, make_clips, tmp_path):
    np.savez(tmp_path / "clips.npz", *make_clips())
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)],
        cwd=tmp_path,
        env=outside | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    close(found["text"], wanted["text"])
    close(found["video"], wanted["video"])
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "again"))
    close(again.encode(TEXTS), wanted["text"])


def test_what_the_user_told_sentence_transformers_stays(model, tmp_path):
    model.prompts["query"] = "query: "
    try:
        model.save(str(tmp_path))
    finally:
        model.prompts["query"] = ""
    path = tmp_path / "config_sentence_transformers.json"
    assert json.loads(path.read_text())["prompts"]["query"] == "query: "
    MMTModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert json.loads(path.read_text())["prompts"]["query"] == "query: "


def test_half_a_model_does_not_pretend_to_be_a_whole_one(folder, tmp_path):
    MMTTextModelWithProjection.from_pretrained(folder).save_pretrained(tmp_path)
    assert not [name for name in SENTENCE_TRANSFORMERS_FILES if (tmp_path / name).exists()]
    assert all((folder / name).is_file() for name in SENTENCE_TRANSFORMERS_FILES)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"video": np.zeros((4, 3), np.float32)}, r"clip 0 has shape \(4, 3\); expected \(steps, 8\)"),
        ({"image": Image.new("RGB", (4, 4))}, r"clip 0 is not an array of \(steps, 8\) numbers"),
    ],
)
def test_what_is_no_feature_array_is_refused_by_name(model, given, words):
    with pytest.raises(ValueError, match=words):
        model.encode([given])


@pytest.fixture
def fresh(folder):
    """A model that a test may change."""
    return sentence_transformers.SentenceTransformer(str(folder))


def test_its_max_seq_length_is_where_captions_are_cut(fresh, folder, tmp_path):
    text = "red dog runs fast home red dog runs fast home"
    assert fresh.max_seq_length == fresh[0].processor.max_text_length == 64
    whole = fresh.encode([text])
    fresh.max_seq_length = 7  # <s> query : red dog runs </s>
    cut = fresh.encode([text])
    np.testing.assert_allclose(cut, fresh.encode(["red dog runs"]), atol=1e-6)
    assert np.abs(cut - whole).max() > 0.01
    fresh.save(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path))
    assert again.max_seq_length == MMTProcessor.from_pretrained(tmp_path).max_text_length == 7
    np.testing.assert_allclose(again.encode([text]), cut, atol=1e-6)
    options = {"processor_kwargs": {"model_max_length": 7}}
    short = sentence_transformers.SentenceTransformer(str(folder), **options)
    np.testing.assert_allclose(short.encode([text]), cut, atol=1e-6)


def test_captions_and_features_are_trained_there(fresh, make_clips, tmp_path):
    texts, clips = ["red dog", "dog runs fast home", "home", "fast red dog runs"], make_clips()
    rows = datasets.Dataset.from_dict({"caption": texts, "clip": [{"video": clip.tolist()} for clip in clips]})
    text = torch.from_numpy(fresh.encode(texts))
    video = torch.from_numpy(fresh.encode([{"video": clip} for clip in clips]))
    wanted = torch.nn.functional.cross_entropy(20 * text @ video.T, torch.arange(4))  # the loss by its definition
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(fresh)
    trainer = sentence_transformers.SentenceTransformerTrainer(fresh, arguments, rows, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("given", [list, lambda clip: clip.tolist(), lambda clip: list(torch.from_numpy(clip))])
def test_a_clip_may_be_a_list_of_steps(model, wanted, make_clips, given):
    close(model.encode([{"video": given(clip)} for clip in make_clips()]), wanted["video"])
