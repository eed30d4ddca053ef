"""The demo Space in a real browser: `make test-system`, which brings Chromium, fonts, gradio and the checkpoints."""

import dataclasses
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image
from transformers import AutoModel, AutoProcessor

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor, MMTVideoFeatureExtractor
from modeling_mmt.data.clips import frames_of
from modeling_mmt.extraction.packaged_encoders import packaged_encoder
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
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


@contextmanager
def served(found, log):
    """A page with these checkpoints: its address, and the file with what the server printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
def server():
    """The page of the demo's checkpoints."""
    found = checkpoints()
    if "MMP" not in found:
        pytest.skip("no checkpoint of the demo: `make demo` makes them")
    with served(found, ROOT / "runs" / "space.log") as page:
        yield page


@pytest.fixture(scope="module")
def server_from_pixels(tmp_path_factory):
    """The page of the demo's MMP checkpoint with the image encoder of its features put under it."""
    folder = checkpoints().get("MMP")
    if folder is None:
        pytest.skip("no checkpoint of the demo: `make demo` makes them")
    encoder = packaged_encoder("efficientnet-lite0")
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    expert = MMTVisionEncoder.from_pretrained(str(encoder))
    seeing = MMTModel(MMTConfig(**model.config.to_dict() | {"vision_config": [expert.config]}))
    seeing.load_state_dict(seeing.state_dict() | model.state_dict())
    seeing.video_model.vision_experts[0].load_state_dict(expert.state_dict())
    work = tmp_path_factory.mktemp("pixels")
    seeing.save_pretrained(work)
    own = PixelSettings.from_pretrained(str(encoder))
    pixels = [dataclasses.replace(own, height=128, width=128, resize=(128, 128))]  # as the features were extracted
    extractor = MMTVideoFeatureExtractor(1280, processor.feature_extractor.max_video_length, pixels)
    MMTProcessor(extractor, processor.tokenizer, processor.text_prefix, processor.max_text_length).save_pretrained(
        work
    )
    with served({"pixels": work}, work / "space.log") as page:
        yield page


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


def picture_of(name, kind="PNG"):
    """The first frame of a test clip, as a file."""
    rows = load_dataset(str(ROOT / "datasets_scripts" / "emoji9"), split="test")
    packed = io.BytesIO()
    frames_of(rows[rows["name_en"][:].index(name)])[0].convert("RGB").save(packed, kind)
    return packed.getvalue()


def type_query(page, text):
    """By keyboard alone; waits for the answer to this very text."""
    page.get_by_role("tab", name="Type in any language").click()
    box = page.locator("#query textarea")
    box.fill(text)
    box.press("Enter")
    page.locator("#results h3", has_text=text).wait_for()
    return page.locator("#results img").evaluate_all("images => images.map(image => image.alt)")


def screenshot(page, name, images="#results img, #languages img"):
    if SCREENSHOTS:
        page.locator(images).first.evaluate("image => image.decode()")
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
    page.locator("#results .note", has_text=labels.first.inner_text().strip()).wait_for()
    assert page.locator("#results img").evaluate_all("images => images.map(image => image.alt)") != first
    labels.last.click()
    page.locator("#results .note", has_text=labels.last.inner_text().strip()).wait_for()


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


def upload(server, name, content):
    """What the page's own code does with a file: it gives back where the server keeps it."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    request = urllib.request.Request(
        f"{server[0]}/gradio_api/upload",
        head + content + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    return json.load(urllib.request.urlopen(request, timeout=STEP_SECONDS))[0]


def ask_by_picture(server, name, content, label):
    """What the server answers to an uploaded file."""
    file = {"path": upload(server, name, content), "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    return ask(server, "picture", [file, label])


def test_a_picture_is_answered_with_a_message_by_a_checkpoint_without_a_vision_encoder(server):
    assert "has no vision encoder" in ask_by_picture(server, "cat.png", picture_of("cat"), "MMP")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_finds_its_clip(server_from_pixels, kind):
    answer = ask_by_picture(server_from_pixels, f"x.{kind.lower()}", picture_of("bicycle", kind), "pixels")
    names = re.findall(r'<img src=.{1,200}? alt=."(.*?)." width', answer)
    assert names[0] == "bicycle" and len(names) == 12
    score = float(re.search(r"1 &nbsp; (\d\.\d+)", answer)[1])
    assert kind != "PNG" or score > 0.99  # the others lose bits: 0.78 for a JPEG of quality 75


def test_a_person_uploads_a_picture_and_sees_clips(server_from_pixels, browser, tmp_path):
    (tmp_path / "bicycle.png").write_bytes(picture_of("bicycle"))
    page = browser.new_page(viewport={"width": 1240, "height": 900})
    page.set_default_timeout(1000 * STEP_SECONDS)
    page.goto(server_from_pixels[0])
    page.get_by_role("tab", name="Upload a picture").click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "bicycle.png")
    images = page.locator("#alike .clips img")
    images.nth(11).wait_for()
    assert images.first.get_attribute("alt") == "bicycle"
    images.first.evaluate("image => image.decode()")
    screenshot(page, "picture", "#alike img")
    page.close()


def bomb(side):
    """A PNG of some hundred kilobytes at most that unpacks to `side` squared pixels."""
    packed = io.BytesIO()
    Image.new("1", (side, side)).save(packed, "PNG", optimize=True)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bomb.png", bomb(8_000)),  # below Pillow's own limit
        ("bomb.png", bomb(20_000)),
        ("torn.png", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("text.png", b"no picture"),
        ("empty.png", b""),
    ],
)
def test_an_image_bomb_and_what_is_no_picture_are_answered_with_a_message(server_from_pixels, name, content):
    assert "This picture cannot be read" in ask_by_picture(server_from_pixels, name, content, "pixels")
    assert "clips in" in ask(server_from_pixels, "search", ["cat", "pixels"])
    assert "Traceback" not in server_from_pixels[1].read_text()


def test_a_picture_cut_short_is_answered_with_a_message(server_from_pixels):
    content = picture_of("bicycle")
    answer = ask_by_picture(server_from_pixels, "cut.png", content[: len(content) // 2], "pixels")
    assert "This picture cannot be read" in answer


def test_a_file_beyond_the_limit_is_refused_at_the_door(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        upload(server, "large.png", bytes(9_000_000))
    assert refused.value.code == 413
    assert "clips in" in ask(server, "search", ["cat", "MMP"])


def test_files_beside_the_animations_are_not_served(server):
    for path in ("/etc/passwd", str(ROOT / "setup.py")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert "alt=" not in ask(server, "picture", [file, "MMP"])
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server[0]}/gradio_api/file={path}", timeout=STEP_SECONDS)


def test_the_server_printed_no_traceback_but_gradios_own_refusals(server):
    log = server[1].read_text()
    refused = re.findall(r"\ngradio\.exceptions\.(?:Error|InvalidPathError):", log)
    assert log.count("Traceback") == len(refused)
