"""The site: built strict and offline, every page opened in a headless Chromium as a person would."""

from __future__ import annotations

import functools
import html.parser
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium")
needs_browser = pytest.mark.skipif(not (BROWSER and shutil.which("chromedriver")), reason="no Chromium with its driver")
PAGES = [  # opened at both widths, in both schemes
    "index.html", "play.html", "reference/samplers/index.html", "reference/samplers/tab3.html", "results/index.html",
    "reference/derivations/weights-eps-lam.html", "tutorials/mixture.html", "results/claims.html",
]  # fmt: skip


WIDEST_GLYPH = """return Math.max(...[...document.querySelectorAll("mjx-container use")].map(
  glyph => glyph.checkVisibility() && glyph.getBoundingClientRect().width))"""


@pytest.fixture(scope="session")
def site(tmp_path_factory, request):
    """The folder of the built site, DEIS_ANALYSIS_SITE if that is set; built once, also by several workers."""
    if os.environ.get("DEIS_ANALYSIS_SITE"):
        return Path(os.environ["DEIS_ANALYSIS_SITE"])
    base = tmp_path_factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base
    home, folder = base / "docs", base / "site"
    with FileLock(base / "site.lock"):
        if not folder.exists():
            blocked = {
                "http_proxy": "http://127.0.0.1:9",
                "https_proxy": "http://127.0.0.1:9",
                "NO_MKDOCS_2_WARNING": "1",
            }
            environment = {**os.environ, **blocked, "DOCS_DIR": str(home)}
            subprocess.run([sys.executable, "-m", "docs", str(home)], check=True, cwd=ROOT, env=environment)
            build = ["build", "--strict", "--quiet", "--site-dir", str(folder)]
            subprocess.run([sys.executable, "-m", "mkdocs", *build], check=True, cwd=ROOT, env=environment)
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Of a server of the site, on this machine only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def wait(driver, condition, seconds=30):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds).until(lambda _: condition())


def complaints(driver):
    """Errors of the console since the last call."""
    return [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "ERROR")]


# -- without a browser ----------------------------------------------------------------------------
class References(html.parser.HTMLParser):
    """(tag, target) of all that a page refers to, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.found, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.add(given.get("id"))
        self.found += [(tag, given[name]) for name in ("href", "src") if given.get(name)]


def test_every_link_leads_somewhere_and_nothing_comes_from_a_network(site):
    pages = {page: References(page.read_text()) for page in sorted(site.rglob("*.html")) if page.name != "404.html"}
    assert len(pages) > 200
    for page, read in pages.items():
        for tag, target in read.found:
            parts = urlsplit(target)
            if parts.scheme == "data":
                continue
            assert not parts.scheme or tag == "a", (
                page,
                target,
            )  # a reader may follow it; nothing is loaded from there
            if parts.scheme:
                continue
            place = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            place = place / "index.html" if place.is_dir() else place
            assert place.exists(), (page, target)
            if parts.fragment and place in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[place].anchors, (page, target)
    for script in [*site.rglob("*.css"), *(site / "assets").glob("*.js")]:
        assert not re.search(r"@import|fonts\.g|url\((['\"]?)https?:", script.read_text()), script


def test_there_is_a_page_for_every_sampler_figure_formula_and_command(site):
    import deis_analysis as da
    from deis_analysis.cli import main
    from deis_analysis.symbolic.derivations import DERIVATIONS

    names = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    assert {f"reference/samplers/{name}" for name in da.SOLVERS} <= names
    assert {f"reference/derivations/{name}" for name in DERIVATIONS} <= names
    assert {f"results/{path.stem}" for path in (ROOT / "figures").glob("*.png")} <= names
    commands = (site / "reference" / "cli.html").read_text()
    assert all(f'id="{name}"' in commands for name in main.commands)


# -- with one -------------------------------------------------------------------------------------
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_their_width_and_the_console_is_silent(browser, address, width, scheme, tmp_path):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted, button = {"light": ("default", "__palette_0"), "dark": ("slate", "__palette_1")}[scheme]
    browser.get(urljoin(address, "index.html"))
    browser.execute_script(f"document.getElementById('{button}').click()")
    shots = Path(os.environ.get("DEIS_ANALYSIS_SCREENSHOTS", tmp_path))
    complaints(browser)
    for page in PAGES:
        browser.get(urljoin(address, page))
        if browser.find_elements("css selector", ".arithmatex"):
            wait(browser, lambda: browser.find_elements("css selector", "mjx-container svg"))
            assert not browser.find_elements("css selector", "mjx-merror"), page
            assert browser.execute_script(WIDEST_GLYPH) > 4, page
        if page == "play.html":
            wait(browser, lambda: browser.find_elements("css selector", "#paths svg"))
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, (page, wide)
        body = browser.find_element("tag name", "body")
        wait(browser, lambda: body.get_attribute("data-md-color-scheme") == wanted)  # noqa: B023
        assert complaints(browser) == [], page
        browser.save_screenshot(str(shots / f"{page.replace('/', '-')}-{width}-{scheme}.png"))


@needs_browser
def test_no_page_of_the_menu_complains(browser, address, site):
    """The console of every hand-written page and of one generated page of each kind."""
    complaints(browser)
    pages = [
        page for page in site.rglob("*.html") if page.parent.name not in ("samplers", "derivations", "api", "results")
    ]
    kinds = ["reference/api/process.html", "results/fig2_fitting_error.html", "reference/derivations/clocks.html"]
    for page in [*(page.relative_to(site).as_posix() for page in pages if page.name != "404.html"), *kinds]:
        browser.get(urljoin(address, page))
        assert complaints(browser) == [], page


@needs_browser
def test_search_finds_tab3(browser, address):
    browser.get(urljoin(address, "index.html"))
    wait(browser, lambda: browser.execute_script("return document.readyState") == "complete")
    field = browser.find_element("css selector", ".md-search__input")
    browser.execute_script("document.querySelector('#__search').checked = true")
    wait(browser, lambda: field.is_displayed())
    field.send_keys("tab3")
    links = wait(browser, lambda: browser.find_elements("css selector", ".md-search-result__link"))
    found = [urlsplit(link.get_attribute("href")).path for link in links]
    assert "/reference/samplers/tab3.html" in found
    assert complaints(browser) == []


@needs_browser
def test_the_registry_sorts_by_keyboard(browser, address):
    from selenium.webdriver.common.keys import Keys

    browser.get(urljoin(address, "reference/samplers/index.html"))
    head = next(b for b in browser.find_elements("css selector", ".sortable th button") if b.text.startswith("exact"))

    def column():
        return [cell.get_attribute("textContent") for cell in browser.find_elements("css selector", "td:nth-child(4)")]

    head.send_keys(Keys.ENTER)
    numbers = [float(text) for text in column() if text != "–"]
    assert numbers == sorted(numbers)
    head.send_keys(Keys.ENTER)
    numbers = [float(text) for text in column() if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert column()[-1] == "–"


@needs_browser
def test_the_page_to_play_with_answers_to_the_keyboard(browser, address):
    import deis_analysis as da
    from docs import play

    browser.get(urljoin(address, "play.html"))
    home = browser.find_element("id", "laboratory")
    wait(browser, lambda: home.get_attribute("data-shown") == "VPLinear/tab3/t2/6")
    said = home.find_element("tag name", "output").text
    choice = {s.get_attribute("name"): s for s in home.find_elements("tag name", "select")}
    choice["steps"].send_keys("10")
    wait(browser, lambda: home.get_attribute("data-shown") == "VPLinear/tab3/t2/10")
    choice["process"].send_keys("EDM")
    wait(browser, lambda: home.get_attribute("data-shown") == "EDM/tab3/t2/10")
    assert home.find_element("tag name", "output").text != said
    process = da.EDM()
    table = da.build("tab3", process, da.grid(process, 10))
    shown = [float(row.text.split()[-1]) for row in home.find_elements("css selector", "tbody tr")]
    assert shown == pytest.approx(table.butcher().weights[-1], rel=1e-3)
    assert len(home.find_elements("css selector", "#paths .run")) == play.PATHS
    assert complaints(browser) == []
