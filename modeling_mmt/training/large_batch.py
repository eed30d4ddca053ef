"""Exact contrastive batches that are larger than one process, or than memory.

Two independent means, each with the gradient of the plain step over the whole batch:

* `gather_embeddings`: every process sees every row, and each row's gradient finds its way home (a large loss is not
  computed so, whole by every process: `streaming_loss.py` shares it, with the same gradients);
* `two_pass_backward`: the batch is encoded in chunks (`micro_batches.py`), within a stated memory budget (GradCache).

Gradient accumulation is none of them: it averages the losses of several small batches and adds no negatives.

Nothing here knows a model: models are callables, batches are tensors or whatever the callable takes.
"""

import math
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
    return ids if _world_size(group) == 1 else gather_rows(ids, row_counts(ids, group), group)


def _world_size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def row_counts(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many rows each process of an initialised group has."""
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(own) for _ in range(_world_size(group))]
    dist.all_gather(counts, own, group=group)
    return torch.cat(counts).tolist()


def gather_rows(tensor: torch.Tensor, counts: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
    """Put together the rows of all processes, of which each has so many, on every process; not differentiable.

    The collective wants equal sizes: rows are padded to the most, and the padding is dropped after.
    """
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        counts = row_counts(tensor, group)
        ctx.group, ctx.count = group, len(tensor)
        ctx.start = sum(counts[: dist.get_rank(group)])
        return gather_rows(tensor, counts, group)

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
    memory_budget: int | None = 0,
    agree: Callable[[int], int] = int,
) -> torch.Tensor:
    """Accumulate the gradients of a loss over all chunks, with few chunks' activations in memory at a time.

    The first pass encodes every chunk, and keeps the graphs of as many as the memory budget allows; the loss of all
    embeddings together gives the gradient of each embedding; the second pass sends these into the kept graphs, and
    encodes the other chunks again, with the same random numbers (so dropout may be on). The parameters' gradients are
    those of the plain step that encodes the same chunks one after the other and keeps all graphs; and where all fit,
    that is what happens: nothing is encoded twice.

    ```python
    from modeling_mmt.training.large_batch import two_pass_backward
    from modeling_mmt.training.micro_batches import micro_batches

    cut = micro_batches(batch, max_tokens=8192)

    def loss_fn(embeds):
        rows = {k: v if v.dim() == 0 else gather_embeddings(v) for k, v in cut.restore(embeds).items()}
        return model.compute_objectives(rows, gather_ids(batch["positive_ids"]), contrastive_loss)["loss"]

    loss = two_pass_backward(encode, cut.chunks, loss_fn, no_sync=ddp.no_sync, memory_budget=4 * 2**30)
    ```

    Args:
        encode: turns one chunk into tensors by name. Those with rows, `(n_chunk, ...)`, are concatenated over the
            chunks that have the name, in the order of the chunks; a 0-dimensional one, such as `logit_scale`, is
            taken from the first chunk that has it and must not depend on the chunk. Called once or twice for each.
        chunks: at least one, the largest first. Each may be anything, and of another kind than its neighbour.
        loss_fn: turns the concatenated tensors into a scalar, possibly by `gather_embeddings`.
        no_sync: entered for every forward and backward but the last chunk's: `model.no_sync` of DDP, or
            `functools.partial(accelerator.no_sync, model)`. FSDP2 communicates in its forward too: there, give every
            process as many chunks, and leave `no_sync` out to keep the gradients sharded.
        backward: differentiates the loss: `accelerator.backward` where Accelerate scales the loss.
        memory_budget: bytes of activations held at a time: those of the kept chunks and of the one at work, as far as
            one fits at all. 0 keeps none (GradCache), `None` all. A chunk's bytes are what autograd saves for it.
        agree: the largest over the processes of a number of bytes, where they must keep the same chunks (FSDP2).

    Returns:
        The loss, `()`, detached.

    Raises:
        ValueError: if there is no chunk.

    Under DDP gradients are exchanged in the last chunk's backward. So every parameter that `loss_fn` uses comes out of
    `encode` (`model.logit_scale.exp()`, say), and where the last chunk does not use every parameter, as with captions
    first and clips last, DDP is made with `find_unused_parameters=True`. The random numbers replayed are torch's, of
    the CPU and of the current CUDA device.

    Source: GradCache (arXiv 2101.06983), section 3. Differs: what fits is encoded once, chunks of different kinds
    share one pass, scalars such as the temperature travel with the embeddings, and the gradients are handed to
    autograd without a surrogate loss.
    """
    if not chunks:
        raise ValueError("chunks is empty; give at least one")
    last = len(chunks) - 1
    states: list[list[torch.Tensor]] = []
    outputs: list[Mapping[str, torch.Tensor]] = []
    num_kept, spent, largest = 0, 0, 0
    for number, chunk in enumerate(chunks):
        budget = math.inf if memory_budget is None or not last else memory_budget
        keeps_graph = num_kept == number and 0 < budget and spent + largest * (1 if number == last else 2) <= budget
        states.append(_random_state())
        saved = _SavedBytes() if keeps_graph and budget < math.inf else None
        with torch.set_grad_enabled(keeps_graph), nullcontext() if keeps_graph and number == last else no_sync():
            with saved or nullcontext():
                output = encode(chunk)
        if saved is not None:
            largest = max(largest, agree(saved.total))
            spent += largest
            # Of the first chunk nothing was known. The last one's graph is armed to communicate, and must be used.
            keeps_graph = number == last or spent + largest <= budget
        num_kept += keeps_graph
        outputs.append(output if keeps_graph else {name: tensor.detach() for name, tensor in output.items()})
    torch.clear_autocast_cache()  # it holds half-precision weights made without a graph
    parts: dict[str, list[torch.Tensor]] = {}
    for output in outputs:
        for name, tensor in output.items():
            parts.setdefault(name, []).append(tensor)
    embeds = {name: tensors[0] if tensors[0].dim() == 0 else torch.cat(tensors) for name, tensors in parts.items()}
    if num_kept == len(chunks):
        loss = loss_fn(embeds)
        backward(loss)
        return loss.detach()

    embeds = {name: tensor.detach().requires_grad_() for name, tensor in embeds.items()}
    with no_sync():
        loss = loss_fn(embeds)
        backward(loss)
    after = _random_state()
    remaining = {name: _gradient_parts(embeds[name].grad, parts[name]) for name in embeds}
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        with nullcontext() if number == last else no_sync():
            if number >= num_kept:
                _set_random_state(state)
                outputs[number] = encode(chunk)
            pairs = [(tensor, remaining[name].pop(0)) for name, tensor in outputs[number].items()]
            outputs[number] = {}
            learning = [(tensor, grad) for tensor, grad in pairs if grad is not None and tensor.requires_grad]
            if learning:
                tensors, gradients = zip(*learning, strict=True)
                torch.autograd.backward(tensors, gradients)
            del pairs, learning
    _set_random_state(after)
    return loss.detach()


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd saves, each storage once, parameters aside."""

    def __init__(self) -> None:
        self.total, self._seen = 0, set[int]()
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if not isinstance(whole, torch.nn.Parameter) and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor.detach()  # the tensor itself, if an output, would keep its own graph alive


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
