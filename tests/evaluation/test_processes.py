"""Embedding and ranking shared by processes: what one process gets, to the last digit.

`torchrun` starts this very file on W processes (gloo, CPU); each computes by itself as well, and compares.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from modeling_mmt.evaluation.embedding import embed_texts, embed_videos, texts_embedded_here
from modeling_mmt.evaluation.processes import PeerError, contiguous_share, in_turn, parts_of_all, share
from modeling_mmt.evaluation.ranks import ranks, ranks_by_language
from modeling_mmt.evaluation.relevance import relevance

NUM_TEXTS, NUM_CLIPS, WIDTH = 29, 13, 6
UNREADABLE = "a caption that the processor refuses"


class Model:
    """Random projections of what the processor below makes."""

    device = torch.device("cpu")
    training = False

    def __init__(self):
        self.batches = 0
        generator = torch.Generator().manual_seed(1)
        self.weights = torch.randn(64, WIDTH, generator=generator)

    def eval(self):
        pass

    def get_text_features(self, codes):
        self.batches += 1
        return SimpleNamespace(pooler_output=codes @ self.weights)

    def get_video_features(self, video_features):
        return SimpleNamespace(pooler_output=video_features @ self.weights)


def processor(text=None, video_features=None, return_tensors=None):
    if text is not None:
        if UNREADABLE in text:
            raise ValueError(f"cannot read {UNREADABLE!r}")
        codes = torch.zeros(len(text), 64)
        for row, words in enumerate(text):
            codes[row, : len(words)] = torch.tensor([float(ord(letter)) for letter in words])
        return {"codes": codes}
    return {"video_features": torch.stack([clip.mean(dim=0) for clip in video_features])}


def scenario(group):
    """Everything that processes share, by name."""
    generator = torch.Generator().manual_seed(0)
    texts = [f"{'ab' * (n % 7)}{n}" for n in range(NUM_TEXTS)]
    clips = [torch.randn(1 + n % 4, 64, generator=generator) for n in range(NUM_CLIPS)]
    model = Model()
    queries = embed_texts(model, processor, texts, batch_size=4, group=group)
    videos = embed_videos(model, processor, clips, batch_size=4, group=group)
    constant = torch.ones_like(queries)
    owners = np.arange(NUM_TEXTS) % NUM_CLIPS
    answers = [[owner, (owner + 1) % NUM_CLIPS] for owner in owners]
    excluded = np.arange(NUM_CLIPS) % 5 == 0
    by_language = ranks_by_language(
        {"en": queries, "de": constant}, videos, owners, excluded, block_size=4, group=group
    )
    return model, texts, {
        "texts": queries,
        "videos": videos,
        "one batch": embed_texts(Model(), processor, texts[:3], group=group),
        "ranks": ranks(queries, videos, owners, group=group),
        "one query": ranks(queries[:1], videos, owners[:1], group=group),
        **{f"{way} {code}": of for way, by_code in by_language.items() for code, of in by_code.items()},
        **relevance(queries, videos, answers, group),
    }  # fmt: skip


def main(path):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    _, _, wanted = scenario(None)
    model, texts, found = scenario(dist.group.WORLD)
    report = {
        "differ": [
            name for name in wanted if not np.array_equal(np.asarray(found[name]), wanted[name], equal_nan=True)
        ],
        "batches": model.batches,
        "embedded here": len(texts_embedded_here(texts, dist.group.WORLD, batch_size=4)),
    }
    try:
        embed_texts(model, processor, [*texts, UNREADABLE], batch_size=4, group=dist.group.WORLD)
    except ValueError as error:
        report["error"] = [type(error).__name__, str(error)]
    reports = parts_of_all(lambda: report, dist.group.WORLD)
    if rank == 0:
        Path(path).write_text(json.dumps(reports))
    assert len(reports) == world
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_that_share_an_evaluation_get_what_one_gets_to_the_last_digit(world_size, tmp_path):
    out = tmp_path / "reports.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = subprocess.run([*launcher, __file__, str(out)], env=env, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr[-5000:]
    reports = json.loads(out.read_text())
    assert [report["differ"] for report in reports] == [[]] * world_size
    batches = [report["batches"] for report in reports]
    assert sum(batches) == 8 and max(batches) == -(-8 // world_size)  # of 29 captions, four at a time
    assert sum(report["embedded here"] for report in reports) == NUM_TEXTS
    errors = [report["error"] for report in reports]
    (failed,) = (rank for rank, (kind, _) in enumerate(errors) if kind == "ValueError")
    assert all(
        (kind, words) == ("PeerError", f"process {failed} of {world_size}: cannot read {UNREADABLE!r}")
        for rank, (kind, words) in enumerate(errors)
        if rank != failed
    )


def test_one_process_alone_has_all_of_the_work():
    items = list(range(5))
    assert share(items, None) == items
    assert contiguous_share(5, None) == slice(0, 5)
    assert parts_of_all(lambda: items, None) == [items]
    with pytest.raises(ZeroDivisionError):
        parts_of_all(lambda: 1 // 0, None)
    assert issubclass(PeerError, ValueError)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_dealt_in_turn_are_put_together_in_order(size):
    items = list(range(5))
    assert in_turn([items[rank::size] for rank in range(size)]) == items


if __name__ == "__main__":
    main(sys.argv[1])
