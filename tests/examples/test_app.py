"""examples/app.py as a reader uses it: in a browser, with images dropped and the button pressed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from ..browser import page_of, pictures_without_size

pytestmark = [pytest.mark.browser, pytest.mark.needs("gradio", "playwright", "chromium")]

APP = Path(__file__).parents[2] / "examples" / "app.py"
SHEET = "img[src*='sheet.png']:visible"
SAYS = "words => [...document.querySelectorAll('textarea')].some(t => t.offsetParent && t.value.includes(words))"
MINUTE = 60_000  # milliseconds


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page's address, and the folder for temporary files of the process that serves it."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    environment = {**os.environ, "TMPDIR": str(folder), "no_proxy": "127.0.0.1"}
    address = f"http://127.0.0.1:{port}/"
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, APP, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120
            while not answers(address):
                log.seek(0)
                assert process.poll() is None, log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.2)
            yield address, folder
        finally:
            process.terminate()
            process.wait(30)
    assert list(folder.iterdir()) == []  # nothing of what was dropped or drawn is left


def answers(address):
    try:
        return urlopen(address).status == 200
    except URLError:
        return False


def look(page, files=None):
    if files:
        page.get_by_role("button", name="Clear").first.click()
        page.locator("input[type=file]").first.set_input_files(files)
        page.get_by_role("button", name="Thumbnail").nth(len(files) - 1).wait_for()
    page.get_by_role("button", name="Look", exact=True).click()


def sizes_of_sheets(page):
    """Width and height of the picture in each tab, once it is there."""
    sizes = {}
    for tab in ("components", "attention", "neighbours"):
        page.get_by_role("tab", name=tab).click()
        page.locator(SHEET).wait_for(timeout=2 * MINUTE)
        sizes[tab] = page.locator(SHEET).evaluate(
            "async picture => (await picture.decode(), [picture.naturalWidth, picture.naturalHeight])"
        )
    assert pictures_without_size(page) == []
    return sizes


def test_a_first_click_shows_the_sample_pictures(served):
    with page_of(served[0]) as page:
        look(page)
        sizes = sizes_of_sheets(page)
        assert sizes["components"] == [4 * 230 + 6, 12 * 248 + 6]
        assert sizes["attention"] == [5 * 230 + 6, 12 * 248 + 6]  # the image and four heads
        assert sizes["neighbours"] == [9 * 166 + 6, 12 * 184 + 6]
        assert page.complaints == []


def test_dropped_images_on_a_dark_phone(served, photos):
    with page_of(served[0], width=390, height=844, dark=True) as page:
        look(page, sorted(photos.glob("*/[01].png")))  # four, of two names
        sizes = sizes_of_sheets(page)
        assert [height for _, height in sizes.values()] == [4 * 248 + 6, 4 * 248 + 6, 4 * 184 + 6]
        assert sizes["neighbours"][0] == 4 * 166 + 6  # each has three others
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.complaints == []


def test_what_cannot_be_used_is_said(served, bad_files, tmp_path):
    with page_of(served[0]) as page:
        for name, words in bad_files.items():
            look(page, [tmp_path / name])
            page.get_by_role("tab", name="components").click()
            page.wait_for_function(SAYS, arg=f"{name}: {words}", timeout=MINUTE)
        assert page.complaints == []
        look(page, [tmp_path / "whole.png"])  # alone, it has components but no neighbours
        page.locator(SHEET).wait_for(timeout=MINUTE)
        page.get_by_role("tab", name="neighbours").click()
        page.wait_for_function(SAYS, arg="found only itself", timeout=MINUTE)


def test_a_block_of_choice(served):
    with page_of(served[0]) as page:
        look(page)
        page.get_by_role("tab", name="attention").click()
        page.locator(SHEET).wait_for(timeout=2 * MINUTE)
        last = page.locator(SHEET).get_attribute("src")
        slider = page.get_by_role("slider").and_(page.locator(":visible")).last
        assert slider.get_attribute("max") == "3"
        slider.focus()
        slider.press("ArrowLeft")
        page.wait_for_function(
            "last => [...document.images].some(i => i.src.includes('sheet.png') && i.offsetParent && i.src != last)",
            arg=last,
            timeout=MINUTE,
        )


def test_only_this_machine_may_ask(served):
    port = int(served[0].rsplit(":", 1)[1].strip("/"))
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("needs Linux's /proc")
    local = [line.split()[1] for line in listening.read_text().splitlines() if line.split()[3] == "0A"]
    assert [place for place in local if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_help_and_mistakes():
    done = subprocess.run([sys.executable, APP, "--help"], capture_output=True, text=True, check=True)
    assert "python examples/app.py --gallery" in done.stdout
    done = subprocess.run([sys.executable, APP, "--model", "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("scott: none: cannot be created by timm")
