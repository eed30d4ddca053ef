"""Folders and lists of videos."""

import pytest

from modeling_mmt.data.sources import SourceError
from modeling_mmt.data.video_lists import Video, find_videos, fingerprint


@pytest.fixture
def folder(tmp_path):
    for name in ["b.mp4", "a/c.WEBM", "a/b/d.gif", "a/notes.txt", ".hidden/e.mp4", ".f.mp4", "thumbnail.jpg"]:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


def test_a_folder_gives_its_videos_by_their_paths(folder):
    assert find_videos(folder) == [
        Video("a/b/d", str(folder / "a/b/d.gif")),
        Video("a/c", str(folder / "a/c.WEBM")),
        Video("b", str(folder / "b.mp4")),
    ]


def test_two_files_of_one_id_are_refused_with_both_names(folder):
    (folder / "b.avi").touch()
    with pytest.raises(SourceError, match=r"b\.mp4 appears twice, also of .*b\.avi"):
        find_videos(folder)


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
