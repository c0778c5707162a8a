"""The built documentation in a browser without a network: pages, pictures, search."""

import doc_pages
import pytest
from playwright.sync_api import sync_playwright

BUILT = doc_pages.DOCS / "_build" / "html"
OWN = ("file:", "data:", "blob:", "about:")
pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def opened(chromium):
    """Open a built page, and note what it asks the network for or complains of."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        asked = []

        def only_files(route):
            if not route.request.url.startswith(OWN):
                asked.append(route.request.url)
            route.continue_()

        context.route("**/*", only_files)

        def open_page(name, query=""):
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.asked = asked
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.goto((BUILT / name).as_uri() + query)
            return page

        yield open_page
        browser.close()


def test_every_page_was_built_and_names_no_other_host():
    pages = sorted(BUILT.rglob("*.html"))
    assert len(pages) > 40
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for tag in ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http'):
            assert tag not in text, f"{path.name} has {tag}"


PAGES = [str(path.relative_to(BUILT)) for path in sorted(BUILT.rglob("*.html"))]


def test_no_page_asks_anything_of_the_network(opened):
    assert PAGES
    page = opened("index.html")
    for name in PAGES:
        page.goto((BUILT / name).as_uri())
        broken = page.evaluate(
            "[...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
        )
        assert broken == [], name
    assert page.asked == []
    assert page.errors == []


def test_the_landing_page_has_its_picture_and_leads_on(opened):
    page = opened("index.html")
    picture = page.locator("article img").first
    assert picture.evaluate("(image) => image.naturalWidth") > 300
    page.get_by_role("link", name="Install and take the first ten minutes").click()
    page.wait_for_selector("h1:has-text('The first ten minutes')")


def test_search_finds_a_function_without_a_network(opened):
    page = opened("search.html", "?q=matched_null")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_inner_texts()
    assert any("matched_null" in text for text in found)
    assert page.asked == []


def test_a_formula_is_drawn(opened):
    page = opened("reference/stats.html")
    assert page.locator("math").count() > 5
    assert page.locator("math").first.bounding_box()["width"] > 5


def test_a_notebook_shows_its_figure_and_its_claim(opened):
    page = opened("tutorials/01_first_routing_record.html")
    assert page.locator(".cell_output svg, .cell_output img").count() >= 1
    assert "have the experts that the card names" in page.inner_text("article")
