"""The objectives as pure functions of embeddings and a positive mask.

Letters: `N` rows of a batch, `P` projection width, `K` columns of positive ids. `s_ij` is the cosine of row i of `a`
with row j of `b`, `tau` the temperature, and `P(i)` the set of columns that are positives of row i: i itself, rows of
the same clip, rows with an equal caption. Every loss is a mean over rows, in nats.

Nothing here knows a model, a configuration or a process group. Half-precision embeddings are accumulated in float32.
"""

from collections.abc import Callable, Mapping
from itertools import combinations

import torch

OBJECTIVES = ("inter", "intra", "cross", "text")
CAPTIONS = ("", "paired_", *(f"paired_{number}_" for number in range(2, 9)))
"""What the names of a clip's captions begin with: of the first, of a second language, of up to seven more."""


def compared_columns(positive_ids: torch.Tensor) -> list[tuple[int, int]]:
    """The pairs of columns of `positive_ids` `(N, K)` whose ids are compared: clip with clip, caption with caption."""
    captions = range(1, positive_ids.shape[1])
    return [(0, 0), *((k, other) for k in captions for other in captions)]


def positive_mask(positive_ids: torch.Tensor) -> torch.Tensor:
    """Say which rows are mutual positives: those of the same clip, and those with an equal caption.

    Args:
        positive_ids: `(N, K)` int64. Column 0 is the clip's id, the others are hashes of its captions (one for each
            language of a pair). A caption is looked for among all captions of another row.

    Returns:
        `(N, N)` bool, symmetric, its diagonal always True: row i is `P(i)`.

    Raises:
        ValueError: if `positive_ids` is not two-dimensional with at least one column.
    """
    if positive_ids.dim() != 2 or positive_ids.shape[1] == 0:
        raise ValueError(f"positive_ids has shape {tuple(positive_ids.shape)}; give (N, K) with K at least 1")
    compared = compared_columns(positive_ids)
    return torch.stack([positive_ids[:, k, None] == positive_ids[:, other] for k, other in compared]).any(dim=0)


def nce_loss(
    a: torch.Tensor, b: torch.Tensor, logit_scale: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Noise-contrastive loss with both directions in one denominator; the paper's, and the default.

        L_i = -log( e^{s_ii/tau} / ( e^{s_ii/tau} + sum_{j not in P(i)} ( e^{s_ij/tau} + e^{s_ji/tau} ) ) )

    With all logits equal and no further positives the loss is `log(1 + 2(N - 1))`.

    Args:
        a: `(N, P)` float, unit norm, for example `text_embeds`.
        b: `(N, P)` float, unit norm; row i belongs to row i of `a`.
        logit_scale: `()` float, 1/tau itself (not its logarithm).
        mask: `(N, N)` bool, row i is `P(i)`; None means that only row i is a positive of row i.

    Returns:
        Scalar in nats, float32 (float64 for float64 embeddings).

    Source: arXiv 2103.08849, the inter-modal objective, after MIL-NCE (arXiv 1912.06430). Differs: members of `P(i)`
    other than i leave numerator and denominator; MIL-NCE's own code counts the positive twice in the denominator.
    """
    logits = _scaled_similarity(a, b, logit_scale)  # (N, N)
    positives = _positives(mask, logits)
    positive = logits.diagonal()  # (N,)
    denominator = _log_sum_exp(positive, _negatives(logits, positives), _negatives(logits.T, positives))
    return (denominator - positive).mean()


def multi_positive_nce_loss(
    a: torch.Tensor, b: torch.Tensor, logit_scale: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""NCE with the sum over `P(i)` in the numerator, so that one good positive is enough.

        L_i = -log( p_i / ( p_i + sum_{j not in P(i)} ( e^{s_ij/tau} + e^{s_ji/tau} ) ) ),
        p_i = sum_{p in P(i)} e^{s_ip/tau}

    Without further positives it is `nce_loss`.

    Args:
        a: `(N, P)` float, unit norm.
        b: `(N, P)` float, unit norm; row i belongs to row i of `a`.
        logit_scale: `()` float, 1/tau itself.
        mask: `(N, N)` bool, row i is `P(i)`; None means the diagonal.

    Returns:
        Scalar in nats, float32 (float64 for float64 embeddings).

    Source: MIL-NCE (arXiv 1912.06430), equation 1. Differs: cosine with a temperature, the positives counted once.
    """
    logits = _scaled_similarity(a, b, logit_scale)  # (N, N)
    positives = _positives(mask, logits)
    numerator = _log_sum_exp(logits.masked_fill(~positives, -torch.inf))  # (N,)
    denominator = _log_sum_exp(numerator, _negatives(logits, positives), _negatives(logits.T, positives))
    return (denominator - numerator).mean()


def symmetric_softmax_loss(
    a: torch.Tensor, b: torch.Tensor, logit_scale: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""The mean of the two directions' cross-entropies, as CLIP's.

        L_i = 1/2 [ -log( e^{s_ii/tau} / ( e^{s_ii/tau} + sum_{j not in P(i)} e^{s_ij/tau} ) )
                    -log( e^{s_ii/tau} / ( e^{s_ii/tau} + sum_{j not in P(i)} e^{s_ji/tau} ) ) ]

    With all logits equal and no further positives the loss is `log(N)`.

    Args:
        a: `(N, P)` float, unit norm.
        b: `(N, P)` float, unit norm; row i belongs to row i of `a`.
        logit_scale: `()` float, 1/tau itself.
        mask: `(N, N)` bool, row i is `P(i)`; None means the diagonal.

    Returns:
        Scalar in nats, float32 (float64 for float64 embeddings).

    Source: CLIP (arXiv 2103.00020), section 2.3. Differs: members of `P(i)` other than i leave the denominator.
    """
    logits = _scaled_similarity(a, b, logit_scale)  # (N, N)
    positives = _positives(mask, logits)
    positive = logits.diagonal()  # (N,)
    over_b = _log_sum_exp(positive, _negatives(logits, positives))
    over_a = _log_sum_exp(positive, _negatives(logits.T, positives))
    return ((over_b + over_a) / 2 - positive).mean()


def sigmoid_loss(
    a: torch.Tensor,
    b: torch.Tensor,
    logit_scale: torch.Tensor,
    mask: torch.Tensor | None = None,
    logit_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""One binary decision for each pair, as SigLIP's.

        L_i = -log sigmoid(z_ii) - sum_{j not in P(i)} log sigmoid(-z_ij),    z_ij = s_ij/tau + bias

    With all logits zero and no further positives the loss is `N log(2)`.

    Args:
        a: `(N, P)` float, unit norm.
        b: `(N, P)` float, unit norm; row i belongs to row i of `a`.
        logit_scale: `()` float, 1/tau itself.
        mask: `(N, N)` bool, row i is `P(i)`; None means the diagonal.
        logit_bias: `()` float, added to every logit; None means zero. SigLIP begins at -10.

    Returns:
        Scalar in nats, float32 (float64 for float64 embeddings).

    Source: SigLIP (arXiv 2303.15343), section 3.2. Differs: members of `P(i)` other than i are left out.
    """
    logits = _scaled_similarity(a, b, logit_scale)  # (N, N)
    if logit_bias is not None:
        logits = logits + logit_bias
    log_sigmoid = torch.nn.functional.logsigmoid
    negatives = log_sigmoid(-logits).masked_fill(_positives(mask, logits), 0.0)
    return -(log_sigmoid(logits.diagonal()) + negatives.sum(dim=1)).mean()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "nce": nce_loss,
    "multi_positive": multi_positive_nce_loss,
    "symmetric_softmax": symmetric_softmax_loss,
    "sigmoid": sigmoid_loss,
}


def objectives(
    embeds: Mapping[str, torch.Tensor],
    logit_scale: torch.Tensor,
    mask: torch.Tensor | None,
    loss_fn: Callable[..., torch.Tensor],
    weights: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """Compose the training objectives from whatever embeddings the batch has.

    With captions X (`text_embeds`), clips V (`video_embeds`), captions Y of the same clips in another language
    (`paired_text_embeds`) and noised copies X^m, V^m, Y^m (`noised_...`):

    | objective | terms | where there is no Y |
    | --- | --- | --- |
    | `inter` | L(X, V) + L(Y, V) | L(X, V) |
    | `intra` | L(X, X^m) + L(V, V^m) + L(Y, Y^m) | L(X, X^m) + L(V, V^m) |
    | `cross` | L(X given V, Y given V) | absent |
    | `text` | L(X, Y) | absent |

    Of more languages (`paired_2_text_embeds`, ...: `CAPTIONS`) each adds its own terms to `inter` and `intra`, and
    each pair of them one to `cross` and `text`. The captions of a clip share its row, so that they are positives of it
    and of one another; a caption is no negative of a row of `P(i)`, whichever of its captions makes it one.

    A term whose embeddings are missing is absent, and so is an objective of which no term is left.

    Args:
        embeds: name to `(N, P)` float, unit norm. Names: `video_embeds`, and `text_embeds` with each of `CAPTIONS`
            before it; each of these with `noised_` before it, those of text with `conditional_`.
        logit_scale: `()` float, 1/tau itself.
        mask: handed to `loss_fn`: `(N, N)` bool for the losses of this module. Row i is `P(i)` in every term.
        loss_fn: called as `loss_fn(a, b, logit_scale, mask)`; one of `LOSSES`, or a `functools.partial` of one.
        weights: weight of each objective; for those not named 1, but 0 for `text` in a batch with clips. An objective
            of weight 0 is not computed.

    Returns:
        Each objective's unweighted value under its name, and the weighted sum under `loss`; scalars in nats.

    Raises:
        ValueError: if `weights` names an unknown objective, or no objective is left to compute.

    Source: arXiv 2103.08849, the three objectives of its method section, of one language or two. Differs: more than
    two, and `text`, which by itself is a control that never sees a clip.
    """
    for name in weights or {}:
        if name not in OBJECTIVES:
            raise ValueError(f"weights names the objective {name!r}; use some of {', '.join(OBJECTIVES)}")
    first, *others = (f"{caption}text_embeds" for caption in CAPTIONS)
    pairs = {
        "inter": [(name, "video_embeds") for name in (first, *others)],
        "intra": [(name, f"noised_{name}") for name in (first, "video_embeds", *others)],
        "cross": [(f"conditional_{a}", f"conditional_{b}") for a, b in combinations((first, *others), 2)],
        "text": list(combinations((first, *others), 2)),
    }
    weights = {"text": 0.0 if "video_embeds" in embeds else 1.0, **(weights or {})}
    values: dict[str, torch.Tensor] = {}
    total: torch.Tensor | None = None
    for name in OBJECTIVES:
        present = [(a, b) for a, b in pairs[name] if a in embeds and b in embeds]
        weight = weights.get(name, 1.0)
        if not present or weight == 0:
            continue
        terms = [loss_fn(embeds[a], embeds[b], logit_scale, mask) for a, b in present]
        values[name] = torch.stack(terms).sum()
        total = weight * values[name] if total is None else total + weight * values[name]
    if total is None:
        raise ValueError(
            f"no objective can be computed from embeds {sorted(embeds)} with weights {dict(weights)}; "
            "give at least text_embeds with video_embeds or paired_text_embeds, and a weight above 0"
        )
    return {**values, "loss": total}


def _scaled_similarity(a: torch.Tensor, b: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Return `s/tau`, `(N, N)`, at least float32 whatever the embeddings' type and autocast say."""
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; both must be the same (N, P)")
    with torch.autocast(device_type=a.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        return logit_scale.to(dtype) * (a.to(dtype) @ b.to(dtype).T)


def _positives(mask: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """Return `P(i)` as `(N, N)` bool with a True diagonal."""
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if mask is None:
        return diagonal
    if mask.shape != logits.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; give bool of shape {tuple(logits.shape)}, "
            "for example positive_mask(positive_ids)"
        )
    return mask | diagonal


def _negatives(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Return the logits of the negatives alone: a positive's exponential becomes zero."""
    return logits.masked_fill(positives, -torch.inf)


def _log_sum_exp(*logits: torch.Tensor) -> torch.Tensor:
    """Return `(N,)`: the log of the sum of exponentials over all columns of `(N,)` and `(N, M)` logits."""
    return torch.cat([x[:, None] if x.dim() == 1 else x for x in logits], dim=1).logsumexp(dim=1)
