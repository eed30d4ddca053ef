"""Folders and lists of videos."""

import json
import os

import pytest

from modeling_mmt.data import video_lists
from modeling_mmt.data.sources import SourceError
from modeling_mmt.data.video_lists import Video, find_videos, fingerprint


@pytest.fixture
def folder(tmp_path):
    names = [
        "b.mp4",
        "a/c.WEBM",
        "a/b/d.gif",
        "a/cup.JPG",
        "a/notes.txt",
        ".hidden/e.mp4",
        ".f.mp4",
        "b.jpg",
        "README",
    ]
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


def test_a_folder_gives_its_videos_and_pictures_by_their_paths(folder):
    found = find_videos(folder)
    assert found == [
        Video("a/b/d", str(folder / "a/b/d.gif")),
        Video("a/c", str(folder / "a/c.WEBM")),
        Video("a/cup", str(folder / "a/cup.JPG")),
        Video("b", str(folder / "b.mp4")),
    ]
    assert found.summary() == (
        "taken: 1 gif, 1 jpg, 1 mp4, 1 webm; left out: 2 hidden, 1 jpg named as a video is, 1 txt, 1 without an ending"
    )


def test_links_to_folders_are_followed_once_and_never_in_a_circle(folder, tmp_path):
    for name in ("album/one.png", "album/deep/two.png", "other/three.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (folder / "a" / "again").symlink_to(tmp_path / "album")  # outside: the user's own
    (folder / "zz").symlink_to(tmp_path / "album" / "deep")  # is in it
    (folder / "x").symlink_to(tmp_path / "album")  # a second time
    (folder / "a" / "up").symlink_to(folder)  # a circle
    (folder / "around").symlink_to(tmp_path)  # around the folder
    (tmp_path / "album" / "back").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "forth").symlink_to(tmp_path / "album")  # a circle outside
    (folder / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    (folder / "itself.mp4").symlink_to(folder / "itself.mp4")
    (folder / "linked.mp4").symlink_to(folder / "b.mp4")
    found = find_videos(folder)
    ids = {video.video_id for video in found if video.video_id not in ("a/b/d", "a/c", "a/cup", "b")}
    assert ids == {"linked", "x/one", "x/deep/two", "x/back/three"}
    assert found.left["link to a folder"] == 5 and found.left["broken link"] == 2
    assert "5 links to folders" in found.summary()


def test_what_is_no_file_or_cannot_be_read_is_counted(folder):
    (folder / "a.\x1b[31mred").touch()
    assert "1 of a strange ending" in find_videos(folder).summary()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "closed").mkdir(mode=0)
    found = find_videos(folder)
    assert found.left["device or pipe"] == 1
    assert found.left["folder that cannot be read"] == (os.geteuid() != 0)  # root reads all
    (folder / "closed").chmod(0o700)


@pytest.mark.parametrize("name", ["films [2024]", "what?", "a*b", "{x,y}", "[a-z]", "!(x)"])
def test_a_folders_name_is_no_pattern(tmp_path, name):
    (tmp_path / name / name).mkdir(parents=True)
    (tmp_path / name / name / "cat.png").touch()
    assert [video.video_id for video in find_videos(tmp_path / name)] == [f"{name}/cat"]


def test_heic_is_left_with_its_remedy_where_pillow_does_not_read_it(folder, monkeypatch):
    (folder / "IMG_1.HEIC").touch()
    monkeypatch.setattr(video_lists, "picture_formats", lambda: ("PNG", "JPEG", "GIF"))
    assert "1 heic (pip install pillow-heif to have them read)" in find_videos(folder).summary()
    monkeypatch.setattr(video_lists, "picture_formats", lambda: ("PNG", "JPEG", "GIF", "HEIF"))
    assert Video("IMG_1", str(folder / "IMG_1.HEIC")) in find_videos(folder)


def test_two_files_of_one_id_are_refused_with_both_names(folder):
    (folder / "b.avi").touch()
    with pytest.raises(SourceError, match=r"b\.mp4 appears twice, also of .*b\.avi"):
        find_videos(folder)


def test_pictures_of_one_name_keep_their_endings(folder):
    (folder / "a" / "cup.png").touch()
    ids = [video.video_id for video in find_videos(folder)]
    assert ids == ["a/b/d", "a/c", "a/cup.JPG", "a/cup.png", "b"]


def test_metadata_says_which_videos_there_are_and_their_ids(folder):
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "b.mp4", "video_id": "x/../y", "text": 1}\n{"file_name": "a/c.WEBM"}\n'
    )
    assert find_videos(folder) == [Video("x/../y", str(folder / "b.mp4")), Video("a/c", str(folder / "a/c.WEBM"))]


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "a/../../x.mp4", "..\\\\x.mp4"])
def test_metadata_never_leads_out_of_its_folder(folder, name):
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "{name}"}}\n')
    with pytest.raises(SourceError, match="outside the folder"):
        find_videos(folder)


def test_lists_name_files_ids_and_spans(folder, tmp_path):
    whole = [Video("videos/b", str(tmp_path / "videos/b.mp4")), Video("/x/y", "/x/y.mp4")]
    (tmp_path / "list.txt").write_text("videos/b.mp4\n\n/x/y.mp4\n")
    assert find_videos(tmp_path / "list.txt") == whole
    spans = [Video("one", str(tmp_path / "videos/b.mp4"), 1.5, 3.0), Video("two", str(tmp_path / "videos/b.mp4"))]
    (tmp_path / "list.csv").write_text("video_id,file_name,start,end\none,videos/b.mp4,1.5,3\ntwo,videos/b.mp4,,\n")
    (tmp_path / "list.tsv").write_text(
        "video_id\tfile_name\tstart\tend\none\tvideos/b.mp4\t1.5\t3\ntwo\tvideos/b.mp4\t\t\n"
    )
    (tmp_path / "list.jsonl").write_text(
        '{"file_name": "videos/b.mp4", "video_id": "one", "start": 1.5, "end": 3}\n'
        '{"file_name": "videos/b.mp4", "video_id": "two"}\n'
    )
    for name in ("list.csv", "list.tsv", "list.jsonl"):
        assert find_videos(tmp_path / name) == spans


def test_a_span_without_an_id_is_named_by_its_seconds_and_lines_of_one_clip_are_one(tmp_path):
    (tmp_path / "captions.csv").write_text(
        "file_name;start;end;language;caption\n"
        "films/tea.mp4;8;16;en;a kettle\nfilms/tea.mp4;8,0;16,0;sw;birika\nfilms/tea.mp4;1:02.5;0:02:00;en;a cup\n"
        "films/tea.mp4;;;en;tea\n./films/cat.jpg;;;en;a cat\n"
    )
    film = str(tmp_path / "films/tea.mp4")
    assert find_videos(tmp_path / "captions.csv") == [
        Video("films/tea#8.0-16.0", film, 8.0, 16.0),
        Video("films/tea#62.5-120.0", film, 62.5, 120.0),
        Video("films/tea", film),
        Video("films/cat", str(tmp_path / "films/cat.jpg")),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.csv", "path\nx.mp4\n", "no column 'file_name'"),
        ("l.jsonl", '{"file_name": 3}', "file_name is 3"),
        ("l.jsonl", "{", "line 1: not valid JSON"),
        ("l.jsonl", '{"file_name": "x.mp4", "video_id": 7}', "must be a text"),
        ("l.jsonl", '{"file_name": "x.mp4", "video_id": "a\\nb"}', "control characters"),
        ("l.jsonl", '{"file_name": "x.mp4", "video_id": "' + "a" * 1001 + '"}', "longer than 1000"),
        ("l.csv", "file_name,start,end\nx.mp4,3,2\n", "0 <= start < end"),
        ("l.csv", "file_name,start\nx.mp4,soon\n", "write seconds"),
        ("l.txt", "a.mp4\na.webm\n", "'a' of"),
        ("l.csv", "file_name,start\nx.mp4,-1\n", "write seconds"),
        ("l.csv", "file_name,start,end\nx.mp4,0,nan\n", "write seconds"),
        ("l.csv", "file_name,start\nx.mp4,1:2:3:4\n", "write seconds, or h:mm:ss"),
        ("l.csv", "video_id,file_name,start,end\na,x.mp4,0,1\na,x.mp4,1,2\n", "appears twice"),
        ("l.jsonl", '{"file_name": "x.mp4", "video_id": ["a"]}', "must be a text"),
        ("l.txt", "\n", "no video"),
        ("l.mp4", "x", "ends in one of"),
    ],
)
def test_a_bad_list_is_refused_with_its_line_and_the_remedy(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError) as refused:
        find_videos(tmp_path / name)
    assert words in str(refused.value) and str(tmp_path) in str(refused.value)


def test_no_folder_and_no_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_videos(tmp_path / "nowhere")


def test_the_fingerprint_knows_ids_paths_and_spans_and_not_where_the_folder_is():
    one = fingerprint([Video("a", "/x/a.mp4")], "/x")
    assert one == fingerprint([Video("a", "/y/a.mp4")], "/y")
    others = [
        Video("b", "/x/a.mp4"),
        Video("a", "/x/b.mp4"),
        Video("a", "/x/a.mp4", 1.0),
        Video("a", "/x/a.mp4", 0.0, 2.0),
    ]
    assert len({one, *(fingerprint([other], "/x") for other in others)}) == 5


def test_the_fingerprint_knows_that_a_file_was_replaced(tmp_path):
    video, found = tmp_path / "a.mp4", []
    for content in (b"one", b"other", b"one"):
        video.write_bytes(content)
        found.append(fingerprint([Video("a", str(video))], tmp_path))
    assert found[0] != found[1] and found[0] == found[2]


def test_all_that_is_wrong_with_a_lists_ids_is_said_at_once(tmp_path):
    ids = ["a\nb", "ok", "fine", "ok", *7 * [1]]
    lines = [{"file_name": f"{n}.mp4", "video_id": video_id} for n, video_id in enumerate(ids)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for line in lines:
        (tmp_path / line["file_name"]).touch()
    with pytest.raises(SourceError) as error:
        find_videos(tmp_path / "l.jsonl")
    message = str(error.value)
    words = ["0.mp4 has control", "3.mp4 appears twice", "4.mp4 must be a text", "id 1 of", "6.mp4 must", "and 4 more"]
    assert all(word in message for word in words) and "7.mp4" not in message and "\n" not in message
