"""The page of an index in a real browser: what is found plays at its moment, and nothing else is served."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from datasets import load_dataset
from test_space_system import CHROMIUM, ROOT, START_SECONDS, STEP_SECONDS, checkpoints

from modeling_mmt.data.clips import frames_of

pytestmark = pytest.mark.system
RATE = 8  # frames a second
SECONDS = 8  # that each clip is shown
STRIDE = 4  # seconds between windows, whose half is what a moment's start is known to
SHOWN = ["cat", "bicycle", "fire engine", "octopus", "baseball"]  # in the film, in this order


def make_film(path: Path):
    """Clips of emoji9's test split, one after the other."""
    import av

    rows = load_dataset(str(ROOT / "datasets_scripts" / "emoji9"), split="test")
    names = rows["name_en"][:]
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libvpx", rate=RATE)
        stream.width = stream.height = 128
        for name in SHOWN:
            frames = [frame.convert("RGB") for frame in frames_of(rows[names.index(name)])]
            for number in range(RATE * SECONDS):
                for packet in stream.encode(av.VideoFrame.from_image(frames[number % len(frames)])):
                    film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a film, a picture and an index of both."""
    checkpoint = checkpoints().get("MMP")
    if checkpoint is None:
        pytest.skip("no checkpoint of the demo: `make demo` makes them")
    work = tmp_path_factory.mktemp("media")
    (work / "films").mkdir()
    make_film(work / "films" / "film.webm")
    rows = load_dataset(str(ROOT / "datasets_scripts" / "emoji9"), split="test")
    picture = frames_of(rows[rows["name_en"][:].index("octopus")])[0]
    picture.convert("RGB").save(work / "films" / "eight arms.png")
    picture.convert("RGB").save(work / "secret.png")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mmt", "index", "films", "--model", str(checkpoint), "--output_dir", "index"]
    subprocess.run(command, cwd=work, env=environment, check=True)
    return work


@pytest.fixture(scope="module")
def server(work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "space" / "media_page.py"), "index", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (work / "log").open("w") as out:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=out, stderr=subprocess.STDOUT)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            assert process.poll() is None, (work / "log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            try:
                urllib.request.urlopen(f"{address}/config", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        yield address
        assert process.poll() is None, "the server went down"
        assert "Traceback" not in (work / "log").read_text()
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def page(server):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-system")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}: make test-system installs Debian's")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 900})
        page.set_default_timeout(1000 * STEP_SECONDS)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server)
        page.locator("#query textarea").wait_for()
        yield page
        assert page.errors == []
        browser.close()


def type_query(page, text):
    box = page.locator("#query textarea")
    box.fill(text)
    box.press("Enter")
    page.locator("#results h3", has_text=text).wait_for()


@pytest.mark.parametrize(("text", "name"), [("gari la zimamoto", "fire engine"), ("自行车", "bicycle")])
def test_a_query_seeks_to_a_second_at_which_it_is_shown(page, text, name):
    type_query(page, text)
    video = page.locator("#results video").first
    video.wait_for()
    page.wait_for_function("document.querySelector('#results video').readyState >= 2 && "
                           "document.querySelector('#results video').currentTime > 0")  # fmt: skip
    at = video.evaluate("video => video.currentTime")
    begin = SECONDS * SHOWN.index(name)
    assert begin - STRIDE / 2 <= at < begin + SECONDS


def test_a_picture_is_a_picture_and_finds_itself_again(page, work):
    page.locator("#picture input[type=file]").set_input_files(str(work / "films" / "eight arms.png"))
    page.locator("#results h3", has_text="Like your picture").wait_for()
    first = page.locator("#results li").first
    assert "eight arms.png" in first.inner_text()
    assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_a_result_is_the_next_query(page):
    type_query(page, "an octopus")
    page.locator("#alike input").click()
    page.get_by_role("option").first.click()
    page.locator("#results h3", has_text="Like film.webm").or_(
        page.locator("#results h3", has_text="Like eight arms.png")
    ).wait_for()


def test_a_part_of_a_film_is_sent_alone(server):
    row = next(row for row in range(20) if status(f"{server}/media/{row}")[1].startswith("video"))
    request = urllib.request.Request(f"{server}/media/{row}", headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 206 and len(answer.read()) == 10
        assert answer.headers["Content-Range"].startswith("bytes 10-19/")


def status(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, ""


@pytest.mark.parametrize(
    "place", ["media/-1", "media/99999", "thumbnail/99999", "media/..%2Fsecret.png", "media/secret.png"]
)
def test_what_the_index_does_not_list_is_not_served(server, place):
    assert status(f"{server}/{place}")[0] in (404, 422)


def test_a_link_out_of_the_folder_is_not_followed(server, work):
    film, hidden = work / "films" / "film.webm", work / "moved.webm"
    row = next(row for row in range(20) if status(f"{server}/media/{row}")[1].startswith("video"))
    film.rename(hidden)
    film.symlink_to(hidden)
    try:
        assert status(f"{server}/media/{row}")[0] == 404
    finally:
        film.unlink()
        hidden.rename(film)


def test_an_emoji_stands_nowhere_on_the_page(page):
    text = page.locator("body").inner_text()
    assert not any(0x1F300 <= ord(character) <= 0x1FAFF for character in text)
