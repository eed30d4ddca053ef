"""A tiny model's outputs at a fixed seed, as they were: these tests find change, not error.

A red test here, with every other test green, means that trained checkpoints or runs would give other numbers. To
change the values on purpose:

1. Say in the CHANGELOG, under *Changed*, what changes and for whom.
2. Let the other tests (invariances, oracles, closed forms) pass first; never regenerate to make a red test green.
3. Look at which variants and names differ, and explain each.
4. `python tests/make_golden.py`
5. Read `git diff --stat tests/golden`: only what you explained may have changed.
6. Commit the files with the change that made them, and say so in the message.
"""

import pytest
import torch
from make_golden import FOLDER, VARIANTS, compute, compute_collator
from safetensors.torch import load_file

TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}  # other machines add in another order


@pytest.mark.parametrize("name", VARIANTS)
def test_embeddings_objectives_and_gradients_are_as_they_were(name):
    found, wanted = compute(name), load_file(FOLDER / f"{name}.safetensors")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}", **TOLERANCE)


def test_the_collators_draws_are_as_they_were():
    found, wanted = compute_collator(), load_file(FOLDER / "collator.safetensors")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}", **TOLERANCE)
