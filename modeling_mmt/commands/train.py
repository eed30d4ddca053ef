"""`mmt train`: a recipe's stages."""

from collections.abc import Sequence

from modeling_mmt.commands.recipes import FOLDER, bundled_recipes
from modeling_mmt.training import run


def main(argv: Sequence[str]) -> int:
    """Train; returns 1 where a dry run found problems."""
    bundled = bundled_recipes()
    words = [str(FOLDER / f"{word}.yaml") if word in bundled else word for word in argv]
    return 1 if run.main(words).get("problems") else 0
