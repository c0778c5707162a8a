"""What the pages say of the package is true of it: commands, functions, messages, links."""

import importlib
import re
import shlex

import doc_pages
import pytest
import typer

from moe_interp.cli._app import app
from moe_interp.organism import ORGANISMS, card

ROOT = doc_pages.DOCS.parent
PAGES = sorted(
    path for path in doc_pages.DOCS.rglob("*.md") if "_build" not in path.relative_to(ROOT).parts
)
MARKDOWN = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
COMMANDS = typer.main.get_command(app).commands
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "moe_interp").rglob("*.py"))
)


def shell_lines():
    """Lines of the pages that call our command, without comments."""
    for path in MARKDOWN:
        fenced = re.findall(
            r"^```(?:sh)?\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M
        )
        for line in "".join(fenced).splitlines():
            if line.startswith("moe-interp "):
                yield path.name, line


@pytest.mark.parametrize(("page", "line"), list(shell_lines()))
def test_a_line_of_shell_names_a_command_and_its_options(page, line):
    words = shlex.split(line, comments=True)[1:]
    while words[0] in ("--traceback", "--version"):
        words = words[1:]
        if not words:
            return
    known = COMMANDS[words[0]]
    options = {text for found in known.params for text in (*found.opts, *found.secondary_opts)}
    for word in words[1:]:
        assert not word.startswith("-") or word in {*options, "--help"}, f"{page}: {line}"


def test_every_command_is_on_its_page():
    named = set(re.findall(r"^\| `(\w+)` \|", doc_pages.read_page("cli.md"), re.M))
    assert named == set(COMMANDS)


def test_the_methods_table_names_what_exists():
    paths = re.findall(r"`(moe_interp(?:\.\w+)+)`", doc_pages.read_page("methods.md"))
    assert len(paths) > 40
    for path in paths:
        module, name = path.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), name)), path


def test_the_status_of_each_method_is_one_of_those_explained():
    page = doc_pages.read_page("methods.md")
    known = re.findall(r"^\| ([a-z ]+) \| ", page.split("## ")[0], re.M)
    assert len(known) >= 6
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `moe_interp[^|]+ \| ([^|]+) \|$", page, re.M)
    assert len(rows) > 30
    for status in rows:
        assert any(word in status for word in known if word != "status"), status


def test_the_errors_page_quotes_what_is_raised():
    page = doc_pages.read_page("errors/index.md")
    quoted = re.findall(r"^\| `([^`]+)`", page, re.M)
    assert len(quoted) >= 10
    # Messages are written over several lines of source, in pieces.
    said = re.sub(r"\"\s*\n\s*f?\"", "", SOURCES)
    for text in quoted:
        for part in text.split("…"):
            assert part.strip() in said, f"{part!r} is in no message"


def test_the_page_of_organisms_says_what_their_cards_say():
    page = doc_pages.read_page("concepts/organisms.md")
    assert set(re.findall(r"^\| `organism:(\w+)`", page, re.M)) == set(ORGANISMS)
    assert card("topic")["truth"]["safety_experts"] == ["L3E8", "L3E9"]
    assert len(card("harm")["truth"]["safety_experts"]) == 4


def anchors(path):
    """The names of headings, as the pages on the web and GitHub make them."""
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        plain = re.sub(r"[`*]", "", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
        found.add(re.sub(r"[^\w]+", "-", plain).strip("-"))
    return found


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if "reference" in place.parts:  # Written when the documentation is built, which checks it.
            continue
        if place.parent == doc_pages.DOCS / "tutorials" and re.match(r"\d\d_", place.name):
            place = ROOT / "tutorials" / f"{place.stem}.py"
        assert place.exists(), f"{path.name} links to {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{path.name} links to {target}"
