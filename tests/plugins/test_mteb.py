"""The MTEB task and the wrapper: their scores are those of our own metrics on the same embeddings."""

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from tokenizers.pre_tokenizers import Split

mteb = pytest.importorskip("mteb", reason="an optional peer: extra `plugins`")

from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.models.model_meta import ModelMeta  # noqa: E402

from modeling_mmt.data.clips import frames_of  # noqa: E402
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos  # noqa: E402
from modeling_mmt.evaluation.metrics import retrieval_metrics  # noqa: E402
from modeling_mmt.evaluation.ranks import ranks  # noqa: E402
from modeling_mmt.evaluation.relevance import relevance  # noqa: E402
from modeling_mmt.plugins.mteb_encoder import MMTEncoder  # noqa: E402
from modeling_mmt.plugins.mteb_task import EMOJI9, LANGUAGES, TextToVideoRetrieval, text_to_video_metadata  # noqa: E402


@pytest.fixture(scope="module")
def emoji9():
    return load_dataset(EMOJI9.dataset["path"], split="test")


@pytest.fixture(scope="module")
def features(emoji9):
    generator = np.random.default_rng(0)
    return {video_id: generator.standard_normal((2, 8)).astype(np.float32) for video_id in emoji9["video_id"]}


@pytest.fixture(scope="module")
def encoder():
    from conftest import VOCABULARY, build_model, build_processor, build_text_config, build_tokenizer

    letters = [*VOCABULARY, *(chr(code) for code in range(97, 123))]
    tokenizer = build_tokenizer(letters)
    tokenizer.backend_tokenizer.pre_tokenizer = Split("", "isolated")
    model = build_model(build_text_config(vocab_size=len(letters), max_position_embeddings=80))
    return MMTEncoder(model, build_processor(tokenizer))


def evaluated(encoder, task):
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    return {scores["hf_subset"]: scores for scores in result.task_results[0].scores["test"]}


def ours(encoder, captions, targets, clips):
    texts = embed_texts(encoder.model, encoder.processor, captions)
    videos = embed_videos(encoder.model, encoder.processor, clips)
    return retrieval_metrics(ranks(texts, videos, targets))


def assert_equal(found, wanted):
    for k in (1, 5, 10):
        assert 100 * found[f"recall_at_{k}"] == pytest.approx(wanted[f"R@{k}"], abs=1e-2)  # MTEB rounds to 5 digits


def test_emoji9_in_nine_languages_scores_as_our_own_metrics(encoder, emoji9, features):
    found = evaluated(encoder, TextToVideoRetrieval(features=features))
    assert list(found) == list(LANGUAGES)
    clips = [features[video_id] for video_id in emoji9["video_id"]]
    scores = {}
    for language in ("en", "es"):  # scripts that the tiny tokenizer has letters of
        wanted = ours(encoder, emoji9[f"name_{language}"][:], range(300), clips)
        assert_equal(found[language], wanted)
        assert 0 < wanted["R@10"] < 50
        scores[language] = wanted
    assert scores["en"] != scores["es"]


def test_a_corpus_with_several_captions_a_clip_is_scored_by_the_same_class(encoder, make_rows, tmp_path):
    rows = make_rows(12)
    rows[3]["caption_de"] = None
    (tmp_path / "corpus").mkdir()
    texts = [{key: row[key] for key in ("video_id", "caption_en", "caption_de")} for row in rows]
    Dataset.from_list(texts).to_parquet(str(tmp_path / "corpus" / "test.parquet"))
    metadata = text_to_video_metadata(
        "Tiny", str(tmp_path / "corpus"), revision="1", description="Tiny.", languages=["en", "de"]
    )
    features = {row["video_id"]: row["video_features"] for row in rows}
    found = evaluated(encoder, TextToVideoRetrieval(metadata, text_column="caption", features=features))
    for language in ("en", "de"):
        pairs = [(c, i) for i, row in enumerate(rows) for c in row[f"caption_{language}"] or []]
        assert len(pairs) == (24 if language == "en" else 22)
        captions, targets = zip(*pairs, strict=True)
        assert_equal(found[language], ours(encoder, captions, targets, list(features.values())))


def test_with_a_column_concept_every_clip_of_it_answers_its_name(encoder, make_rows, tmp_path):
    rows = make_rows(12)
    for number, row in enumerate(rows):
        row["concept"] = row["caption_en"] = "red" if number % 2 else "dog"
    (tmp_path / "corpus").mkdir()
    texts = [{key: row[key] for key in ("video_id", "caption_en", "concept")} for row in rows]
    Dataset.from_list(texts).to_parquet(str(tmp_path / "corpus" / "test.parquet"))
    metadata = text_to_video_metadata(
        "Concepts", str(tmp_path / "corpus"), revision="1", description="Concepts.", languages=["en"]
    )
    features = {row["video_id"]: row["video_features"] for row in rows}
    found = evaluated(encoder, TextToVideoRetrieval(metadata, text_column="caption", features=features))["en"]
    names = embed_texts(encoder.model, encoder.processor, ["dog", "red"])
    clips = embed_videos(encoder.model, encoder.processor, list(features.values()))
    wanted = relevance(names, clips, [range(0, 12, 2), range(1, 12, 2)])
    assert 100 * found["ndcg_at_10"] == pytest.approx(wanted["nDCG@10"].mean(), abs=1e-2)
    assert 100 * found["map_at_20"] == pytest.approx(wanted["mAP"].mean(), abs=1e-2)


def test_without_features_the_corpus_holds_the_frames(emoji9):
    task = TextToVideoRetrieval()
    task.load_data()
    part = task.dataset["sw"]["test"]
    assert task.hf_subsets == list(LANGUAGES)
    assert part["queries"][0]["text"] == emoji9[0]["name_sw"]
    assert list(part["corpus"]["id"]) == list(emoji9["video_id"])
    video = part["corpus"][7]["video"]
    wanted = frames_of(emoji9[7])
    assert video.shape == (len(wanted), 3, 128, 128) and video.dtype == torch.uint8
    assert np.array_equal(video[-1].permute(1, 2, 0), np.asarray(wanted[-1]))


def test_an_unknown_language_or_column_is_named(tmp_path):
    with pytest.raises(ValueError, match="languages has 'xx'"):
        text_to_video_metadata("Tiny", "folder", revision="1", description="Tiny.", languages=["en", "xx"])
    with pytest.raises(ValueError, match="no column caption_en"):
        TextToVideoRetrieval(text_column="caption").load_data()


def test_the_task_says_all_that_mteb_asks_of_one():
    assert EMOJI9.is_filled()


class Brightness(AbsEncoder):
    """Somebody else's encoder: it knows tensors of frames, and nothing of this package."""

    def __init__(self, width=4):
        meta = {"name": "somebody/brightness", "revision": "1", "modalities": ["text", "video"]}
        self.width, self.mteb_model_meta = width, ModelMeta.create_empty(meta)

    def encode(self, inputs, **kwargs):
        rows = [item for batch in inputs for item in batch.get("video", batch.get("text"))]
        means = [float(len(row)) if isinstance(row, str) else row.float().mean().item() for row in rows]
        return torch.tensor(means)[:, None] ** torch.arange(self.width)


OTHERS = {
    "random": lambda: mteb.get_model("mteb/baseline-random-encoder"),
    "brightness": Brightness,
    "brightness of another width": lambda: Brightness(9),
}


@pytest.mark.parametrize("name", OTHERS)
def test_encoders_that_are_not_ours_run(name, few):
    found = evaluated(OTHERS[name](), few)
    assert list(found) == ["en", "sw"] and all(0 <= scores["recall_at_1"] <= 1 for scores in found.values())


def test_the_tasks_statistics_are_counted(few):
    statistics = few.calculate_descriptive_statistics(overwrite_results=True)["test"]
    assert statistics["num_documents"] == statistics["num_queries"] == 24  # MTEB counts each language's clips
    assert all(part["num_documents"] == 12 for part in statistics["hf_subset_descriptive_stats"].values())
    assert statistics["documents_video_statistics"]["max_width"] == 128


@pytest.fixture
def few(emoji9, tmp_path, monkeypatch):
    """The task on twelve of emoji9's clips, as frames, in two languages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    emoji9.select(range(12)).to_parquet(str(tmp_path / "corpus" / "test.parquet"))
    metadata = text_to_video_metadata(
        "Few", str(tmp_path / "corpus"), revision="1", description="Few.", languages=["en", "sw"]
    )
    return TextToVideoRetrieval(metadata)
