"""An index and a feature store pushed to a Hub by `mmt publish`, and pulled by their tag."""

import json
import shutil

import numpy as np
import pytest
from command_line import call
from huggingface_hub import HfApi
from tiny_media import InThisProcess, content_of, save_pixel_checkpoint, write_film, write_picture

from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.reading import pinned_snapshot
from modeling_mmt.search import media_update
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.media_index import IndexOptions, update_index
from modeling_mmt.search.published import downloaded_index


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Media and their index, from which a picture was dropped."""
    folder = tmp_path_factory.mktemp("published_index")
    checkpoint = save_pixel_checkpoint(folder / "model")
    write_film(folder / "media" / "a.mp4", 9)
    write_picture(folder / "media" / "private.png", 7)
    write_picture(folder / "media" / "b.png", 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media_update, "WorkerPool", InThisProcess)
        update_index(folder / "media", folder / "index", IndexOptions(model=str(checkpoint)))
        (folder / "media" / "private.png").unlink()
        patch.setattr("modeling_mmt.search.index_folder.MAX_DROPPED", 0.9)
        update_index(folder / "media", folder / "index", IndexOptions())
    return folder


def test_an_index_is_pushed_and_pulled_by_its_tag_without_what_was_dropped_or_of_this_machine(indexed, hub, capsys):
    folder = indexed / "index"
    refused = call(capsys, "publish", folder, "org/clips", "--tag", "v1")
    assert refused[0] == 2 and "publish that checkpoint, and name it with --model org/name" in refused[2]
    words = ["--tag", "v1", "--model", "org/model", "--model_revision", "v2"]
    assert call(capsys, "publish", folder, "org/clips", *words, "--json")[0] == 0
    files = HfApi(hub.endpoint, hub.token).list_repo_files("org/clips", repo_type="dataset", revision="v1")
    assert sorted(name for name in files if not name.startswith((".git", "segments/"))) == ["README.md", "index.json"]
    pulled = downloaded_index("org/clips", "v1")
    assert content_of(pulled) == content_of(folder)
    text = b"".join(path.read_bytes() for path in pulled.rglob("*") if path.is_file())
    assert b"private.png" not in text and str(indexed).encode() not in text
    index = SearchIndex.from_hub("org/clips", "v1")
    assert (index.model, index.revision, index.media_folder) == ("org/model", "v2", None)
    assert index.settings["window"] == 4
    assert 'mmt search org/clips "con mèo" --revision v1' in (pulled / "README.md").read_text()
    code, _, err = call(capsys, "index", indexed / "media", "--output_dir", shutil.copytree(pulled, indexed / "copy"))
    assert code == 2 and "is a published copy; name a new folder" in err


def test_a_published_index_is_searched_by_its_name_with_the_checkpoint_that_it_names(indexed, hub, capsys):
    api = HfApi(hub.endpoint, hub.token)
    api.create_repo("org/model")
    api.upload_folder(repo_id="org/model", folder_path=indexed / "model")
    api.create_tag("org/model", tag="v2")
    words = ["--tag", "v1", "--model", "org/model", "--model_revision", "v2"]
    assert call(capsys, "publish", indexed / "index", "org/found", *words)[0] == 0
    code, out, err = call(capsys, "search", "org/found", "red dog", "--revision", "v1", "--windows", "--json")
    assert code == 0, err
    here = call(capsys, "search", indexed / "index", "red dog", "--windows", "--json")
    assert out == here[1] and {hit["file"] for hit in json.loads(out)[0]["hits"]} == {"a.mp4", "b.png"}


def test_an_index_from_the_hub_names_no_folder_of_this_machine(indexed, hub, capsys, tmp_path):
    api = HfApi(hub.endpoint, hub.token)
    api.create_repo("org/model", exist_ok=True)
    api.upload_folder(repo_id="org/model", folder_path=indexed / "model")
    assert call(capsys, "publish", indexed / "index", "org/strange", "--model", "org/model")[0] == 0
    source = json.dumps({"media_folder": str(indexed / "media")}).encode()
    api.upload_file(path_or_fileobj=source, path_in_repo="source.json", repo_id="org/strange", repo_type="dataset")
    assert SearchIndex.from_hub("org/strange").media_folder is None
    code, _, err = call(capsys, "search", "org/strange", "red dog", "--save_moments", tmp_path / "moments")
    assert code == 2 and "has no file" in err and not (tmp_path / "moments").exists()


def test_what_is_no_index_on_the_hub_is_none(hub):
    assert downloaded_index("org/nothing", "v1") is None
    api = HfApi(hub.endpoint, hub.token)
    api.create_repo("org/data", repo_type="dataset")
    assert downloaded_index("org/data") is None and downloaded_index("org/data", "v9") is None


def test_a_feature_store_is_pushed_with_a_card_and_pulled_by_its_tag(tmp_path, hub, capsys):
    clips = {f"clip-{number}": np.full((2, 4), number, np.float16) for number in range(5)}
    write_feature_store(
        tmp_path / "store", clips.items(), extractor="lite", revision="r1", rate=2.0, source={"videos": "x"}
    )
    assert call(capsys, "publish", tmp_path / "store", "org/store", "--tag", "v1")[0] == 0
    pulled = pinned_snapshot("org/store", revision="v1", repo_type="dataset")
    store = FeatureStore(pulled, extractor="lite", revision="r1")
    np.testing.assert_array_equal(store["clip-3"], clips["clip-3"])
    card = (pulled / "README.md").read_text()
    assert "Features of 5 clips: steps of 4 numbers (float16) by `lite`" in card and "2 steps per second" in card
    assert json.loads(card.partition("```json")[2].partition("```")[0]) == {"videos": "x"}
    code, _, err = call(capsys, "publish", tmp_path / "store", "org/store", "--model", "org/m")
    assert code == 2 and "names the checkpoint of an index, and" in err
