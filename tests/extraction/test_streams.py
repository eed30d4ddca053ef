"""Batches that go through an encoder side by side: the same as one after the other."""

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

from modeling_mmt.extraction.shards import encode_clips
from modeling_mmt.extraction.streams import in_streams


def test_results_come_in_order_whatever_a_batch_takes():
    def slow(number):
        time.sleep(0.02 * (number % 3 == 0))
        return -number

    for streams in (1, 2, 5):
        assert list(in_streams(slow, range(13), streams)) == [-number for number in range(13)]
    assert list(in_streams(slow, [], 2)) == []


def test_several_are_encoded_at_once_and_share_the_threads():
    threads, met = torch.get_num_threads(), threading.Barrier(3)
    torch.set_num_threads(6)

    def meet(number):
        met.wait(timeout=20)  # for two others, or it breaks
        return torch.get_num_threads()

    try:
        assert list(in_streams(meet, range(6), 3)) == [2] * 6
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(threads)


def test_batches_are_not_read_further_ahead_than_there_are_streams():
    taken = []
    results = in_streams(abs, (taken.append(number) or number for number in range(50)), 2)
    assert next(results) == 0 and len(taken) == 3
    results.close()
    assert len(taken) == 3 and not [one for one in threading.enumerate() if one.name.startswith("encode")]


def test_an_error_of_the_encoder_is_raised_as_it_was():
    def fails(number):
        if number == 3:
            raise ValueError("no")
        return number

    results = in_streams(fails, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="^no$"):
        next(results)


def test_clips_have_the_same_features_however_many_streams_there_are():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, 3)

    @torch.inference_mode()
    def encode(pixels):
        return layer(torch.from_numpy(pixels)).mean(dim=(2, 3)).numpy()

    generator = np.random.default_rng(0)
    clips = [(f"c{n}", generator.standard_normal((n, 3, 8, 8)).astype(np.float32)) for n in (3, 1, 17, 2, 40, 5)]
    alone = list(encode_clips(clips, partial(map, encode), 4))
    for streams in (2, 4):
        together = list(encode_clips(clips, partial(in_streams, encode, num_streams=streams), 4))
        assert [name for name, _ in together] == [name for name, _ in alone]
        assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(together, alone, strict=True))
