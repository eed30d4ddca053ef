"""docs/tutorials/own_media.md from its first command to its last, on eight short films of film9 and a picture."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from command_line import call
from PIL import Image
from readme_blocks import ROOT, code_blocks

sys.path.insert(0, str(ROOT / "experiments"))
import film9_films as maker  # noqa: E402

PAGE = "docs/tutorials/own_media.md"
COMMANDS = [line.partition("  #")[0] for block in code_blocks("sh", PAGE) for line in block.splitlines()]
NUM_CLIPS, NUM_FILMS, SECONDS = 12, 8, 40.0


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A working folder with `my_media`: films with subtitles in nine languages, a picture, a spreadsheet."""
    root = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "SHORTEST", SECONDS)
        patch.setattr(maker, "LONGEST", SECONDS + 10)
        ids = maker.clips_of("train")["video_id"][:NUM_CLIPS]
        films = maker.plan("train", ids, copies=6)[:NUM_FILMS]
    for film in films:
        maker.make(film, root / "my_media")
    frame = maker.frames_of(maker.clips_of("train")[0])[0]
    frame.save(root / "my_media" / "train" / "picture.jpg")
    names = maker.clips_of("train")["name_en"][:]
    with (root / "my_media" / "captions.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["file_name", "start", "end", "en"])
        for film in films:
            for showing in film.showings[:5]:
                table.writerow([film.name, f"{showing.start:.2f}", f"{showing.end:.2f}", names[showing.row]])
        table.writerow(["train/picture.jpg", "", "", names[0]])
    return root, films, names


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_a_folder_to_moments(films, monkeypatch, capsys):
    root, films, names = films
    monkeypatch.chdir(root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(films) == NUM_FILMS
    assert {command.split()[1] for command in COMMANDS} == {"extract", "build", "recipes", "train", "index", "search"}
    told = {}
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "mmt"
        code, out, err = call(capsys, *words)
        assert code == 0, f"{command}\n{err[-3000:]}"
        told[command] = out
    said = "\n".join(told.values())
    assert re.search(r"taken: 6 mp4, 2 mkv, 1 jpg; left out: \d+ (srt|vtt), ", said)
    for file in (
        "data/films/README.md",
        "data/clips/README.md",
        "runs/mine/model.safetensors",
        "runs/better/README.md",
    ):
        assert (root / file).is_file(), file
    built = json.loads(Path("data/films/build.json").read_text("utf-8"))
    assert sum(built["rows"].values()) == NUM_FILMS
    picture = Path(re.search(r"(\S+\.png)$", COMMANDS[-1])[1])
    assert Image.open(picture).width > 300
    (search,) = (command for command in COMMANDS if command.endswith("--top 3"))
    assert len(re.findall(r"train/\S+  \d\d:\d\d-\d\d:\d\d", told[search])) >= 1

    shown = {names[showing.row] for film in films for showing in film.showings}
    code, out, _ = call(capsys, "search", "index", *sorted(shown), "--json", "--top", "1")
    right = 0
    for answer in json.loads(out):
        hit = answer["hits"][0]
        right += any(
            film.name == hit["file"]
            and hit["start"] < showing.end
            and hit["end"] > showing.start
            and names[showing.row] == answer["query"]
            for film in films
            for showing in film.showings
            if hit["start"] is not None
        )
    assert right >= 0.5 * len(shown)  # by chance, one of twelve or so
