"""The builders on small corpora in the official formats: rows, rules, counts, and bad files."""

import gzip
import json
import multiprocessing
import sys
import tracemalloc

import datasets
import numpy as np
import official_files
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_scripts import (
    corpus,
    msrvtt,
    multi30k,
    multi_howto100m,
    own_clips,
    photo9,
    storybook8,
    subtitled_videos,
    vatex,
)
from modeling_mmt.commands.build import build
from modeling_mmt.data import sources
from modeling_mmt.data.cues import CueCleaner
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.sources import SourceError, Sources, Tally

BUILDERS = {
    "multi30k": (multi30k, official_files.multi30k),
    "msrvtt": (msrvtt, official_files.msrvtt),
    "vatex": (vatex, official_files.vatex),
    "multi_howto100m": (multi_howto100m, official_files.how2),
    "storybook8": (storybook8, official_files.storybook),
    "photo9": (photo9, official_files.photos),
    "own_clips": (own_clips, official_files.own),
    "subtitled_videos": (subtitled_videos, official_files.subtitled),
}
JSON_OF = {"msrvtt": "MSRVTT_data.json", "vatex": "vatex_training_v1.0.json", "multi_howto100m": "how2_de.json"}
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


def run(name, tmp_path, *options):
    """Build from `tmp_path/source`; returns the counts, the record, and a function that reads a split's rows."""
    out = tmp_path / "out"
    counts = build(name, ["--data_dir", str(tmp_path / "source"), "--output_dir", str(out), *map(str, options)])
    record = json.loads((out / "build.json").read_text())

    def rows(split):
        return [row for path in sorted((out / "data").glob(f"{split}-0*")) for row in pq.read_table(path).to_pylist()]

    return counts, record, rows


def rule(record, name):
    return record["rules"][name]["count"]


def store(folder, ids, rate=1.0, steps=12, extractor="made up"):
    clips = ((video_id, np.ones((steps, 2))) for video_id in ids)
    return write_feature_store(folder, clips, extractor=extractor, revision="1", rate=rate)


# All builders


@pytest.mark.parametrize("name", BUILDERS)
def test_what_a_builder_writes_is_loaded_by_datasets_with_a_config_for_each_language(name, tmp_path):
    BUILDERS[name][1](tmp_path / "source")
    counts, record, rows = run(name, tmp_path)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    for split, part in loaded.items():
        assert len(part) == counts[split] == len({*part["video_id"]})
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert front["language"] == record["languages"]
    assert [c["config_name"] for c in front["configs"]][1 : 1 + len(front["language"])] == front["language"]
    language = record["languages"][-1]
    one = datasets.load_dataset(str(tmp_path / "out"), language)["train"]
    others = {other for other in record["languages"] if other != language}
    assert one["video_id"][:] == loaded["train"]["video_id"][:]
    assert not any(column.rpartition("_")[2] in others for column in one.column_names)
    assert any(column.endswith(f"_{language}") for column in one.column_names)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_file_read_is_in_the_card_with_the_hash_of_its_bytes(name, tmp_path):
    import hashlib

    BUILDERS[name][1](tmp_path / "source")
    _, record, _ = run(name, tmp_path)
    there = {str(p.relative_to(tmp_path / "source")): p for p in (tmp_path / "source").rglob("*") if p.is_file()}
    assert set(record["sources"]) == set(there)
    card = (tmp_path / "out" / "README.md").read_text()
    for file, digest in record["sources"].items():
        assert digest == hashlib.sha256(there[file].read_bytes()).hexdigest() and digest in card


@pytest.mark.parametrize("name", BUILDERS)
def test_building_twice_gives_the_same_bytes(name, tmp_path):
    BUILDERS[name][1](tmp_path / "source")
    run(name, tmp_path)
    first = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    run(name, tmp_path)
    assert first == {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_missing_file_is_named_with_the_layout(name, tmp_path):
    BUILDERS[name][1](tmp_path / "source")
    needed = sorted(p for p in (tmp_path / "source").rglob("*") if p.is_file() and "multilingual" not in str(p))
    gone = needed[0] if name not in ("multi_howto100m", "subtitled_videos") else None
    for path in [gone] if gone else needed:
        path.unlink()
    with pytest.raises((FileNotFoundError, SourceError), match="official files|--data_dir holds|source: no video"):
        run(name, tmp_path)
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_clip_without_features_is_an_error_or_by_policy_a_counted_skip_with_a_ceiling(name, tmp_path):
    ids = BUILDERS[name][1](tmp_path / "source")
    folder = store(tmp_path / "store", [*ids[1:], "of no split"], steps=40)
    with pytest.raises(SourceError, match=f"clip '{ids[0]}' has captions, but .*store has no features"):
        run(name, tmp_path, "--features", folder)
    with pytest.raises(SourceError, match="more than --max_missing 0.01"):
        run(name, tmp_path, "--features", folder, "--missing_features", "skip", "--max_missing", 0.01)
    assert not (tmp_path / "out" / "data").exists()
    options = ("--features", folder, "--missing_features", "skip", "--max_missing", 0.5)
    _, record, rows = run(name, tmp_path, *options)
    assert rule(record, "no_features") == 1 and rule(record, "features_unused") == 1
    assert ids[0] not in {row["video_id"] for split in record["rows"] for row in rows(split)}
    assert record["features"] == [{"extractor": "made up", "revision": "1", "rate": 1.0}]


def test_stores_of_different_rates_do_not_go_together(tmp_path):
    ids = official_files.own(tmp_path / "source")
    folders = [store(tmp_path / f"store{rate}", ids, rate=rate) for rate in (1.0, 1.5)]
    with pytest.raises(SourceError, match=r"rates \[1.0, 1.5\]"):
        run("own_clips", tmp_path, "--features", *folders)


@pytest.mark.parametrize("name", JSON_OF)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "incomplete or invalid JSON"),
        (lambda data: b"\xff\xfe" + data.decode().encode("utf-16-le"), "UTF-8|no JSON object"),
        (lambda data: data.replace(b"red", b"r\xe9d", 1), "not UTF-8"),
        (lambda data: b"", "incomplete or invalid JSON|no JSON object"),
        (lambda data: b"3", "instead of|no JSON object"),
    ],
    ids=["cut short", "UTF-16", "Latin-1", "empty", "a number"],
)
def test_damaged_json_is_refused_by_name_and_nothing_is_written(name, damage, message, tmp_path):
    BUILDERS[name][1](tmp_path / "source")
    path = tmp_path / "source" / JSON_OF[name]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=message) as error:
        run(name, tmp_path)
    assert JSON_OF[name] in str(error.value) and not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    "video_id", ["../x", "/etc/passwd", "a\0b", "", " ", ".", "a\\b", "a\nb", "x" * 201, "\ud800"]
)
def test_an_id_that_is_no_name_is_refused(video_id):
    with pytest.raises(SourceError, match="here: .*is not a valid clip id; give"):
        sources.checked_id(video_id, "here")
    for value in (None, 3, ["a"]):
        with pytest.raises(SourceError, match="is not a valid clip id"):
            sources.checked_id(value, "here")


@pytest.mark.parametrize("name", ["msrvtt", "vatex", "multi_howto100m", "multi30k", "own_clips"])
def test_a_path_for_an_id_stops_every_builder(name, tmp_path):
    ids = BUILDERS[name][1](tmp_path / "source")
    for path in (tmp_path / "source").rglob("*"):
        if path.is_file() and path.suffix != ".gz":
            text = path.read_text()
            path.write_text(
                text.replace(f'"{ids[0]}"', '"../x"').replace(f"{ids[0]},", "../x,").replace(f"{ids[0]}.", "../x.")
            )
    with pytest.raises(SourceError, match="'../x' is not a valid clip id"):
        run(name, tmp_path)


def test_an_unknown_language_is_refused(tmp_path):
    official_files.how2(tmp_path / "source", languages=("en", "pt"))
    with pytest.raises(SourceError, match="language 'pt' is unknown; known are en, de"):
        run("multi_howto100m", tmp_path)
    with pytest.raises(SourceError, match="Czech is 'cs'"):
        sources.checked_language("cz", "here")
    with pytest.raises(SourceError, match="write its BCP-47 code"):
        sources.checked_language("english", "here")


@pytest.mark.parametrize(
    ("value", "kept", "rule_name"),
    [
        ("a dog", "a dog", None),
        (" a\tdog \n", "a dog", "spaces"),
        ("一只狗", "一只狗", None),
        ("", None, "empty"),
        (" \t\n", None, "empty"),
        (None, None, "not_text"),
        (3.5, None, "not_text"),
        (["a"], None, "not_text"),
        ("half \ud83d", None, "not_text"),
        ("x" * 10_000_000, None, "too_long"),
        ("x" * sources.MAX_CAPTION, "x" * sources.MAX_CAPTION, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_each_caption_rule_keeps_or_drops_and_counts(value, kept, rule_name):
    tally = Tally()
    assert sources.clean_text(value, tally) == kept
    assert {rule: count for rule, count in tally.counts.items() if count} == ({rule_name: 1} if rule_name else {})


def test_a_rule_that_is_not_stated_cannot_be_counted():
    with pytest.raises(KeyError, match="no rule 'surprise'; state it first"):
        Tally().count("surprise")


# Multi30K


def test_multi30k_aligns_both_tasks_with_the_lists_of_images(tmp_path):
    official_files.multi30k(tmp_path / "source")
    counts, record, rows = run("multi30k", tmp_path)
    assert counts == {"train": 8, "validation": 3, "test": 3}
    row = rows("validation")[1]
    number = 9
    assert row["video_id"] == str(1000 + number)
    assert row["parallel_cs"] == row["caption_cs"] == [official_files.caption(number, "cs")]
    assert sorted(row["caption_en"]) == sorted(official_files.caption(number, "en", k) for k in range(1, 6))
    assert row["parallel_en"] == [official_files.caption(number, "en", 2)]
    assert len(row["caption_de"]) == 6 and row["caption_de"][0] == official_files.caption(number, "de")
    assert rule(record, "same_in_both") == 14  # once a picture


def test_multi30k_refuses_texts_that_do_not_align(tmp_path):
    official_files.multi30k(tmp_path / "source")
    path = tmp_path / "source/data/task2/raw/train.3.de.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).split(b"\n", 1)[1]))
    with pytest.raises(SourceError, match="train.3.de.gz: 7 lines, its list of images has 8"):
        run("multi30k", tmp_path)
    official_files.multi30k(tmp_path / "source")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(SourceError, match="train.3.de.gz: not a complete gzip file"):
        run("multi30k", tmp_path)
    official_files.multi30k(tmp_path / "source")
    listed = tmp_path / "source/data/task2/image_splits/train_images.txt"
    listed.write_text(listed.read_text().replace("1003.jpg", "9999.jpg"))
    with pytest.raises(SourceError, match="picture '9999' is not in task 1's train.txt"):
        run("multi30k", tmp_path)


# MSR-VTT


def test_msrvtt_has_the_papers_splits_and_says_what_9k_leaks(tmp_path, capsys):
    ids = official_files.msrvtt(tmp_path / "source")
    counts, record, rows = run("msrvtt", tmp_path)
    assert counts == {"train": 8, "validation": 3, "test": 4, "test_rest": 2, "test_1ka_all": 4}
    assert rule(record, "leak") == 2 and rule(record, "other_split") == 0
    assert "config 9k trains on 2 clips of the official test split: do not test on it" in capsys.readouterr().out
    test = rows("test")
    assert [row["video_id"] for row in test] == ids[11:15]
    assert test[0]["caption_en"] == [official_files.caption(11, "en", 1)]
    assert test[0]["caption_sw"] == [official_files.caption(11, "sw")]  # the first of the file's is 1k-A's
    assert rows("train")[0]["caption_cs"] == [official_files.caption(0, "cs", k) for k in range(2)]
    assert len(rows("train")[0]["caption_en"]) == 3
    by_config = {
        config: {split: len(part) for split, part in datasets.load_dataset(str(tmp_path / "out"), config).items()}
        for config in ("default", "full", "9k")
    }
    assert by_config == {
        "default": {"train": 8, "validation": 3, "test": 4},
        "full": {"train": 8, "validation": 3, "test": 6},
        "9k": {"train": 8 + 3 + 2, "test": 4},
    }


def test_msrvtt_reads_the_two_official_files_as_it_reads_the_one(tmp_path):
    official_files.msrvtt(tmp_path / "source")
    _, _, rows = run("msrvtt", tmp_path)
    whole = {split: rows(split) for split in ("train", "test", "test_rest")}
    path = tmp_path / "source/MSRVTT_data.json"
    data = json.loads(path.read_text())
    path.unlink()
    tested = {video["video_id"] for video in data["videos"] if video["split"] == "test"}
    for name, of_test in (("train_val_videodatainfo.json", False), ("test_videodatainfo.json", True)):
        part = {key: [one for one in data[key] if (one["video_id"] in tested) == of_test] for key in data}
        official_files.write_json(tmp_path / "source" / name, part)
    _, _, rows = run("msrvtt", tmp_path)
    assert whole == {split: rows(split) for split in whole}


def test_msrvtt_keeps_pooled_captions_apart_and_counts_clips_that_it_does_not_know(tmp_path):
    official_files.msrvtt(tmp_path / "source")
    pooled = {"video0.mp4": ["red dog", "roter Hund"], "video77.mp4": ["x"]}
    official_files.write_json(tmp_path / "source/multilingual_train/ref_captions_all.json", pooled)
    _, record, rows = run("msrvtt", tmp_path)
    assert rows("train")[0]["caption_mul"] == ["red dog", "roter Hund"]
    assert rows("train")[1]["caption_mul"] == [] and rule(record, "unknown_clip") == 1


def test_msrvtt_flags_a_pair_that_the_official_list_does_not_hold_out(tmp_path):
    official_files.msrvtt(tmp_path / "source")
    path = tmp_path / "source/MSRVTT_JSFUSION_test.csv"
    path.write_text(path.read_text() + "ret9,msr0,video0,red dog\n")
    assert rule(run("msrvtt", tmp_path)[1], "other_split") == 1
    path.write_text(path.read_text() + "ret9,msr0,video0,red dog\n")
    with pytest.raises(SourceError, match="line 7: 'video0' appears twice"):
        run("msrvtt", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("videos"), "field 'videos' is missing"),
        (lambda data: data["videos"].append(data["videos"][0]), r"videos\[17\]: 'video0' appears twice"),
        (lambda data: data["videos"][2].update(split="dev"), r"videos\[2\]: split is 'dev'; known are train"),
        (lambda data: data["videos"][2].update(split=["train"]), r"videos\[2\]: split is \['train'\]; known are"),
        (
            lambda data: data["sentences"][0].update(video_id=["video0"]),
            r"sentences\[0\]: \['video0'\] is not a valid clip id",
        ),
        (lambda data: data["videos"][2].pop("split"), r"videos\[2\]: field 'split' is missing"),
        (lambda data: data["sentences"].append({"video_id": "videoX", "caption": "x"}), "'videoX' is not among"),
        (lambda data: data.update(sentences={}), "sentences: dict instead of a list"),
    ],
)
def test_msrvtt_refuses_what_breaks_the_layout(change, message, tmp_path):
    official_files.msrvtt(tmp_path / "source")
    path = tmp_path / "source/MSRVTT_data.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match=message):
        run("msrvtt", tmp_path)


def test_a_key_twice_in_json_is_refused(tmp_path):
    official_files.msrvtt(tmp_path / "source")
    path = tmp_path / "source/multilingual_test/test_sw.json"
    path.write_text('{"video11.mp4": ["a"], "video11.mp4": ["b"]}')
    with pytest.raises(SourceError, match="test_sw.json: key 'video11.mp4' appears twice"):
        run("msrvtt", tmp_path)


# VATEX


def test_vatex_marks_the_parallel_pairs_and_halves_validation_by_the_lists(tmp_path):
    ids = official_files.vatex(tmp_path / "source")
    counts, record, rows = run("vatex", tmp_path)
    assert counts == {"train": 8, "validation": 3, "test": 3}
    assert [row["video_id"] for row in rows("test")] == ids[9::2]
    row = rows("train")[2]
    assert row["caption_zh"] == [official_files.caption(2, "zh", k) for k in range(10)]
    assert row["parallel_en"] == [official_files.caption(2, "en", k) for k in range(5, 10)]
    assert row["parallel_zh"] == [official_files.caption(2, "zh", k) for k in range(5, 10)]
    assert (row["start"], row["end"]) == (2.0, 12.0)


@pytest.mark.parametrize("name", ["vatex_training_v1.0.json", "vatex_validation_v1.0.json"])
def test_vatex_refuses_a_clip_that_is_there_twice(tmp_path, name):
    official_files.vatex(tmp_path / "source")
    path = tmp_path / "source" / name
    items = json.loads(path.read_text())
    path.write_text(json.dumps([*items, items[0]]))
    with pytest.raises(SourceError, match=f"{name}, item {len(items)}: {items[0]['videoID']!r} appears twice"):
        run("vatex", tmp_path)


def test_vatex_drops_a_broken_pair_in_both_languages_and_a_clip_without_length(tmp_path):
    official_files.vatex(tmp_path / "source")
    path = tmp_path / "source/vatex_training_v1.0.json"
    items = json.loads(path.read_text())
    items[0]["chCap"][6] = ""
    items[1]["videoID"] = items[1]["videoID"][:-6] + "000001"
    path.write_text(json.dumps(items))
    counts, record, rows = run("vatex", tmp_path)
    assert counts["train"] == 7 and rule(record, "no_length") == 1
    assert rule(record, "broken_pair") == 1 and rule(record, "empty") == 1
    row = rows("train")[0]
    assert len(row["parallel_en"]) == len(row["parallel_zh"]) == 4 and len(row["caption_en"]) == 10
    assert row["parallel_en"][1] == official_files.caption(0, "en", 7)
    assert row["parallel_zh"][1] == official_files.caption(0, "zh", 7)


def test_vatex_takes_hgrs_arrays_and_refuses_pickled_ones(tmp_path):
    ids = official_files.vatex(tmp_path / "source")
    (tmp_path / "source/val_names.txt").unlink()
    np.save(tmp_path / "source/val_names.npy", np.array(ids[8::2]))
    assert run("vatex", tmp_path)[0]["validation"] == 3
    np.save(tmp_path / "source/val_names.npy", np.array(ids[8::2], object), allow_pickle=True)
    with pytest.raises(SourceError, match="may run code.*val_names.txt"):
        run("vatex", tmp_path)


def test_vatex_without_lists_keeps_validation_whole_when_told_to(tmp_path):
    official_files.vatex(tmp_path / "source")
    (tmp_path / "source/val_names.txt").unlink()
    with pytest.raises(FileNotFoundError, match="val_names.txt does not exist"):
        run("vatex", tmp_path)
    assert run("vatex", tmp_path, "--no_halves")[0] == {"train": 8, "validation": 6}


def test_vatex_counts_what_lists_and_file_do_not_share_and_refuses_both_halves(tmp_path):
    ids = official_files.vatex(tmp_path / "source")
    (tmp_path / "source/val_names.txt").write_text(f"{ids[8]}\nabcdefghijk_000000_000010\n")
    record = run("vatex", tmp_path)[1]
    assert rule(record, "half_missing") == 1 and rule(record, "half_unknown") == 2
    (tmp_path / "source/val_names.txt").write_text(f"{ids[9]}\n")
    with pytest.raises(SourceError, match="in both of HGR's halves"):
        run("vatex", tmp_path)


# Multi-HowTo100M


def test_howto100m_joins_languages_whose_files_are_in_different_orders(tmp_path):
    ids = official_files.how2(tmp_path / "source", num_videos=20)
    counts, _, rows = run("multi_howto100m", tmp_path)
    assert counts == {"train": 20}
    found = {row["video_id"]: row for row in rows("train")}
    assert set(found) == set(ids) and list(found) != ids
    assert found[ids[6]]["text_es"] is None and found[ids[6]]["text_sw"] is not None
    row = found[ids[5]]
    assert row["text_ru"] == [official_files.caption(5, "ru", cue) for cue in range(6)]
    assert row["start_ru"] == [0, 2, 4, 6, 8, 10] and row["end_ru"][0] == 1.5


def test_howto100m_takes_the_same_rows_from_any_number_of_parts_and_from_gzip(tmp_path, monkeypatch):
    official_files.how2(tmp_path / "source", num_videos=20)
    _, _, rows = run("multi_howto100m", tmp_path)
    one = {row["video_id"]: row for row in rows("train")}
    monkeypatch.setattr(multi_howto100m, "PART_BYTES", 2000)
    path = tmp_path / "source/how2_ru.json"
    path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    _, _, rows = run("multi_howto100m", tmp_path)
    assert {row["video_id"]: row for row in rows("train")} == one


def cleaned(texts, starts, ends, seconds=None):
    tally = Tally(multi_howto100m.RULES)
    video = {"text": texts, "start": starts, "end": ends}
    cues = CueCleaner(tally).clean(multi_howto100m.cues_of(video, tally), seconds)
    return cues, {rule: count for rule, count in tally.counts.items() if count}


@pytest.mark.parametrize(
    ("cues", "seconds", "kept", "counts"),
    [
        ((["a", "b"], [0, 2], [1, 3]), None, (["a", "b"], [0, 2], [1, 3]), {}),
        ((["a", 3, None, ""], [0, 2, 4, 6], [1, 3, 5, 7]), None, (["a"], [0], [1]), {"not_text": 2, "empty": 1}),
        ((["a", "b"], [2, 4], [1, 5]), None, (["b"], [4], [5]), {"backwards": 1}),
        ((["a", "b"], [2, 4], [2, 5]), None, (["b"], [4], [5]), {"no_length": 1}),
        ((["a", "b", "c"], [-1, "2", 4], [1, 3, float("nan")]), None, None, {"bad_time": 3, "no_cue": 1}),
        ((["b", "a"], [4, 0], [5, 1]), None, (["a", "b"], [0, 4], [1, 5]), {"unordered": 1}),
        ((["a", "b"], [0, 2], [3, 5]), None, (["a", "b"], [0, 2], [2, 5]), {"overlap": 1}),
        ((["a", "b"], [0, 0], [3, 5]), None, (["a b"], [0], [5]), {"same_start": 1}),
        ((["go on", "go on"], [0, 2], [2, 4]), None, (["go on"], [0], [4]), {"repeated_cue": 1}),
        ((["go on", "go on"], [0, 9], [2, 11]), None, (["go on", "go on"], [0, 9], [2, 11]), {}),
        ((["cut the", "cut the bread"], [0, 2], [2, 4]), None, (["cut the", "bread"], [0, 2], [2, 4]), {"roll_up": 1}),
        (
            (["take a big knife", "big knife and cut", "and cut it"], [0, 2, 4], [3, 5, 6]),
            None,
            (["take a big knife", "and cut", "it"], [0, 2, 4], [2, 4, 6]),
            {"roll_up": 2, "overlap": 2},
        ),
        ((["in the end", "end it"], [0, 2], [2, 4]), None, (["in the end", "end it"], [0, 2], [2, 4]), {}),
        ((["切", "切面包"], [0, 2], [2, 4]), None, (["切", "面包"], [0, 2], [2, 4]), {"roll_up": 1}),
        ((["a", "b", "c"], [0, 2, 9], [1, 6, 11]), 5, (["a", "b"], [0, 2], [1, 5]), {"beyond": 1, "cut": 1}),
        ((["a"], [9], [11]), 5, None, {"beyond": 1, "no_cue": 1}),
    ],
)
def test_each_rule_for_cues_changes_what_it_says_and_counts(cues, seconds, kept, counts):
    assert cleaned(*cues, seconds) == (kept, counts)


@pytest.mark.parametrize(
    "video", [None, [], {}, {"text": ["a"], "start": [0]}, {"text": ["a"], "start": [0], "end": []}]
)
def test_a_video_that_is_no_three_lists_of_one_length_is_dropped_and_counted(video):
    tally = Tally(multi_howto100m.RULES)
    assert multi_howto100m.cues_of(video, tally) == [] and tally.counts["bad_video"] == 1


def test_howto100m_cuts_cues_to_the_features(tmp_path):
    ids = official_files.how2(tmp_path / "source", num_videos=3, languages=("en",))
    folder = store(tmp_path / "store", ids, rate=2.0, steps=10)  # 5 seconds
    _, record, rows = run("multi_howto100m", tmp_path, "--features", folder)
    assert rule(record, "beyond") == 9 and rule(record, "cut") == 3
    assert rows("train")[0]["end_en"] == [1.5, 3.5, 5.0]


def test_howto100m_keeps_the_first_of_a_video_that_is_there_again(tmp_path):
    def video(text):
        return json.dumps({"text": [text], "start": [0], "end": [1]})

    (tmp_path / "source").mkdir()
    (tmp_path / "source/how2_en.json").write_text(f'{{"v": {video("first")}, "v": {video("second")}}}')
    _, record, rows = run("multi_howto100m", tmp_path)
    assert rows("train")[0]["text_en"] == ["first"] and rule(record, "repeated_video") == 1


def test_howto100m_takes_any_characters_that_an_id_may_have(tmp_path):
    ids = ['a", [b', "日本", "it's {1}", "x y"]
    (tmp_path / "source").mkdir()
    video = {"text": ["one\ttwo\nthree"], "start": [0], "end": [1]}
    (tmp_path / "source/how2_en.json").write_text(json.dumps(dict.fromkeys(ids, video)))
    _, _, rows = run("multi_howto100m", tmp_path)
    assert {row["video_id"]: row["text_en"] for row in rows("train")} == dict.fromkeys(ids, ["one two three"])


def test_howto100m_holds_a_part_of_the_source_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BYTES_PER_GROUP", 1 << 18)
    monkeypatch.setattr(corpus, "ROWS_PER_GROUP", 20)
    monkeypatch.setattr(multi_howto100m, "PART_BYTES", 1 << 18)
    (tmp_path / "source").mkdir()
    peaks = {}
    for num_videos in (100, 800):
        with open(tmp_path / "source/how2_en.json", "w") as file:
            for number in range(num_videos):
                texts = [f"{number} {cue} " + "word " * 9 for cue in range(100)]
                video = {"text": texts, "start": list(range(100)), "end": [cue + 0.5 for cue in range(100)]}
                file.write(("{" if number == 0 else ", ") + f'"{number:011d}": {json.dumps(video)}')
            file.write("}")
        if not peaks:
            run("multi_howto100m", tmp_path)  # what is imported and cached on the first run is not counted
        tracemalloc.start()
        run("multi_howto100m", tmp_path)
        peaks[num_videos] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "source/how2_en.json").stat().st_size > 4.5e6
    assert peaks[800] < 1.5 * peaks[100] + 1e6, peaks


# storybook8


def test_storybook8_splits_by_story_and_keeps_the_pictures_bytes(tmp_path):
    official_files.storybook(tmp_path / "source")
    counts, record, rows = run("storybook8", tmp_path)
    stories = {split: {row["story"] for row in rows(split)} for split in counts}
    assert sum(counts.values()) == 80 and counts["train"] > counts["test"] > counts["validation"] > 0
    assert (
        not stories["train"] & (stories["test"] | stories["validation"])
        and not stories["test"] & stories["validation"]
    )
    row = rows("train")[0]
    file = tmp_path / "source" / f"images/{row['story']}_{row['page'] + 1:02d}.jpg"
    assert row["frames"]["bytes"] == file.read_bytes()
    assert row["caption_sw"] and row["caption_zh"] is None
    second = next(one for one in rows("train") if one["story"] == row["story"] and one["page"] != row["page"])
    assert row["nearby_sw"] == [second["caption_sw"]] and second["nearby_en"] == [row["caption_en"]]
    assert (tmp_path / "out/IMAGEBANK_CREDITS.md").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": "[CC-BY-NC]"}, "license is '.CC-BY-NC.'; only .CC-BY. may be passed on"),
        ({"file": "images/../../x.jpg"}, "file is 'images/../../x.jpg'"),
        ({"file": "images/0001_02.jpg"}, "file is 'images/0001_02.jpg'; write images/0000_NN.jpg"),
        ({"story": "../1"}, "story is '../1'"),
        ({"page": "1"}, "page is '1'"),
        ({"text": {"cs": "x"}}, "language 'cs' is unknown"),
        ({"text": ["x"]}, "text: list instead of an object"),
    ],
)
def test_storybook8_refuses_a_bad_page(change, message, tmp_path):
    official_files.storybook(tmp_path / "source", num_stories=3)
    index = tmp_path / "source/storybook8.jsonl"
    first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
    with pytest.raises(SourceError, match=f"line 1.*{message}"):
        run("storybook8", tmp_path)


# photo9


def test_photo9_splits_by_concept_and_by_photo(tmp_path):
    official_files.photos(tmp_path / "source")
    counts, record, rows = run("photo9", tmp_path)
    assert counts == {"train": 6, "validation": 2, "test": 2, "test_unseen": 10, "validation_unseen": 10}
    assert {row["concept"] for row in rows("test_unseen")} == {"ant"}  # emoji9 tests on it
    assert {row["concept"] for row in rows("validation_unseen")} == {"apple"}
    (row,) = [row for row in rows("test_unseen") if row["video_id"] == "made-up-ant-3"]
    assert row["frames"]["bytes"] == (tmp_path / "source/images/made-up-ant-3.jpg").read_bytes()
    assert row["name_sw"] == "ant sw" and row["keywords_en"] == []


def test_photo9_keeps_near_duplicates_in_one_split(tmp_path):
    official_files.photos(tmp_path / "source")
    _, record, rows = run("photo9", tmp_path)
    split_of = {row["video_id"]: split for split in ("train", "validation", "test") for row in rows(split)}
    assert len(split_of) == 10 and split_of["made-up-accordion-8"] == split_of["made-up-accordion-9"]
    assert rule(record, "near_duplicate") == 2


def test_photo9_takes_the_keywords_of_emoji9_without_the_name(tmp_path):
    official_files.photos(tmp_path / "source")
    _, record, rows = run("photo9", tmp_path)
    emoji9 = datasets.load_dataset("datasets_scripts/emoji9", split="train")
    (emoji,) = [row for row in emoji9.select_columns(["emoji", "keywords_en", "keywords_sw"]) if row["emoji"] == "🪗"]
    assert "accordion" in emoji["keywords_en"]
    for row in rows("train"):
        assert row["keywords_en"] == [word for word in emoji["keywords_en"] if word != "accordion"]
        assert row["keywords_sw"] == emoji["keywords_sw"]
    assert rule(record, "named") == 10


@pytest.mark.parametrize("emoji", ["\u2708\ufe0f", "\u2708"])
def test_photo9_knows_an_emoji_with_and_without_its_variation_selector(emoji, tmp_path):
    official_files.photos(tmp_path / "source")
    index = tmp_path / "source/photo9.jsonl"
    photos = [json.loads(line) for line in index.read_text().splitlines()]
    for photo in photos:
        photo["emoji"] = emoji if photo["emoji"] == "🪗" else photo["emoji"]
    index.write_text("\n".join(map(json.dumps, photos)))
    _, _, rows = run("photo9", tmp_path)
    assert all("aeroplane" in row["keywords_en"] for row in rows("train"))


@pytest.mark.parametrize("emoji", [None, "\u2708\u2708"])
def test_photo9_refuses_a_photo_that_emoji9_should_learn_from_and_does_not_have(emoji, tmp_path):
    official_files.photos(tmp_path / "source")
    index = tmp_path / "source/photo9.jsonl"
    first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([json.dumps(json.loads(first) | {"emoji": emoji}), *rest]))
    with pytest.raises(SourceError, match="'made-up-accordion-0': emoji9_split is 'train', and .* have no emoji"):
        run("photo9", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "images/../x.jpg"}, "file is 'images/../x.jpg'; write images/made-up-accordion-0.jpg"),
        ({"id": "../x"}, "'../x' is not a valid clip id"),
        ({"concept": 3}, "concept is 3; write a text"),
        ({"emoji9_split": "dev"}, "emoji9_split is 'dev'"),
        ({"name": {"it": "x"}}, "language 'it' is unknown"),
        ({"name": ["x"]}, "name: list instead of an object"),
    ],
)
def test_photo9_refuses_a_bad_photo(change, message, tmp_path):
    official_files.photos(tmp_path / "source")
    index = tmp_path / "source/photo9.jsonl"
    first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
    with pytest.raises(SourceError, match=f"line 1.*{message}"):
        run("photo9", tmp_path)


def test_photo9_refuses_photos_of_a_concept_that_do_not_agree(tmp_path):
    official_files.photos(tmp_path / "source")
    index = tmp_path / "source/photo9.jsonl"
    first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([json.dumps(json.loads(first) | {"emoji9_split": "test"}), *rest]))
    with pytest.raises(SourceError, match="photos of 'accordion' differ in emoji9_split or name_source"):
        run("photo9", tmp_path)


# Own clips


def test_own_clips_take_any_language_and_split_by_a_hash_where_none_is_given(tmp_path):
    (tmp_path / "source").mkdir()
    lines = [
        {"video_id": f"c{n}", "language": "pt-BR", "caption": f"um {n}", "start": 1, "end": n + 1} for n in range(60)
    ]
    lines.append({"video_id": "c1", "language": "yo", "caption": "ọkan", "start": 1, "end": 2})
    (tmp_path / "source/captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    counts, record, rows = run("own_clips", tmp_path)
    assert record["languages"] == ["pt-BR", "yo"] and rule(record, "no_length") == 1
    assert sum(counts.values()) == 59 and counts["train"] > 30
    (row,) = [row for split in counts for row in rows(split) if row["video_id"] == "c1"]
    assert row["caption_yo"] == ["ọkan"] and (row["start"], row["end"]) == (1, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("own0,en,x,train,extra", "line 20: .*not as many fields"),
        ("own0,en", "line 20: .*not as many fields"),
        ("own0,english,x,train", "line 20, column 'language': language is 'english'"),
        ("own0,en,x,dev", "line 20, column 'split': 'dev' is not a split"),
        ("own0,en,x,train", "clip 'own0' is .*'train'.*before it was .*validation"),
        ("../own0,en,x,train", "'../own0' is not a valid clip id"),
    ],
)
def test_own_clips_refuse_a_bad_line(line, message, tmp_path):
    official_files.own(tmp_path / "source")
    path = tmp_path / "source/captions.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SourceError, match=message):
        run("own_clips", tmp_path)


def test_a_table_without_a_needed_column_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/captions.csv").write_text("video_id,caption\na,b\n")
    with pytest.raises(SourceError, match="captions.csv, line 1: no column 'language'; the header is"):
        run("own_clips", tmp_path)


# Any bytes and any values: a parser gives rows or a SourceError, nothing else


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def gives_rows_or_says_why(read, folder, name, data):
    folder.mkdir(exist_ok=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    try:
        list(read(Sources(folder)))
    except (SourceError, FileNotFoundError) as error:
        assert str(folder) in str(error) or "is not a valid clip id" in str(error)


PARSERS = {
    "how2_en.json": lambda s: multi_howto100m.join(
        s, {"en": "how2_en.json"}, Tally(multi_howto100m.RULES), corpus.Clock()
    ),
    "MSRVTT_data.json": lambda s: msrvtt.official(s, Tally()),
    "MSRVTT_JSFUSION_test.csv": lambda s: msrvtt.jsfusion(s, Tally()),
    "multilingual_test/test_sw.json": lambda s: msrvtt.multilingual(s, Tally(), "multilingual_test/test_sw.json"),
    "vatex_training_v1.0.json": lambda s: vatex.read_file(s, Tally(vatex.RULES), vatex.TRAIN),
    "val_names.txt": lambda s: vatex.half(s, ("val_names.txt",)),
    "captions.csv": lambda s: own_clips.read(s, Tally(own_clips.RULES), corpus.Clock())[1],
    "captions.jsonl": lambda s: own_clips.read(s, Tally(own_clips.RULES), corpus.Clock())[1],
    "storybook8.jsonl": lambda s: [
        storybook8.read_page(line, str(s.folder), Tally()) for line in s.lines("storybook8.jsonl")
    ],
    "photo9.jsonl": lambda s: [photo9.read_photo(line, str(s.folder), Tally()) for line in s.lines("photo9.jsonl")],
    "data/task1/image_splits/train.txt": lambda s: multi30k.image_list(s, "data/task1/image_splits/train.txt"),
    "data/task1/raw/train.en.gz": lambda s: multi30k.aligned(s, "data/task1/raw/train.en.gz", ["a"]),
}


@pytest.mark.parametrize("name", PARSERS)
@FUZZ
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_rows_or_an_error_that_names_the_file(name, tmp_path, data):
    gives_rows_or_says_why(PARSERS[name], tmp_path / "s", name, data)


def mutated(whole):
    """A valid value with one part of it replaced by anything."""

    @st.composite
    def draw_one(draw):
        value = json.loads(json.dumps(whole))
        target, key = value, None
        for _ in range(draw(st.integers(1, 4))):
            keys = (
                list(target)
                if isinstance(target, dict)
                else list(range(len(target)))
                if isinstance(target, list)
                else []
            )
            if not keys:
                break
            parent, key = target, draw(st.sampled_from(keys))
            target = target[key]
        if key is None:
            return draw(ANY_JSON)
        parent[key] = draw(ANY_JSON)
        return value

    return draw_one()


WHOLE = {
    "how2_en.json": {
        "a": {"text": ["x y", "x y z"], "start": [0, 1], "end": [2, 3.5]},
        "b": {"text": [], "start": [], "end": []},
    },
    "MSRVTT_data.json": {
        "videos": [{"video_id": "a", "split": "train"}],
        "sentences": [{"video_id": "a", "caption": "x"}],
    },
    "multilingual_test/test_sw.json": {"video1.mp4": ["x", "y"]},
    "vatex_training_v1.0.json": [{"videoID": "abcdefghijk_000000_000010", "enCap": ["x"] * 10, "chCap": ["y"] * 10}],
    "storybook8.jsonl": {"story": "0001", "page": 1, "file": None, "license": "[CC-BY]", "text": {"en": "x"}},
    "photo9.jsonl": {
        "id": "a",
        "file": "images/a.jpg",
        "source": "x",
        "licence": "MIT",
        "concept": "ant",
        "emoji": None,
        "emoji9_split": None,
        "name": {"en": "ant"},
        "name_source": {"en": "cldr"},
    },
    "captions.jsonl": {"video_id": "a", "language": "en", "caption": "x", "split": "train", "start": 0, "end": 3},
}


@pytest.mark.parametrize("name", WHOLE)
@FUZZ
@given(data=st.data())
def test_any_value_anywhere_gives_rows_or_an_error_that_names_the_place(name, tmp_path, data):
    value = data.draw(mutated(WHOLE[name]))
    gives_rows_or_says_why(PARSERS[name], tmp_path / "s", name, json.dumps(value).encode())


@FUZZ
@given(
    cues=st.lists(
        st.tuples(
            st.text(alphabet="ab ", max_size=6) | st.none(),
            st.floats(-1, 9) | st.integers(0, 9),
            st.floats(-1, 9) | st.integers(0, 9) | st.text(max_size=1),
        ),
        max_size=8,
    ),
    seconds=st.none() | st.floats(0.1, 9),
)
def test_whatever_the_cues_what_is_kept_is_in_order_without_overlap_and_within_the_features(cues, seconds):
    kept, _ = cleaned([c[0] for c in cues], [c[1] for c in cues], [c[2] for c in cues], seconds)
    if kept is None:
        return
    texts, starts, ends = kept
    assert len(texts) == len(starts) == len(ends) > 0 and all(texts)
    assert all(start < end for start, end in zip(starts, ends, strict=True))
    assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
    assert seconds is None or ends[-1] <= seconds


# The real files


@pytest.mark.real_data
def test_the_real_files_give_their_published_counts(real_data, tmp_path):
    """`make test-real DATA=../shared/data`."""
    (tmp_path / "source").symlink_to(real_data / "annotations/multi30k")
    counts, record, rows = run("multi30k", tmp_path)
    assert counts == multi30k.ABOUT.published
    assert rule(record, "repeated_image") == 0 and rule(record, "no_caption") == 0
    train = rows("train")
    assert all(len(row["caption_fr"]) == len(row["caption_cs"]) == 1 for row in train)
    # task 1's caption is one of task 2's five, of 11 pictures two of them
    assert sum(len(row["caption_en"]) for row in train) == 5 * 29000 - 11 and all(
        len(row["parallel_en"]) == 1 for row in train
    )
    assert {len(row["caption_de"]) for row in train} <= {4, 5, 6}  # a few translations are independent captions, too
    assert sum(len(row["parallel_de"]) for row in rows("test")) == 1000


@pytest.mark.real_data
def test_the_real_1ka_list_has_1000_clips_and_995_sentences(real_data, tmp_path):
    (tmp_path / "source").symlink_to(real_data / "annotations")
    counts, _, rows = run("msrvtt", tmp_path, "--test_only")
    assert counts == {"test": 1000} and len({row["caption_en"][0] for row in rows("test")}) == 995


@pytest.mark.real_data
def test_the_real_storybook_has_983_pages_with_a_picture(real_data, tmp_path):
    (tmp_path / "source").symlink_to(real_data / "storybook8")
    counts, record, rows = run("storybook8", tmp_path)
    assert sum(counts.values()) == 983 and rule(record, "no_picture") == 1994 - 983
    pages = [row for split in counts for row in rows(split)]
    wanted = {"en": 983, "sw": 797, "fr": 711, "zh": 391, "es": 370, "de": 357, "vi": 355, "ru": 184}
    assert {lang: sum(row[f"caption_{lang}"] is not None for row in pages) for lang in wanted} == wanted


@pytest.mark.real_data
def test_the_real_photo9_has_2404_photos_and_splits_59_concepts_by_photo(real_data, tmp_path):
    (tmp_path / "source").symlink_to(real_data / "photo9")
    counts, record, rows = run("photo9", tmp_path)
    assert counts == {"train": 705, "validation": 236, "test": 236, "test_unseen": 363, "validation_unseen": 864}
    concepts = {split: {row["concept"] for row in rows(split)} for split in counts}
    assert len(concepts["train"]) == 59 and concepts["train"] == concepts["validation"] == concepts["test"]
    assert (len(concepts["test_unseen"]), len(concepts["validation_unseen"])) == (18, 45)
    assert not concepts["train"] & (concepts["test_unseen"] | concepts["validation_unseen"])
    assert all(row[f"name_{lang}"] for split in ("test", "test_unseen") for row in rows(split) for lang in LANGUAGES)


@pytest.mark.real_data
def test_the_real_emoji9_gives_the_bundled_rows(real_data, tmp_path):
    from datasets_scripts import emoji9

    build("emoji9", ["--data_dir", str(real_data / "emoji9"), "--output_dir", str(tmp_path / "out")])
    for split, count in emoji9.ABOUT.published.items():
        built = datasets.load_dataset(str(tmp_path / "out"), split=split).cast_column(
            "frames", datasets.Image(decode=False)
        )
        bundled = datasets.load_dataset("datasets_scripts/emoji9", split=split)
        bundled = bundled.cast_column("frames", datasets.Image(decode=False))
        assert len(built) == count and built[:] == bundled[:]


@pytest.mark.real_data
def test_the_real_parallel_texts_have_their_published_counts(real_data):
    texts = Sources(real_data / "text9")
    ntrex = ("eng", "deu", "fra", "ces", "zho-CN", "rus", "vie", "swa", "spa")
    assert {len(texts.lines(f"ntrex128/{name}.txt")) for name in ntrex} == {1997}
    pairs = {
        name: len(texts.lines(f"tatoeba_laser/tatoeba.{name}-eng.{name}")) for name in ("deu", "ces", "vie", "swh")
    }
    assert pairs == {"deu": 1000, "ces": 1000, "vie": 1000, "swh": 390}


def test_of_two_builds_at_once_data_and_card_are_of_one(tmp_path):
    """The lock was held for the data alone: the card and `build.json` could be the other's."""
    for number in (2, 3):
        lines = [f"clip{row},en,a dog\n" for row in range(number)]
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "captions.csv").write_text("video_id,language,caption\n" + "".join(lines))

    def start(number):
        ready.wait(timeout=30)
        try:
            build("own_clips", ["--data_dir", str(tmp_path / str(number)), "--output_dir", str(out)])
        except SourceError as error:
            sys.exit(3 if str(error) == f"{out}: another process is building this dataset; wait for it" else 4)

    fork = multiprocessing.get_context("fork")
    for trial in range(20):
        out, ready = tmp_path / f"out{trial}", fork.Barrier(2)
        writers = [fork.Process(target=start, args=[number]) for number in (2, 3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(timeout=60)
        assert sorted(writer.exitcode for writer in writers) in ([0, 0], [0, 3])
        rows = json.loads((out / "build.json").read_text())["rows"].values()
        assert sum(rows) == sum(pq.read_metadata(path).num_rows for path in (out / "data").iterdir())
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "build.json", "data"]


def test_a_build_that_is_killed_after_its_data_leaves_no_card_of_the_old_ones(tmp_path, monkeypatch):
    BUILDERS["own_clips"][1](tmp_path / "source")
    run("own_clips", tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run("own_clips", tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]
    monkeypatch.undo()
    assert run("own_clips", tmp_path)[0]
