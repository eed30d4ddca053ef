"""Interpolation between a stage's starting and final weights, which preserves more of the start's robustness.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903), equation 1:

    theta(a) = (1 - a) theta_0 + a theta_1

theta_0 are the weights that a stage starts from, zero-shot in a dual encoder's first; theta_1 those that it learned.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from modeling_mmt.training.checkpointing import load_trainable_state, trainable_state


def mix_with_start(
    model: torch.nn.Module, start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float
):
    """Give a model's learning parameters the values `(1 - share) start + share end`; 0 and 1 are exact."""
    load_trainable_state(model, {key: torch.lerp(start[key], value, share) for key, value in end.items()})


def interpolate(
    model: torch.nn.Module,
    start: Mapping[str, torch.Tensor],
    shares: Sequence[float],
    score: Callable[[], float],
) -> list[dict[str, float]]:
    """Score the mixes of a model's learned weights with those that it started from, and leave it with the best one.

    Args:
        model: with the learned weights.
        start: its learning parameters as they were, by name.
        shares: of the learned weights; of equal scores the first one's is taken.
        score: of the model as it is; higher is better.

    Returns:
        Of each share, `share` and `validation_mrr`, in the order given.
    """
    end = {key: value.clone() for key, value in trainable_state(model).items()}
    points = []
    for share in shares:
        mix_with_start(model, start, end, share)
        points.append({"share": share, "validation_mrr": score()})
    best = max(points, key=lambda point: point["validation_mrr"])
    mix_with_start(model, start, end, best["share"])
    return points
