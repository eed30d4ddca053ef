"""`modeling_mmt.search.moments`: windows joined to moments, against closed forms, invariances and a naive loop."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.moments import JoinRule, Moment, join

QUERY = torch.tensor([[1.0, 0.0]])
FILM = [(float(start), float(start + 8)) for start in range(0, 120, 4)]  # windows of 8 s every 4 s


def index_of(rows):
    """An index whose row i has the cosine that is given with `QUERY`: rows of (file, start, end, cosine)."""
    files, starts, ends, cosines = zip(*rows, strict=True)
    cosines = torch.tensor(cosines, dtype=torch.float64)
    embeddings = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1).float()
    ids = [f"{file}#{number}" for number, file in enumerate(files)]
    columns = {"video_id": ids, "file": list(files), "start": list(starts), "end": list(ends)}
    return SearchIndex(embeddings, Dataset.from_dict(columns), fingerprint="made by hand")


def places(moments):
    return [moment[:3] for moment in moments]


def share_shown(spans, start, end):
    """How much of each window shows what lasts from start to end."""
    return np.array([max(0.0, min(b, end) - max(a, start)) / (b - a) for a, b in spans])


# --- closed forms


@pytest.mark.parametrize(("start", "end"), [(20.0, 32.0), (21.0, 34.5), (22.5, 60.0), (23.9, 36.1)])
def test_a_staircase_of_scores_gives_the_span_that_made_it(start, end):
    """Each window scores the share of it that shows the thing; at half height that is exact."""
    scores = share_shown(FILM, start, end)
    found = join(np.array(FILM), scores, int(scores.argmax()), 0.0, JoinRule(0.5), np.ones(len(FILM), dtype=bool))
    assert found == pytest.approx((start, end), abs=1e-9)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.95])
def test_shots_that_touch_keep_their_borders_at_any_threshold(threshold):
    spans, scores = np.array([(0.0, 3.0), (3.0, 12.0), (12.0, 14.0), (14.0, 30.0)]), np.array([-0.1, 1.0, 1.0, -0.2])
    assert join(spans, scores, 1, 0.0, JoinRule(threshold), np.ones(4, dtype=bool)) == (3.0, 14.0)


def test_the_cutoff_is_a_share_of_the_way_from_the_background_to_the_best():
    assert JoinRule(0.5).cutoff(0.9, 0.1) == pytest.approx(0.5)
    assert JoinRule(0.75).cutoff(0.5, -0.3) == pytest.approx(0.3)
    assert JoinRule(0.5).cutoff(0.1, 0.4) == 0.1  # what is no better than the background joins nothing
    with pytest.raises(ValueError, match="threshold is 1: give a share"):
        JoinRule(1)


def test_where_nothing_is_said_the_threshold_is_the_best_for_how_videos_were_cut():
    """Of film9's validation films: results/film9."""
    for settings, threshold in (
        ({}, 0.7),
        ({"window": 4.0, "stride": 4.0, "shots": False}, 0.8),
        ({"window": 4.0, "stride": 4.0, "shots": True}, 0.7),
        ({"window": 8.0, "stride": 4.0, "shots": False}, 0.7),
    ):
        assert JoinRule.of_index(settings) == JoinRule(threshold)
    spans = [(4.0 * place, 4.0 * place + 4) for place in range(6)]
    embeddings = torch.tensor(
        [[score, (1 - score**2) ** 0.5] for score in (0, 0, 0.82, 1.0, 0.0, 0.0)]
    )  # cutoffs 0.79, 0.86
    rows = {"video_id": [str(place) for place in range(6)], "file": ["a.mp4"] * 6}
    rows |= {"start": [start for start, _ in spans], "end": [end for _, end in spans]}
    for stride, start in ((4.0, 12.0), (2.0, 8.0)):
        settings = {"window": 4.0, "stride": stride, "shots": False}
        index = SearchIndex(embeddings.float(), Dataset.from_dict(rows), "f", settings=settings)
        (moments,) = index.search_moments(torch.tensor([[1.0, 0.0]]), top=1)
        assert (moments[0].start, moments[0].end) == (start, 16.0)


def test_windows_above_the_cutoff_that_touch_are_one_moment_and_those_apart_are_two():
    rows = [("a.mp4", 0, 4, 0.9), ("a.mp4", 4, 8, 0.8), ("a.mp4", 8, 12, 0.0), ("a.mp4", 12, 16, 0.7)]
    rows += [("b.mp4", 0, 4, -0.9), ("b.mp4", 4, 8, -0.9), ("b.mp4", 8, 12, -0.6)]  # the background is 0
    (moments,) = index_of(rows).search_moments(QUERY, top=2, rule=JoinRule(0.5))
    assert places(moments) == [("a.mp4", 0.0, 8.0), ("a.mp4", 12.0, 16.0)]
    assert [moment.score for moment in moments] == pytest.approx([0.9, 0.7], abs=1e-6)
    assert moments[0].row == 0 and moments[0].video_id == "a.mp4#0"


def test_windows_of_two_videos_are_never_joined():
    rows = [("a.mp4", 0, 4, 0.9), ("b.mp4", 4, 8, 0.9), ("b.mp4", 8, 12, -0.9)]
    (moments,) = index_of(rows).search_moments(QUERY, top=3)
    assert places(moments) == [("a.mp4", 0.0, 4.0), ("b.mp4", 4.0, 8.0), ("b.mp4", 8.0, 12.0)]


def test_a_picture_and_a_clip_of_a_dataset_are_moments_without_times():
    rows = [("a.png", None, None, 0.5), (None, None, None, 0.7), ("a.mp4", 0, 4, 0.6)]
    (moments,) = index_of(rows).search_moments(QUERY, top=9)
    assert places(moments) == [(None, None, None), ("a.mp4", 0.0, 4.0), ("a.png", None, None)]


def test_an_index_without_files_answers_with_its_clips():
    index = SearchIndex(torch.eye(3), Dataset.from_dict({"video_id": ["x", "y", "z"]}), fingerprint="")
    (moments,) = index.search_moments(torch.tensor([[0.0, 1.0, 0.0]]), top=1)
    assert moments == [Moment(None, None, None, 1.0, "y", 1)]


def test_a_window_that_overlaps_a_better_moment_begins_none():
    scores = share_shown(FILM, 40.0, 52.0)
    index = index_of([("a.mp4", *span, score) for span, score in zip(FILM, scores, strict=True)])
    (moments,) = index.search_moments(QUERY, top=5)
    spans = sorted(moment[1:3] for moment in moments)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert moments[0].start == pytest.approx(40, abs=2) and moments[0].end == pytest.approx(52, abs=2)


def test_there_may_be_fewer_moments_than_asked_for_and_none_is_refused():
    index = index_of([("a.mp4", *span, 0.5) for span in FILM])
    (moments,) = index.search_moments(QUERY, top=50)
    assert all(a.end <= b.start or b.end <= a.start for a, b in itertools.combinations(moments, 2))
    with pytest.raises(ValueError, match="top is 0; give a number of moments from 1"):
        index.search_moments(QUERY, top=0)


# --- invariances


def random_rows(generator, num_files=4, num_windows=12):
    """Windows of any length that begin and end anywhere, and a picture in every file's company."""
    rows = []
    for number in range(num_files):
        starts = generator.uniform(0, 40, num_windows)
        ends = starts + generator.uniform(0.5, 12, num_windows)
        cosines = generator.uniform(-0.4, 0.9, num_windows)
        rows += [(f"{number}.mp4", *row) for row in zip(starts, ends, cosines, strict=True)]
        rows.append((f"{number}.png", None, None, generator.uniform(-0.4, 0.9)))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_rows_changes_nothing(seed):
    generator = np.random.default_rng(seed)
    rows = random_rows(generator)
    shuffled = [rows[row] for row in generator.permutation(len(rows))]
    (moments,), (again,) = (index_of(of).search_moments(QUERY, top=12) for of in (rows, shuffled))
    assert places(moments) == places(again)
    assert [moment.score for moment in moments] == [moment.score for moment in again]


@pytest.mark.parametrize("seed", range(5))
def test_moments_move_and_turn_with_their_windows(seed):
    rows = random_rows(np.random.default_rng(seed))
    turned = [(file, None if a is None else 99 - b, None if b is None else 99 - a, s) for file, a, b, s in rows]
    (moments,), (again,) = (index_of(of).search_moments(QUERY, top=12) for of in (rows, turned))
    assert [moment.file for moment in moments] == [moment.file for moment in again]
    timed = [(a, b) for a, b in zip(moments, again, strict=True) if a.start is not None]
    np.testing.assert_allclose([(a.start, a.end) for a, _ in timed], [(99 - b.end, 99 - b.start) for _, b in timed])


def test_queries_do_not_see_one_another():
    index = index_of(random_rows(np.random.default_rng(0)))
    queries = torch.nn.functional.normalize(torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    assert index.search_moments(queries, top=6) == [index.search_moments(query[None], top=6)[0] for query in queries]


# --- naive loop


def naive_moments(rows, scores, threshold, top, allowed):
    """The rule as it is written, a window at a time."""
    times = [row for row in range(len(rows)) if rows[row][1] is not None]
    background = sum(scores[row] for row in times) / len(times)
    free, found = set(allowed), []
    while free and len(found) < top:
        best = max(free, key=lambda row: (scores[row], -row))
        file, start, end, _ = rows[best]
        free.remove(best)
        if start is not None:
            cutoff = scores[best] - (1 - threshold) * max(scores[best] - background, 0)
            start, end = naive_span(rows, scores, best, cutoff, background, free)
            free -= {r for r in times if rows[r][0] == file and min(rows[r][2], end) - max(rows[r][1], start) > 1e-3}
        found.append((file, start, end))
    return found


def naive_span(rows, scores, best, cutoff, background, free):
    def touch(a, b):
        return max(rows[a][1], rows[b][1]) <= min(rows[a][2], rows[b][2]) + 1e-3

    beside = [row for row in range(len(rows)) if rows[row][0] == rows[best][0] and rows[row][1] is not None]
    members = {best}
    while joined := {
        row
        for row in set(beside) & free - members
        if scores[row] >= cutoff and any(touch(row, member) for member in members)
    }:
        members |= joined
    edges = []
    for sign in (1, -1):  # backwards in time, an end is a start
        span = {row: sorted((sign * rows[row][1], sign * rows[row][2])) for row in beside}
        first = min(members, key=lambda row: span[row])
        before = [
            row
            for row in beside
            if span[row][0] < span[first][0] < span[row][1] < span[first][1] and scores[row] < cutoff
        ]
        edge = span[first][0]
        if before and cutoff > background:
            nearest = max(before, key=lambda row: sum(span[row]))
            low, high = max(scores[nearest], background), scores[first]
            centres = sum(span[nearest]) / 2, sum(span[first]) / 2
            crossing = centres[0] + (cutoff - low) / (high - low) * (centres[1] - centres[0])
            edge = min(max(crossing, span[first][0]), span[nearest][1])
        edges.append(sign * edge)
    return tuple(edges)


@pytest.mark.parametrize(("seed", "threshold"), list(enumerate([0.0, 0.2, 0.5, 0.6, 0.8, 0.95])))
def test_moments_are_those_of_a_naive_loop(seed, threshold):
    rows = random_rows(np.random.default_rng(seed), num_files=3, num_windows=20)
    index, queries = index_of(rows), torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), dim=1)
    allowed = [row for row in range(len(rows)) if row % 5]
    where = {"video_id": [index.clips[row]["video_id"] for row in allowed]}
    for query in queries:
        scores = (index.embeddings.double() @ query.double()).tolist()
        for filtered, chosen in ((None, range(len(rows))), (where, allowed)):
            (moments,) = index.search_moments(query[None], top=30, where=filtered, rule=JoinRule(threshold))
            expected = naive_moments(rows, scores, threshold, 30, chosen)
            assert [moment.file for moment in moments] == [file for file, _, _ in expected]
            spans = np.array([moment[1:3] for moment in moments], dtype=float)
            np.testing.assert_allclose(spans, np.array([row[1:] for row in expected], dtype=float), atol=1e-9)


def test_a_search_that_must_look_deeper_finds_what_one_of_all_windows_finds(monkeypatch):
    rows = [("long.mp4", *span, 0.9 - 1e-5 * number) for number, span in enumerate(FILM)]
    rows += [("other.mp4", 0, 8, 0.5), ("last.png", None, None, 0.1), ("far.mp4", 0, 8, -0.9)]
    monkeypatch.setattr("modeling_mmt.search.moments.HITS_A_MOMENT", 2)
    (moments,) = index_of(rows).search_moments(QUERY, top=3)
    assert [moment.file for moment in moments] == ["long.mp4", "other.mp4", "last.png"]
    assert moments[0][1:3] == (0.0, 124.0)
