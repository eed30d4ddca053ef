"""Divides a batch into micro-batches: each distinct caption and clip once, grouped by length.

The tokens of a micro-batch, padding included, are bounded; rows are sorted by length and a micro-batch is cut to its
longest, so that little of what is encoded is padding. They are the chunks of `large_batch.two_pass_backward`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from modeling_mmt.data.collator import TEXT_VIEWS, caption_keys, mask_name

CLIP_VIEWS = ("", "noised_")
CLIP_INPUTS = ("video_features", "pixel_values")  # pixel_values_1, ... of more vision encoders


COST = 1 / 16  # of one more micro-batch, in parts of the budget's tokens: padding up to that is cheaper


@dataclass
class MicroBatches:
    """The micro-batches of one batch, and the way back to its rows.

    Args:
        chunks: batches as `MMTModel.embed` takes them, largest first.
        orders: by kind (`"text"`, `"video"`): `(V B,)` int64, where each row of each of its V views is among the rows
            of all chunks.
        views: by kind, what its views' names begin with.
    """

    chunks: list[dict[str, torch.Tensor]]
    orders: dict[str, torch.Tensor]
    views: dict[str, tuple[str, ...]]

    def restore(self, embeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Hand the embeddings of the chunks out to the rows of the batch.

        Args:
            embeds: by name, `(rows of all chunks, P)`; scalars are left as they are.

        Returns:
            `(B, P)` each, by the names that `MMTModel.embed` gives for the whole batch.
        """
        embeddings: dict[str, torch.Tensor] = {}
        for name, value in embeds.items():
            if value.dim() == 0:
                embeddings[name] = value
                continue
            kind = "video" if "video" in name else "text"
            views = self.views[kind]
            parts = value[self.orders[kind].to(value.device)].chunk(len(views))
            embeddings |= {f"{view}{name}": part for view, part in zip(views, parts, strict=True)}
        return embeddings


def micro_batches(
    batch: Mapping[str, torch.Tensor], max_tokens: int | None = None, at_least: int = 1, conditional: bool = True
) -> MicroBatches:
    """Cut a batch of `MMTDataCollator`.

    The captions of all views, clean and noised, of one language or several, make one pool, and so do the clips. Of
    the rows of a view with equal tokens, or with the same clip and equal features or pixels, one is encoded and handed
    out, so they share one draw of dropout. Where rows hold a clip beside two languages or more, and their conditional
    embeddings are wanted, which need all of them, rows stay whole.

    Where captions and clips give different numbers of pieces, the last chunks have both: under data parallelism the
    last one's backward pass exchanges gradients, and must touch every parameter.

    Args:
        batch: token ids `(B, L)` and masks, and the captions' `caption_keys` `(B,)` if they are at hand; clips as
            features `(B, F, D_v)` or pixels `(B, F, 3, H, W)` and masks; and `positive_ids` `(B, K)`, whose first
            column names the clip.
        max_tokens: bound on a chunk's tokens, padding included, and on its clips' steps; a row beyond it stands
            alone. `None`: one chunk.
        at_least: chunks to make, by smaller pieces, as far as there are rows.
        conditional: whether `MMTModel.embed` makes conditional embeddings of a batch that has all they need:
            `cross_weight` is above 0.
    """
    if conditional and "video_mask" in batch and "paired_input_ids" in batch:
        pools = [_whole_rows(batch)]
    else:
        pools = [_captions(batch)] + ([_clips(batch)] if "video_mask" in batch else [])
    parts, result = [], MicroBatches([], {}, {})
    for pool in pools:
        pieces = token_budget_batches(pool.lengths, max_tokens, at_least)
        parts.append([_cut(pool.rows, piece) for piece in pieces])
        for kind, views in pool.views.items():
            result.orders[kind], result.views[kind] = restore_order(pieces)[pool.inverse], views
    number = max(len(part) for part in parts)
    for missing in range(-number, 0):  # counted from the end
        result.chunks.append({k: v for part in parts if len(part) >= -missing for k, v in part[missing].items()})
    return result


@dataclass
class _Pool:
    """Rows to encode."""

    rows: dict[str, torch.Tensor]  # (U, ...) by name
    lengths: torch.Tensor  # (U,) tokens or steps
    inverse: torch.Tensor  # (V B,) which of them each row of each view is
    views: dict[str, tuple[str, ...]]


def _captions(batch: Mapping[str, torch.Tensor]) -> _Pool:
    views = tuple(view for view in TEXT_VIEWS if f"{view}input_ids" in batch)
    masks = [batch[mask_name(view)] for view in views]
    longest = max(mask.shape[1] for mask in masks)
    on_left = any(bool((mask.any(dim=1) & (mask[:, 0] == 0)).any()) for mask in masks)  # where the tokenizer pads
    keys = torch.cat([caption_keys(batch, view) for view in views])
    first, inverse = unique_rows(_view_numbers(views, keys), keys)
    rows = {
        "input_ids": torch.cat([_widen(batch[f"{view}input_ids"], longest, on_left) for view in views])[first],
        "attention_mask": torch.cat([_widen(mask, longest, on_left) for mask in masks])[first],
        "caption_keys": keys[first],
    }
    return _Pool(rows, rows["attention_mask"].sum(dim=1), inverse, {"text": views})


def _clips(batch: Mapping[str, torch.Tensor]) -> _Pool:
    names = [name for name in batch if name.startswith(CLIP_INPUTS)]
    views = tuple(view for view in CLIP_VIEWS if f"{view}{names[0]}" in batch)
    mask = batch["video_mask"].repeat(len(views), 1)
    clip = _distinct_clips(batch, names)
    noised = torch.arange(len(clip), device=clip.device)  # each with a noise of its own
    clips = torch.cat([noised if view else clip for view in views])
    first, inverse = unique_rows(_view_numbers(views, clips), clips)
    rows = {name: torch.cat([batch[f"{view}{name}"] for view in views])[first] for name in names}
    rows["video_mask"] = mask[first]
    return _Pool(rows, rows["video_mask"].sum(dim=1), inverse, {"video": views})


def _distinct_clips(batch: Mapping[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """`(B,)` a number for each distinct clip: rows of one id may be other spans of a video, or augmented each."""
    first, inverse = unique_rows(batch["positive_ids"][:, 0])
    clip = first[inverse]  # the first row of the same id
    for row, earlier in enumerate(clip.tolist()):
        same = row == earlier or all(
            torch.equal(batch[name][row], batch[name][earlier]) for name in (*names, "video_mask")
        )
        if not same:
            clip[row] = row
    return clip


def _whole_rows(batch: Mapping[str, torch.Tensor]) -> _Pool:
    rows = {name: value for name, value in batch.items() if name not in ("positive_ids", "return_loss")}
    lengths = sum(mask.sum(dim=1) for name, mask in rows.items() if name.endswith("mask"))
    assert isinstance(lengths, torch.Tensor)
    return _Pool(rows, lengths, torch.arange(len(lengths)), {"text": ("",), "video": ("",)})


def _view_numbers(views: Sequence[str], like: torch.Tensor) -> torch.Tensor:
    """`(rows of all views,)` which view each is of."""
    return torch.arange(len(views), device=like.device).repeat_interleave(len(like) // len(views))


def _widen(tokens: torch.Tensor, length: int, on_left: bool) -> torch.Tensor:
    missing = length - tokens.shape[1]
    return torch.nn.functional.pad(tokens, (missing, 0) if on_left else (0, missing))


def _cut(rows: Mapping[str, torch.Tensor], piece: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some rows, without the positions that none of them has."""
    selected = {name: value[piece.to(value.device)] for name, value in rows.items()}
    held = {name: _held(value) for name, value in selected.items() if name.endswith("mask")}

    def mask_of(name: str) -> str:
        if "video" in name or "pixel" in name:
            return "video_mask"
        view = max((view for view in TEXT_VIEWS if name.startswith(view)), key=len)
        return mask_name(view)

    return {name: value if value.dim() == 1 else value[:, held[mask_of(name)]] for name, value in selected.items()}


def _held(mask: torch.Tensor) -> slice:
    """The positions from the first to the last that some row has."""
    places = mask.any(dim=0).nonzero()[:, 0].tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0)


def token_budget_batches(lengths: torch.Tensor, budget: int | None, at_least: int = 1) -> list[torch.Tensor]:
    """Cut a batch, sorted by length, into micro-batches of at most `budget` tokens, padding included.

    Micro-batches of fewer lengths have less padding, but the more there are, the fewer rows each product has: cuts are
    where padding and `COST` for each micro-batch are least together.

    Args:
        lengths: `(N,)` int: the tokens of each row, such as `attention_mask.sum(dim=1)`.
        budget: tokens of a micro-batch: its rows times its longest row. A single row longer than that stands alone.
            `None`: no bound.
        at_least: micro-batches to make; the ones with the most rows are halved until there are this many, or no more
            than one row in each.

    Returns:
        `(n,)` int64 each: the rows of a micro-batch, the one of most tokens first, so that memory runs out at once or
        never. Each row is in exactly one; among equal lengths the order is kept.

    Raises:
        ValueError: if the budget is below 1 or `lengths` has not one dimension.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"budget is {budget}; give at least 1 token")
    if lengths.dim() != 1:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; give (N,), one length a row")
    order = lengths.argsort(descending=True, stable=True)
    cuts = _cheapest_cuts(lengths[order].tolist(), budget) if budget is not None else [0]
    batches = [order[start:stop] for start, stop in pairwise([*cuts, len(order)]) if start < stop]
    while batches and len(batches) < min(at_least, len(order)):
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        batches[largest : largest + 1] = batches[largest].tensor_split(2)
    return sorted(batches, key=lambda rows: len(rows) * int(lengths[rows[0]]), reverse=True)


def _cheapest_cuts(lengths: Sequence[int], budget: int) -> list[int]:
    """Where micro-batches begin in falling lengths, by dynamic programming over the distinct ones."""
    distinct = [(max(1, length), count) for length, count in Counter(lengths).items()]
    ends = [0, *accumulate(count for _, count in distinct)]
    capacities = [max(1, budget // length) for length, _ in distinct]  # rows of a micro-batch that begins there

    def cost(first: int, last: int) -> float:
        """Of micro-batches of the distinct lengths from the first to the one before the last."""
        rows = ends[last] - ends[first]
        return rows * distinct[first][0] + math.ceil(rows / capacities[first]) * COST * budget

    least, begins = [0.0], [0]  # of the first 0, 1, ... distinct lengths: the least cost, and where the last cut is
    for last in range(1, len(ends)):
        costs = [least[first] + cost(first, last) for first in range(last)]
        least.append(min(costs))
        begins.append(costs.index(least[-1]))
    cuts: list[int] = []
    last = len(distinct)
    while last:
        first = begins[last]
        cuts += range(ends[first], ends[last], capacities[first])
        last = first
    return sorted(cuts)


def restore_order(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Say where each row went, to undo `token_budget_batches`.

    Args:
        batches: `(n,)` int64 each; together a permutation of `0 .. N - 1`.

    Returns:
        `(N,)` int64 `order`, such that `torch.cat([rows[batch] for batch in batches])[order]` equals `rows`.
    """
    return torch.cat(list(batches)).argsort()


def unique_rows(*keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the distinct rows of a batch, so that each is encoded once and handed out to its places.

    `encode(x[first])[inverse]` equals `encode(x)` for an encoder whose output depends on the keys alone; the backward
    of the indexing sums the gradients of equal rows. With dropout on, equal rows share one draw.

    Args:
        keys: `(N,)` or `(N, K)` int64 each: what makes rows equal, such as clip ids, or `input_ids` and
            `attention_mask` together. Rows are equal if they are so in every key.

    Returns:
        `first`, `(U,)` int64: the row where each distinct row appears first, in order of appearance; and `inverse`,
        `(N,)` int64: which of these each row is.

    Raises:
        ValueError: if no key is given or their numbers of rows differ.
    """
    if not keys or len({len(key) for key in keys}) > 1:
        raise ValueError(f"keys have {[len(key) for key in keys]} rows; give at least one key, each with N rows")
    table = torch.cat([key.reshape(len(key), -1).to(torch.int64) for key in keys], dim=1)  # (N, sum of K)
    distinct, group = table.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(table), device=table.device)
    first = rows.new_full((len(distinct),), len(table)).scatter_reduce(0, group, rows, "amin")
    first, by_appearance = first.sort()
    return first, by_appearance.argsort()[group]
