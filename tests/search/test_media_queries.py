"""`modeling_mmt.search.media_queries`: what was indexed finds itself when it is the query."""

import pytest
from tiny_media import build_media, save_encoder, save_feature_checkpoint, save_pixel_checkpoint

from modeling_mmt.data.errors import InputError
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.manifest import Manifest
from modeling_mmt.search.media_index import IndexOptions, update_index
from modeling_mmt.search.media_queries import embed_media


@pytest.fixture(scope="module", params=["pixels", "features"])
def made(request, tmp_path_factory):
    """Media, their index, and a function that embeds a file: by a model of pixels, and by one of features."""
    folder = tmp_path_factory.mktemp(request.param)
    media = build_media(folder / "media")
    if request.param == "pixels":
        checkpoint, encoders = save_pixel_checkpoint(folder / "model"), ()
    else:
        checkpoint, encoders = save_feature_checkpoint(folder / "model"), (str(save_encoder(folder / "encoder")),)
    options = IndexOptions(model=str(checkpoint), window=8.0, stride=4.0, encoders=encoders, num_workers=1)
    update_index(media, folder / "index", options)
    index, settings = SearchIndex.load(folder / "index"), Manifest.read(folder / "index").settings
    model, processor = open_checkpoint(str(checkpoint))
    return media, index, lambda file, at=None: embed_media(model, processor, media / file, at, settings, index)


@pytest.mark.parametrize(
    ("file", "at", "row"),
    [
        ("photo.png", None, "photo.png"),
        ("z.mkv", 4.0, "z.mkv#0.0-8.0"),
        ("z.mkv", 8.0, "z.mkv#4.0-12.0"),
        ("z.mkv", 18.5, None),
        ("kitchen/kettle.mp4", None, "kitchen/kettle.mp4#0.0-3.0"),
        ("kitchen/kettle.mp4", 1.0, "kitchen/kettle.mp4#0.0-3.0"),
    ],
)
def test_a_picture_and_a_moment_of_a_video_find_themselves(made, file, at, row):
    _, index, embed = made
    query = embed(file, at)
    assert query.shape == (1, index.embeddings.shape[1]) and query.norm().item() == pytest.approx(1, abs=1e-5)
    if row is not None:
        (hits,) = index.search(query, len(index))
        assert {hit.video_id: hit.score for hit in hits}[row] == pytest.approx(1, abs=1e-5)


def test_what_is_not_there_is_said(made):
    media, _, embed = made
    for file, at, words in (
        ("a.mp4", 13.5, "--at 13.5 is outside .*a.mp4, which lasts 13 seconds"),
        ("a.mp4", -1, "--at -1 is outside .*a.mp4, which lasts 13 seconds"),
        ("photo.png", 1, "is a picture, and --at is a time in a video"),
    ):
        with pytest.raises(InputError, match=words):
            embed(file, at)
    with pytest.raises(ValueError, match="broken.mp4 is not a supported video or picture"):
        embed("broken.mp4")
    with pytest.raises(FileNotFoundError, match="nowhere.png does not exist"):
        embed("nowhere.png")
