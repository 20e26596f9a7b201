"""Pages in headless Chromium (Debian's package `chromium`), and everything they complain about."""

import shutil
from contextlib import contextmanager

from .groups import PROGRAMS

CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS["chromium"])), None)
# As root there is no sandbox; nothing is asked of the network.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def page_of(address, *, width=1280, height=900, dark=False):
    """An open page; `page.complaints` gathers errors of its scripts and console, and requests to other hosts.

    Args:
        address: http:// of loopback, or the path of a file.
        width, height: of the window, pixels; 390 x 844 is a phone's.
        dark: whether the reader prefers dark pages.
    """
    from playwright.sync_api import sync_playwright

    address = address if str(address).startswith("http") else address.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda line: page.complaints.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: page.complaints.append(request.url) if _is_foreign(request.url) else None)
        page.goto(address)
        yield page
        browser.close()


def _is_foreign(url):
    return url.startswith("http") and not url.startswith(("http://127.0.0.1", "http://localhost"))


def pictures_without_size(page):
    """The addresses of pictures that were not drawn."""
    return page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 60))")
