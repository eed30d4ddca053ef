"""Features of another extractor, revision, size or sampling are refused by name, wherever a checkpoint meets them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import build_checkpoint, call
from tiny_corpus import write_recipe

from modeling_mmt import MMTProcessor
from modeling_mmt.commands import train
from modeling_mmt.data.extractors import (
    Extractor,
    ExtractorError,
    check_extractors,
    record_extractors,
    recorded_extractors,
)
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.reading import read_split
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.training.checks import check_recipe
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.training.recipe_reading import load_recipe

LITE = {"extractor": "lite0", "revision": "sha256:aa", "image_size": 128, "num_frames": 8, "frames_per_second": None}
OTHERS = [
    ({"extractor": "lite4"}, "extractor is lite4, not lite0"),
    ({"revision": "sha256:bb"}, "revision is sha256:bb, not sha256:aa"),
    ({"image_size": 224}, "image_size is 224, not 128"),
    ({"num_frames": 16}, "sampling is 16 frames, not 8 frames"),
    ({"num_frames": None, "frames_per_second": 1.0}, "sampling is 1 frames a second, not 8 frames"),
]
REMEDY = "mmt extract SOURCE --output_dir FOLDER --encoder lite0 --image_size 128 --num_frames 8"


def write_stores(corpus, folder, **changes):
    """The tiny corpus's two streams again, by another extractor."""
    says = LITE | changes
    source = {name: says.pop(name) for name in ("image_size", "num_frames", "frames_per_second")}
    for name, store in (("colours", FeatureStores([str(corpus / "colours")])), ("animals", None)):
        store = store or FeatureStores([str(corpus / name)])
        write_feature_store(folder / name, store.items(), **says, source=source)
    return [str(folder / "colours"), str(folder / "animals")]


@pytest.fixture
def checkpoint(corpus, tmp_path):
    """One that was trained on the features of `LITE`."""
    stores = write_stores(corpus, tmp_path / "lite")
    folder = build_checkpoint(corpus, tmp_path / "checkpoint", features=stores)
    processor = MMTProcessor.from_pretrained(folder)
    record_extractors(processor, FeatureStores(stores).extractors)
    processor.save_pretrained(folder)
    return folder


def test_a_record_comes_back_from_a_saved_checkpoint_as_it_was(checkpoint, tmp_path):
    recorded = recorded_extractors(MMTProcessor.from_pretrained(checkpoint))
    assert recorded == [Extractor(dim=6, **LITE)] * 2
    assert recorded == FeatureStores([str(tmp_path / "lite" / name) for name in ("colours", "animals")]).extractors


def test_the_features_that_a_checkpoint_was_trained_on_are_searched(checkpoint, capsys):
    assert call(capsys, "evaluate", checkpoint, "--json")[0] == 0
    assert call(capsys, "search", checkpoint, "red dog")[0] == 0


@pytest.mark.parametrize(("changes", "difference"), OTHERS, ids=[difference for _, difference in OTHERS])
def test_features_made_in_another_way_are_refused_by_name(checkpoint, corpus, tmp_path, capsys, changes, difference):
    stores = write_stores(corpus, tmp_path / "others", **changes)
    for words in (["evaluate", checkpoint], ["search", checkpoint, "red dog"], ["report", checkpoint]):
        code, out, err = call(capsys, *words, "--features", *stores)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{stores[0]}: {difference} as of the features that" in err and REMEDY in err
    rows = read_split(str(corpus / "corpus"), None, "test")
    processor = MMTProcessor.from_pretrained(checkpoint)
    with pytest.raises(ExtractorError, match=difference):
        SearchIndex.build(None, processor, rows, FeatureStores(stores))


def test_streams_in_another_number_are_refused(checkpoint, tmp_path):
    processor = MMTProcessor.from_pretrained(checkpoint)
    with pytest.raises(ExtractorError, match="1 streams, but the checkpoint was trained on 2: give lite0, lite0"):
        check_extractors(processor, FeatureStores([str(tmp_path / "lite" / "colours")]).extractors)


def test_what_one_side_does_not_say_is_not_compared(checkpoint, corpus):
    """Converted features have no size; film strips have no sampling; a stream may be absent."""
    processor = MMTProcessor.from_pretrained(checkpoint)
    check_extractors(processor, [Extractor(6, "lite0", "sha256:aa"), Extractor(6)])
    check_extractors(processor, [])
    record_extractors(processor, [Extractor(6), Extractor(6, "lite0", "sha256:aa", 128)])
    check_extractors(processor, [Extractor(6, **LITE), Extractor(6, **LITE)])
    record_extractors(processor, [])
    assert recorded_extractors(processor) == []
    check_extractors(processor, [Extractor(99, "any")])


def test_what_a_stores_source_says_in_other_words_is_not_known(tmp_path):
    for number, source in enumerate((None, "a disk", [1], {"image_size": [224, 224], "num_frames": True}, {})):
        folder = write_feature_store(
            tmp_path / str(number), [("a", np.ones((1, 2)))], extractor="x", revision="1", source=source
        )
        assert FeatureStores([str(folder)]).extractors == [Extractor(2, "x", "1")]
    streams = FeatureStores([str(tmp_path / "0"), "absent:512"]).extractors
    assert streams == [Extractor(2, "x", "1"), Extractor(512)]


@pytest.mark.parametrize(
    "record", ["lite0", [{}], [[]], [{"dim": "6"}], [{"dim": 6, "image_size": -1}], [{"dim": 6, "extractor": 5}], 7]
)
def test_a_record_of_another_shape_is_one_line(checkpoint, capsys, record):
    path = Path(checkpoint) / "processor_config.json"
    content = json.loads(path.read_text())
    content["feature_extractor"]["extractors"] = record
    path.write_text(json.dumps(content))
    code, out, err = call(capsys, "evaluate", checkpoint)
    assert (code, out, err.count("\n")) == (2, "", 1) and "feature_extractor.extractors is" in err


def test_fields_that_a_newer_version_adds_to_a_record_are_left_aside(checkpoint):
    processor = MMTProcessor.from_pretrained(checkpoint)
    processor.feature_extractor.extractors[0]["crop"] = "center"
    assert recorded_extractors(processor) == [Extractor(6, **LITE)] * 2


def test_training_records_what_made_its_features_and_refuses_a_source_of_others(corpus, tmp_path):
    stores = write_stores(corpus, tmp_path / "lite")
    changes = {"data.features": stores, "pretraining": None, "finetuning.num_train_epochs": 1}
    train.main([write_recipe(corpus, tmp_path, changes)])
    processor = MMTProcessor.from_pretrained(tmp_path / "recipe")
    assert recorded_extractors(processor) == [Extractor(6, **LITE)] * 2

    others = write_stores(corpus, tmp_path / "others", image_size=224)
    source = {"dataset": str(corpus / "corpus"), "features": others, "text_column": "caption", "languages": ["en"]}
    path = write_recipe(corpus, tmp_path, changes | {"finetuning.sources": [source]}, "mixed")
    problem = f"finetuning.sources[0]: {others[0]}: image_size is 224, not 128 as of data.features"
    with pytest.raises(RecipeError, match=re.escape(problem)):
        train.main([path])
    assert any(problem in line for line in check_recipe(load_recipe([path], ""))["problems"])


def test_training_goes_on_from_a_checkpoint_with_features_made_as_its_own_alone(corpus, checkpoint, tmp_path):
    changes = {"model": {"checkpoint": str(checkpoint)}, "pretraining": None, "finetuning.num_train_epochs": 1}
    others = write_stores(corpus, tmp_path / "others", image_size=224)
    path = write_recipe(corpus, tmp_path, changes | {"data.features": others}, "other")
    problem = f"{others[0]}: image_size is 224, not 128 as of the features that the checkpoint was trained on"
    with pytest.raises(RecipeError, match=re.escape(problem)):
        train.main([path])
    assert any(problem in line for line in check_recipe(load_recipe([path], ""))["problems"])
    stores = [str(tmp_path / "lite" / name) for name in ("colours", "animals")]
    train.main([write_recipe(corpus, tmp_path, changes | {"data.features": stores}, "same")])
    assert recorded_extractors(MMTProcessor.from_pretrained(tmp_path / "same")) == [Extractor(6, **LITE)] * 2
    own = {"data.dataset": str(corpus / "corpus_with_features"), "data.features": []}
    train.main([write_recipe(corpus, tmp_path, changes | own, "rows")])  # of which nobody says what made them


def test_code_that_knows_no_record_loads_it_and_saves_it_again(checkpoint, tmp_path):
    """The code that was frozen with v0.1.0, by remote code: what it does not know it keeps."""
    import os
    import subprocess
    import sys

    old = Path(__file__).parents[1] / "artifacts" / "checkpoints" / "v0.1.0"
    folder = Path(shutil.copytree(old, tmp_path / "old"))
    content = json.loads((folder / "processor_config.json").read_text())
    record = [{"dim": 8, "extractor": "lite0", "image_size": 128}]
    content["feature_extractor"]["extractors"] = record
    (folder / "processor_config.json").write_text(json.dumps(content))
    code = (
        "import sys; from transformers import AutoProcessor\n"
        "AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])\n"
        "assert 'modeling_mmt' not in sys.modules"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    call = [sys.executable, "-I", "-c", code, str(folder), str(tmp_path / "again")]
    done = subprocess.run(call, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert recorded_extractors(MMTProcessor.from_pretrained(tmp_path / "again")) == [Extractor(8, "lite0", None, 128)]
