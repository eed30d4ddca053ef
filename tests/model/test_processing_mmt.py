"""The processor: padding and its mask, cutting, cleaning, and errors that say where."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from modeling_mmt import MMTProcessor, MMTVideoFeatureExtractor
from modeling_mmt.processing_mmt import clean_caption


def words_of(processor, row):
    return processor.tokenizer.convert_ids_to_tokens(row.tolist())


def test_captions_are_padded_on_the_right_and_the_mask_is_one_on_tokens(make_processor):
    processor = make_processor()
    batch = processor(text=["red dog runs", "home"])
    assert words_of(processor, batch["input_ids"][0]) == ["<s>", "red", "dog", "runs", "</s>"]
    assert words_of(processor, batch["input_ids"][1]) == ["<s>", "home", "</s>", "<pad>", "<pad>"]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long


def test_padding_is_on_the_right_whatever_the_tokenizer_prefers(make_processor, make_tokenizer):
    """The first output token must be a real one."""
    processor = make_processor(make_tokenizer(padding_side="left"))
    assert processor(text=["red dog runs", "home"])["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def test_clips_are_padded_with_zeros_and_the_mask_is_one_on_steps(make_processor, make_clips):
    clips = make_clips([3, 1])
    batch = make_processor()(video_features=clips)
    assert batch["video_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch["video_features"].dtype, batch["video_mask"].dtype) == (torch.float32, torch.long)
    np.testing.assert_array_equal(batch["video_features"][0], clips[0])
    np.testing.assert_array_equal(batch["video_features"][1, :1], clips[1])
    assert (batch["video_features"][1, 1:] == 0).all()


@pytest.mark.parametrize("convert", [np.ndarray.tolist, torch.from_numpy, lambda clip: clip.astype(np.float16)])
def test_a_clip_may_be_a_list_a_tensor_or_half_precision(make_processor, make_clips, convert):
    clips = make_clips([2, 3])
    found = make_processor()(video_features=[convert(clip) for clip in clips])["video_features"]
    wanted = make_processor()(video_features=clips)["video_features"]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_text_and_video_come_together_or_alone(make_processor, make_clips):
    processor = make_processor()
    text, video = ["input_ids", "attention_mask"], ["video_features", "video_mask"]
    assert list(processor("red dog", make_clips([2]))) == text + video == processor.model_input_names
    assert list(processor(text="red dog")) == text
    assert list(processor(video_features=make_clips([2]))) == video


def test_one_caption_is_a_batch_of_one(make_processor):
    processor = make_processor()
    assert torch.equal(processor("red dog")["input_ids"], processor(["red dog"])["input_ids"])


def test_long_captions_are_cut_and_keep_their_end_token(make_processor):
    processor = make_processor(max_text_length=4)
    batch = processor(text=["red dog runs fast home", "red"])
    assert words_of(processor, batch["input_ids"][0]) == ["<s>", "red", "dog", "</s>"]
    assert batch["input_ids"].shape == (2, 4)


def test_the_prefix_stands_before_every_caption(make_processor):
    processor = make_processor(text_prefix="query: ")
    batch = processor(text=["red", "  dog"])
    assert [words_of(processor, row)[1:4] for row in batch["input_ids"]] == [
        ["query", ":", "red"],
        ["query", ":", "dog"],
    ]


@pytest.mark.parametrize("length", [13, 24, 100])
def test_a_long_clip_is_sampled_evenly_from_its_first_step_to_its_last(make_processor, length):
    clip = np.repeat(np.arange(length, dtype=np.float32)[:, None], 8, axis=1)
    batch = make_processor(max_video_length=12)(video_features=[clip])
    steps = batch["video_features"][0, :, 0]
    assert (len(steps), steps[0], steps[-1], batch["video_mask"].sum()) == (12, 0, length - 1, 12)
    gaps = steps.diff()
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_a_clip_of_the_longest_length_is_whole(make_processor, make_clips):
    clip = make_clips([12])[0]
    np.testing.assert_array_equal(make_processor()(video_features=[clip])["video_features"][0], clip)


@pytest.mark.parametrize(
    "raw",
    ["red dog", "  red\tdog\n", "red\u00a0dog", "red\u2009\u202fdog", "red\x00dog", "red\x1b dog", "red\u2028dog"],
)
def test_white_space_and_control_characters_are_one_space(make_processor, raw):
    assert clean_caption(raw) == "red dog"
    processor = make_processor()
    assert torch.equal(processor(raw)["input_ids"], processor("red dog")["input_ids"])


@pytest.mark.parametrize("caption", ["می\u200cخواهم", "👩\u200d🚀", "con chó", "क्\u200dष", "\U0001fae8"])
def test_joiners_and_new_characters_are_left_alone(caption):
    assert clean_caption(caption) == caption


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["red", ""], "caption 1 is empty: ''"),
        (["red", "dog", " \t\x00"], r"caption 2 is empty: ' \\t\\x00'"),
        (["red", None], "caption 1 is NoneType None"),
        ([float("nan")], "caption 0 is float nan"),
        (["red", ["dog"]], r"caption 1 is list \['dog'\]"),
        ([], "text is an empty list"),
    ],
)
def test_a_bad_caption_is_refused_by_position_and_value(make_processor, captions, words):
    with pytest.raises(ValueError, match=words):
        make_processor()(text=captions)


def with_value(value):
    clip = np.zeros((2, 8), dtype=np.float32)
    clip[1, 3] = value
    return clip


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((0, 8)), "clip 1 has no steps"),
        (np.zeros((2, 7)), r"clip 1 has shape \(2, 7\); expected \(steps, 8\)"),
        (np.zeros(8), r"clip 1 has shape \(8,\)"),
        (np.zeros((1, 2, 8)), r"clip 1 has shape \(1, 2, 8\)"),
        (with_value(np.nan), "clip 1 holds a NaN"),
        (with_value(np.inf), "clip 1 holds a NaN or an infinity"),
        (None, "clip 1 is not an array"),
        ([[1.0] * 8, [1.0] * 7], "clip 1 is not an array"),
        ("clip.mp4", "clip 1 is not an array"),
    ],
)
def test_a_bad_clip_is_refused_by_position_and_value(make_processor, make_clips, bad, words):
    with pytest.raises(ValueError, match=words):
        make_processor()(video_features=[make_clips([2])[0], bad])


def test_neither_text_nor_video_is_refused(make_processor):
    with pytest.raises(ValueError, match="give text, video_features, or both"):
        make_processor()()
    with pytest.raises(ValueError, match="video_features is empty"):
        make_processor()(video_features=[])


def test_the_tokenizers_options_are_taken_flat_or_by_text_kwargs_but_not_both(make_processor):
    processor = make_processor(max_text_length=5)
    wanted = processor(["red dog runs fast", "home"])
    assert wanted["input_ids"].shape == (2, 5)
    for options in ({"max_length": 4}, {"text_kwargs": {"max_length": 4}}):
        assert processor(["red dog runs fast", "home"], **options)["input_ids"].shape == (2, 4)
    padded = processor("home", padding="max_length", common_kwargs={"return_tensors": "pt"}, unknown=1)
    assert padded["input_ids"].shape == (1, 5)
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]  # on the right
    with pytest.raises(ValueError, match="max_length is given both"):
        processor("home", max_length=4, text_kwargs={"max_length": 4})


def test_the_names_of_sentence_transformers_mean_the_same_clips(make_processor, make_clips):
    processor, clips = make_processor(), make_clips([1, 1])
    wanted = processor(video_features=clips)
    for given in ({"videos": clips}, {"images": clips}, {"images": [clip[0] for clip in clips]}):
        found = processor(**given)
        found["video_features"] = found.pop("input_features")  # a name that its trainer knows
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    with pytest.raises(ValueError, match="under two names"):
        processor(videos=clips, images=clips)


def test_only_torch_tensors_are_made(make_clips):
    with pytest.raises(ValueError, match="'np'"):
        MMTVideoFeatureExtractor(8)(make_clips([2]), return_tensors="np")


@pytest.mark.parametrize("loader", [MMTProcessor, AutoProcessor])
def test_a_saved_processor_loads_equal(make_processor, make_clips, tmp_path, loader):
    processor = make_processor(text_prefix="query: ", max_text_length=5, max_video_length=3)
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is MMTProcessor
    assert (loaded.text_prefix, loaded.max_text_length) == ("query: ", 5)
    assert (loaded.feature_extractor.feature_dim, loaded.feature_extractor.max_video_length) == (8, 3)
    inputs = ["red dog runs fast", "home"], make_clips([4, 2])
    wanted, found = processor(*inputs), loaded(*inputs)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_other_tools_write_into_the_processors_file_does_not_stop_it(make_processor, make_clips, tmp_path):
    make_processor(text_prefix="query: ").save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["unsloth_version"] = saved["feature_extractor"]["transformers.js_config"] = "1"
    path.write_text(json.dumps(saved))
    loaded = MMTProcessor.from_pretrained(tmp_path)
    assert loaded.text_prefix == "query: "
    assert loaded(["red dog"], make_clips([3])).keys() == make_processor()(["red dog"], make_clips([3])).keys()
