"""`mmt cost`: what a recipe costs on a card."""

from typing import Any

from modeling_mmt.commands.terminal import print_json
from modeling_mmt.training.cost import Scale, cost, lines_of
from modeling_mmt.training.recipe_reading import load_recipe


def main(recipe: str, card: str, as_json: bool = False, **options: Any):
    """Print hours, bytes and money of extraction, training and search, and what was assumed.

    Args:
        recipe: file or bundled name.
        card: of `modeling_mmt.training.cost.CARDS`.
        as_json: print JSON.
        options: of `Scale`.
    """
    plan = cost(load_recipe([recipe]), card, Scale(**options))
    if as_json:
        print_json(plan)
    else:
        print("\n".join(lines_of(plan)))
