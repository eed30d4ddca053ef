"""The demo Space under load: how long the page takes to open, a query to be answered, and what 50 users see.

    .venv-space/bin/python benchmarks/space_load.py --output results/benchmarks/space_load.json

Starts `examples/space/app.py` on loopback with the checkpoints of `make demo`. Three measures: the page in Chromium,
from asking for it until the query box is there; one query after another over HTTP, none asked before; and `--users` at
once for `--seconds`, each waiting 1 to 3 seconds between its queries, as a person reads. Every query differs, so that
none is answered from memory. Exits with 1 if a request fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import harness
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    "con chó mèo mbwa paka gari nyumba 狗 猫 花 Hund Katze Auto собака кошка дом chien fleur kočka perro gato".split()
)
TIMEOUT = 120
TARGETS = {"page_seconds": 3.0, "query_seconds": 0.2}


@contextmanager
def space(port: int, options: list[str]) -> Iterator[str]:
    """The page's address while it is served."""
    command = [sys.executable, str(ROOT / "examples" / "space" / "app.py"), "--port", str(port), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Running on local URL" in line:
                break
        else:
            raise RuntimeError("the Space did not start; its message stands above")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(address: str, text: str, label: str) -> float:
    """Seconds of one query; an answer without clips is an error."""
    started = time.perf_counter()
    request = urllib.request.Request(
        f"{address}/gradio_api/call/search",
        json.dumps({"data": [text, label]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/search/{event}", timeout=TIMEOUT) as answer:
        content = answer.read().decode()
    if "clips in" not in content:
        raise RuntimeError(f"no clips for {text!r}: {content[:200]}")
    return time.perf_counter() - started


def open_page(address: str, repeats: int, browser_path: str) -> list[float]:
    """Seconds until the query box is there, each time in a browser without a cache."""
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for _ in range(repeats):
            page = browser.new_context().new_page()
            page.set_default_timeout(1000 * TIMEOUT)
            started = time.perf_counter()
            page.goto(address, wait_until="commit")
            page.locator("#query textarea").wait_for()
            seconds.append(time.perf_counter() - started)
            page.context.close()
        browser.close()
    return seconds


def user(address: str, label: str, seed: int, end: float, seconds: list[float], errors: list[str]) -> None:
    """Ask and read until the end."""
    chance = random.Random(seed)
    time.sleep(chance.uniform(0, 2))
    while time.perf_counter() < end:
        text = f"{' '.join(chance.sample(WORDS, 3))} {chance.randrange(10**6)}"
        try:
            seconds.append(ask(address, text, label))
        except (OSError, RuntimeError) as error:
            errors.append(str(error))
        time.sleep(chance.uniform(1, 3))


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--label", default="MMP", help="checkpoint that is asked (%(default)s)")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="LABEL=FOLDER", help="as app.py's")
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--repeats", type=int, default=5, help="of opening the page; ten times as many single queries")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    options = [word for item in arguments.checkpoint for word in ("--checkpoint", item)]
    with space(arguments.port, options) as address:
        pages = open_page(address, arguments.repeats, arguments.browser)
        queries = [
            ask(address, f"{word} {number}", arguments.label)
            for number, word in enumerate(islice(cycle(WORDS), 10 * arguments.repeats))
        ]
        busy: list[float] = []
        errors: list[str] = []
        end = time.perf_counter() + arguments.seconds
        users = [
            threading.Thread(target=user, args=(address, arguments.label, seed, end, busy, errors))
            for seed in range(arguments.users)
        ]
        for one in users:
            one.start()
        for one in users:
            one.join()
    result = {
        "benchmark": "space_load",
        "date": datetime.date.today().isoformat(),
        "machine": harness.machine(load),
        "versions": harness.versions(("gradio", "transformers", "playwright"), None),
        "page_seconds": statistics.median(pages),
        "query_seconds": statistics.median(queries),
        "query_seconds_p95": statistics.quantiles(queries, n=20)[-1],
        "users": arguments.users,
        "seconds": arguments.seconds,
        "answered": len(busy),
        "errors": len(errors),
        "users_seconds_median": statistics.median(busy) if busy else None,
        "users_seconds_p95": statistics.quantiles(busy, n=20)[-1] if len(busy) > 1 else None,
        "targets": TARGETS,
    }
    print(json.dumps(result, indent=1))
    for error in errors[:5]:
        print(f"ERROR: {error}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
