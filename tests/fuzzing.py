"""Mutants of a folder's files, and what a program does with each: an answer, or one line about what is wrong.

A fault is a traceback, a crash, a hang or gigabytes; and, of files that carry their own hashes, another answer than
the sound folder's. `MMT_FUZZ` sets how many mutants of a parser there are.
"""

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MUTANTS = int(os.environ.get("MMT_FUZZ", 300))
SOUND = ("same", "read", "refused")
SECONDS, MEMORY = 60, 2 * 2**30  # of one mutant: its time, and its memory beyond what the process has
WORDS = [
    "null",
    "-1",
    "1e999",
    "NaN",
    '"',
    "{}",
    "[]",
    "\0",
    "\u200b",
    "../../x",
    "9" * 40,
    "true",
    '"\\ud800"',
    ",",
    ";",
]


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """A few bytes changed, a piece cut out, doubled or moved, or a word of JSON put in."""
    mutant = bytearray(content)
    for _ in range(int(generator.choice([1, 1, 3, 12]))):
        kind, size = generator.integers(6), len(mutant)
        if not size:
            return bytes(generator.integers(0, 256, 8, dtype=np.uint8))
        first, last = sorted(int(place) for place in generator.integers(0, size + 1, 2))
        if kind == 0:
            mutant[first % size] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            mutant[first % size] = int(generator.integers(256))
        elif kind == 2:
            del mutant[first : min(last, first + 200)]
        elif kind == 3:
            mutant[first:first] = mutant[first : min(last, first + 200)]
        elif kind == 4:
            mutant[first:first] = str(generator.choice(WORDS)).encode()
        else:
            del mutant[first:]
    return bytes(mutant)


def fuzz(
    sound: Path,
    answer: Callable[[Path], Any],
    refusals: tuple[type[Exception], ...],
    detects: Callable[[str], bool] = lambda name: True,
    count: int = MUTANTS,
) -> Counter[str]:
    """Mutate a file of a folder at a time; what came of it, counted.

    Args:
        sound: folder of the parser's files.
        answer: opens a folder like it; what it returns is compared by `repr` with the sound folder's.
        refusals: errors that are one line about what was given.
        detects: whether any change of a file is to be found, or may give another answer.
        count: mutants.

    Returns:
        Of `same`, `read`, `refused` and, with the mutant's number, each fault.
    """
    files = sorted(path.relative_to(sound).as_posix() for path in sound.rglob("*") if path.is_file())
    generator, outcomes = np.random.default_rng(0), Counter[str]()
    expected = in_child(lambda: answer(sound), refusals)
    assert expected[0] == "answer", expected
    for number in range(count):
        name = files[int(generator.integers(len(files)))]
        mutant = sound.with_name(f"{sound.name}-mutant")
        shutil.copytree(sound, mutant)
        (mutant / name).write_bytes(mutate((sound / name).read_bytes(), generator))
        kind, words = in_child(lambda mutant=mutant: answer(mutant), refusals)
        if kind == "answer":
            kind = "same" if words == expected[1] else "another answer" if detects(name) else "read"
        outcomes[kind if kind in SOUND else f"{kind}: {name}, mutant {number}: {words[:300]}"] += 1
        if kind not in SOUND and os.environ.get("MMT_FUZZ_KEEP"):
            mutant.rename(mutant.with_name(f"{mutant.name}-{number}"))
        else:
            shutil.rmtree(mutant)
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.elements())
    print(f"\n{sound.name}: {dict(counts)}", file=sys.stderr)
    return outcomes


def faults(outcomes: Counter[str]) -> list[str]:
    """What should not have happened."""
    return [outcome for outcome in outcomes if outcome not in SOUND]


def in_child(call: Callable[[], Any], refusals: tuple[type[Exception], ...]) -> tuple[str, str]:
    """What a call did in a forked process of limited time and memory: a kind, and words."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        kind, words = "traceback", ""
        try:
            limit_memory()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            try:
                kind, words = "answer", repr(call())
            except refusals as error:
                words = str(error)
                kind = "refused" if words and len(" ".join(words.split()).splitlines()) == 1 else "lines"
        except BaseException as error:
            kind, words = "traceback", f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, json.dumps([kind, words[:50_000]]).encode())
            os._exit(0)
    os.close(writing)
    received = _read_until(reading, time.monotonic() + SECONDS)
    if received is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if received is None:
        return "hang", f"more than {SECONDS} seconds"
    return tuple(json.loads(received)) if received else ("crash", f"status {status}")


def limit_memory():
    """Let this process take `MEMORY` more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _read_until(pipe: int, deadline: float) -> bytes | None:
    """All that comes through a pipe; None where it is not closed in time."""
    parts = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.close(pipe)
            return None
        part = os.read(pipe, 65536)
        if not part:
            os.close(pipe)
            return b"".join(parts)
        parts.append(part)
