"""Captions tokenized once are those that the processor tokenizes each time."""

import numpy as np
import pytest
import torch

from modeling_mmt.data.collator import MMTDataCollator
from modeling_mmt.data.tokenized import TokenizedOnce


class CountingProcessor:
    """A processor that counts the captions it has tokenized."""

    def __init__(self, processor):
        self.processor, self.tokenizer, self.captions = processor, processor.tokenizer, []
        self.padding_side = processor.padding_side

    def tokenize(self, captions):
        """As the processor's own."""
        self.captions += captions
        return self.processor.tokenize(captions)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_captions", [2**17, 0])
def test_captions_are_those_of_the_processor_in_any_order_and_company(
    make_processor, make_tokenizer, max_captions, side
):
    plain = make_processor(make_tokenizer(padding_side=side), clean_text=False)
    processor = CountingProcessor(plain)
    tokenized = TokenizedOnce(processor, max_captions)
    for texts in (["dog", "a red dog"], ["red"], ["a red dog", "red", "dog", "dog"]):
        for name, values in plain.tokenize(texts).items():
            assert torch.equal(tokenized(texts)[name], values)
    if max_captions:
        assert sorted(processor.captions) == ["a red dog", "dog", "red"]


def test_no_more_captions_are_remembered_than_asked_for(make_processor):
    tokenized = TokenizedOnce(make_processor(), max_captions=10)
    for number in range(100):
        tokenized([f"dog {number}", "red"])
        assert len(tokenized.rows) <= 12


def test_a_batch_is_the_same_whether_its_captions_are_remembered_or_not(make_processor, make_clips):
    processor = make_processor()
    rows = [
        {"video_id": f"clip-{n}", "caption_en": f"dog {n}", "caption_de": ["rot", f"Hund {n}"], "video_features": clip}
        for n, clip in enumerate(make_clips((4, 1, 3)))
    ]
    options = {"languages": ["en", "de"], "languages_per_clip": 2, "noise_probability": 0.3, "with_caption_keys": True}
    draws = [{**row, "draw": (0, 0, n)} for n, row in enumerate(rows)]
    plain = MMTDataCollator(processor, **options)(draws)
    remembering = MMTDataCollator(processor, **options, tokenize=TokenizedOnce(processor))
    for _ in range(2):
        again = remembering(draws)
        assert plain.keys() == again.keys()
        assert all(np.array_equal(plain[name], again[name]) for name in plain)
