"""The demo Space in a real browser: `make test-system`, which brings Chromium, fonts, gradio and the checkpoints."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"
START_SECONDS, STEP_SECONDS = 600, 120  # on a machine that others use too
SCREENSHOTS = os.environ.get("MMT_SCREENSHOTS")  # a folder to put them in


def checkpoints() -> dict[str, Path]:
    """The demo's, or else the table's."""
    found = {}
    for label, recipe in {"none": "none_en", "MP": "mp_en", "MMP": "mmp_en"}.items():
        for folder in (ROOT / "runs" / "demo" / recipe, ROOT / "runs" / "table" / recipe / "seed0"):
            if (folder / "model.safetensors").is_file() and label not in found:
                found[label] = folder
    return found


@pytest.fixture(scope="module")
def server():
    """The address of a running page, and the file with what the server printed."""
    found = checkpoints()
    if "MMP" not in found:
        pytest.skip("no checkpoint of the demo: `make demo` makes them")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = ROOT / "runs" / "space.log"
    command = [sys.executable, str(ROOT / "examples" / "space" / "app.py"), "--port", str(port)]
    for label, folder in found.items():
        command += ["--checkpoint", f"{label}={folder}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Running on local URL" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", log
        assert process.poll() is None, "the server went down"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-system")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}: make test-system installs Debian's")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(server, browser):
    """The page, opened once; `page.foreign` lists what it asked of other hosts, which are out of reach."""
    page = browser.new_page(viewport={"width": 1240, "height": 900})
    page.set_default_timeout(1000 * STEP_SECONDS)
    page.foreign, page.errors = [], []
    own = re.compile(rf"({re.escape(server[0])}|data:|blob:|ws://127\.0\.0\.1)")

    def gate(route):
        if own.match(route.request.url):
            route.continue_()
        else:
            page.foreign.append(route.request.url)
            route.abort()

    page.route("**/*", gate)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server[0])
    page.locator("#query textarea").wait_for()
    return page


def type_query(page, text):
    """By keyboard alone; waits for the answer to this very text."""
    page.get_by_role("tab", name="Type in any language").click()
    box = page.locator("#query textarea")
    box.fill(text)
    box.press("Enter")
    page.locator("#results h3", has_text=text).wait_for()
    return page.locator("#results img").evaluate_all("images => images.map(image => image.alt)")


def screenshot(page, name):
    if SCREENSHOTS:
        page.locator("#results img, #languages img").first.evaluate("image => image.decode()")
        page.screenshot(path=Path(SCREENSHOTS) / f"space_{name}.png")


@pytest.mark.parametrize(
    ("text", "clip", "name"),
    [("gari la zimamoto", "fire engine", "swahili"), ("猫", "cat", "chinese")],
)
def test_a_query_gives_the_clip(page, text, clip, name):
    assert clip in type_query(page, text)
    screenshot(page, name)


def test_the_clips_are_pictures_that_load_and_move(page, server):
    type_query(page, "fire engine")
    images = page.locator("#results img")
    widths = images.evaluate_all("images => Promise.all(images.map(i => i.decode().then(() => i.naturalWidth)))")
    assert widths == [128] * 12
    addresses = images.evaluate_all("images => images.map(image => image.src)")
    assert any(b"ANIM" in urllib.request.urlopen(address).read(200) for address in addresses)


def test_arabic_runs_from_right_to_left_and_chinese_from_left_to_right(page):
    for text, right_to_left in (("قلب بنفسجي", True), ("骑自行车的人", False)):
        type_query(page, text)
        edges = "element => { const r = document.createRange(); r.selectNodeContents(element); "
        edges += "const inner = r.getBoundingClientRect(), outer = element.getBoundingClientRect(); "
        edges += "return [inner.left - outer.left, outer.right - inner.right]; }"
        left, right = page.locator("#results h3").evaluate(edges)
        assert (right < left) == right_to_left, (text, left, right)


def test_every_part_is_reached_by_the_tab_key(page):
    page.locator("#checkpoint input").first.focus()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText || document.activeElement.tagName"))
    assert {"Pick a clip", "TEXTAREA", "Search", "con mèo"} <= reached


def test_a_clip_is_shown_in_nine_languages(page):
    page.get_by_role("tab", name="Pick a clip").click()
    box = page.locator("#clip input")
    box.click()
    box.press_sequentially("fire engine")
    page.locator("[role=option]", has_text="fire engine").wait_for()
    page.locator("[role=option]").nth(1).wait_for(state="detached")
    box.press("ArrowDown")
    box.press("Enter")
    page.locator("#languages h3").nth(9).wait_for()
    assert page.locator("#languages h3[lang]").count() == 9
    assert page.locator("#languages li.right").count() >= 2  # in English, and as its own likeness
    screenshot(page, "languages")


def test_another_checkpoint_answers_otherwise(page):
    first = type_query(page, "gari la zimamoto")
    labels = page.locator("#checkpoint label")
    if labels.count() < 2:
        pytest.skip("one checkpoint: nothing to switch between")
    labels.first.click()
    page.locator("#results .told", has_text=labels.first.inner_text().strip()).wait_for()
    assert page.locator("#results img").evaluate_all("images => images.map(image => image.alt)") != first
    labels.last.click()
    page.locator("#results .told", has_text=labels.last.inner_text().strip()).wait_for()


def test_markup_in_a_query_is_shown_and_not_run(page):
    text = "<img src=x onerror=document.title='owned'> red heart"
    type_query(page, text)
    assert "owned" not in page.title()


def test_the_page_asks_no_other_host_and_throws_nothing(page):
    assert page.foreign == []
    assert page.errors == []


def ask(server, function, data):
    """Over HTTP, past the page's own limits; returns what the server sends as text."""
    request = urllib.request.Request(
        f"{server[0]}/gradio_api/call/{function}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    event = json.load(urllib.request.urlopen(request, timeout=STEP_SECONDS))["event_id"]
    with urllib.request.urlopen(f"{server[0]}/gradio_api/call/{function}/{event}", timeout=STEP_SECONDS) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "The query is empty"),
        (" \t\n\x00", "The query is empty"),
        ("a" * 1_000_000, "1,000,000 characters; 1,000 is the most"),
        ("red\x07\x1b[31m heart", "clips in"),
        ("qwxz vbnm plkj", "clips in"),
        ("𓀀𓁐𓂋 𒀀𒁀", "does not know this script"),
    ],
)
def test_a_bad_query_is_answered_with_a_message(server, text, words):
    answer = ask(server, "search", [text, "MMP"])
    assert words in answer
    assert "\\u001b" not in answer and "\\u0007" not in answer


@pytest.mark.parametrize(
    ("function", "data"),
    [("search", ["cat", "../../etc"]), ("search", [None, None]), ("languages", [10**9, "MMP"])],
)
def test_what_the_page_cannot_send_is_refused_without_a_traceback(server, function, data):
    try:
        answer = ask(server, function, data)
    except urllib.error.HTTPError as error:
        answer = error.read().decode()
    assert "Traceback" not in answer and 'File "' not in answer and "alt=" not in answer
    assert "clips in" in ask(server, "search", ["cat", "MMP"])


def test_an_image_bomb_is_refused_at_the_door(server):
    """Nothing here takes a picture; gradio's upload address exists all the same."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="bomb.png"\r\n\r\n'
        + bytes(300_000)
        + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        f"{server[0]}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=STEP_SECONDS)
    assert refused.value.code == 413
    assert "clips in" in ask(server, "search", ["cat", "MMP"])


def test_files_beside_the_animations_are_not_served(server):
    for path in ("/etc/passwd", str(ROOT / "setup.py")):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server[0]}/gradio_api/file={path}", timeout=STEP_SECONDS)


def test_the_server_printed_no_traceback_but_gradios_own_refusals(server):
    log = server[1].read_text()
    assert log.count("Traceback") == log.count("\ngradio.exceptions.Error:")
