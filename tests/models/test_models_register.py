"""Rows for a family of one's own, and the page that shows how they are found."""

import re
from dataclasses import fields
from pathlib import Path

import doc_pages
import pytest
from tiny_models import build

from moe_interp.models import Site, _registry, find_sites, register_block, register_router

PAGE = "errors/unsupported-architecture.md"


@pytest.fixture(autouse=True)
def rows_of_the_package():
    """Take back what a test registers."""
    before = [(table, dict(table)) for table in (_registry.ROUTERS, _registry.BLOCKS)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


def pattern(block):
    """What a block of output stands for: any blank is one, and an ellipsis is anything."""
    parts = [re.escape(" ".join(part.split())) for part in block.split("…")]
    return ".*".join(parts)


def test_the_page_runs_and_prints_what_it_says(tmp_path, capsys):
    names, n_blocks = doc_pages.run_page(PAGE, tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    shown = doc_pages.blocks(PAGE, "text")
    assert (n_blocks, len(shown)) == (6, 5)
    for block in shown:
        assert re.search(pattern(block), printed), block
    assert names["opened"].moe[0].facts["sum_scale"] == 1.5


def test_the_page_tells_every_fact():
    told = re.findall(
        r"^\| `(\w+)` \|", doc_pages.read_page(PAGE).partition("## The facts")[2], re.M
    )
    assert told == [*_registry.ROUTER_FACTS, *_registry.BLOCK_FACTS]


def test_the_page_quotes_the_messages():
    table = doc_pages.read_page(PAGE).partition("| the message says")[2].partition("\n\n")[0]
    sources = [path.read_text() for path in Path(_registry.__file__).parent.glob("_*.py")]
    quoted = [
        cell for row in table.splitlines()[2:] for cell in re.findall("`(.*?)`", row.split("|")[1])
    ]
    assert len(quoted) == 9
    for phrase in quoted:
        assert any(phrase in source for source in sources), phrase


def test_facts_are_those_of_a_site():
    known = {entry.name for entry in fields(Site)}
    assert {*_registry.ROUTER_FACTS, *_registry.BLOCK_FACTS} <= known
    assert not set(_registry.ROUTER_FACTS) & set(_registry.BLOCK_FACTS)


def test_every_row_of_the_package_sets_known_facts():
    rows = Path(_registry.__file__).read_text()
    written = set(re.findall(r'(?<!== )"([a-z_]+)":', rows)) - {"expert_outputs"}
    assert written <= {*_registry.ROUTER_FACTS, *_registry.BLOCK_FACTS}
    assert len(written) > 15


def test_a_registered_fact_replaces_the_detected_one():
    model = build("mixtral")
    for layer in model.model.layers:
        layer.mlp.__class__ = type("GravelMoE", (type(layer.mlp),), {})
    assert find_sites(model)[0].sum_scale == 1.0
    register_block("GravelMoE", {"sum_scale": 2.0})
    assert find_sites(model)[0].sum_scale == 2.0


@pytest.mark.parametrize(
    ("register", "part", "known"),
    [
        (register_router, "router", "n_experts, top_k, logits"),
        (register_block, "block", "experts, entry, leaving"),
    ],
)
def test_an_unknown_fact_is_an_error_that_lists_the_known(register, part, known):
    with pytest.raises(
        ValueError, match=f"'logit' is no fact of a {part}, in the row of 'Gravel'.*{known}"
    ):
        register("Gravel", {"logit": "affinity_0"})
    # Nothing was left behind.
    register("Gravel", {})


def test_a_function_with_an_unknown_fact_is_an_error_where_it_is_used():
    model = build("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = type("GravelRouter", (type(layer.mlp.gate),), {})
    register_router("GravelRouter", lambda router: {"sum_scale": router.top_k})
    with pytest.raises(ValueError, match=r"'sum_scale' is no fact of a router.*'GravelRouter'"):
        find_sites(model)


@pytest.mark.parametrize(
    ("register", "name"), [(register_router, "Llama4Router"), (register_block, "BeamMoE")]
)
def test_a_row_is_not_overwritten(register, name):
    with pytest.raises(ValueError, match=f"class '{name}' has a row already"):
        register(name, {})
