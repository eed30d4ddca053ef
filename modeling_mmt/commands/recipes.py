"""`mmt recipes`: list or show the bundled recipes."""

import yaml

from modeling_mmt.commands.terminal import print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.recipes import bundled_recipes, recipe_path
from modeling_mmt.training.recipe_fields import near


def main(name: str | None = None, as_json: bool = False):
    """Print the names and what the recipes are, or one recipe.

    Args:
        name: of the recipe, such as `emoji9/mmp_en`.
        as_json: print JSON.

    Raises:
        InputError: no recipe is called so.
    """
    recipes = bundled_recipes()
    if name is None:
        if as_json:
            print_json(recipes)
        else:
            print("\n".join(f"{name:{max(map(len, recipes))}}  {about}" for name, about in recipes.items()))
        return
    if name not in recipes:
        raise InputError(f"{name} is not a bundled recipe; {near(name, list(recipes))}")
    text = recipe_path(name).read_text(encoding="utf-8")
    if as_json:
        print_json(yaml.safe_load(text))
    else:
        print(text, end="")
