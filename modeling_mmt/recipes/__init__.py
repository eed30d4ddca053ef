"""The bundled recipes by name: `emoji9/mmp_en`, `paper/xlmr_mmp_en`, ..."""

from pathlib import Path

FOLDER = Path(__file__).parent


def bundled_recipes() -> dict[str, str]:
    """Each bundled recipe's name and what it is, as the comment on its first line says."""
    first_lines = {
        path: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(FOLDER.glob("*/*.yaml"))
    }
    return {f"{path.parent.name}/{path.stem}": line.lstrip("# ") for path, line in first_lines.items()}


def recipe_path(name: str) -> Path:
    """A recipe's file: the path itself where there is one, else the bundled recipe's, with or without `.yaml`."""
    stem = name.removesuffix(".yaml")
    return FOLDER / f"{stem}.yaml" if stem in bundled_recipes() and not Path(name).is_file() else Path(name)
