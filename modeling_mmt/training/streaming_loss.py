"""The losses of `loss_mmt.py` and their gradients, without the `(N, N)` logits in memory.

All four losses have gradients of one shape: with `S = logits` and `W = dL/dS`,

    W_ij = e^{S_ij} (r_i + c_j)    for a negative,        dL/da = W b / tau,    dL/db = W^T a / tau,

where the vectors `r` and `c` come from the row and column sums of `e^S` (for the sigmoid, `W_ij = sigmoid(S_ij) / N`).
So the forward pass walks over tiles of `S` and keeps sums, `O(N)`; the backward pass walks again, recomputes each tile
and adds its two products to the gradients. A tile gives row sums *and* column sums, hence four `N x N x P` products in
all, `8 N^2 P` operations, where a dense softmax of both directions takes six.

Where the rows lie in `W` processes, each walks over the tiles of its own rows of `a` with all rows of `b`, so that it
has `8 N^2 P / W` operations. What crosses between processes is `b` and its gradient, `O(N P)`, and sums, `O(N)`.

Letters as in `loss_mmt.py`: `N` rows, `P` projection width, `K` columns of positive ids.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import logsigmoid

from modeling_mmt.loss_mmt import LOSSES, compared_columns, positive_mask
from modeling_mmt.training.large_batch import gather_embeddings, gather_ids, gather_rows, row_counts
from modeling_mmt.training.logit_tiles import Tiles, own_rows

MEMORY_BUDGET = 16 * 2**20
"""Default bytes for work of the logits' shape: a dense loss of up to 617 rows, or tiles of 1024 x 1024 in float32."""

DENSE_TENSORS = 11
"""How many tensors of the logits' shape the dense losses hold at their peak, rounded up (measured)."""


def contrastive_loss(
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    logit_scale: torch.Tensor,
    positive_ids: torch.Tensor | None = None,
    logit_bias: torch.Tensor | None = None,
    memory_budget: int = MEMORY_BUDGET,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Compute a loss by its dense equation where that fits the memory budget, in tiles where it does not.

    The two ways give the same value and the same gradients, up to the order of float32 additions; the budget chooses
    between them and sets the size of the tiles.

    Args:
        name: a key of `loss_mmt.LOSSES`: `nce`, `multi_positive`, `symmetric_softmax` or `sigmoid`.
        a: `(N, P)` float, unit norm.
        b: `(N, P)` float, unit norm; row i belongs to row i of `a`.
        logit_scale: `()` float, 1/tau itself (not its logarithm).
        positive_ids: `(N, K)` int64, as `loss_mmt.positive_mask` takes them. None: only the pairs are positives.
        logit_bias: `()` float, for `sigmoid` only.
        memory_budget: bytes for work of the logits' shape. Gradients, `O(N P)`, come on top in both ways.
        group: as in `streaming_loss`. The dense way is taken where all rows together fit, by every process.

    Returns:
        Scalar in nats, float32 (float64 for float64 embeddings).

    Raises:
        ValueError: for an unknown name, unequal shapes, or a bias where the loss has none.
    """
    _check(name, a, b, positive_ids, logit_bias)
    itemsize = torch.promote_types(a.dtype, torch.float32).itemsize
    columns = 0 if positive_ids is None else len(compared_columns(positive_ids))
    n = len(a) if group is None else sum(row_counts(a, group))
    if n**2 * (DENSE_TENSORS * itemsize + columns) > memory_budget:
        return streaming_loss(
            name, a, b, logit_scale, positive_ids, logit_bias, memory_budget=memory_budget, group=group
        )
    if group is not None:
        a, b = gather_embeddings(a, group), gather_embeddings(b, group)
        positive_ids = None if positive_ids is None else gather_ids(positive_ids, group)
    mask = None if positive_ids is None else positive_mask(positive_ids)
    bias = {} if logit_bias is None else {"logit_bias": logit_bias}
    return LOSSES[name](a, b, logit_scale, mask, **bias)


@torch.compiler.disable
def streaming_loss(
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    logit_scale: torch.Tensor,
    positive_ids: torch.Tensor | None = None,
    logit_bias: torch.Tensor | None = None,
    block_size: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Compute a loss of `loss_mmt.py` in tiles of `block_size` x `block_size` logits.

    Differentiable once, with respect to `a`, `b`, `logit_scale` and `logit_bias`. The gradients' memory, `O(N P)`, is
    what grows with N.

    Args:
        name: a key of `loss_mmt.LOSSES`.
        a: `(N, P)` float. Unit norm is the fast case; any finite rows are right.
        b: `(N, P)` float; row i belongs to row i of `a`.
        logit_scale: `()` float, 1/tau itself (not its logarithm).
        positive_ids: `(N, K)` int64, as `loss_mmt.positive_mask` takes them. None: only the pairs are positives.
        logit_bias: `()` float, for `sigmoid` only.
        block_size: rows and columns of a tile; the last ones may be smaller. None: as large as the budget allows.
        memory_budget: bytes for the tiles; not used where `block_size` is given.
        group: processes in which the rows lie, in the order of `gather_embeddings`: `a`, `b` and `positive_ids` are
            then this process's own, of any number. None: the rows are all there are.

    Returns:
        Scalar in nats, float32 (float64 for float64 embeddings). Of a group, the loss over all rows, on every process;
        gradients are those of `gather_embeddings`: of rows `W` times that of one loss, so that the average over the
        processes, which DDP and FSDP2 take, is exact; of the scalars the whole loss's, on every process.

    Raises:
        ValueError: for an unknown name, unequal shapes, a bias where the loss has none, or a block size below 1.
    """
    _check(name, a, b, positive_ids, logit_bias)
    if block_size is None:
        # two tiles of logits, two more inside logsumexp or logsigmoid, and the bool masks
        bytes_per_logit = 4 * torch.promote_types(a.dtype, torch.float32).itemsize
        fitting = int((memory_budget / bytes_per_logit) ** 0.5)
        block_size = fitting // 128 * 128 if fitting >= 128 else max(fitting, 1)
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; give at least 1")
    loss: torch.Tensor = _StreamingLoss.apply(a, b, logit_scale, logit_bias, positive_ids, name, block_size, group)
    return loss


def _check(
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    positive_ids: torch.Tensor | None,
    logit_bias: torch.Tensor | None,
) -> None:
    if name not in LOSSES:
        raise ValueError(f"loss name is {name!r}; use one of {', '.join(LOSSES)}")
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; both must be the same (N, P)")
    if positive_ids is not None and (positive_ids.dim() != 2 or len(positive_ids) != len(a)):
        raise ValueError(f"positive_ids has shape {tuple(positive_ids.shape)}; give ({len(a)}, K), one row per pair")
    if logit_bias is not None and name != "sigmoid":
        raise ValueError(f"logit_bias is given, but only 'sigmoid' has one; leave it out for {name!r}")


class _StreamingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None,
        positive_ids: torch.Tensor | None,
        name: str,
        block_size: int,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        counts = [len(a)] if group is None else row_counts(a, group)
        if group is not None:
            b = gather_rows(b, counts, group)
            positive_ids = None if positive_ids is None else gather_rows(positive_ids, counts, group)
        row_ids, column_ids = _ids_to_compare(positive_ids)
        row_ids = None if row_ids is None else row_ids[own_rows(counts, group)]
        with torch.autocast(device_type=a.device.type, enabled=False):
            tiles = Tiles(a, b, logit_scale, logit_bias, row_ids, column_ids, block_size, counts, group)
            forward = _sigmoid_forward if name == "sigmoid" else _softmax_forward
            loss, pair_weights, ctx.weights = forward(tiles, name)
        ctx.save_for_backward(a, b, logit_scale, logit_bias, row_ids, column_ids, pair_weights)
        ctx.layout = block_size, counts, group
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # only where create_graph=True asks for a derivative of these gradients
            raise RuntimeError("streaming_loss is differentiable once; for second derivatives use loss_mmt.LOSSES")
        a, b, logit_scale, logit_bias, row_ids, column_ids, pair_weights = ctx.saved_tensors
        need_a, need_b, need_scale, need_bias = ctx.needs_input_grad[:4]
        with torch.autocast(device_type=a.device.type, enabled=False):
            tiles = Tiles(a, b, logit_scale, logit_bias, row_ids, column_ids, *ctx.layout)
            grad_a = torch.zeros_like(tiles.a) if need_a or need_scale else None
            grad_b = torch.zeros_like(tiles.b) if need_b else None
            own_grad_b = None if grad_b is None else grad_b[tiles.own]
            grad_scale, grad_bias = tiles.row_vector(0.0), pair_weights.clone()
            for rows in tiles.row_blocks():
                scaled, weights = tiles.scaled(rows), pair_weights[rows, None]
                for columns in tiles.column_blocks():
                    tile = ctx.weights(tiles, rows, columns, tiles.logits(columns, scaled))
                    if grad_a is not None:
                        grad_a[rows].addmm_(tile, tiles.b[columns])
                    if grad_b is not None:
                        grad_b[columns].addmm_(tile.T, scaled)
                    if need_bias:
                        grad_bias[rows] += tile.sum(dim=1)
                if grad_a is not None:
                    grad_a[rows].addcmul_(weights, tiles.b[tiles.own][rows])
                    grad_scale[rows] = (grad_a[rows] * tiles.a[rows]).sum(dim=1)
                if own_grad_b is not None:
                    own_grad_b[rows].addcmul_(weights, scaled)
            if grad_b is not None:
                tiles.total(grad_b)
            grad_loss = grad_loss.to(tiles.a.dtype)
            of_rows = grad_loss * len(tiles.counts)  # each process has the gradient of as many losses
            return (
                grad_a.mul_(of_rows * tiles.scale).to(a.dtype) if need_a and grad_a is not None else None,
                own_grad_b.mul_(of_rows).to(b.dtype) if own_grad_b is not None else None,
                (grad_loss * tiles.total(grad_scale.sum())).to(logit_scale.dtype) if need_scale else None,
                (grad_loss * tiles.total(grad_bias.sum())).to(logit_bias.dtype) if need_bias else None,
                *(None,) * 4,
            )


_Weights = Callable[[Tiles, slice, slice, torch.Tensor], torch.Tensor]
"""Turns a tile of logits into the tile of dL/dlogits, in place, zero at the pairs."""


def _softmax_forward(tiles: Tiles, name: str) -> tuple[torch.Tensor, torch.Tensor, _Weights]:
    """Compute one of the three losses that are softmaxes.

    Returns:
        The loss, dL/dlogits of this process's pairs `(n,)`, and what makes dL/dlogits of everything else.
    """
    pair, row, column, further = _log_sums(tiles, with_further=name == "multi_positive")
    if name == "symmetric_softmax":
        log_row, log_column = torch.logaddexp(pair, row), torch.logaddexp(pair, column)
        loss = tiles.mean((log_row + log_column) / 2 - pair)
        log_2n = math.log(2 * tiles.n)
        pair_weights = (pair - log_row - log_2n).exp() + (pair - log_column - log_2n).exp() - 1 / tiles.n
        log_columns = tiles.of_all_rows(log_column + log_2n)
        return loss, pair_weights, _softmax_weights(log_row + log_2n, log_columns, None)
    numerator = pair if further is None else torch.logaddexp(pair, further)
    denominator = torch.logaddexp(numerator, torch.logaddexp(row, column))
    loss = tiles.mean(denominator - numerator)
    log_n = math.log(tiles.n)
    pair_weights = (pair - denominator - log_n).exp() - (pair - numerator - log_n).exp()
    log_numerator = None if further is None else numerator + log_n
    log_columns = tiles.of_all_rows(denominator + log_n)
    return loss, pair_weights, _softmax_weights(denominator + log_n, log_columns, log_numerator)


def _log_sums(
    tiles: Tiles, with_further: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Walk over the tiles once.

    Returns:
        `(n,)` each: the pairs' logits; the log of the sum of exponentials of each row's negatives; of each pair's
        column's; and, where asked for and where there are any, of each row's further positives.
    """
    pair, row = tiles.row_vector(0.0), tiles.row_vector(-torch.inf)
    column = tiles.b.new_full((tiles.n,), -torch.inf)
    further = tiles.row_vector(-torch.inf) if with_further and tiles.row_ids is not None else None
    for rows in tiles.row_blocks():
        scaled = tiles.scaled(rows)
        pair[rows] = tiles.pair_logits(rows, scaled)
        for columns in tiles.column_blocks():
            tile, mask = tiles.logits(columns, scaled), tiles.further_positives(rows, columns)
            if further is not None and mask is not None:
                further[rows] = torch.logaddexp(further[rows], tile.masked_fill(~mask, -torch.inf).logsumexp(dim=1))
            tiles.fill_positives(tile, rows, columns, mask, -torch.inf)
            row[rows] = torch.logaddexp(row[rows], tile.logsumexp(dim=1))
            column[columns] = torch.logaddexp(column[columns], tile.logsumexp(dim=0))
    return pair, row, tiles.own_log_sums(column), further


def _softmax_weights(log_row: torch.Tensor, log_column: torch.Tensor, log_numerator: torch.Tensor | None) -> _Weights:
    """Make `W_ij = e^{S_ij - log_row_i} + e^{S_ij - log_column_j}` for negatives.

    A further positive has `e^{S_ij - log_row_i} - e^{S_ij - log_numerator_i}`, or nothing without `log_numerator`.
    """

    def weights(tiles: Tiles, rows: slice, columns: slice, tile: torch.Tensor) -> torch.Tensor:
        mask = tiles.further_positives(rows, columns)
        other = tile.sub(log_column[columns]).exp_()
        if mask is not None and log_numerator is not None:
            other = torch.where(mask, -tile.sub(log_numerator[rows, None]).exp_(), other)
            mask = None
        tile.sub_(log_row[rows, None]).exp_().add_(other)
        return tiles.fill_positives(tile, rows, columns, mask, 0.0)

    return weights


def _sigmoid_forward(tiles: Tiles, name: str) -> tuple[torch.Tensor, torch.Tensor, _Weights]:
    """Compute the sigmoid loss; returns what `_softmax_forward` returns."""
    losses, pair = tiles.row_vector(0.0), tiles.row_vector(0.0)
    for rows in tiles.row_blocks():
        scaled = tiles.scaled(rows)
        pair[rows] = tiles.pair_logits(rows, scaled)
        for columns in tiles.column_blocks():
            tile, mask = tiles.logits(columns, scaled), tiles.further_positives(rows, columns)
            losses[rows] -= tiles.fill_positives(logsigmoid(tile.neg_()), rows, columns, mask, 0.0).sum(dim=1)

    def weights(tiles: Tiles, rows: slice, columns: slice, tile: torch.Tensor) -> torch.Tensor:
        mask = tiles.further_positives(rows, columns)
        return tiles.fill_positives(tile.sigmoid_().div_(tiles.n), rows, columns, mask, 0.0)

    return tiles.mean(losses - logsigmoid(pair)), -torch.sigmoid(-pair) / tiles.n, weights


def _ids_to_compare(positive_ids: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Two `(N, C)`: rows i and j are positives if i's first and j's second agree in a column. None where none are.

    Columns of `positive_ids` without an id that comes twice are left out.
    """
    if positive_ids is None:
        return None, None
    pairs = []
    for k, other in compared_columns(positive_ids):
        rows, columns = positive_ids[:, k], positive_ids[:, other]
        if torch.isin(rows, columns).any() if k != other else len(rows.unique()) < len(rows):
            pairs.append((rows, columns))
    if not pairs:
        return None, None
    row_ids, column_ids = zip(*pairs, strict=True)
    return torch.stack(row_ids, dim=1), torch.stack(column_ids, dim=1)
