"""A built dataset pushed to a Hub by the verb that built it, and pulled by its tag; a secret in it stops the push."""

import json
import os
import subprocess
import sys
from pathlib import Path

import official_files
from command_line import call
from datasets import Dataset
from datasets import Image as Pictures
from huggingface_hub import HfApi
from PIL import Image

from modeling_mmt.commands.errors import BAD_INPUT
from modeling_mmt.extraction.clips import clips_of_dataset

ROOT = Path(__file__).resolve().parents[2]

PULL = """
import json, sys
import datasets
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import snapshot_download
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.05  # after a stream
repo, revision, latest = sys.argv[1:]
parts = load_dataset(repo, revision=revision)
streamed = next(iter(load_dataset(repo, split="train", revision=revision, streaming=True)))
print(json.dumps({
    "rows": {split: part["video_id"][:] for split, part in parts.items()},
    "latest": {split: part["video_id"][:] for split, part in load_dataset(repo, revision=latest).items()},
    "configs": get_dataset_config_names(repo, revision=revision),
    "columns": load_dataset(repo, "sw", split="train", revision=revision).column_names,
    "streamed": streamed["video_id"],
    "folder": snapshot_download(repo, repo_type="dataset", revision=revision),
}))
"""


def pull(hub, tmp_path, *arguments):
    """What a process without this package gets."""
    environment = {**os.environ, **hub.environment(home=tmp_path / "home", token=True)}
    done = subprocess.run([sys.executable, "-c", PULL, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_dataset_is_pushed_with_scripts_card_and_tag_and_pulled_by_the_tag(hub, tmp_path, capsys):
    official_files.own(tmp_path / "source")
    build = ["build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", tmp_path / "out"]
    push = [*build, "--push_to_hub", "org/own_clips"]
    code, pushed, _ = call(capsys, *push, "--tag", "v1.0")
    assert code == 0 and "org/own_clips is at v1.0, commit " in pushed
    (tmp_path / "source/captions.csv").write_text("video_id,language,caption,split\nlater,en,x,train\n")
    code, _, refusal = call(capsys, *push, "--tag", "v1.0")
    assert code == BAD_INPUT and "a tag never moves" in refusal
    assert len(HfApi().list_repo_commits("org/own_clips", repo_type="dataset")) == 2  # nothing was sent
    assert call(capsys, *push)[0] == 0  # main moves on, the tag stays
    pulled = pull(hub, tmp_path, "org/own_clips", "v1.0", "main")
    assert pulled["rows"] == {
        "train": ["own2", "own3", "own4", "own7", "own8"],
        "validation": ["own0", "own5"],
        "test": ["own1", "own6"],
    }
    assert pulled["configs"] == ["default", "en", "sw"] and pulled["columns"] == ["video_id", "caption_sw"]
    assert pulled["streamed"] == "own2" and pulled["latest"] == {"train": ["later"]}
    folder = Path(pulled["folder"])
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "build.json", "scripts/build_own_clips.py", "scripts/build_corpus.py"} <= there
    assert "own_clips.py" not in there  # at the top, datasets would take it for a loading script
    assert "`mmt build own_clips --data_dir" in (folder / "README.md").read_text()


def test_a_caption_that_holds_an_access_token_is_not_published(hub, tmp_path, capsys):
    official_files.own(tmp_path / "source")
    with open(tmp_path / "source/captions.csv", "a", encoding="utf-8") as table:
        table.write(f"leak,en,https://user:{'pass' * 4}@x.org/clip,train\n")
    build = ["build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", tmp_path / "out"]
    code, _, refusal = call(capsys, *build, "--push_to_hub", "org/own_clips")
    assert code == BAD_INPUT and "an address with a password; take it out" in refusal
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
