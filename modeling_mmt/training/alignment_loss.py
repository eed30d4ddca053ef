"""The losses of the stage `alignment`: the distance of a student's embeddings from its teacher's.

Reimers and Gurevych 2020, "Making monolingual sentence embeddings multilingual using knowledge distillation" (arXiv
2004.09813), section 3: a translation shall have the embedding that the frozen teacher gives the English sentence.

Letters: `N` pairs of a batch, `P` the width of the joint space; `s_i` is the student's embedding of a sentence in some
language, `t_i` the teacher's of the English one, neither of them normalised; `cos` is the cosine, `tau` the model's
temperature.
"""

import torch
import torch.distributed as dist
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from modeling_mmt.training.large_batch import gather_embeddings
from modeling_mmt.training.streaming_loss import contrastive_loss


def alignment_loss(
    kind: str,
    student: torch.Tensor,
    teacher: torch.Tensor,
    logit_scale: torch.Tensor,
    positive_ids: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """One of the three losses.

        mse:     mean_i |s_i - t_i|^2 / P                     (the paper's equation 1)
        cosine:  mean_i (1 - cos(s_i, t_i))
        nce:     mean_i 1/2 [ -log( e^{cos(s_i, t_i)/tau} / sum_j e^{cos(s_i, t_j)/tau} )
                              -log( e^{cos(s_i, t_i)/tau} / sum_j e^{cos(s_j, t_i)/tau} ) ]

    In `nce`, j is i or a pair of another English sentence.

    Args:
        kind: `"mse"`, `"cosine"` or `"nce"`.
        student: `(N, P)` float.
        teacher: `(N, P)` float, without a gradient.
        logit_scale: `()` float, 1/tau itself; `nce` alone reads it.
        positive_ids: `(N, 1)` int64, equal for equal English sentences; `nce` alone reads it.
        group: processes in which the pairs lie, with the value and the gradients of `streaming_loss.streaming_loss`.

    Returns:
        Scalar, float32.
    """
    if kind != "nce" and group is not None:
        student, teacher = gather_embeddings(student, group), gather_embeddings(teacher, group)
    if kind == "mse":
        return mse_loss(student, teacher)
    if kind == "cosine":
        return (1 - cosine_similarity(student, teacher)).mean()
    pair = normalize(student, dim=-1), normalize(teacher, dim=-1)
    return contrastive_loss("symmetric_softmax", *pair, logit_scale, positive_ids, group=group)
