"""Ours and the peers side by side: one run, taking turns, each contestant in a process of its own.

A benchmark script gives `main` a table of contestants; each is a function that prepares its inputs and returns two
functions: `step`, which is timed, and `check`, which says what came out (and is not). The script starts itself once
for each contestant; these processes wait until it is their turn, so nothing runs beside what is measured. The extra
peak memory is the highest resident size during a step minus the resident size before the first one, over all repeats.

Benchmarks fail on memory and correctness. Time is printed with its target, and never fails.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

Contestant = Callable[[argparse.Namespace], tuple[Callable[[], None], Callable[[], dict[str, Any]]]]


@dataclass
class Measurement:
    """What one contestant did at one size."""

    contestant: str
    size: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Seconds of all its threads on a processor: what a busy machine changes least."""
        return statistics.median(self.cpu_seconds)


@dataclass
class Verdict:
    """One line of what must be reached."""

    what: str
    ours: float
    peer: float
    ratio: float
    limit: float
    fails: bool

    @property
    def reached(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.ratio <= self.limit


def compare(what: str, ours: float, peer: float, limit: float, fails: bool) -> Verdict:
    """Make a verdict of two numbers, of which the smaller is better. `fails`: whether a miss fails the benchmark."""
    return Verdict(what, ours, peer, ours / peer, limit, fails)


def parser(description: str | None, sizes: Sequence[int], quick_sizes: Sequence[int]) -> argparse.ArgumentParser:
    """Make the arguments that all benchmarks share."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--sizes", type=int, nargs="+", help=f"rows of the batch (default {list(sizes)})")
    arguments.add_argument("--repeats", type=int, default=5, help="runs of each contestant; the median counts")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each contestant")
    arguments.add_argument("--quick", action="store_true", help=f"sizes {list(quick_sizes)}, three repeats")
    arguments.add_argument("--open-clip", type=Path, help="loss.py of an open_clip newer than the one installed")
    arguments.add_argument("--output", type=Path, help="JSON file to write the results to")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    arguments.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    arguments.set_defaults(all_sizes=list(sizes), quick_sizes=list(quick_sizes))
    return arguments


def main(
    arguments: argparse.ArgumentParser,
    contestants: Mapping[str, Contestant],
    judge: Callable[[dict[tuple[str, int], Measurement]], list[Verdict]],
    packages: Sequence[str],
    argv: Sequence[str] | None = None,
    make_inputs: Callable[[argparse.Namespace, Path], None] | None = None,
) -> int:
    """Run a benchmark, or one contestant of it.

    Args:
        arguments: from `parser`; its description is the title.
        contestants: by name, in the order in which they take turns.
        judge: turns the measurements, by contestant and size, into verdicts.
        packages: whose versions belong to the result.
        argv: the command line; None means the process's.
        make_inputs: writes what all contestants read, for `args.sizes` of one size, to a file; they find its path as
            `args.inputs`.

    Returns:
        The exit code: 1 if a verdict that may fail the benchmark was missed.
    """
    args = arguments.parse_args(argv)
    if args.worker:
        torch.set_num_threads(args.threads)
        _serve(*contestants[args.worker](args))
        return 0
    sizes = args.sizes or (args.quick_sizes if args.quick else args.all_sizes)
    repeats = min(args.repeats, 3) if args.quick else args.repeats
    load = os.getloadavg()[0]
    results: dict[tuple[str, int], Measurement] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            if make_inputs is not None:
                args.sizes, args.inputs = [size], Path(folder) / "inputs"
                make_inputs(args, args.inputs)
            for measurement in _race(list(contestants), size, repeats, args):
                results[measurement.contestant, size] = measurement
    verdicts = judge(results)
    facts = {
        "benchmark": Path(sys.argv[0]).stem,
        "command": f"python benchmarks/{Path(sys.argv[0]).name} --sizes {' '.join(map(str, sizes))}"
        f" --repeats {repeats} --threads {args.threads}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(load, args.threads),
        "versions": versions(packages, args.open_clip),
    }
    print_markdown(arguments.description or "", facts, list(results.values()), verdicts)
    if args.output:
        write_json(args.output, facts, list(results.values()), verdicts)
    return int(any(verdict.fails and not verdict.reached for verdict in verdicts))


def print_markdown(
    title: str, facts: Mapping[str, Any], measurements: Sequence[Measurement], verdicts: Sequence[Verdict]
) -> None:
    """Print measurements and verdicts as two Markdown tables."""
    print(f"\n### {title.splitlines()[0]}\n\n`{facts['command']}`\n")
    if measurements:
        print(
            "| N | contestant | seconds, median (lowest to highest) | CPU seconds | extra peak MiB | loss |\n"
            "|---|---|---|---|---|---|"
        )
    for m in measurements:
        loss = m.outcome.get("loss")
        print(
            f"| {m.size} | {m.contestant} | {m.median:.3f} ({min(m.seconds):.3f} to {max(m.seconds):.3f}) "
            f"| {m.cpu_median:.3f} | {m.peak_mib:.0f} | {'' if loss is None else f'{loss:.6f}'} |"
        )
    print("\n| to reach | ours | peer | ratio | limit | |\n|---|---|---|---|---|---|")
    for v in verdicts:
        outcome = "reached" if v.reached else "FAILED" if v.fails else "missed"
        print(f"| {v.what} | {v.ours:.6g} | {v.peer:.6g} | {v.ratio:.4g} | {v.limit:g} | {outcome} |")
    print(f"\n{facts['machine']}  \n{facts['versions']}")


def write_json(
    path: Path, facts: Mapping[str, Any], measurements: Sequence[Measurement], verdicts: Sequence[Verdict]
) -> None:
    """Write the same as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **facts,
        "measurements": [{**asdict(m), "median": m.median, "cpu_median": m.cpu_median} for m in measurements],
        "verdicts": [{**asdict(v), "reached": v.reached} for v in verdicts],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def open_clip_loss(path: Path | None) -> ModuleType:
    """Import open_clip's `loss.py` alone: the package wants a torchvision that fits torch, its losses do not.

    Args:
        path: the file of a newer open_clip; None means that of the installed package.

    Raises:
        ModuleNotFoundError: if there is none.
    """
    if path is None:
        found = importlib.util.find_spec("open_clip")
        if found is None or found.origin is None:
            raise ModuleNotFoundError("open_clip is not installed: pip install --no-deps open_clip_torch")
        path = Path(found.origin).parent / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} is not a Python file: give open_clip's loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(packages: Sequence[str], open_clip: Path | None) -> dict[str, str]:
    """Versions of Python, torch, and the peers."""
    found = {"python": platform.python_version()}
    for package in ("torch", *packages):
        found[package] = importlib.metadata.version(package)
    if open_clip is not None:
        digest = hashlib.sha256(open_clip.read_bytes()).hexdigest()[:12]
        found["open_clip_torch"] += f", loss.py with SHA-256 {digest}..."
    return found


def machine(load_before: float, threads: int | None = None) -> dict[str, Any]:
    """What a benchmark ran on: the processor, threads where they are set, and the load before it and now."""
    limit = {} if threads is None else {"threads": threads}
    return {"cpu": cpu(), **limit, "load_before": load_before, "load_after": os.getloadavg()[0]}


def cpu() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _race(names: list[str], size: int, repeats: int, args: argparse.Namespace) -> list[Measurement]:
    options = ["--sizes", str(size), "--threads", str(args.threads)]
    if args.open_clip is not None:
        options += ["--open-clip", str(args.open_clip)]
    if args.inputs is not None:
        options += ["--inputs", str(args.inputs)]
    workers = []
    for name in names:
        command = [sys.executable, sys.argv[0], "--worker", name, *options]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        workers.append(worker)
        _answer(worker, name)
    measurements = [Measurement(name, size) for name in names]
    for _ in tqdm(range(repeats), desc=f"N = {size}"):
        for worker, measurement in zip(workers, measurements, strict=True):
            assert worker.stdin is not None
            print("go", file=worker.stdin, flush=True)
            answer = _answer(worker, measurement.contestant)
            measurement.seconds.append(answer["seconds"])
            measurement.cpu_seconds.append(answer["cpu_seconds"])
            measurement.peak_mib = max(measurement.peak_mib, answer["peak_mib"])
            measurement.outcome = answer["outcome"]
    for worker in workers:
        worker.communicate()  # the end of its input ends it
    return measurements


def _answer(worker: subprocess.Popen, name: str) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"{name!r} ended with code {worker.wait()}; its message stands above")
    return json.loads(line)


def _serve(step: Callable[[], None], check: Callable[[], dict[str, Any]]) -> None:
    """Take a turn for each line of input; answer in JSON lines."""
    out, sys.stdout = sys.stdout, sys.stderr
    give_back = ctypes.CDLL(None).malloc_trim  # else a step would reuse what the preparation left, unseen
    give_back(0)
    before = _resident("VmRSS")
    print(json.dumps("ready"), file=out, flush=True)
    for _ in sys.stdin:
        give_back(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        step()
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
        peak = (_resident("VmHWM") - before) / 1024
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak, "outcome": check()}
        print(json.dumps(answer), file=out, flush=True)


def _cpu_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _resident(name: str) -> int:
    """Kibibytes, from Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}; memory is measured on Linux only")
