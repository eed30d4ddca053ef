"""`mmt recipes`: those that come with the package."""

from pathlib import Path

import yaml

from modeling_mmt.commands.terminal import print_json

FOLDER = Path(__file__).parents[1] / "recipes"


def main(name: str | None = None, as_json: bool = False):
    """Print the names, or one recipe.

    Args:
        name: of the recipe, such as `emoji9/mmp_en`.
        as_json: print JSON.

    Raises:
        ValueError: no recipe is called so.
    """
    names = bundled_recipes()
    if name is None:
        if as_json:
            print_json(names)
        else:
            print("\n".join(names))
        return
    if name not in names:
        raise ValueError(f"{name} is no recipe of the package; `mmt recipes` lists them")
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    if as_json:
        print_json(yaml.safe_load(text))
    else:
        print(text, end="")


def bundled_recipes() -> list[str]:
    """Their names, as `mmt train` takes them."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
