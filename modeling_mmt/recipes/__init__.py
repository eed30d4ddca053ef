"""The recipes that come with the package, by their names: `emoji9/mmp_en`, `paper/xlmr_mmp_en`, ..."""

from pathlib import Path

FOLDER = Path(__file__).parent


def bundled_recipes() -> dict[str, str]:
    """Each bundled recipe's name and what it is, as the comment on its first line says."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
        .partition("\n")[0]
        .lstrip("# ")
        for path in sorted(FOLDER.glob("*/*.yaml"))
    }


def recipe_path(name: str) -> Path:
    """The file of a bundled recipe, with or without `.yaml`; a file of that name in the working folder goes first."""
    bundled = name.removesuffix(".yaml") in bundled_recipes() and not Path(name).is_file()
    return FOLDER / f"{name.removesuffix('.yaml')}.yaml" if bundled else Path(name)
