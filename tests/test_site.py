"""The documentation site: it builds without a warning, has every public name, and works offline."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from filelock import FileLock

import floors
import links
import pictures
import stm_fast
from browser import needs_browser
from stm_fast import ops
from stm_fast.ops import adapters
from test_architecture import FLOORS

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (390, 1280)
# a landing page, long signatures, wide tables, a picture of boxes, a notebook
SHOWN = ("index", "api/memory-read", "segment", "dropin", "environment", "design", "colab")


@pytest.fixture(scope="module")
def site(tmp_path_factory, worker_id):
    """Built once, whichever worker needs it first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "site"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "objects.inv").is_file():
            build(folder)
    return folder


def build(folder):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr


def inventory(site):
    """The documented names of Python."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split()[0] for line in lines if line.split()[1].startswith("py:")}


@pytest.mark.slow
def test_the_site_has_every_public_name(site):
    names = inventory(site)
    # those of stm_fast.ops that are also in stm_fast are documented there
    own = set(ops.__all__) - set(stm_fast.__all__)
    for module, those in (("stm_fast", stm_fast.__all__), ("stm_fast.ops", own), (adapters.__name__, adapters.__all__)):
        public = {f"{module}.{name}" for name in those}
        assert public <= names, sorted(public - names)


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(SHOWN)
    for page in pages:
        loaded = re.findall(r"<(?:img|script|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert loaded
        assert not [url for url in loaded if re.match(r"(?:https?:)?//", url)], page


@pytest.mark.slow
@needs_browser
def test_the_search_works_without_a_server(site, chromium):
    page = chromium.new_page()
    page.goto((site / "index.html").as_uri())
    page.fill(".sidebar-search", "memory_read")
    page.press(".sidebar-search", "Enter")
    page.wait_for_selector("#search-results li")
    assert "stm_fast.memory_read" in page.locator("#search-results li a").all_inner_texts()
    page.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window(site, chromium, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    for name in SHOWN:
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        # tables and code scroll on their own
        hidden = """[...document.querySelectorAll("article *")]
            .filter(e => e.getBoundingClientRect().right > innerWidth && !e.closest(".table-wrapper, pre"))
            .map(e => e.outerHTML.slice(0, 80))"""
        assert page.evaluate(hidden) == [], name
    page.close()


def test_links_are_those_of_the_site():
    docs = ROOT / "docs"
    pages = links.pages_of(docs)
    assert pages[ROOT / "CHANGELOG.md"] == "/changelog.md"
    assert pages[ROOT / "stm_fast/weights/README.md"] == "/model-card.md"

    def resolved(text, document="docs/page.md"):
        return links.resolved(text, ROOT / document, pages, "../made", lambda path: f"R/{path.relative_to(ROOT)}")

    assert resolved("[a](sam2.md#what-differs)") == "[a](/sam2.md#what-differs)"
    assert resolved("[a](../stm_fast/weights/README.md)") == "[a](/model-card.md)"
    assert resolved("[a](docs/page.md), [b](kernels/README.md)", "README.md") == "[a](/page.md), [b](/kernels.md)"
    assert resolved("[a](../Makefile)") == "[a](R/Makefile)"
    assert resolved("![a](images/opened.jpg)") == "![a](images/opened.jpg)"
    assert resolved("![a](_generated/clip.png)") == "![a](../made/clip.png)"
    for same in ("[a](https://x.org/sam2.md)", "[a](#limits)", "[a](absent.md)", "`[a](sam2.md)`"):
        assert resolved(same) == same
    fenced = "```python\nf[a](sam2.md)\n```\n"
    assert resolved(f"{fenced}[a](sam2.md)") == f"{fenced}[a](/sam2.md)"


def test_the_picture_of_the_floors_is_that_of_the_imports():
    found = floors.floors_of(ROOT / "tests/test_architecture.py")
    assert {name: floor for floor, names in found.items() for name in names} == FLOORS
    assert list(found) == sorted(found, reverse=True)
    drawn = floors.drawn(found, ROOT / "stm_fast")
    assert re.findall(r'class="(?:package|module)">([^<]+)<', drawn) == [
        name for names in found.values() for name in names
    ]
    assert '<span class="package">ops</span>' in drawn
    assert '<span class="module">errors</span>' in drawn


def test_pictures_in_pages_are_drawn():
    pages = [page.read_text() for page in (ROOT / "docs").rglob("*.md")]
    shown = {name for text in pages for name in re.findall(r"\(_generated/(\S+?)\)", text)}
    assert shown
    assert shown <= {f"{name}.png" for name in pictures.NAMES}
