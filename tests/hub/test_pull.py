"""A published checkpoint in a fresh process: by tag, branch, commit and pull request, with and without this package,
online and offline, with the embeddings that it had before it was published. The README's blocks do it."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import build_clips, build_model, build_processor
from datasets import Dataset
from huggingface_hub import HfApi
from local_hub import LocalHub, point_clients_at
from readme_blocks import HUB, code_blocks
from safetensors.torch import load_file, save_file

import mmt
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.hub import publish as publishing

CAPTIONS = ["red dog runs", "heim"]
PAGE = "docs/tutorials/publish.md"
PUBLISH = next(
    line for block in code_blocks("sh", PAGE) for line in block.splitlines() if line.startswith("mmt publish")
)

LOAD = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

torch.set_num_threads(1)
out, options, revisions = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
clips = list(load_file("clips.safetensors").values())
found = {}
for revision in revisions:
    try:
        config = AutoConfig.from_pretrained("org/name", revision=revision, **options)
        model = AutoModel.from_pretrained("org/name", revision=revision, **options).eval()
        processor = AutoProcessor.from_pretrained("org/name", revision=revision, **options)
    except OSError as error:
        found[revision] = type(error).__name__
        continue
    with torch.no_grad():
        output = model(**processor(["red dog runs", "heim"], clips))
    name = f"{out}-{revisions.index(revision)}.safetensors"
    save_file({key: output[key].contiguous() for key in ("text_embeds", "video_embeds")}, name)
    found[revision] = [name, type(config).__module__, type(model).__module__]
print(json.dumps(found))
"""
STRANGER = 'import sys; sys.modules["modeling_mmt"] = None\n' + LOAD


def embeds(model):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes that load it have: bit for bit means the same sums
    with torch.no_grad():
        output = model(**build_processor()(CAPTIONS, build_clips([3, 5])))
    torch.set_num_threads(threads)
    return {key: output[key] for key in ("text_embeds", "video_embeds")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The Hub with three versions of a model and two of a dataset; the folder to work in; what each revision gives."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as monkeypatch, LocalHub(work / "hub") as hub:
        point_clients_at(hub, work / "publisher", monkeypatch)
        _, command, folder, *options = shlex.split(PUBLISH)
        models = {name: build_model(seed=seed) for seed, name in enumerate(("v1.0", "main", "refs/pr/1"))}
        folder = work / folder
        models["v1.0"].save_pretrained(folder, max_shard_size="20KB")
        build_processor().save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
        monkeypatch.chdir(work)
        assert mmt.main([command, str(folder), *options]) == 0
        first = HfApi().model_info("org/name").sha
        for name, model in list(models.items())[1:]:
            for path in folder.glob("model*safetensors*"):
                path.unlink()
            model.save_pretrained(folder)
            if name == "main":
                publishing.publish(folder, "org/name")
            else:
                HfApi().upload_folder(repo_id="org/name", folder_path=folder, create_pr=True)
        corpus = work / "corpus"
        corpus.mkdir()
        (corpus / "README.md").write_text("---\nlicense: mit\n---\n# clips\n")
        for tag, size in (("v1.0", 3), ("v2.0", 1)):
            Dataset.from_list([{"video_id": str(i)} for i in range(size)]).to_parquet(str(corpus / "test.parquet"))
            publishing.publish(corpus, "org/clips", repo_type="dataset", tag=tag)
        save_file({str(i): torch.from_numpy(c) for i, c in enumerate(build_clips([3, 5]))}, work / "clips.safetensors")
        expected = {name: embeds(model) for name, model in models.items()}
        yield hub, work, expected | {first: expected["v1.0"]}
        assert hub.refused == []


def run(published, code, *arguments, offline=False):
    hub, work, _ = published
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_TOKEN")}
    environment = outside | hub.environment(work / "home", offline=offline) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(published, found, revisions):
    _, work, expected = published
    for revision in revisions:
        for key, value in load_file(work / found[revision][0]).items():
            assert torch.equal(value, expected[revision][key]), (revision, key)


@pytest.fixture(scope="module")
def online(published):
    revisions = list(published[2])
    options = json.dumps({"trust_remote_code": True})
    return run(published, STRANGER, "online", options, *revisions, "v9.0")


def test_a_stranger_gets_each_revision_s_embeddings_bit_for_bit(published, online):
    check(published, online, published[2])
    values = [published[2][name]["text_embeds"] for name in ("v1.0", "main", "refs/pr/1")]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])


def test_a_stranger_runs_the_code_of_that_revision(published, online):
    commit = next(revision for revision in published[2] if re.fullmatch("[0-9a-f]{40}", revision))
    for revision in ("v1.0", commit):
        _, *modules = online[revision]
        assert all(module.startswith("transformers_modules.") and commit in module for module in modules)
    assert online["v9.0"] == "OSError"


def test_offline_the_pin_is_honoured_and_what_was_never_loaded_is_an_error(published, online):
    options = json.dumps({"trust_remote_code": True})
    before = len(published[0].requests)
    found = run(published, STRANGER, "offline", options, "v1.0", "main", "v9.0", offline=True)
    check(published, found, ("v1.0", "main"))
    assert found["v9.0"] == "OSError"
    assert len(published[0].requests) == before


@pytest.fixture
def run_here(published, monkeypatch, capsys):
    """Run code in this process, which has imported the package, with a cache of its own."""
    hub, work, _ = published

    def run_here(code, *arguments):
        point_clients_at(hub, work / "here", monkeypatch)
        monkeypatch.chdir(work)
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        capsys.readouterr()
        exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run_here


def test_with_the_package_no_remote_code_is_asked_for_or_run(published, run_here):
    found = run_here(LOAD, "owner", "{}", "v1.0", "main")
    check(published, found, ("v1.0", "main"))
    assert all(module.startswith("modeling_mmt.") for module in found["v1.0"][1:])


PLUG_IN = """
import json, sys
sys.modules["modeling_mmt"] = None
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import pipeline

clips = {name: clip.numpy() for name, clip in load_file("clips.safetensors").items()}
found = {}
for number, revision in enumerate(["v1.0", "main"]):
    pin = {"revision": revision, "trust_remote_code": True, "device": "cpu"}
    encoder = SentenceTransformer("org/name", **pin)
    search = pipeline("text-to-video-retrieval", model="org/name", **pin)
    embeds = {
        "text_embeds": encoder.encode(["red dog runs", "heim"], convert_to_tensor=True),
        "video_embeds": encoder.encode([{"video": clip} for clip in clips.values()], convert_to_tensor=True),
    }
    index = search.index(clips)
    searched = search(["red dog runs", "heim"], top_k=2, index=index)
    scores = embeds["text_embeds"] @ index.embeds.T
    torch.testing.assert_close(index.embeds, embeds["video_embeds"])
    for hits, line in zip(searched, scores.tolist(), strict=True):
        scored = {hit["id"]: hit["score"] for hit in hits}
        assert all(abs(scored[name] - score) < 1e-5 for name, score in zip(clips, line, strict=True))
    save_file(embeds, f"plugged-{number}.safetensors")
    found[revision] = f"plugged-{number}.safetensors"
print(json.dumps(found))
"""


def test_sentence_transformers_and_the_pipeline_load_each_revision(published):
    pytest.importorskip("sentence_transformers", reason="an optional peer: extra `plugins`")
    for revision, name in run(published, PLUG_IN).items():
        for key, value in load_file(published[1] / name).items():
            torch.testing.assert_close(value, published[2][revision][key], rtol=0, atol=1e-6)


def test_the_readme_s_blocks_load_the_model_and_the_data_by_their_pins(published, run_here):
    assert len(HUB) == 2
    tail = """
import json, torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
with torch.no_grad():
    output = model(**processor(["red dog runs", "heim"], list(load_file("clips.safetensors").values())))
save_file({key: output[key].contiguous() for key in ("text_embeds", "video_embeds")}, "readme.safetensors")
print(json.dumps({"v1.0": ["readme.safetensors"], "rows": test.num_rows}))
"""
    found = run_here("\n".join(HUB) + tail)
    check(published, found, ["v1.0"])
    assert found["rows"] == 3


def test_a_feature_store_is_named_by_its_repository_and_revision(hub, tmp_path, monkeypatch):
    api, clips = HfApi(), {"a": np.ones((2, 3), np.float32), "b": np.full((1, 3), 2.0, np.float32)}
    write_feature_store(tmp_path / "store", clips.items(), extractor="x", revision="1")
    api.create_repo("org/features", repo_type="dataset")
    api.upload_folder(folder_path=tmp_path / "store", repo_id="org/features", repo_type="dataset")
    api.create_tag("org/features", tag="v1.0", repo_type="dataset")
    stores = FeatureStores(["org/features@v1.0", "absent:2"])
    assert stores["b"].tolist() == [[2, 2, 2, 0, 0]] and stores.dims == [3, 2]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert list(FeatureStores(["org/features@v1.0"])) == ["a", "b"]


@pytest.mark.parametrize("name", ["org/features", "features/mine", "org/nothing@v1.0", "a/b/c@v1", "./x@v1"])
def test_a_store_that_does_not_exist_is_one_line_and_without_a_revision_the_hub_is_not_asked(hub, name):
    with pytest.raises((InputError, FileNotFoundError)) as error:
        FeatureStores([name])
    assert name.partition("@")[0] in str(error.value)
    assert hub.requests == [] or name == "org/nothing@v1.0"
