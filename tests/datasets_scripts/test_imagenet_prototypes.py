"""`mmt build imagenet_prototypes`: closed forms first, then the builder on an encoder of made-up weights."""

import json

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datasets_scripts import imagenet_prototypes as builder
from modeling_mmt.commands.build import build
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.sources import SourceError

SYNSETS = ["n01440764", "n02391049", "n04562935"]  # tench, zebra, water tower


def test_classes_of_unlike_rows_are_sure_to_the_confidence_asked_for():
    assert builder.confident_sharpness(np.eye(4), 0.5) == pytest.approx(np.log(3))  # e^s / (e^s + 3) = 1/2


def test_a_copy_is_the_mean_of_the_vectors_by_the_cosines_of_the_rows():
    rows = np.array([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 5.0], [1.0, 1.0, 0]], np.float32)
    found = builder.prototypes(rows, np.eye(4, dtype=np.float32), copies=2)
    centred = rows - rows.mean(axis=0)
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in centred] for a in centred])
    assert found.shape == (4, 2, 4) and (found[:, 0] == found[:, 1]).all()
    np.testing.assert_allclose(found.sum(axis=2), 1, rtol=1e-5)
    assert found[:, 0].diagonal().mean() == pytest.approx(0.5, abs=1e-4)
    ratios = np.log(found[:, 0] / found[:, 0].diagonal()[:, None])  # sharpness * (cosine - 1)
    sharpness = ratios[0, 1] / (cosines[0, 1] - 1)
    np.testing.assert_allclose(ratios, sharpness * (cosines - 1), atol=1e-4)


def test_an_unseen_copy_has_nothing_of_its_class_and_noise_tells_copies_apart():
    rows = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    unseen = builder.prototypes(rows, np.eye(6, dtype=np.float32), copies=3, unseen=1.0)
    assert (unseen[range(6), :, range(6)] == 0).all()
    noisy = builder.prototypes(rows, np.eye(6, dtype=np.float32), copies=3, noise=1.0, seed=4)
    assert (noisy[:, 0] != noisy[:, 1]).any(axis=1).all()
    assert (noisy == builder.prototypes(rows, np.eye(6, dtype=np.float32), copies=3, noise=1.0, seed=4)).all()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def encoder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {"classifier": torch.randn(3, 7, generator=generator), "vectors": torch.randn(5, 3, generator=generator)}
    (tmp_path / "encoder").mkdir()
    tensors = {f"class_means.{name}.weight": value for name, value in weights.items()}
    save_file(tensors, tmp_path / "encoder" / "model.safetensors")
    (tmp_path / "encoder" / "classes.json").write_text(json.dumps(SYNSETS))
    return tmp_path / "encoder"


def store(folder, width):
    write_feature_store(
        folder,
        [("a", np.ones((1, width))), ("b", 3 * np.ones((2, width)))],
        extractor="names",
        revision="r",
        source={"image_size": 224},
    )
    return folder


def run(tmp_path, encoder, like, *options):
    words = ["--encoder", str(encoder), "--like", str(like), "--output_dir", str(tmp_path / "out"), "--copies", "2"]
    return build("imagenet_prototypes", [*words, *options])


def test_each_class_of_the_encoder_has_its_names_and_as_many_copies_as_asked_for(encoder, tmp_path):
    assert run(tmp_path, encoder, store(tmp_path / "drawings", 7)) == {"train": 6}
    rows, made = read_split(str(tmp_path / "out"), None, "train"), FeatureStore(tmp_path / "out" / "features")
    assert list(made) == rows["video_id"][:] and made.dim == 7
    assert rows[1] == {"video_id": "n01440764-1", "name_en": ["tench", "Tinca tinca"]}
    assert made.extractors == FeatureStore(tmp_path / "drawings").extractors
    assert all((features[0, 5:] == 2).all() and (features[0, :5] != 2).all() for features in made.values())
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["rules"]["related"]["count"] == 997 and record["languages"] == ["en"]


def test_an_encoder_without_classes_and_a_store_of_another_width_are_refused(encoder, tmp_path):
    like = store(tmp_path / "drawings", 5)
    with pytest.raises(SourceError, match="knows no classes"):
        run(tmp_path, tmp_path, like)
    with pytest.raises(SourceError, match="4 wide, the classes' vectors 5"):
        run(tmp_path, encoder, store(tmp_path / "narrow", 4))
