"""Debian's Chromium, headless and offline, for the tests of the page: `make test-web`."""

import shutil
import time

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    assert CHROMIUM, "no Chromium on the path: apt-get install chromium, or make test-web"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Visit:
    """A page that is looked at, and what it said and asked for meanwhile."""

    def __init__(self, browser, file, width=1280, height=900, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.home = file if isinstance(file, str) else ""
        self.page.goto(self.home or file.as_uri())
        self.until("document.documentElement.dataset.ready === 'yes'")

    def js(self, code, argument=None):
        return self.page.evaluate(code, argument)

    def until(self, code, seconds=10):
        """Wait until an expression is true: `wait_for_function` would evaluate text, which a served page forbids."""
        end = time.monotonic() + seconds
        while not self.js(code):
            assert time.monotonic() < end, code
            self.page.wait_for_timeout(30)

    def play(self, selector, begin=0.0):
        """Play a sound for a moment from `begin` (s); returns where it then is, and how long it is."""
        return self.js(
            """async ([selector, begin]) => {
                const player = document.querySelector(selector);
                await player.play();
                if (begin) player.currentTime = begin;
                const began = Date.now();
                while (player.currentTime < begin + 0.05 && Date.now() - began < 5000)
                    await new Promise(r => setTimeout(r, 20));
                return [player.currentTime, player.duration];
            }""",
            [selector, begin],
        )


@pytest.fixture
def visit(browser):
    made = []

    def open_page(file, **options):
        made.append(Visit(browser, file, **options))
        return made[-1]

    yield open_page
    for one in made:
        one.context.close()
        assert one.said == [], "the console is silent"
        assert all(url.startswith((one.home.split("?")[0] or "file:", "data:", "blob:")) for url in one.asked)
