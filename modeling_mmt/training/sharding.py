"""Parameters, gradients and optimizer states split over the processes (FSDP2), with the gradients of one process.

    accelerate launch --use_fsdp --fsdp_version 2 train.py RECIPE
    ACCELERATE_USE_FSDP=true FSDP_VERSION=2 torchrun --nproc_per_node 2 train.py RECIPE     # also on CPU

Accelerate's own preparation cannot be used: `fully_shard` refuses a scalar such as the temperature unless it is asked
to ignore it, which Accelerate can say of whole modules only; and on CPU it leaves its FSDP settings aside. So the
layers are sharded here, and Accelerate prepares the rest.
"""

import copy
import os

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modeling_mmt.modeling_mmt import MMTModel, encoder_layers
from modeling_mmt.pooling_mmt import MMTLayer


def wants_sharding(accelerator: Accelerator) -> bool:
    """Whether the launch asked for FSDP, by Accelerate's configuration or environment, and there are processes.

    Raises:
        ValueError: it asked for another version than 2.
    """
    by_plugin = accelerator.distributed_type == DistributedType.FSDP
    if not by_plugin and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = accelerator.state.fsdp_plugin.fsdp_version if by_plugin else int(os.environ.get("FSDP_VERSION", "1"))
    if version != 2:
        raise ValueError(
            f"fsdp_version is {version}; launch with --fsdp_version 2, or FSDP_VERSION=2 where by torchrun"
        )
    return accelerator.num_processes > 1


def copy_to_shard(model: MMTModel) -> MMTModel:
    """A copy whose learning parameters are its own, and whose frozen ones are the model's.

    The model stays whole on every process, for evaluation, for the layer cache and to be saved.
    """
    shared = {id(value): value for value in model.parameters() if not value.requires_grad}
    return copy.deepcopy(model, shared)


def shard(root: torch.nn.Module, model: MMTModel) -> None:
    """Shard, in place, each learning layer of `model`, and what else learns with `root`, whose forward is called.

    Whole stay the scalars, which `fully_shard` refuses (`average_gradients` is for them), and what is frozen, which
    has neither gradient nor optimizer state.
    """
    whole = {value for value in root.parameters() if value.dim() == 0 or not value.requires_grad}
    layers = [*encoder_layers(model.text_model.encoder), *(m for m in model.modules() if isinstance(m, MMTLayer))]
    for layer in layers:
        if any(value.requires_grad for value in layer.parameters()):
            fully_shard(layer, ignored_params=whole)
    fully_shard(root, ignored_params=whole)


def average_gradients(module: torch.nn.Module) -> None:
    """Average over the processes the gradients that FSDP2 was asked to ignore; each is the whole loss's already."""
    for value in module.parameters():
        if value.grad is not None and not isinstance(value, DTensor):
            dist.all_reduce(value.grad)
            value.grad /= dist.get_world_size()


def clip_grad_norm(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, which does not take sharded and whole parameters together.

    Returns:
        The norm of all gradients before, `()`, the same on every process.
    """
    sharded = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    whole = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    device = (sharded + whole)[0].device
    total = torch.stack([grad.norm() ** 2 for grad in sharded] or [torch.zeros((), device=device)]).sum()
    dist.all_reduce(total)
    norm = torch.stack([total, *(grad.norm() ** 2 for grad in whole)]).sum().sqrt()
    for grad in sharded + whole:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
