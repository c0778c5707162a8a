"""The pages on studies: their code runs, and their table is the list of studies."""

import re

import doc_pages
import pytest

from moe_interp.studies import STUDIES, study_table

SECTIONS = ["Claim", "Method", "What we add", "How to read it", "Limits"]


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_has_a_page_with_the_same_sections(name):
    page = doc_pages.read_page(f"studies/{name}.md")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == SECTIONS
    assert STUDIES[name].arxiv in page


def test_the_table_is_the_list():
    lines = re.findall(
        r"^\| \[(.*?)\]\(.*?\) (.*) \|$", doc_pages.read_page("studies/index.md"), re.M
    )
    table = {row.pop("study"): list(row.values()) for row in study_table().to_dict("records")}
    assert {name: rest[2:].split(" | ") for name, rest in lines} == table


def test_the_code_of_the_list_runs(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/index.md", tmp_path)
    assert n_blocks == 1
    assert len(names["table"]) == len(STUDIES)


@pytest.mark.long
@pytest.mark.parametrize("name", ["siddiky2026", "safex2025", "steermoe2025"])
def test_the_code_finds_what_the_page_says_on_harm(name, tmp_path):
    names, n_blocks = doc_pages.run_page(f"studies/{name}.md", tmp_path)
    assert n_blocks == 1
    assert names["result"].study == name
    arm = {
        "siddiky2026": "activation_harmful_dominant",
        "safex2025": "stable_in_harmful_only",
        "steermoe2025": "deactivate_positive",
    }[name]
    found = names["result"].arm(arm).null
    assert found.observed < 0.5 < found.null.mean()
    assert found.p_value <= 0.05


def test_the_code_describes_experts_as_the_page_says(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/olmoe2024.md", tmp_path)
    assert n_blocks == 1
    assert (abs(names["pairs"]["second"] - names["pairs"]["first"]) == 8).all()
    assert names["saturation"]["saturation"].max() < 0.5
