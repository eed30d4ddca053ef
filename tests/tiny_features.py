"""Clips of features with lengths of their own, and what a store says of them."""

import numpy as np

SETTINGS = {"extractor": "lite0", "revision": "abc", "rate": 2.0}


def ragged_clips(num_clips: int, dim: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, size=num_clips)
    return {f"clip{i}": generator.normal(size=(length, dim)).astype(np.float16) for i, length in enumerate(lengths)}
