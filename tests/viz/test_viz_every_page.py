"""Every page in real browsers: nothing hostile runs, nobody is shut out, Firefox draws it too."""

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import hostile_texts as hostile
import numpy as np
import pytest
from firefox_bidi import Firefox

from moe_interp.viz import (
    plot_experts,
    plot_volcano,
    show_tokens,
    show_top_tokens,
    show_transitions,
    write_report,
)

# Browsers are slow to start; one worker opens each page once.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("pages")]
VIEWPORT = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def pages(made_up, record, tmp_path_factory):
    """One file of every kind of page."""
    folder = tmp_path_factory.mktemp("pages")
    write_report(made_up, record, folder / "audit.html")
    write_report([made_up, plot_volcano(made_up)], record, folder / "list.html")
    show_tokens(record).save(folder / "tokens.html")
    show_tokens(["<bos>", "b", "c"], [np.nan, 0.5, -1.0]).save(folder / "plain.html")
    show_top_tokens(record, n=4).save(folder / "top.html")
    show_transitions(record).save(folder / "transitions.html")
    return folder


NAMES = ("audit", "list", "tokens", "plain", "top", "transitions")


def at(page, name):
    return page(name, viewport=VIEWPORT)


@pytest.fixture(scope="module")
def page(opened, pages):
    def open_page(name, **options):
        return opened(pages / f"{name}.html", **options)

    return open_page


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_nobody_is_shut_out(page, axe, name, look):
    options = {
        "light": {"viewport": VIEWPORT},
        "dark": {"viewport": VIEWPORT, "color_scheme": "dark"},
        "phone": {"viewport": {"width": 380, "height": 800}},
    }[look]
    shown = page(name, **options)
    shown.evaluate(axe)
    found = shown.evaluate("axe.run()")
    grave = [
        f"{one['id']}: {one['nodes'][0]['html'][:120]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []
    assert len(found["passes"]) > 8
    assert shown.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert shown.complaints == []


@pytest.mark.parametrize("name", ["tokens", "top"])
def test_selectors_work_by_keyboard_alone(page, name):
    shown = at(page, name)
    read = "document.querySelector('#token-view, #lines').innerText"
    before = shown.evaluate(read)
    reached = []
    for _ in range(8):
        shown.keyboard.press("Tab")
        reached.append(shown.evaluate("document.activeElement.id"))
        if reached[-1] == "s-expert":
            break
    assert reached[-1] == "s-expert"
    shown.keyboard.press("ArrowDown")
    shown.wait_for_function(f"(old) => {read} !== old", arg=before)
    assert shown.complaints == []


def test_a_click_on_a_lists_map_shows_that_expert_in_the_tokens(page):
    shown = at(page, "list")
    element = shown.locator(".plot:has(.hm) .nsewdrag").first
    element.scroll_into_view_if_needed()
    size = element.bounding_box()
    element.click(position={"x": size["width"] * 14.5 / 16, "y": size["height"] * 2.5 / 4})
    shown.wait_for_function("() => document.getElementById('s-expert').value === '14'")
    assert shown.input_value("#s-layer") == "2"
    assert "L2E14" in shown.inner_text("#token-view")
    assert shown.complaints == []


def test_a_click_on_transitions_shows_the_tokens_that_go_this_way(page, record):
    shown = at(page, "transitions")
    element = shown.locator("#figure-map .nsewdrag").first
    size = element.bounding_box()
    element.click(position={"x": size["width"] * 1.5 / 16, "y": size["height"] * 5.5 / 16})
    shown.wait_for_function("() => document.getElementById('s-from').value === '5'")
    assert shown.input_value("#s-to") == "1"
    index = record.dataset["expert_index"].values
    had = (index[:, 0] == 5).any(-1)
    went = (had & (index[:, 1] == 1).any(-1)).sum() / had.sum()
    share, n = re.match(r"About (\d+)% of the (\d+) tokens", shown.inner_text("#about")).groups()
    assert (int(n), abs(int(share) - 100 * went) <= 1) == (had.sum(), True)
    shown.select_option("#s-pair", "2")
    shown.wait_for_function("() => document.getElementById('about').innerText.includes('L4E')")
    assert shown.complaints == []


def test_what_has_no_value_is_dotted_and_read_in_black(page):
    shown = at(page, "plain")
    shown.wait_for_selector(".absent")
    assert shown.locator(".absent").all_inner_texts() == ["<\u2060bos>"]
    ink = shown.locator(".colored-tokens span > span").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one).color)"
    )
    assert ink == ["rgb(0, 0, 0)", "rgb(0, 0, 0)", "rgb(255, 255, 255)"]


def hostile_everywhere(results, record):
    """Put a hostile text wherever a text of others can stand."""
    texts = list(hostile.HOSTILE)
    evil = copy.deepcopy(results)
    evil["model"] |= {"id": " ".join(texts[:20]), "source": texts[3], "dtype": texts[10]}
    evil["model"]["card"] = {"disclaimer": " ".join(texts[20:40])}
    evil["prompts"] |= {"topics": texts, "source": texts[5], "warnings": texts}
    evil["verdict_note"] = " ".join(texts)
    evil["method"] = {text: text for text in texts}
    evil["versions"] = {text: text for text in texts}
    evil["causal"]["experts"] = texts
    evil["causal"]["metric"] = texts[10]
    for span in evil["spans"]:
        evil["reasons"][span] = " ".join(texts)
    for entry, text in zip(evil["causal"]["sets"], texts[10:], strict=False):
        entry |= {"experts": [text], "name": text}
    data = record.dataset.copy(deep=True)
    n = data.sizes["token"]
    data["token_text"] = ("token", np.array([texts[i % len(texts)] for i in range(n)], object))
    for name in ("text", "topic", "pair", "id"):
        cells = [texts[i % len(texts)] for i in range(data.sizes["prompt"])]
        data[name] = ("prompt", np.array(cells, dtype=object))
    return evil, SimpleNamespace(dataset=data, layers=record.layers, n_experts=16)


def test_nothing_hostile_runs_anywhere(opened, made_up, record, tmp_path):
    assert len(set(hostile.HOSTILE)) >= 50
    evil, evil_record = hostile_everywhere(made_up, record)
    texts = list(hostile.HOSTILE)
    # A file system refuses slashes only.
    named = tmp_path / (texts[10].replace("/", "") + ".html")
    files = [
        write_report(evil, evil_record, named),
        write_report([evil, *texts], evil_record, tmp_path / "list.html", title=texts[4]),
    ]
    for name, view in {
        "tokens": show_tokens(evil_record, prompts=range(48), name=texts[4]),
        "plain": show_tokens([texts], [[0.0] * len(texts)], labels=[texts[10]], name=texts[0]),
        "top": show_top_tokens(evil_record),
        "transitions": show_transitions(evil_record),
    }.items():
        view.save(tmp_path / f"{name}.html")
        files.append(tmp_path / f"{name}.html")
    for path in files:
        shown = opened(path)
        assert shown.get_attribute("body", "data-ready") == "true", path
        for element in shown.locator("select").all():
            values = element.locator("option").evaluate_all("(all) => all.map((o) => o.value)")
            element.select_option(values[-1])
        shown.locator("body").hover()
        shown.wait_for_timeout(100)
        assert shown.evaluate("window.hacked") is None, path
        foreign = "img, math, iframe, object, embed, video, audio, base, marquee, template"
        assert shown.locator(f"main :is({foreign})").count() == 0, path
        assert shown.complaints == [], path


def test_hostile_tokens_are_read_as_they_are(opened, tmp_path):
    texts = [text for text in hostile.HOSTILE if "\n" not in text]
    show_tokens([texts], [[0.0] * len(texts)]).save(tmp_path / "view.html")
    shown = opened(tmp_path / "view.html")
    shown.wait_for_function(
        "(n) => document.querySelectorAll('.colored-tokens span > span').length === n",
        arg=len(texts),
    )
    tokens = shown.locator(".colored-tokens span > span").evaluate_all(
        "(all) => all.map((one) => one.textContent)"
    )
    spaces = str.maketrans({"\u2060": "", "\u00a0": " ", "\u2028": " "})
    assert [token.translate(spaces) for token in tokens] == [one.translate(spaces) for one in texts]


def test_a_hostile_figure_and_notebook_cell_stay_pictures(opened, tmp_path):
    rows = [{"layer": 0, "expert": 0, text: 1.0} for text in hostile.HOSTILE[:1]]
    figure = plot_experts(rows, quantity=hostile.HOSTILE[0])
    view = show_tokens(list(hostile.HOSTILE), [0.5] * len(hostile.HOSTILE))
    cells = figure._repr_html_() + view._repr_html_()
    path = tmp_path / "cells.html"
    path.write_text(f"<body data-ready='1'>{cells}</body>", encoding="utf-8")
    shown = opened(path)
    shown.frame_locator("iframe").locator("body[data-ready]").wait_for()
    assert shown.evaluate("window.hacked") is None
    assert shown.locator("img").count() == 1
    assert shown.complaints == []


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None and not os.environ.get("CI"):
        pytest.skip("no `firefox-esr` on the path; install it to open the pages in Firefox")
    assert program, "CI must have firefox-esr: the pages must open in it"
    browser = Firefox(program, tmp_path_factory.mktemp("firefox"))
    yield browser
    browser.close()


@pytest.mark.parametrize("name", NAMES)
def test_firefox_opens_it_without_a_request_or_an_error(firefox, pages, name):
    firefox.said.clear()
    firefox.asked.clear()
    path = pages / f"{name}.html"
    firefox.open(path)
    assert firefox.run("document.body.dataset.ready") == "true"
    assert firefox.run("document.querySelectorAll('.colored-tokens span > span').length") > 2
    if name == "audit":
        firefox.run("document.querySelector(\"button.pick[data-expert='L2E15']\").click()")
        assert firefox.run("document.getElementById('s-expert').value") == "15"
        assert firefox.run("document.querySelectorAll('#figure-map .main-svg').length") > 0
    assert firefox.said == []
    assert [url for url in firefox.asked if not url.startswith(("file:", "blob:", "data:"))] == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core (MPL-2.0), fetched for tests alone; ``AXE_CORE`` names a copy that is there."""
    known = os.environ.get("AXE_CORE")
    if known:
        return Path(known).read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    got = npm and subprocess.run(
        [npm, "pack", "axe-core@4.14.1", "--silent"], cwd=folder, capture_output=True, timeout=120
    )
    if not got or got.returncode:
        if os.environ.get("CI"):
            pytest.fail("CI must have npm and its registry, or AXE_CORE must name axe.min.js")
        pytest.skip("no axe-core: neither AXE_CORE nor npm's registry is there")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, filter="data")
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")
