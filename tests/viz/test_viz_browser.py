"""The pages in a real browser, without a network: what is drawn, linked, blocked."""

import pytest

from moe_interp.viz import show_tokens, write_report

# Colours of the drawn tokens, in order.
COLOURS = (
    "[...document.querySelectorAll('#token-view .colored-tokens span > span')]"
    ".map((token) => getComputedStyle(token).backgroundColor)"
)


@pytest.fixture(scope="module")
def shared(opened, made_up, record, tmp_path_factory):
    path = write_report(made_up, record, tmp_path_factory.mktemp("viz") / "report.html")
    return opened(path, viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(shared):
    """Give the one opened report, with expert L5E9 chosen as it is when the report opens."""
    yield shared
    shared.select_option("#s-prompt", "0")
    shared.click("button.pick[data-expert='L5E9']")
    shared.complaints.clear()


def label_of(page):
    return f"L{page.input_value('#s-layer')}E{page.input_value('#s-expert')}"


def test_the_report_opens_without_a_request_or_an_error(page):
    assert page.get_attribute("body", "data-ready") == "true"
    assert page.complaints == []


def test_a_page_that_loads_from_elsewhere_is_caught(opened, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        '<body data-ready="true"><script src="https://unpkg.com/circuitsvis"></script></body>',
        encoding="utf-8",
    )
    assert any("unpkg.com" in said for said in opened(path).complaints)


def test_every_figure_is_drawn(page):
    for name in ("causal", "decomposition", "map"):
        assert page.locator(f"#figure-{name} .main-svg").count() > 0


def test_special_and_hostile_tokens_are_seen_and_do_nothing(page):
    shown = page.inner_text("#token-view").replace("\u2060", "").replace("\u00a0", " ")
    for token in ("<bos>", "<img/src=x onerror=window.hacked=1>", "</script>", "&amp;"):
        assert token in shown
    assert page.evaluate("window.hacked") is None
    assert page.locator("#token-view img").count() == 0


def test_choosing_another_expert_changes_the_colours(page, record):
    before = page.evaluate(COLOURS)
    used = int(record.dataset["expert_index"].values[0, 0, 0])
    page.select_option("#s-layer", "1")
    page.select_option("#s-expert", str(used))
    after = page.evaluate(COLOURS)
    assert len(after) == len(before)
    assert after != before
    assert page.complaints == []


def test_tokens_are_coloured_where_the_record_says_so(page, record):
    page.select_option("#s-layer", "4")
    expert = int(record.dataset["expert_index"].values[0, 2, 0])
    page.select_option("#s-expert", str(expert))
    coloured = [colour != "rgb(255, 255, 255)" for colour in page.evaluate(COLOURS)]
    first = record.dataset["prompt_index"].values <= 1
    expected = (record.dataset["expert_index"].values[first, 2] == expert).any(-1)
    assert coloured == expected.tolist()


def test_an_expert_that_no_token_chose_leaves_the_text_readable(page):
    page.select_option("#s-expert", "0")
    token = page.locator("#token-view .colored-tokens span > span").first
    assert token.evaluate("(node) => getComputedStyle(node).color") == "rgb(0, 0, 0)"
    assert page.complaints == []


def test_tokens_that_are_replaced_before_they_are_drawn_are_no_error(page):
    page.evaluate(
        """() => {
          const gone = document.createElement("div");
          gone.innerHTML = '<p class="colored-tokens"><span><span>a</span></span></p>';
          setTimeout(() => finishTokens(gone, 1, []));
          const layers = document.getElementById("s-layer");
          for (let turn = 0; turn < 20; turn += 1) {
            layers.selectedIndex = turn % layers.options.length;
            layers.dispatchEvent(new Event("change"));
          }
        }"""
    )
    page.wait_for_timeout(500)
    assert page.complaints == []


def test_clicking_the_map_moves_the_selectors(page):
    before = label_of(page)
    box = page.locator("#figure-map .nsewdrag").first
    size = box.bounding_box()
    # Layer 2 is the second of four rows from below; expert 14 the fifteenth of sixteen columns.
    box.click(position={"x": size["width"] * 14.5 / 16, "y": size["height"] * 2.5 / 4})
    page.wait_for_function("document.getElementById('s-expert').value === '14'")
    assert (before, label_of(page)) == ("L5E9", "L2E14")
    assert page.inner_text("#about").startswith("L2E14")
    assert page.complaints == []


def test_an_expert_that_is_picked_is_shown_at_work(page):
    page.click("button.pick[data-expert='L2E15']")
    assert page.input_value("#s-prompt") != "0"
    assert any(colour != "rgb(255, 255, 255)" for colour in page.evaluate(COLOURS))


def test_the_table_is_a_way_to_an_expert_by_keyboard(page):
    page.focus("button.pick[data-expert='L2E15']")
    page.keyboard.press("Enter")
    assert label_of(page) == "L2E15"
    pressed = page.locator("button.pick[aria-pressed='true']")
    assert pressed.all_inner_texts() == ["L2E15"]


def test_tabs_of_spans_follow_the_arrow_keys(page):
    before = page.evaluate("document.getElementById('figure-decomposition').data[1].y[0]")
    page.focus("input[name='span']:checked")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "(y) => document.getElementById('figure-decomposition').data[1].y[0] !== y", arg=before
    )
    assert page.locator("input[name='span']:checked").input_value() == "prompt"


def test_the_quantity_of_the_map_can_be_changed(page, made_up):
    page.select_option("#quantity", "attribution")
    top = max(abs(row["attribution"]) for row in made_up["experts"])
    page.wait_for_function(
        "(top) => Math.abs(document.getElementById('figure-map').data[0].zmax - top) < 1e-4",
        arg=top,
    )
    assert page.complaints == []


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_is_never_wider_than_its_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


def test_figures_fit_on_paper(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.plot .main-svg')].every((n) => n.clientWidth <= 680)",
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.complaints == []


def test_a_dark_page_has_light_words_in_its_figures(page):
    page.emulate_media(color_scheme="dark")
    title = page.locator("#figure-decomposition .xtitle[style*='231, 235, 240']")
    title.wait_for(state="attached")
    ink = title.evaluate("(n) => getComputedStyle(n).fill")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert (ink, paper) == ("rgb(231, 235, 240)", "rgb(20, 24, 29)")
    assert page.complaints == []


def test_a_report_with_nothing_measured_still_opens(opened, made_up, tmp_path):
    bare = made_up | {"causal": None, "decomposition": [], "experts": [], "truth": None}
    page = opened(write_report(bare, None, tmp_path / "bare.html"))
    assert page.get_attribute("body", "data-ready") == "true"
    assert page.complaints == []


def test_a_report_that_is_not_packed_opens_too(opened, made_up, record, tmp_path):
    page = opened(write_report(made_up, record, tmp_path / "raw.html", compress=False))
    assert page.locator("#token-view .colored-tokens").count() == 2
    assert page.complaints == []


def test_a_token_view_opens_by_itself(opened, tmp_path):
    path = tmp_path / "view.html"
    show_tokens(["<bos>", "</script>", "zero"], [0.5, -1.0, 0.0]).save(path)
    page = opened(path)
    assert "</script>" in page.inner_text("#views").replace("\u2060", "")
    assert page.locator(".colored-tokens span > span").count() == 3
    assert page.complaints == []


def test_a_notebooks_frame_draws_within_its_sandbox(opened, tmp_path):
    path = tmp_path / "cell.html"
    view = show_tokens(["<bos>", "hello"], [0.5, -1.0])
    path.write_text(f"<body data-ready='1'>{view._repr_html_()}</body>", encoding="utf-8")
    page = opened(path)
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    assert frame.locator(".colored-tokens span > span").count() == 2
    assert page.complaints == []
