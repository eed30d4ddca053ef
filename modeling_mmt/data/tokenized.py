"""Captions that come again are tokenized once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_mmt.inputs_mmt import ItemError


class TokenizedOnce:
    """Captions to the processor's tensors, each tokenized when it first comes.

    Args:
        processor: an `MMTProcessor`.
        max_captions: remembered at a time, some 600 bytes each; beyond it all are forgotten, and it begins anew.
    """

    def __init__(self, processor: Any, max_captions: int = 2**17):
        self.processor, self.max_captions = processor, max_captions
        self.rows: dict[str, dict[str, torch.Tensor]] = {}  # caption -> its tensors, without padding

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, `(B, L)` long, padded to the longest caption.

        Raises:
            ItemError: a caption is blank or no string; names its position in `texts`.
        """
        if len(self.rows) > self.max_captions:
            self.rows.clear()
        if new := [text for text in dict.fromkeys(texts) if text not in self.rows]:
            try:
                batch = self.processor.tokenize(new)
            except ItemError as error:
                raise error.named(list(texts).index(new[error.name])) from None
            for row, (text, is_real) in enumerate(zip(new, batch["attention_mask"].bool(), strict=True)):
                self.rows[text] = {name: values[row, is_real] for name, values in batch.items()}
        padding, side = {"input_ids": self.processor.tokenizer.pad_token_id}, self.processor.padding_side
        return {
            name: pad_sequence([self.rows[text][name] for text in texts], True, padding.get(name, 0), side)
            for name in self.rows[texts[0]]
        }
