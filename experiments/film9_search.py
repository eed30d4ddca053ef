"""Moments of films9's films: how they are cut and joined, what is found, and whether it is right.

A *cut* is what an index holds of each film: windows of so many seconds, or shots. An *answer* is what is made of the
scores of a query: the best window as it is, the windows joined about it, or so many seconds about the best frame.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.evaluation.embedding import embed_videos
from modeling_mmt.evaluation.moments import IOUS, temporal_iou
from modeling_mmt.search.media_windows import WindowRule, steps_of
from modeling_mmt.search.moments import JoinRule, join


class Windows(NamedTuple):
    """What an index holds: `film` `(N,)` names in order, `spans` `(N, 2)` seconds, rising in each film."""

    film: np.ndarray
    spans: np.ndarray


class Answers(NamedTuple):
    """The first moment of each query: `film` `(q,)` names, `spans` `(q, 2)` seconds."""

    film: np.ndarray
    spans: np.ndarray


def windows_of(store: FeatureStore, rule: WindowRule, shots: Mapping[str, Sequence[float]] | None = None) -> Windows:
    """The windows of every film of a store.

    Args:
        store: of films.
        rule: as `mmt index` has it.
        shots: seconds of each film's shot changes, where windows end with them.
    """
    films, spans = [], []
    for film in store:
        cut = rule.spans(store.num_steps(film) / store.manifest["rate"], shots[film] if shots else ())
        films += [film] * len(cut)
        spans += cut
    return Windows(np.array(films), np.array(spans))


def embed_windows(model: Any, processor: Any, store: FeatureStore, windows: Windows) -> np.ndarray:
    """`(N, P)` float32 unit vectors of the windows."""
    rate, steps = store.manifest["rate"], {film: store[film] for film in store}
    clips = [
        steps[film][steps_of(tuple(span), rate, len(steps[film]))]
        for film, span in zip(windows.film.tolist(), windows.spans.tolist(), strict=True)
    ]
    return embed_videos(model, processor, clips, batch_size=256).numpy()


@dataclass(frozen=True)
class Scored:
    """An index and the scores of queries in it.

    Args:
        windows: of the index.
        scores: `(q, N)` cosines.
    """

    windows: Windows
    scores: np.ndarray

    def best(self) -> Answers:
        """The best window as it is."""
        best = self.scores.argmax(axis=1)
        return Answers(self.windows.film[best], self.windows.spans[best])

    def about_best(self, seconds: float) -> Answers:
        """So many seconds before and after the middle of the best window, within its film."""
        best = self.best()
        ends = {film: self.windows.spans[self.windows.film == film].max() for film in np.unique(self.windows.film)}
        middle = best.spans.mean(axis=1)
        end = np.minimum(middle + seconds, [ends[film] for film in best.film])
        return Answers(best.film, np.stack([np.maximum(middle - seconds, 0.0), end], axis=1))

    def joined(self, rule: JoinRule) -> Answers:
        """The windows joined about the best one."""
        best = self.scores.argmax(axis=1)
        background = self.scores.mean(axis=1)
        first = np.searchsorted(self.windows.film, self.windows.film[best], side="left")
        last = np.searchsorted(self.windows.film, self.windows.film[best], side="right")
        spans = [
            join(
                self.windows.spans[start:end],
                self.scores[query, start:end].astype(np.float64),
                int(best[query] - start),
                float(background[query]),
                rule,
                np.ones(end - start, dtype=bool),
            )
            for query, (start, end) in enumerate(zip(first, last, strict=True))
        ]
        return Answers(self.windows.film[best], np.array(spans))


# -- truth ------------------------------------------------------------------------------------------------------------


def read_truth(path: Path, split: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Of each clip, the spans of each film that shows it; films by the ids of their features."""
    truth: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, film in json.loads(path.read_text(encoding="utf-8"))["films"].items():
        for showing in film["showings"] if film["split"] == split else ():
            spans = truth.setdefault(showing["video_id"], {}).setdefault(Path(name).stem, [])
            spans.append((showing["start"], showing["end"]))
    return truth


def best_ious(found: Answers, truth: Sequence[Mapping[str, Sequence[tuple[float, float]]]]) -> np.ndarray:
    """`(q,)` IoU of each query's moment with the nearest showing in its film; 0 in a film that does not show it."""
    return np.array(
        [
            temporal_iou(span[None], np.array(shown[film])).max() if film in shown else 0.0
            for film, span, shown in zip(found.film.tolist(), found.spans, truth, strict=True)
        ]
    )


def recall(ious: np.ndarray) -> dict[str, float]:
    """R@1 in % at each of `IOUS`."""
    return {f"IoU {threshold}": float(100 * (ious >= threshold).mean()) for threshold in IOUS}
