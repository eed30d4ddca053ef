"""What does AdamW cost of a step? The pre-training of `emoji9/mp_en` with the plain optimizer and with the fused one.

    python benchmarks/optimizer_step.py --output results/benchmarks/optimizer_step.json
    python benchmarks/optimizer_step.py --quick

A turn is ten steps as `mmt train` makes them: rows drawn, frozen states looked up, encoded, lost, back, clipped,
AdamW. Each clip has one caption, whose states are kept beforehand. Both contestants start from the same weights and
draw the same batches; their losses differ by the rounding of the update.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import harness

from modeling_mmt.training.learning import release
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import open_run
from modeling_mmt.training.stage import step_batches
from modeling_mmt.training.step import open_learner
from modeling_mmt.training.task import RetrievalTask

PLAIN, FUSED = "AdamW, one tensor after the other", "AdamW, fused"
STEPS = 10
RECIPE = "emoji9/mp_en"


def contestant(fused: bool) -> harness.Contestant:
    """The pre-training of the recipe, with one of the two optimizers."""

    def prepare(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
        folder = tempfile.mkdtemp()
        options = {"train_batch_size": str(args.sizes[0]), "num_train_epochs": "1000"}
        options |= {"sources[0].keyword_pool_size": "1"}
        words = [word for name, value in options.items() for word in (f"--pretraining.{name}", value)]
        recipe = load_recipe([RECIPE, *words, "--work_dir", folder, "--output_dir", folder])
        run = contextlib.ExitStack().enter_context(open_run(recipe))
        data, stage = run.data, recipe.pretraining
        assert stage is not None
        release(data.model)
        task = RetrievalTask(data, stage)
        learner = open_learner(data, stage, 10**4, task)
        for group in learner.optimizer.optimizer.param_groups:
            group["fused"] = fused or None  # None: what torch chooses by itself
        clips = [data.training_clips(source, stage) for source in stage.sources]
        batches = data.batches(stage, clips, data.samplers(stage, clips, 0), 10**4, task.collator)
        learner.model.train()
        outcome: dict[str, Any] = {}

        def step() -> None:
            for _ in range(STEPS):
                for source, batch in step_batches(stage, batches):
                    losses = learner.backward(batch, source)
                learner.clip_gradients()
                learner.step()
            outcome["loss"] = losses["loss"].item()

        for _ in range(2):  # every clip's caption has come by then
            step()
        return step, lambda: outcome

    return prepare


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Losses decide, up to rounding over that many steps; time is reported."""
    verdicts = []
    for n in sorted({size for _, size in results}):
        plain, fused = results[PLAIN, n], results[FUSED, n]
        error = abs(fused.outcome["loss"] - plain.outcome["loss"]) / plain.outcome["loss"]
        verdicts.append(harness.compare(f"loss after as many steps, N = {n}, relative error", error, 1, 1e-3, True))
        verdicts.append(
            harness.compare(f"CPU seconds of {STEPS} steps", fused.cpu_median, plain.cpu_median, 1.0, False)
        )
        verdicts.append(harness.compare(f"seconds of {STEPS} steps", fused.median, plain.median, 1.0, False))
    return verdicts


CONTESTANTS = {PLAIN: contestant(fused=False), FUSED: contestant(fused=True)}

if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=(128,), quick_sizes=(32,))
    sys.exit(harness.main(arguments, CONTESTANTS, judge, ("transformers",)))
