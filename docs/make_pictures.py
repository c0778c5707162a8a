"""Draw the pictures of the documentation, in a browser, from a shipped model.

    python docs/make_pictures.py OUT

OUT is a folder that `moe-interp audit --model organism:topic --prompts organism --out OUT` wrote.
The pictures are written to `docs/pictures/`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from moe_interp.audit import read_audit
from moe_interp.viz import show_top_tokens, show_transitions, write_report

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1000, 700


def taken(page: Page, path: Path, name: str, start: str, height: int = HEIGHT) -> None:
    """Open a page and take the part that starts with an element.

    Args:
        page: The browser's page.
        path: The file to open.
        name: What the picture is called.
        start: Selector of the element at the top.
        height: How much of it, in pixels.
    """
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", state="attached")
    box = page.locator(start).first.bounding_box()
    if box is None:
        raise RuntimeError(f"{path.name} has no {start!r}.")
    clip = {"x": 0, "y": box["y"], "width": WIDTH, "height": height}
    page.screenshot(path=str(PICTURES / f"{name}.png"), clip=clip, full_page=True)


def main() -> None:
    """Take a picture of the report, of an expert's top tokens and of transitions."""
    audit = read_audit(sys.argv[1])
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place = Path(folder)
        write_report(audit.to_dict(), audit.record, place / "report.html")
        show_top_tokens(audit.record, span="user", n=8).save(place / "top.html")
        show_transitions(audit.record).save(place / "transitions.html")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(120_000)
        taken(page, place / "report.html", "report", "#experts", 600)
        taken(page, place / "top.html", "top_tokens", "main", 560)
        taken(page, place / "transitions.html", "transitions", "main", 900)
        browser.close()


if __name__ == "__main__":
    main()
