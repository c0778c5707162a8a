"""The pages' Python runs block after block, and prints what the pages say it prints."""

import contextlib
import io
import re
import warnings

import doc_pages
import pytest

# These have tests of their own, which also look at what their code finds.
TESTED_ELSEWHERE = {
    "interventions.md",
    "migration-from-transformer-lens.md",
    "errors/unsupported-architecture.md",
}
PAGES = sorted(
    name
    for path in doc_pages.DOCS.rglob("*.md")
    if (name := str(path.relative_to(doc_pages.DOCS))) not in TESTED_ELSEWHERE
    and not name.startswith(("studies/", "_build/"))
    and doc_pages.blocks(name, "python")
)


def outputs(name):
    """The text blocks that follow a block of Python: what it prints."""
    follows = r"^```python\n.*?^```\n\n```text\n(.*?)^```"
    return re.findall(follows, doc_pages.read_page(name), re.DOTALL | re.MULTILINE)


def normal(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_pages_are_found():
    assert {"start.md", "index.md", "concepts/units-and-nulls.md", "howto/tune.md"} <= set(PAGES)


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
def test_the_code_runs_and_prints_what_the_page_says(name, tmp_path):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        # Pages show warnings where they are the point; a reader gets them all, and may.
        warnings.simplefilter("default")
        _, n_blocks = doc_pages.run_page(name, tmp_path)
    assert n_blocks >= 1
    printed = normal(said.getvalue())
    for text in outputs(name):
        for line in normal(text):
            assert line == "…" or line in printed, f"{line!r} is not printed by {name}: {printed}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_as_python(name):
    for block in doc_pages.blocks(name, "python"):
        compile(block, name, "exec")
