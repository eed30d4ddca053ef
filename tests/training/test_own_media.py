"""From a folder of films, pictures, subtitles and a spreadsheet to models: the bundled recipes train on 25 clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from PIL import Image
from tiny_corpus import ANIMALS, COLOURS
from transformers import ResNetConfig, ResNetModel
from video_files import write_video

from modeling_mmt.commands import train
from modeling_mmt.data.feature_store import FeatureStore

RGB = [
    (255, 0, 0),
    (0, 128, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
    (128, 64, 0),
    (255, 160, 190),
]
RATE, SECONDS, SHOTS = 5, 2, 3  # frames a second, seconds a shot, shots a film
NUM_FILMS, NUM_PICTURES = 8, 1
TINY = ["--model.text_prefix", "", "--model.max_text_length", "16", "--model.config.freeze_text_layers", "1"]
TINY += ["--model.config.text_output_layer", "null"]


def shot(colour: int, animal: int) -> np.ndarray:
    """`(48, 64, 3)`: a colour, and for the animal a grey square at a place of its own."""
    frame = np.full((48, 64, 3), RGB[colour], np.uint8)
    row, column = divmod(animal, 4)
    frame[24 * row + 4 : 24 * row + 20, 16 * column + 2 : 16 * column + 14] = 200 - 20 * animal
    return frame


def words(colour: int, animal: int, language: str) -> str:
    return f"{COLOURS[language][colour]} {ANIMALS[language][animal]}"


def write_subtitles(path: Path, texts: list[str]):
    cues = [
        f"{number + 1}\n00:00:{SECONDS * number:02},100 --> 00:00:{SECONDS * (number + 1):02},000\n{text}\n"
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(cues), encoding="utf-8")


@pytest.fixture(scope="module")
def media(tmp_path_factory, corpus):
    """A working folder with `my_media`: 8 films of 3 shots, subtitles in two languages, a picture, a spreadsheet."""
    root = tmp_path_factory.mktemp("own")
    (root / "my_media" / "films").mkdir(parents=True)
    pairs = [divmod(int(pair), 8) for pair in np.random.default_rng(0).permutation(64)]
    lines = ["file_name;start;end;EN;de"]
    for film in range(NUM_FILMS):
        shots = pairs[SHOTS * film : SHOTS * (film + 1)]
        path = root / "my_media" / "films" / f"film{film}.mp4"
        write_video(path, [shot(*pair) for pair in shots for _ in range(RATE * SECONDS)], rate=RATE)
        for language in ("en", "de"):
            write_subtitles(path.with_suffix(f".{language}.srt"), [words(*pair, language) for pair in shots])
        for number, pair in enumerate(shots):
            times = f"0:{SECONDS * number:02};{SECONDS * (number + 1)},0"
            lines.append(f"films/{path.name};{times};{words(*pair, 'en')};{words(*pair, 'de')}")
    Image.fromarray(shot(*pairs[-1])).save(root / "my_media" / "picture.png")
    lines.append(f"picture.png;;;{words(*pairs[-1], 'en')};{words(*pairs[-1], 'de')}")
    (root / "my_media" / "captions.csv").write_bytes("\r\n".join([*lines, ";;;;"]).encode("utf-8-sig"))
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1])).save_pretrained(root / "resnet")
    preparation = {"image_mean": [0.5] * 3, "image_std": [0.3] * 3, "size": {"height": 32, "width": 32}, "resample": 2}
    (root / "resnet" / "preprocessor_config.json").write_text(json.dumps(preparation | {"do_normalize": True}))
    return root


@pytest.fixture
def prepared(media, monkeypatch, capsys):
    """`media`, where the commands that the recipes name have run; the working folder."""
    monkeypatch.chdir(media)
    few = ["--encoder", "resnet", "--num_workers", 0, "--frames_per_second", 2]
    for source, name in (("my_media", "films"), ("my_media/captions.csv", "clips")):
        assert call(capsys, "extract", source, *few, "--output_dir", f"features/{name}")[0] == 0
    for builder, name in (("subtitled_videos", "films"), ("own_clips", "clips")):
        arguments = ["--data_dir", "my_media", "--output_dir", f"data/{name}", "--features", f"features/{name}"]
        assert call(capsys, "build", builder, *arguments)[0] == 0
    return media


def run(recipe, corpus, *options):
    return train.main([recipe, "--model.text_model", str(corpus / "encoder"), *TINY, *options])


def test_extract_says_what_it_took_and_what_it_left(media, monkeypatch, capsys):
    monkeypatch.chdir(media)
    few = ["--encoder", "resnet", "--num_workers", 0, "--num_frames", 1]
    assert "my_media: taken: 8 mp4, 1 png; left out: 16 srt, 1 csv\n" in call(
        capsys, "extract", "my_media", *few, "--output_dir", "few/films"
    )[1]  # fmt: skip
    out = call(capsys, "extract", "my_media/captions.csv", *few, "--output_dir", "few/clips")[1]
    assert "captions.csv: taken: 8 mp4, 1 png\n" in out and "25 clips" in out


def test_a_spans_features_are_those_of_its_seconds_and_a_picture_has_one_step(prepared):
    films, clips = FeatureStore("features/films"), FeatureStore("features/clips")
    assert len(films) == NUM_FILMS + NUM_PICTURES and len(clips) == SHOTS * NUM_FILMS + NUM_PICTURES == 25
    assert films["picture"].shape == clips["picture"].shape == (1, 24)
    whole = films["films/film3"]
    assert len(whole) == 2 * SECONDS * SHOTS
    for number in range(SHOTS):
        start, end = float(SECONDS * number), float(SECONDS * (number + 1))
        span = clips[f"films/film3#{start}-{end}"]
        assert np.allclose(span, whole[2 * SECONDS * number : 2 * SECONDS * (number + 1)], atol=1e-3)
    assert not np.allclose(whole[0], whole[-1], atol=1e-2)


@pytest.mark.parametrize("recipe", ["own/captions", "own/subtitles"])
def test_the_bundled_recipes_train_on_25_clips(recipe, prepared, corpus, tmp_path, capsys):
    stages = {"own/captions": ["finetuning"], "own/subtitles": ["pretraining", "finetuning"]}[recipe]
    options = ["--output_dir", str(tmp_path / "mine"), "--work_dir", str(tmp_path / "stages")]
    options += ["--frozen_states_dir", "null", "--data.languages", "[en, de]"]
    options += ["--pretraining.sources[0].languages", "[en, de]"] if "pretraining" in stages else []
    assert run(recipe, corpus, *options, "--dry_run")["problems"] == []
    metrics = run(recipe, corpus, *options)
    assert [name for name in ("pretraining", "finetuning") if name in metrics] == stages
    assert set(metrics["figures"]["test"]["all"]["t2v"]) == {"en", "de"}
    record = json.loads(Path("data/clips/build.json").read_text())
    assert sum(record["rows"].values()) == 25 and set(record["rows"]) == {"train", "validation", "test"}
    capsys.readouterr()
    code, answer, errors = call(
        capsys, "evaluate", tmp_path / "mine", "--split", "train", "--languages", "en", "--json"
    )
    assert code == 0, errors
    of_training = json.loads(answer)["figures"]["all"]["t2v"]["en"]
    assert of_training["R@1"] > 30  # of 19 clips; by chance 5
    for name, title in (("films", "Subtitled videos"), ("clips", "Own clips")):
        text = Path("data", name, "README.md").read_text()
        assert f"# {title}\n" in text and "HowTo100M" not in text
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "my clips" in card and "HowTo100M" not in card


def test_training_goes_on_from_a_checkpoint(prepared, corpus, tmp_path):
    where = ["--frozen_states_dir", "null", "--work_dir", str(tmp_path / "stages")]
    run("own/captions", corpus, *where, "--output_dir", str(tmp_path / "first"), "--finetuning.num_train_epochs", "3")
    on = [
        "own/checkpoint",
        "--model.checkpoint",
        str(tmp_path / "first"),
        "--output_dir",
        str(tmp_path / "second"),
        *where,
    ]
    assert train.main([*on, "--dry_run"])["problems"] == []
    metrics = train.main([*on, "--finetuning.learning_rate", "0.0", "--finetuning.num_train_epochs", "1"])
    first = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics["figures"] == first["figures"]  # at a learning rate of 0 it is the checkpoint itself
    assert metrics["finetuning"]["curve"][0]["step"] == 0
    learned = train.main(on)["finetuning"]
    assert max(point["validation_mrr"] for point in learned["curve"]) >= learned["curve"][0]["validation_mrr"]
    assert (tmp_path / "second" / "processor_config.json").is_file()
    assert str(tmp_path / "first") not in (tmp_path / "second" / "README.md").read_text()
