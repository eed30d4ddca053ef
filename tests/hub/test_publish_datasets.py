"""A built dataset pushed to a Hub by the verb that built it, and pulled by its tag; a secret in it stops the push."""

import json
import os
import subprocess
import sys
from pathlib import Path

import official_files
from datasets import Dataset
from datasets import Image as Pictures
from huggingface_hub import HfApi
from PIL import Image

from modeling_mmt.extraction.clips import clips_of_dataset

ROOT = Path(__file__).resolve().parents[2]

PULL = """
import json, sys
from datasets import get_dataset_config_names, load_dataset
repo, revision = sys.argv[1:]
parts = load_dataset(repo, revision=revision)
one = load_dataset(repo, "sw", split="train", revision=revision)
streamed = next(iter(load_dataset(repo, split="train", revision=revision, streaming=True)))
print(json.dumps({
    "rows": {split: part["video_id"][:] for split, part in parts.items()},
    "configs": get_dataset_config_names(repo, revision=revision),
    "columns": one.column_names, "streamed": streamed["video_id"],
}))
"""


def run(hub, tmp_path, *command, cwd=ROOT, refusal=None):
    environment = {**os.environ, **hub.environment(home=tmp_path / "home", token=True), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (refusal is None), done.stderr[-3000:]
    assert refusal is None or refusal in done.stderr
    return done.stdout


def test_a_dataset_is_pushed_with_scripts_card_and_tag_and_pulled_by_the_tag(hub, tmp_path):
    official_files.own(tmp_path / "source")
    build = ["-m", "mmt", "build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", tmp_path / "out"]
    pushed = run(hub, tmp_path, *build, "--push_to_hub", "org/own_clips", "--tag", "v1.0")
    assert "org/own_clips is at v1.0, commit " in pushed
    (tmp_path / "source/captions.csv").write_text("video_id,language,caption,split\nlater,en,x,train\n")
    again = [*build, "--push_to_hub", "org/own_clips"]
    api = HfApi(hub.endpoint, hub.token)
    run(hub, tmp_path, *again, "--tag", "v1.0", refusal="a tag never moves")
    assert len(api.list_repo_commits("org/own_clips", repo_type="dataset")) == 2  # nothing was sent
    run(hub, tmp_path, *again)  # main moves on, the tag stays
    pulled = json.loads(run(hub, tmp_path, "-c", PULL, "org/own_clips", "v1.0"))
    assert pulled["rows"] == {
        "train": ["own2", "own3", "own4", "own7", "own8"],
        "validation": ["own0", "own5"],
        "test": ["own1", "own6"],
    }
    assert pulled["configs"] == ["default", "en", "sw"] and pulled["columns"] == ["video_id", "caption_sw"]
    assert pulled["streamed"] == "own2"
    latest = json.loads(run(hub, tmp_path, "-c", PULL.replace('"sw"', '"en"'), "org/own_clips", "main"))
    assert latest["rows"] == {"train": ["later"]}
    files = """
import sys
from huggingface_hub import HfApi, snapshot_download
print(snapshot_download("org/own_clips", repo_type="dataset", revision="v1.0"))
"""
    folder = Path(run(hub, tmp_path, "-c", files).strip().splitlines()[-1])
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "build.json", "scripts/build_own_clips.py", "scripts/build_corpus.py"} <= there
    assert "own_clips.py" not in there  # at the top, datasets would take it for a loading script
    assert "`mmt build own_clips --data_dir" in (folder / "README.md").read_text()


def test_a_caption_that_holds_an_access_token_is_not_published(hub, tmp_path):
    official_files.own(tmp_path / "source")
    with open(tmp_path / "source/captions.csv", "a", encoding="utf-8") as table:
        table.write(f"leak,en,https://user:{'pass' * 4}@x.org/clip,train\n")
    build = ["-m", "mmt", "build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", tmp_path / "out"]
    run(hub, tmp_path, *build, "--push_to_hub", "org/own_clips", refusal="an address with a password; take it out")
    assert not HfApi(hub.endpoint, hub.token).repo_exists("org/own_clips", repo_type="dataset")


def test_clips_are_extracted_from_the_revision_that_is_named(hub, tmp_path):
    api = HfApi(hub.endpoint, hub.token)
    api.create_repo("org/strips", repo_type="dataset")
    for count, tag in ((1, "v1.0"), (2, None)):
        strips = [Image.new("RGB", (16, 8), (90 * number, 0, 0)) for number in range(count)]
        rows = {"video_id": [f"clip{number}" for number in range(count)], "frames": strips, "num_frames": [2] * count}
        table = tmp_path / "train-00000-of-00001.parquet"
        Dataset.from_dict(rows).cast_column("frames", Pictures()).to_parquet(table)
        api.upload_file(
            path_or_fileobj=table, path_in_repo=f"data/{table.name}", repo_id="org/strips", repo_type="dataset"
        )
        if tag:
            api.create_tag("org/strips", tag=tag, repo_type="dataset")
    for revision, ids in (("v1.0", ["clip0"]), (None, ["clip0", "clip1"])):
        clips = clips_of_dataset("org/strips", None, revision)
        assert clips.are_filmstrips and [video.video_id for video in clips.videos] == ids
