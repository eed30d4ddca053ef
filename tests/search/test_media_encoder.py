"""A model of features with their encoder put inside."""

import pytest
import torch
from tiny_media import save_encoder, save_feature_checkpoint, write_picture

from modeling_mmt.commands import demo
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.extractors import Extractor, record_extractors
from modeling_mmt.evaluation.embedding import embed_images, embed_videos
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.extraction.encoders import StepEncoder, load_encoder
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.search.media_encoder import own_encoders, with_encoders
from modeling_mmt.video_decoding_mmt import read_clip


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of features, whose processor says whose."""
    encoder, checkpoint = save_encoder(tmp_path / "lite"), save_feature_checkpoint(tmp_path / "model")
    model, processor = open_checkpoint(str(checkpoint))
    record_extractors(processor, [Extractor(model.config.video_feature_dim, str(encoder), image_size=12)])
    processor.save_pretrained(checkpoint)
    return encoder, checkpoint


def test_a_pictures_embedding_from_pixels_is_that_of_its_features(trained, tmp_path):
    encoder, checkpoint = trained
    write_picture(tmp_path / "pictures" / "a.png", 5)
    demo.write_checkpoint(checkpoint, tmp_path / "whole")
    model, processor = open_checkpoint(str(tmp_path / "whole"))
    found = embed_images(model, processor, [str(tmp_path / "pictures" / "a.png")])

    steps = load_encoder(str(encoder), 12, crop=False)
    frames = read_clip(tmp_path / "pictures" / "a.png", FrameSampling()).frames
    features = steps.encode(steps.prepare(torch.cat(list(frames)) if frames[0].ndim == 4 else frames).numpy())
    expected = embed_videos(*open_checkpoint(str(checkpoint)), [features])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_what_a_model_has_inside_is_what_it_was_trained_on(trained):
    encoder, checkpoint = trained
    model, processor = open_checkpoint(str(checkpoint))
    recorded = processor.feature_extractor.extractors
    steps = load_encoder(str(encoder), 12)
    whole = with_encoders(model, processor, [steps])
    (own,) = own_encoders(whole, processor)
    assert own.settings == steps.settings and processor.feature_extractor.extractors == recorded
    weights = whole.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    for name, value in steps.model.state_dict().items():
        assert torch.equal(own.model.state_dict()[name], value)


def test_a_network_that_no_model_can_have_inside_is_refused(trained):
    encoder, checkpoint = trained
    steps = load_encoder(str(encoder), 12)
    foreign = StepEncoder(torch.nn.Flatten(), steps.settings, "r")
    with pytest.raises(InputError, match="cannot have that network inside"):
        with_encoders(*open_checkpoint(str(checkpoint)), [foreign])
