"""The table of families: complete, without a silent cell, and the page is made from it.

That the table is what the models do is held by `tests/conformance/test_conformance_support.py`.
"""

import ast
import json
import re

import doc_pages
import pytest
import support_facts
import support_page
import write_support
import zoo
from support_kernels import KERNELS, ONCE, SOURCE

from moe_interp.models import SUPPORTED, supported_families
from moe_interp.models._support import OFFERED, known_families
from moe_interp.models._traced_read import QUANTITIES
from moe_interp.models._versions import check_versions

TABLE = supported_families()
TESTS = doc_pages.DOCS.parent / "tests"


def test_the_table_has_every_family_of_the_zoo():
    types = {family.model_type for family in zoo.FAMILIES.values()}
    assert set(TABLE) == {*types, *support_facts.BESIDE}
    assert list(TABLE) == sorted(TABLE)
    assert {*TABLE.offered, *TABLE.refused} == set(TABLE)
    assert TABLE.offered == SUPPORTED
    settings = [name for family in TABLE.values() for name in family.settings]
    refused = [name for name, one in zoo.FAMILIES.items() if one.model_type in TABLE.refused]
    assert sorted([*settings, *refused]) == sorted(zoo.FAMILIES)


@pytest.mark.parametrize("family", TABLE.values(), ids=TABLE)
def test_no_cell_is_silent(family):
    assert family.model_class
    assert bool(family.reason) != family.offered
    if not family.offered:
        return
    texts = ("block", "router", "experts", "score_function", "choice", "weights", "n_experts")
    for name in (*texts, "dispatch", "shared", "after_sum", "output_from"):
        assert getattr(family, name), name
    assert tuple(family.read) == tuple(family.write) == QUANTITIES
    assert all([*family.read.values(), *family.write.values()])
    assert family.implementations
    assert set(family.skips_call) <= set(family.implementations)
    assert set(family.errors) == {"float64", "float32", "bfloat16"}
    if "own rule" in family.weights:
        assert family.notes


def test_what_was_measured_lies_within_the_stated_bounds():
    for family in map(TABLE.get, TABLE.offered):
        assert family.errors["float32"] <= 1e-6
        assert family.errors["bfloat16"] <= 1e-2
        if isinstance(family.errors["float64"], float):
            assert family.errors["float64"] <= (1e-7 if family.errors["float64"] > 1e-9 else 1e-12)


def test_the_table_was_made_with_releases_that_are_not_refused():
    check_versions({name: TABLE.versions[name] for name in ("nnsight", "transformers")})


def test_the_page_is_what_the_table_renders_to():
    assert doc_pages.read_page("support.md") == support_page.render(TABLE)


def test_the_file_is_what_the_script_would_store():
    stored = json.loads(write_support.TABLE.read_text(encoding="utf-8"))
    assert write_support.TABLE.read_text(encoding="utf-8") == write_support.to_text(stored)


def test_the_page_states_the_tolerances_of_the_conformance_tests():
    tree = ast.parse((TESTS / "conformance" / "test_conformance_sums.py").read_text())
    bounds = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id.startswith(("FLOAT", "BFLOAT"))
    }
    for name, stated in support_page.TOLERANCES.items():
        bound = bounds[name.partition(" ")[0].upper()]
        expected = bound if isinstance(bound, tuple) else (bound, bound)
        assert tuple(map(float, stated)) == expected, name


def test_each_claim_about_a_kernel_names_tests_that_exist():
    tests = "".join(
        (TESTS / "models" / f"test_models_{part}.py").read_text() for part in ("kernels", "devices")
    )
    for kernel in KERNELS:
        assert bool(kernel.tests) != (kernel.evidence in (ONCE, SOURCE)), kernel.what
        for name in kernel.tests:
            assert re.search(rf"^def {name}\(", tests, re.MULTILINE), name


def test_every_link_of_the_page_leads_somewhere():
    page = doc_pages.read_page("support.md")
    heads = {re.sub(r"\W+", "-", head.lower()) for head in re.findall("^## (.*)$", page, re.M)}
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert len(targets) == 8
    for target in targets:
        file, _, head = target.partition("#")
        assert head in heads if not file else (doc_pages.DOCS / file).is_file(), target


def test_a_frame_has_one_row_a_family():
    frame = TABLE.to_frame()
    assert frame.index.name == "model_type"
    assert list(frame.index) == list(TABLE)
    assert frame.loc["llama4_text", "dispatch"] == "input_scaled"
    assert repr(TABLE) == (
        f"SupportTable({len(TABLE.offered)} families offered, {len(TABLE.refused)} refused)"
    )


def test_some_facts_are_as_the_papers_have_them():
    assert TABLE["deepseek_v3"].choice.startswith("top-k + bias in groups")
    assert TABLE["mixtral"].weights == "s/Σs"
    assert TABLE["qwen2_moe"].shared == "gated"
    assert TABLE["axk1"].after_sum == "N(Σ + S)"
    assert TABLE["nemotron_h"].after_sum == "P(Σ) + S or Σ + S"
    assert TABLE["jetmoe"].after_sum == "Σ + b"
    assert TABLE["zaya"].n_experts == "routed experts and a class that skips them"
    assert TABLE["longcat_flash"].n_experts == "routed and identity experts"
    assert TABLE["llama4_text"].missing == ("expert_outputs",)
    assert TABLE["cohere2_moe"].read["shared_output"].startswith(f"{OFFERED}, but where it has no")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mixtral", "mixtral"),
        ("qwen3_vl_moe_text", "qwen3_vl_moe"),
        (" Mixtral ", "mixtral"),
        ("nllb_moe", "nllb-moe"),
        ("nllb-moe", "nllb-moe"),
    ],
)
def test_a_family_is_found_by_its_type_or_that_of_its_text_part(name, found):
    assert TABLE.find(name).model_type == found


def test_an_unknown_family_is_an_error_with_names_like_it():
    with pytest.raises(ValueError, match=r"'mixtrl'\. Did you mean 'mixtral'.*lists all of them"):
        TABLE.find("mixtrl")
    with pytest.raises(ValueError, match=r"called 'xyz'\. `moe-interp models` lists"):
        TABLE.find("xyz")


def test_messages_name_a_few_families_and_the_number_of_all():
    named, _, rest = known_families().partition(", … ")
    assert set(named.split(", ")) < set(SUPPORTED)
    assert rest == f"(`moe-interp models` lists all {len(SUPPORTED)})"
    assert len(known_families()) < 120
