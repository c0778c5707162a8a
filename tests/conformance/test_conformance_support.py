"""The table of families and its page are what the models do, measured anew.

`python tests/write_support.py` writes both.
"""

import json

import pytest
import support_facts
import support_page
import torch
import write_support
import zoo

from moe_interp.models._support import parse_support

pytestmark = pytest.mark.conformance

STORED = json.loads(write_support.TABLE.read_text(encoding="utf-8"))
ROWS = {row["model_type"]: row for row in STORED["families"]}
# What a processor of another kind may round otherwise.
MEASURED = ("errors", "skips_call")
EPSILON = {
    kind: torch.finfo(getattr(torch, kind)).eps for kind in ("float64", "float32", "bfloat16")
}


def anew(model_type):
    """The row of a model type, measured now."""
    names = [name for name, one in zoo.FAMILIES.items() if one.model_type == model_type]
    if not names:
        return support_facts.measure_beside(model_type)
    return support_facts.merge([support_facts.measure(name) for name in names])


@pytest.mark.parametrize("model_type", ROWS)
def test_a_row_is_what_its_models_do(model_type):
    stored, found = ROWS[model_type], json.loads(json.dumps(anew(model_type)))
    for key in stored.keys() | found.keys():
        if key not in MEASURED:
            assert found[key] == stored[key], key
    if not found["offered"]:
        return
    if STORED["versions"]["cpu"] == torch.backends.cpu.get_cpu_capability():
        assert found["skips_call"] == stored["skips_call"]
    assert found["errors"].keys() == stored["errors"].keys()
    for kind, bound in stored["errors"].items():
        if isinstance(bound, str):
            assert found["errors"][kind] == bound
        else:
            assert found["errors"][kind] <= max(2 * bound, 2 * EPSILON[kind]), kind
            # Nor is it stated far too high.
            assert bound <= max(20 * found["errors"][kind], 2 * EPSILON[kind]), kind


def test_the_page_shows_the_table():
    page = write_support.PAGE.read_text(encoding="utf-8")
    assert page == support_page.render(parse_support(STORED))


def test_the_releases_are_those_that_are_installed():
    installed = write_support.versions()
    for package in ("transformers", "nnsight"):
        assert STORED["versions"][package] == installed[package]
