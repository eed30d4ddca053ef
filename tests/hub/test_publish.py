"""Publishing: everything in one commit or nothing, repeatable after every fault, and no secret in it."""

import json
import logging
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from conftest import build_model, build_processor
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

import mmt as command_line
from modeling_mmt.hub import publish as publishing
from modeling_mmt.hub.card import without_local_paths, write_card
from modeling_mmt.hub.publish import (
    PublishError,
    SnapshotError,
    UploadError,
    load_pinned_dataset,
    pinned_snapshot,
    publish,
)

ROOT = Path(__file__).resolve().parents[2]
REPO = "org/mmt-tiny"
FIGURES = {"R@1": 12.345, "R@5": 40.0, "R@10": 60.0, "MedR": 3.0, "MRR": 20.0}
RECIPE = {
    "data": {"dataset": "org/clips", "revision": "v3.0", "test_split": "test", "text_column": "caption"},
    "model": {"text_model": "org/encoder", "text_revision": "abc"},
    "card": {"weights_license": "mit", "text_license": "MIT", "video_license": "Apache-2.0", "dataset_license": "CC0"},
    "pretraining": None,
    "finetuning": {"sources": [{"text_column": "caption", "languages": ["en"]}]},
    "seed": 7,
}
METRICS = {
    "finetuning": {"steps": 30, "seconds": 2.0, "curve": [{"step": 30, "loss": 0.5, "validation_mrr": 9.0}]},
    "n_clips": 12,
    "video_extractors": [{"extractor": "made up", "revision": "1", "rate": 2.0, "dim": 8}],
    "figures": {"test": {"all": {way: {"en": FIGURES, "sw": FIGURES} for way in ("t2v", "v2t")}}},
}
CODE = {"configuration_mmt.py", "loss_mmt.py", "modeling_mmt.py", "pooling_mmt.py", "processing_mmt.py"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    build_model().save_pretrained(folder, max_shard_size="20KB")
    build_processor().save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "training_log.jsonl").write_text("{}\n")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "model"))


def files_at(revision="main", repo_type="model"):
    return set(HfApi().list_repo_files(REPO, revision=revision, repo_type=repo_type))


def test_one_commit_holds_weights_code_processor_card_recipe_log_and_figures(hub, folder):
    commit = publish(folder, REPO, tag="v1.0")
    there = files_at("v1.0")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 2
    assert there >= CODE | shards | {"model.safetensors.index.json", "config.json", "processor_config.json"}
    assert there >= {"README.md", "recipe.json", "metrics.json", "training_log.jsonl", "tokenizer.json"}
    assert ".eval_results/org--clips.yaml" in there
    commits = HfApi().list_repo_commits(REPO)
    assert [c.commit_id for c in commits][0] == commit and len(commits) == 2  # the repository's first, and ours


def test_the_card_has_the_repository_s_name_the_pin_the_numbers_the_licences_and_the_limits(hub, folder):
    publish(folder, REPO, tag="v1.0")
    card = ModelCard.load(pinned_snapshot(REPO, revision="v1.0") / "README.md")
    assert f'"{REPO}"' in card.text and '"revision": "v1.0"' in card.text
    for words in (
        "12.3",
        "made up",
        "## Limits and biases",
        "2.0 steps per second",
        "Apache-2.0",
        "CC0",
        "recipe.json",
    ):
        assert words in card.text, words
    assert card.data.license == "mit" and card.data.language == ["en", "sw"]
    assert card.data.pipeline_tag == "sentence-similarity" and "sentence-transformers" in card.data.tags
    assert {result.metric_value for result in card.data.eval_results} == {12.35}
    entries = yaml.safe_load((folder / ".eval_results" / "org--clips.yaml").read_text())
    assert [entry["dataset"]["task_id"] for entry in entries] == ["text_to_video_en", "text_to_video_sw"]
    assert entries[0]["dataset"]["revision"] == "v3.0" and entries[0]["value"] == pytest.approx(12.35)


def test_the_widget_s_example_runs_and_compares_translations_in_the_card_s_languages(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional peer: extra `plugins`")
    write_card(folder)
    (example,) = ModelCard.load(folder / "README.md").data.to_dict()["widget"]
    assert example["source_sentence"] == "a cat is sleeping" and example["sentences"][0] == "paka amelala"
    encoder = sentence_transformers.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    embeds = encoder.encode([example["source_sentence"], *example["sentences"]])
    assert encoder.similarity(embeds[:1], embeds[1:]).shape == (1, 3)


def test_a_picture_beside_the_checkpoint_is_published_and_shown_by_the_card(hub, folder):
    write_card(folder)
    assert "](picture" not in (folder / "README.md").read_text()
    Image.new("RGB", (4, 4)).save(folder / "picture.png")
    publish(folder, REPO, tag="v1.0")
    there = pinned_snapshot(REPO, revision="v1.0")
    assert "![Queries and the clips that this model finds for them](picture.png)" in (there / "README.md").read_text()
    assert (there / "picture.png").read_bytes() == (folder / "picture.png").read_bytes()


def test_publishing_again_changes_nothing_and_a_new_version_is_a_new_commit(hub, folder):
    first = publish(folder, REPO, tag="v1.0")
    assert publish(folder, REPO, tag="v1.0") == first
    (folder / "training_log.jsonl").write_text('{"step": 1}\n')
    sent = sum("/large/" in path for _, path, _ in hub.requests)
    second = publish(folder, REPO, tag="v2.0")
    assert second != first and sum("/large/" in path for _, path, _ in hub.requests) == sent
    assert (pinned_snapshot(REPO, revision="v1.0") / "training_log.jsonl").read_text() == "{}\n"


def test_a_tag_never_moves(hub, folder):
    first = publish(folder, REPO, tag="v1.0")
    (folder / "training_log.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(PublishError, match="never moves"):
        publish(folder, REPO, tag="v1.0")
    assert HfApi().model_info(REPO, revision="v1.0").sha == HfApi().model_info(REPO).sha == first


def test_a_branch_is_made_from_main_and_main_stays(hub, folder):
    first = publish(folder, REPO)
    (folder / "training_log.jsonl").write_text('{"step": 1}\n')
    second = publish(folder, REPO, revision="next")
    assert (HfApi().model_info(REPO).sha, HfApi().model_info(REPO, revision="next").sha) == (first, second)


def test_shards_of_an_earlier_version_do_not_stay(hub, folder):
    publish(folder, REPO, tag="v1.0")
    old = {path.name for path in folder.glob("model-*.safetensors")} | {"model.safetensors.index.json"}
    for name in old:
        (folder / name).unlink()
    build_model().save_pretrained(folder)
    publish(folder, REPO, tag="v2.0")
    assert "model.safetensors" in files_at() and not old & files_at()
    assert old <= files_at("v1.0")


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("create 500", 9),
        ("upload 500", 99),
        ("upload damaged", 99),
        ("commit 500", 1),
        ("commit dropped", 1),
        ("answer dropped", 1),
        ("overtaken", 1),
        ("tag 500", 1),
    ],
)
def test_after_a_fault_the_old_version_is_whole_and_publishing_can_be_repeated(hub, folder, finished, fault, times):
    first = publish(folder, REPO, tag="v1.0")
    build_model(seed=5).save_pretrained(folder, max_shard_size="20KB")
    hub.faults[fault] = times
    with pytest.raises(UploadError, match=REPO):
        publish(folder, REPO, tag="v2.0")
    assert hub.faults[fault] < times
    hub.faults.clear()
    assert HfApi().model_info(REPO, revision="v1.0").sha == first
    old = pinned_snapshot(REPO, revision="v1.0")
    for path in finished.glob("*.safetensors"):
        assert (old / path.name).read_bytes() == path.read_bytes()
    if fault not in ("answer dropped", "tag 500", "overtaken"):
        assert HfApi().model_info(REPO).sha == first
    second = publish(folder, REPO, tag="v2.0")
    assert HfApi().model_info(REPO, revision="v2.0").sha == HfApi().model_info(REPO).sha == second
    for path in folder.glob("*.safetensors"):
        assert (pinned_snapshot(REPO, revision="v2.0") / path.name).read_bytes() == path.read_bytes()
    assert len(HfApi().list_repo_commits(REPO)) == 3 + (fault == "overtaken")


def test_another_s_commit_in_between_is_named_and_kept(hub, folder):
    hub.faults["overtaken"] = 1
    with pytest.raises(UploadError, match="someone committed to main meanwhile"):
        publish(folder, REPO)
    publish(folder, REPO)
    assert "notes.txt" in files_at()


@pytest.mark.parametrize("token", [None, "hf_anotherTokenThatTheHubDoesNotKnow01"])
def test_who_is_not_logged_in_is_told_how_to(hub, folder, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UploadError, match="run `hf auth login`, or set HF_TOKEN$"):
        publish(folder, REPO)


def test_the_token_is_nowhere(hub, folder, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    hub.faults["commit 500"] = 1
    with pytest.raises(UploadError) as failed:
        publish(folder, REPO, tag="v1.0")
    publish(folder, REPO, tag="v1.0")
    pinned_snapshot(REPO, revision="v1.0")
    told = caplog.text + "".join(capfd.readouterr()) + str(failed.value)
    assert hub.token not in told
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and hub.token.encode() in p.read_bytes()]
    assert holders == []


def test_an_address_with_a_password_is_not_published(tmp_path):
    recipe = tmp_path / "recipe.json"
    for address, refused in (
        ("https://ann:hunter2@hub.example/org/x", True),
        ("https://hub.example:80/a@b", False),
    ):
        recipe.write_text(json.dumps({"dataset": address}))
        with pytest.raises(PublishError, match="recipe.json, byte 13") if refused else nullcontext():
            publishing.check_secrets({"recipe.json": recipe}, None)


@pytest.mark.parametrize("name", ["recipe.json", "training_log.jsonl", "model-extra.safetensors"])
def test_a_file_that_holds_a_token_is_not_published(hub, folder, name):
    path = folder / name
    if name.endswith("safetensors"):
        shutil.copy(next(folder.glob("model-*.safetensors")), path)
        path.write_bytes(path.read_bytes() + hub.token.encode())
    else:
        path.write_text(
            path.read_text().replace("{", '{"why": "' + hub.token + '"' + ", " * (name == "recipe.json"), 1)
        )
    with pytest.raises(PublishError) as failed:
        publishing.check_secrets({name: path}, hub.token)
    assert name in str(failed.value) and hub.token not in str(failed.value)
    with pytest.raises(PublishError, match=name):
        publish(folder, REPO)
    assert hub.requests == []


def test_pickles_training_states_and_hidden_files_stay_home(hub, folder):
    for name in ("training_args.bin", "model.pt", ".env", "checkpoint-10/optimizer.json", "runs/x/log.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    publish(folder, REPO)
    assert not files_at() & {"training_args.bin", "model.pt", ".env", "checkpoint-10/optimizer.json", "runs/x/log.txt"}


def spoil_config(folder):
    (folder / "config.json").unlink()


def spoil_shard(folder):
    next(folder.glob("model-*.safetensors")).unlink()


def spoil_weights(folder):
    path = next(folder.glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:50])


def spoil_code(folder):
    (folder / "modeling_mmt.py").unlink()


def spoil_card(folder):
    (folder / "metrics.json").unlink()


def spoil_name(folder):
    (folder / "mmt-tiny.py").write_text("")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_config, "no config.json"),
        (spoil_shard, "does not exist, but model.safetensors.index.json lists it"),
        (spoil_weights, "not readable"),
        (spoil_code, "names the code modeling_mmt"),
        (spoil_card, "no README.md"),
        (spoil_name, "own name breaks loading"),
    ],
)
def test_a_folder_that_would_not_load_is_refused_before_anything_is_sent(hub, folder, spoil, words):
    spoil(folder)
    with pytest.raises(PublishError, match=words):
        publish(folder, REPO)
    assert hub.requests == []


def test_a_card_of_one_s_own_is_published_as_it_is(hub, folder):
    (folder / "metrics.json").unlink()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    publish(folder, REPO)
    assert (pinned_snapshot(REPO) / "README.md").read_text().endswith("# mine\n")


def test_the_card_of_a_local_dataset_names_no_hub_dataset(folder):
    data = RECIPE["data"] | {"dataset": str(folder)}
    (folder / "recipe.json").write_text(json.dumps(RECIPE | {"data": data}))
    assert write_card(folder) == [folder / "README.md"]


# Datasets


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    for split, size in {"train": 3, "test": 2}.items():
        rows = [{"video_id": str(i), "name_en": f"{split} {i}", "name_sw": f"{split} {i} sw"} for i in range(size)]
        Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    card = {"license": "cc0-1.0", "configs": []}
    for name, columns in {"default": None, "sw": ["video_id", "name_sw"]}.items():
        paths = [{"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "test")]
        card["configs"].append({"config_name": name, "data_files": paths} | ({"columns": columns} if columns else {}))
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# corpus\n")
    return folder


def shrink(corpus):
    rows = [{"video_id": "only", "name_en": "one", "name_sw": "moja"}]
    Dataset.from_list(rows).to_parquet(str(corpus / "data" / "test-00000-of-00001.parquet"))


def test_a_dataset_goes_with_its_card_and_its_builder_and_is_pinned_online_and_offline(hub, corpus, monkeypatch):
    builder = ROOT / "datasets_scripts" / "emoji9.py"
    publish(corpus, REPO, repo_type="dataset", tag="v1.0", scripts=[builder])
    shrink(corpus)
    publish(corpus, REPO, repo_type="dataset", tag="v2.0", scripts=[builder])
    assert "scripts/build_emoji9.py" in files_at(repo_type="dataset")
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        old, new = (load_pinned_dataset(REPO, split="test", revision=tag)["video_id"] for tag in ("v1.0", "v2.0"))
        assert (list(old), list(new)) == (["0", "1"], ["only"])
    assert load_pinned_dataset(REPO, "sw", split="train", revision="v1.0").column_names == ["video_id", "name_sw"]
    with pytest.raises(LocalEntryNotFoundError):
        load_pinned_dataset(REPO, split="test", revision="v3.0")


def test_a_datasets_shards_of_an_earlier_version_do_not_stay(hub, corpus):
    """The card's `data/train-*.parquet` would read both."""
    whole = corpus / "data" / "train-00000-of-00001.parquet"
    for number in range(2):
        shutil.copy(whole, corpus / "data" / f"train-0000{number}-of-00002.parquet")
    whole.unlink()
    (corpus / "features").mkdir()
    (corpus / "features" / "features-00000.arrow").write_bytes(b"x")
    publish(corpus, REPO, repo_type="dataset", tag="v1.0")
    assert "features/features-00000.arrow" in files_at("v1.0", repo_type="dataset")
    shutil.move(corpus / "data" / "train-00000-of-00002.parquet", whole)
    (corpus / "data" / "train-00001-of-00002.parquet").unlink()
    publish(corpus, REPO, repo_type="dataset", tag="v2.0")
    assert [len(load_pinned_dataset(REPO, split="train", revision=tag)) for tag in ("v1.0", "v2.0")] == [6, 3]


def test_the_bundled_corpus_can_be_published(hub):
    folder = ROOT / "datasets_scripts" / "emoji9"
    publish(folder, "org/emoji9", repo_type="dataset", tag="v1.0", scripts=[ROOT / "datasets_scripts" / "emoji9.py"])
    row = load_pinned_dataset("org/emoji9", "sw", split="test", revision="v1.0")[0]
    assert "name_sw" in row and "name_en" not in row and row["frames"].height == 128


# Snapshots


@pytest.mark.parametrize("large", [True, False], ids=["large file", "small file"])
def test_a_damaged_download_is_found_removed_and_replaced(hub, corpus, large):
    publish(corpus, REPO, repo_type="dataset")
    if not large:
        shutil.rmtree(corpus / "data")
        (corpus / "rows.jsonl").write_text('{"a": 1}\n' * 100)
    if not large:
        HfApi().delete_folder("data", REPO, repo_type="dataset")
        publish(corpus, REPO, repo_type="dataset")
    hub.faults["download damaged"] = 1
    with pytest.raises(SnapshotError, match="damaged"):
        pinned_snapshot(REPO, repo_type="dataset")
    folder = pinned_snapshot(REPO, repo_type="dataset")
    for path in corpus.rglob("*.*"):
        assert (folder / path.relative_to(corpus)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["../../../../evil.txt", "a/../../../../evil.txt", "/evil.txt", "..\\..\\evil.txt"])
def test_a_listing_cannot_put_a_file_outside_the_cache(hub, corpus, tmp_path, name):
    publish(corpus, REPO, repo_type="dataset")
    evil = {"type": "file", "path": name.replace("/evil.txt", f"{tmp_path}/evil.txt", 1) if name[0] == "/" else name}
    hub.listing = lambda entries: [*entries, evil | {"oid": "0" * 40, "size": 1}]
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts and "hub" not in path.parts}
    with pytest.raises(Exception):  # noqa: B017 - the client's own check, or no such file
        pinned_snapshot(REPO, repo_type="dataset")
    assert {p for p in tmp_path.rglob("*") if "home" not in p.parts and "hub" not in p.parts} == before
    cache = tmp_path / "home" / "hub"
    assert all(cache.resolve() in path.resolve().parents for path in cache.rglob("*"))
    assert not list(tmp_path.rglob("*evil*"))


def test_a_link_out_of_the_cache_is_refused(hub, corpus, tmp_path):
    publish(corpus, REPO, repo_type="dataset")
    folder = pinned_snapshot(REPO, repo_type="dataset")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(corpus / "README.md")
    with pytest.raises(SnapshotError, match="points out of"):
        publishing.pinned_snapshot(REPO, repo_type="dataset")


def test_a_link_to_a_file_of_the_folder_is_sent_and_one_out_of_it_refused(hub, folder, tmp_path):
    (folder / "processor_config.json").rename(folder / "kept.json")
    link = folder / "processor_config.json"
    link.symlink_to("kept.json")
    publish(folder, REPO, tag="v1.0")
    there = pinned_snapshot(REPO, revision="v1.0")
    assert (there / link.name).read_bytes() == (folder / "kept.json").read_bytes()
    (tmp_path / "elsewhere.json").write_text("{}")
    for target, what in ((tmp_path / "elsewhere.json", "a file outside the folder"), (tmp_path / "gone", "nothing")):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(PublishError, match=f"processor_config.json is a link to {what}, .*put a copy"):
            publish(folder, REPO, tag="v2.0")
    link.unlink()
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(PublishError, match="more is a link to a folder"):
        publish(folder, REPO, tag="v2.0")


def test_a_snapshot_of_the_cache_which_is_all_links_is_published(hub, folder):
    publish(folder, REPO, tag="v1.0")
    commit = publish(pinned_snapshot(REPO, revision="v1.0"), "org/again", tag="v1.0")
    names = set(HfApi().list_repo_files("org/again", revision=commit))
    assert names >= CODE | {"config.json", "processor_config.json", "tokenizer.json", "recipe.json"}


# The command line


def mmt(capsys, *argv):
    code = command_line.main(["publish", *map(str, argv)])
    told = capsys.readouterr()
    return code, told.out.strip(), told.err.strip()


def test_mmt_publish_in_a_process_of_its_own_commits_tags_and_says_where(hub, folder, tmp_path):
    environment = {**os.environ, **hub.environment(tmp_path / "elsewhere", token=True), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mmt",
            "publish",
            folder,
            REPO,
            "--tag",
            "v1.0",
            "--message",
            "a b",
            "--json",
        ],
        env=environment | {"NO_PROXY": "127.0.0.1,localhost"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told == {"repository": REPO, "commit": HfApi().model_info(REPO, revision="v1.0").sha, "tag": "v1.0"}
    assert HfApi().list_repo_commits(REPO, revision="v1.0")[0].title == "a b"
    there = pinned_snapshot(REPO, revision="v1.0")
    assert {path.name for path in folder.glob("*.safetensors")} == {path.name for path in there.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("fault", "times", "words"),
    [
        ("create 500", 9, "not published, and what was there is kept"),
        ("upload damaged", 99, "repeat the command (Error while uploading"),
        ("commit 500", 1, "500"),
        ("commit dropped", 1, "repeat the command (Server disconnected"),
        ("overtaken", 1, "someone committed to main meanwhile"),
        ("tag 500", 1, "500"),
    ],
)
def test_mmt_publish_that_fails_says_so_in_one_line_and_succeeds_when_repeated(
    hub, folder, capsys, fault, times, words
):
    assert mmt(capsys, folder, REPO, "--tag", "v1.0")[0] == 0
    old = HfApi().model_info(REPO, revision="v1.0").sha
    build_model(seed=5).save_pretrained(folder, max_shard_size="20KB")
    hub.faults[fault] = times
    code, out, err = mmt(capsys, folder, REPO, "--tag", "v2.0")
    hub.faults.clear()
    assert (code, out) == (2, "") and err.startswith("mmt: ") and "\n" not in err and words in err
    assert [ref.name for ref in HfApi().list_repo_refs(REPO).tags] == ["v1.0"]
    assert HfApi().model_info(REPO, revision="v1.0").sha == old
    code, out, _ = mmt(capsys, folder, REPO, "--tag", "v2.0")
    new = HfApi().model_info(REPO, revision="v2.0").sha
    assert (code, out) == (0, f"{REPO} is at v2.0, commit {new}") and new != old


def test_mmt_publish_with_a_tag_that_is_there_succeeds_for_the_same_files_alone(hub, folder, capsys):
    told = mmt(capsys, folder, REPO, "--tag", "v1.0")
    commits = [commit.commit_id for commit in HfApi().list_repo_commits(REPO)]
    assert mmt(capsys, folder, REPO, "--tag", "v1.0") == told
    (folder / "training_log.jsonl").write_text('{"step": 1}\n')
    code, _, err = mmt(capsys, folder, REPO, "--tag", "v1.0")
    assert code == 2 and "a tag never moves; choose another version" in err
    assert [commit.commit_id for commit in HfApi().list_repo_commits(REPO)] == commits


# What stays private


def test_absolute_paths_become_relative_or_names_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "data": {
            "dataset": "org/clips",
            "features": [str(tmp_path / "runs" / "lite0"), "/home/ann/b4", "../store", "file:///home/ann/b5"],
        },
        "model": {"text_model": "C:\\Users\\ann\\encoder", "config": {"hidden_size": 8}},
        "cache_dir": "~/cache",
        "work_dir": str(tmp_path),
        "pretraining": None,
        "prefix": "query: a/b ",
    }
    told = without_local_paths(recipe)
    assert told["data"] == {"dataset": "org/clips", "features": ["runs/lite0", "b4", "../store", "b5"]}
    assert told["model"] == {"text_model": "encoder", "config": {"hidden_size": 8}}
    assert (told["cache_dir"], told["work_dir"], told["pretraining"], told["prefix"]) == (
        "cache",
        ".",
        None,
        "query: a/b ",
    )
    assert recipe["cache_dir"] == "~/cache"


@pytest.mark.parametrize(
    "text",
    [
        "~1,600 drawn clips, see https://x.org/emoji9",
        "~9 languages; CC BY 4.0 / MIT",
        "https://x.org/emoji9",
        "and/or",
    ],
)
def test_a_text_of_the_card_is_not_taken_for_a_path(text):
    assert without_local_paths({"card": {"dataset_description": text}}) == {"card": {"dataset_description": text}}


@pytest.mark.parametrize("path", ["~", "~/clips", "~ann/clips", "~ann.lee/my clips"])
def test_a_home_folder_is_taken_for_a_path(path):
    assert without_local_paths(path) in ("~", "clips", "my clips")


def test_what_is_published_names_no_folder_of_this_machine_and_what_stays_is_as_it_was(hub, folder):
    data = RECIPE["data"] | {"dataset": str(folder), "features": [str(folder / "store")]}
    paths = {"data": data, "model": {"text_model": str(folder / "encoder"), "text_revision": None}}
    paths |= {"output_dir": str(folder), "work_dir": "/home/ann/stages"}
    (folder / "recipe.json").write_text(json.dumps(RECIPE | paths))
    publish(folder, REPO)
    there = pinned_snapshot(REPO)
    told = json.loads((there / "recipe.json").read_text())
    assert told["data"] == RECIPE["data"] | {"dataset": "model", "features": ["store"]}
    assert told["seed"] == 7 and told["work_dir"] == "stages" and told["model"]["text_model"] == "encoder"
    published = {path.name: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert [name for name, held in published.items() if str(folder).encode() in held or b"/home/ann" in held] == []
    assert json.loads((folder / "recipe.json").read_text()) == RECIPE | paths


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "AWS_SECRET", "MY_PASSWORD", "HUGGING_FACE_HUB_TOKEN"])
def test_a_secret_of_the_environment_is_not_published(hub, folder, monkeypatch, name):
    monkeypatch.setenv(name, "0123456789abcdef")
    publish(folder, REPO)
    (folder / "recipe.json").write_text(json.dumps(RECIPE | {"card": RECIPE["card"] | {"x": "a0123456789abcdef"}}))
    sent = len(hub.requests)
    with pytest.raises(PublishError, match="recipe.json, byte .*: a secret of this environment") as failed:
        publish(folder, REPO)
    assert "0123456789" not in str(failed.value) and len(hub.requests) == sent
