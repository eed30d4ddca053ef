"""Does torch.compile pay? B4's step as it is, and compiled by inductor; with the frozen-layer cache, and without.

    python benchmarks/compiled_step.py --output results/benchmarks/compiled_step.json
    python benchmarks/compiled_step.py --quick    # 80 captions; most of its time is the compiler's

The step, the model and the batch are those of `b4_training_step`. Sizes are dynamic: micro-batches have any length.
The compiler's work is outside of what is timed; the first step of each contestant is not counted.
"""

import sys

import b4_training_step as b4
import harness

COMPILED = ", torch.compile"
CONTESTANTS = {name: b4.CONTESTANTS[name] for name in (b4.OURS, b4.CACHED)} | {
    b4.OURS + COMPILED: b4.contestant(b4.ours(None, compiled=True)),
    b4.CACHED + COMPILED: b4.contestant(b4.ours(None, with_cache=True, compiled=True)),
}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Equality decides; time is reported."""
    verdicts = []
    for n in sorted({size for _, size in results}):
        for name in (b4.OURS, b4.CACHED):
            plain, compiled = results[name, n], results[name + COMPILED, n]
            verdicts.append(
                harness.compare(f"loss and gradients, error to {name}", b4.error(compiled, plain), 1, 1e-4, True)
            )
            verdicts += b4.times(compiled, plain, "to the step as it is", 1.0)
    return verdicts


if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=(512,), quick_sizes=(80,))
    sys.exit(harness.main(arguments, CONTESTANTS, judge, ("transformers",), make_inputs=b4.make_batch))
