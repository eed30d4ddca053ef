"""Pre-train on many languages, fine-tune on English, search in all: one recipe, one run.

On a laptop:             python train.py modeling_mmt/recipes/emoji9/mmp_en.yaml --output_dir runs/mmp_en
On four processes:       torchrun --nproc_per_node 4 train.py modeling_mmt/recipes/emoji9/mmp_en.yaml
What is missing for it:  python train.py modeling_mmt/recipes/paper/xlmr_mmp_en.yaml --dry_run

A stage that is finished is not run again, and one that was interrupted continues. Exit codes: 0 done,
1 a dry run found problems, 2 bad input (one line says which; --traceback shows where), 75 stopped by a signal after a
checkpoint, 130 interrupted. The procedure is the paper's (https://arxiv.org/abs/2103.08849).
"""

import sys
from collections.abc import Sequence
from typing import Any

from modeling_mmt.commands.errors import DONE, PROBLEMS, exit_code_of
from modeling_mmt.training.checks import check_recipe
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import open_run


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a recipe; returns the metrics that it writes to `output_dir/metrics.json`.

    Args:
        argv: a recipe's path and options; None takes the command line's.
    """
    recipe = load_recipe(sys.argv[1:] if argv is None else argv, __doc__)
    if recipe.dry_run:
        return check_recipe(recipe)  # all problems; a run raises the first
    with open_run(recipe) as run:
        run.align()  # before the paper's stages: the text tower learns from translations
        run.pretrain()  # section 4.2: subtitles in nine languages; within, between and across languages and video
        run.finetune()  # section 4.3: English captions
        results = run.search_in_every_language()
        run.save(results)  # weights, code, processor, figures and card; published if the recipe says so
    return run.metrics


def command(argv: Sequence[str], program: str = "train.py") -> int:
    """Run a recipe as a program does; returns its exit code.

    Args:
        argv: as `main`'s, and `--traceback`.
        program: its name, which the line about bad input begins with.
    """
    options = [option for option in argv if option != "--traceback"]

    def run() -> int:
        return PROBLEMS if main(options).get("problems") else DONE

    return exit_code_of(program, run, traceback=len(options) < len(argv))


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
