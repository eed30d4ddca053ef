"""Weights that are not finite are refused by name, and none else."""

import pytest
import torch

from modeling_mmt.data.weights import CheckpointError, check_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_weights_pass_even_where_their_sum_overflows(dtype):
    largest = torch.finfo(dtype).max
    check_finite({"a": torch.full((64,), largest, dtype=dtype), "b": torch.empty(0, dtype=dtype)}, "x", "y")


@pytest.mark.parametrize("values", [[torch.nan], [torch.inf], [torch.inf, -torch.inf], [-torch.inf, 1.0]])
def test_a_weight_that_is_not_finite_is_named(values):
    tensors = {"whole": torch.ones(3), "ids": torch.tensor([1]), "broken": torch.tensor([0.0, *values])}
    with pytest.raises(CheckpointError, match="^x: broken holds NaN or infinity; y$"):
        check_finite(tensors, "x", "y")
