"""The folder of each stage, named by everything that the stage's result depends on."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from modeling_mmt.training.recipe import STAGES, Recipe, StageArguments

# Fields that are no part of a name where they have no effect: stages finished before they were there keep theirs.
LATER_FIELDS = (
    *("dual_encoder", "student", "student_revision", "checkpoint", "checkpoint_revision", "learning"),
    *("statistics_text_column", "interpolation", "other_text_columns", "named_share", "exclude_languages"),
)
EVALUATION_ONLY = ("test_split", "languages", "other_text_columns", "exclude_column")  # no stage depends on these


def stage_identity(stage: StageArguments) -> dict[str, Any]:
    """What a stage says of its result."""
    values = {key: value for key, value in asdict(stage).items() if key != "save_steps"}
    return without_defaults(values) | {"sources": [without_defaults(source) for source in values["sources"]]}


def without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without those of later fields at which they have no effect."""
    return {key: value for key, value in values.items() if key not in LATER_FIELDS or value not in (None, [], 1.0)}


def stages(
    recipe: Recipe, contents: Callable[[StageArguments], Any]
) -> Iterator[tuple[str, StageArguments, Path, dict[str, Any]]]:
    """Each stage with its folder, named by a hash of all that its result depends on, and with those values.

    `contents` of a stage are hashes of what the recipe only gives names of: rows, feature stores, the text encoder.
    """
    before = None
    for name in STAGES:
        stage = getattr(recipe, name)
        if stage is None:
            continue
        identity = {
            "data": {key: value for key, value in asdict(recipe.data).items() if key not in EVALUATION_ONLY},
            "model": without_defaults(asdict(recipe.model)),
            "stage": stage_identity(stage),
            "contents": contents(stage),
            "seed": recipe.seed,
            "mixed_precision": recipe.mixed_precision,
            "before": before,
        }
        before = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        yield name, stage, Path(recipe.work_dir) / f"{name}-{before}", identity
