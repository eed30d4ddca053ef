"""`pipeline("text-to-video-retrieval", model=FOLDER)`: with the package, and in a process that lacks it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_mmt import MMTModel, MMTSearchPipeline
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos

QUERIES = ["red dog", "heim schnell", "dog runs fast home"]
STRANGER = """
import json, sys
sys.modules["modeling_mmt"] = None  # an installed copy is out of reach too
import numpy as np
from transformers import pipeline

search = pipeline("text-to-video-retrieval", model=sys.argv[1], trust_remote_code=True, device="cpu")
index = search.index(dict(np.load("clips.npz")))
print(json.dumps([type(search).__module__, search(json.loads(sys.argv[2]), index=index, top_k=3)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from conftest import build_model, build_processor

    path = tmp_path_factory.mktemp("published") / "mmt-tiny"
    build_model(sharpness=20).save_pretrained(path)
    build_processor(text_prefix="query: ").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips():
    from conftest import build_clips

    return {f"clip-{row}": clip for row, clip in enumerate(build_clips([4, 7, 1, 5, 2, 3]))}


@pytest.fixture(scope="module")
def wanted(folder, clips):
    """The three best clips of each query by our own embeddings."""
    from conftest import build_processor

    model, processor = MMTModel.from_pretrained(folder), build_processor(text_prefix="query: ")
    scores = embed_texts(model, processor, QUERIES) @ embed_videos(model, processor, list(clips.values())).T
    return [
        [(f"clip-{row}", line[row].item()) for row in line.argsort(descending=True)[:3].tolist()] for line in scores
    ]


def assert_equal(found, wanted):
    assert [[hit["id"] for hit in hits] for hits in found] == [[name for name, _ in hits] for hits in wanted]
    scores = [[hit["score"] for hit in hits] for hits in found]
    np.testing.assert_allclose(scores, [[score for _, score in hits] for hits in wanted], atol=1e-6)


def test_the_pipeline_finds_what_our_embeddings_find(folder, clips, wanted):
    search = pipeline("text-to-video-retrieval", model=str(folder), pipeline_class=MMTSearchPipeline, device="cpu")
    index = search.index(clips, batch_size=2)
    assert index.embeds.shape == (6, 10)
    assert len({round(hits[0][1], 3) for hits in wanted}) == 3  # queries differ
    assert_equal(search(QUERIES, index=index, top_k=3), wanted)
    assert_equal([search(QUERIES[0], index=index, top_k=3)], wanted[:1])
    assert len(search(QUERIES[0], index=index, top_k=99)) == 6
    with pytest.raises(ValueError, match="clips is empty"):
        search.index({})


def test_a_stranger_searches_by_the_folders_own_code(folder, clips, wanted, tmp_path):
    np.savez(tmp_path / "clips.npz", **clips)
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), json.dumps(QUERIES)],
        cwd=tmp_path,
        env=outside | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    module, found = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.")
    assert_equal(found, wanted)


def test_without_trust_the_folders_code_is_not_run(folder):
    for _ in range(2):  # `pipeline` writes into what it reads from the configuration
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            pipeline("text-to-video-retrieval", model=str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_pipeline_finds_the_same_clips_when_it_is_loaded_again(folder, clips, tmp_path, dtype):
    kind = {"task": "text-to-video-retrieval", "pipeline_class": MMTSearchPipeline, "device": "cpu"}
    search = pipeline(model=str(folder), dtype=dtype, **kind)
    search.save_pretrained(tmp_path)
    again = pipeline(model=str(tmp_path), **kind)
    assert (again.processor.text_prefix, again.model.dtype) == ("query: ", dtype)
    assert search(QUERIES, index=search.index(clips)) == again(QUERIES, index=again.index(clips))
