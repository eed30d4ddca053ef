"""`mmt train`: a recipe's stages."""

from collections.abc import Sequence

from modeling_mmt.recipes import bundled_recipes, recipe_path
from modeling_mmt.training import run


def main(argv: Sequence[str]) -> int:
    """Train; returns 1 where a dry run found problems."""
    words = [str(recipe_path(word)) if word in bundled_recipes() else word for word in argv]
    return 1 if run.main(words).get("problems") else 0
