"""Exact contrastive batches that are larger than one process, or than memory.

Three independent means, each with the gradient of the plain step over the whole batch:

* `gather_embeddings`: every process sees every row, and each row's gradient finds its way home;
* `two_pass_backward`: the batch is encoded in chunks, one chunk's activations at a time (GradCache);
* `unique_rows` and `token_budget_batches`: what is equal is encoded once, what is short is not padded to what is long.

Gradient accumulation is none of them: it averages the losses of several small batches and adds no negatives.

Nothing here knows a model: models are callables, batches are tensors or whatever the callable takes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Chunk = TypeVar("Chunk")


# Across processes


def gather_embeddings(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Put together the rows of all processes, differentiably.

    Let every process compute the *same* loss over all rows. DDP and FSDP2 average gradients over the `W` processes;
    the backward of this function sums, over the processes, the gradient that each one's loss has for a row, which is
    `W` times the gradient of one loss. The average of the towers' gradients is then that of one process with the whole
    batch, exactly, and so is the temperature's, whose gradient is the same everywhere. Nothing is to be rescaled.

    All processes must call it, forward and backward, with an input that requires grad on all or on none of them.

    Args:
        tensor: `(n_local, P)` float. `n_local` may differ between processes, and may be 0.
        group: the processes; None means all. Without an initialised process group, or with one process, the input
            itself is returned.

    Returns:
        `(N, P)`: the rows of rank 0, then of rank 1, and so on. The same on every process.

    Raises:
        ValueError: if the tensor has no dimension of rows.
    """
    if tensor.dim() == 0:
        raise ValueError("tensor has no rows: give (n_local, P), not a scalar")
    if _world_size(group) == 1:
        return tensor
    gathered: torch.Tensor = _GatherRows.apply(tensor, group)
    return gathered


def gather_ids(ids: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Put together the ids of all processes, in the order of `gather_embeddings`.

    Args:
        ids: `(n_local,)` or `(n_local, K)` int64. `n_local` may differ between processes.
        group: the processes; None means all.

    Returns:
        `(N,)` or `(N, K)` int64; the input itself with one process.
    """
    return ids if _world_size(group) == 1 else _gather_rows(ids, _row_counts(ids, group), group)


def _world_size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _row_counts(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> list[int]:
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(own) for _ in range(_world_size(group))]
    dist.all_gather(counts, own, group=group)
    return torch.cat(counts).tolist()


def _gather_rows(tensor: torch.Tensor, counts: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
    """Gather rows through a collective that wants equal sizes: pad to the most rows, and drop the padding after."""
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        counts = _row_counts(tensor, group)
        ctx.group, ctx.count = group, len(tensor)
        ctx.start = sum(counts[: dist.get_rank(group)])
        return _gather_rows(tensor, counts, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.to(
            torch.promote_types(grad.dtype, torch.float32), copy=True
        )  # half precision is summed in float32
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.start : ctx.start + ctx.count].to(grad.dtype), None


# Beyond memory


def two_pass_backward(
    encode: Callable[[Chunk], Mapping[str, torch.Tensor]],
    chunks: Sequence[Chunk],
    loss_fn: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> torch.Tensor:
    """Accumulate the gradients of a loss over all chunks, with the activations of one chunk at a time in memory.

    The first pass encodes every chunk without a graph; the loss of all embeddings together gives the gradient of each
    embedding; the second pass encodes every chunk again, with the same random numbers (so dropout may be on), and
    sends its embeddings' gradients into the model. The parameters' gradients are those of the plain step that encodes
    the same chunks one after the other and keeps all graphs.

    ```python
    from modeling_mmt.large_batch import two_pass_backward

    batches = token_budget_batches(attention_mask.sum(dim=1), budget=8192)
    order = restore_order(batches)

    def loss_fn(embeds):
        texts = gather_embeddings(embeds["text_embeds"][order])
        videos = gather_embeddings(embeds["video_embeds"])
        return contrastive_loss("nce", texts, videos, embeds["logit_scale"], gather_ids(positive_ids))

    loss = two_pass_backward(encode, [*text_chunks, *video_chunks], loss_fn, no_sync=model.no_sync)
    ```

    Args:
        encode: turns one chunk into tensors by name. Those with rows, `(n_chunk, ...)`, are concatenated over the
            chunks that have the name, in the order of the chunks; a 0-dimensional one, such as `logit_scale`, is
            taken from the first chunk that has it and must not depend on the chunk. Called twice for each chunk.
        chunks: at least one. Each may be anything, and of another kind than its neighbour (captions, clips).
        loss_fn: turns the concatenated tensors into a scalar, possibly by `gather_embeddings`.
        no_sync: entered for every forward and backward but the last chunk's: `model.no_sync` of DDP, or
            `functools.partial(accelerator.no_sync, model)`. FSDP2 communicates in its forward too: there, give every
            process as many chunks, and leave `no_sync` out to keep the gradients sharded.
        backward: differentiates the loss: `accelerator.backward` where Accelerate scales the loss.

    Returns:
        The loss, `()`, detached.

    Raises:
        ValueError: if there is no chunk.

    Under DDP gradients are exchanged in the last chunk's backward. So every parameter that `loss_fn` uses comes out of
    `encode` (`model.logit_scale.exp()`, say), and where the last chunk does not use every parameter, as with captions
    first and clips last, DDP is made with `find_unused_parameters=True`. The random numbers replayed are torch's, of
    the CPU and of the current CUDA device.

    Source: GradCache (arXiv 2101.06983), section 3. Differs: chunks of different kinds share one pass, scalars such as
    the temperature travel with the embeddings, and the gradients are handed to autograd without a surrogate loss.
    """
    if not chunks:
        raise ValueError("chunks is empty; give at least one")
    states: list[list[torch.Tensor]] = []
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad(), no_sync():
        for chunk in chunks:
            states.append(_random_state())
            for name, tensor in encode(chunk).items():
                parts.setdefault(name, []).append(tensor)
    embeds = {
        name: (tensors[0] if tensors[0].dim() == 0 else torch.cat(tensors)).detach().requires_grad_()
        for name, tensors in parts.items()
    }
    torch.clear_autocast_cache()  # it holds half-precision weights made without a graph
    with no_sync():
        loss = loss_fn(embeds)
        backward(loss)

    after = _random_state()
    remaining = {name: _gradient_parts(embeds[name].grad, parts[name]) for name in embeds}
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True), start=1):
        with nullcontext() if number == len(chunks) else no_sync():
            _set_random_state(state)
            pairs = [(tensor, remaining[name].pop(0)) for name, tensor in encode(chunk).items()]
            learning = [(tensor, grad) for tensor, grad in pairs if grad is not None and tensor.requires_grad]
            if learning:
                tensors, gradients = zip(*learning, strict=True)
                torch.autograd.backward(tensors, gradients)
    _set_random_state(after)
    return loss.detach()


def _gradient_parts(grad: torch.Tensor | None, parts: list[torch.Tensor]) -> list[Any]:
    """Cut a gradient as its tensor was put together; a scalar's goes whole to the last chunk, which communicates."""
    if grad is None:
        return [None] * len(parts)
    if grad.dim() == 0:
        return [torch.zeros_like(grad)] * (len(parts) - 1) + [grad]
    return [*grad.split([len(part) for part in parts])]


def _random_state() -> list[torch.Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else state


def _set_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    for cuda_state in state[1:]:
        torch.cuda.set_rng_state(cuda_state)


# Without waste


def token_budget_batches(lengths: torch.Tensor, budget: int) -> list[torch.Tensor]:
    """Cut a batch, sorted by length, into micro-batches of at most `budget` tokens, padding included.

    Args:
        lengths: `(N,)` int: the tokens of each row, such as `attention_mask.sum(dim=1)`.
        budget: tokens of a micro-batch: its rows times its longest row. A single row longer than that stands alone.

    Returns:
        `(n,)` int64 each: the rows of a micro-batch, longest first, so that memory runs out at once or never. Each
        row is in exactly one; among equal lengths the order is kept.

    Raises:
        ValueError: if the budget is below 1 or `lengths` has not one dimension.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}; give at least 1 token")
    if lengths.dim() != 1:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; give (N,), one length a row")
    order = lengths.argsort(descending=True, stable=True)
    longest = lengths[order].tolist()
    batches, start = [], 0
    while start < len(longest):
        stop = start + max(1, budget // max(1, longest[start]))
        batches.append(order[start:stop])
        start = stop
    return batches


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


def embed_by_length(
    embed: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    batch: Mapping[str, torch.Tensor],
    num_groups: int = 4,
) -> dict[str, torch.Tensor]:
    """Embed a collated batch in groups of rows of like length, each cut to its longest: less padding, equal result.

    Captions and clips are grouped apart, each by their own lengths. Where rows hold two languages, whose conditional
    embeddings need captions and clip together, whole rows are grouped, by the captions' lengths.

    Args:
        embed: such as `MMTModel.embed`; rows must not depend on each other, nor on padding.
        batch: name to `(B, ...)`; masks as `attention_mask`, `paired_attention_mask`, `video_mask`.
        num_groups: of about B / `num_groups` rows each; 1 leaves the batch whole.

    Returns:
        What `embed` returns for the whole batch, rows in the order given.
    """
    texts = {name: value for name, value in batch.items() if "video" not in name and name != "positive_ids"}
    clips = {name: value for name, value in batch.items() if "video" in name}
    if "paired_attention_mask" in batch:
        parts = [({**texts, **clips}, batch["attention_mask"].sum(dim=1) + batch["paired_attention_mask"].sum(dim=1))]
    else:
        parts = [
            (view, view[mask].sum(dim=1)) for view, mask in ((texts, "attention_mask"), (clips, "video_mask")) if view
        ]
    embeds: dict[str, torch.Tensor] = {}
    for view, lengths in parts:
        order = lengths.argsort()
        groups = [_cut({name: value[rows] for name, value in view.items()}) for rows in order.chunk(num_groups)]
        found = [embed(group) for group in groups]
        inverse = order.argsort()
        embeds.update({name: torch.cat([group[name] for group in found])[inverse] for name in found[0]})
    return embeds


def _cut(view: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the positions that no row of a group has."""

    def mask_of(name: str) -> str:
        return "video_mask" if "video" in name else "paired_attention_mask" if "paired" in name else "attention_mask"

    longest = {name: int(value.sum(dim=1).max()) for name, value in view.items() if name.endswith("mask")}
    return {name: value[:, : longest[mask_of(name)]] for name, value in view.items()}
