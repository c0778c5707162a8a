"""The page on interventions: its code runs, and its table has them all."""

import re
from abc import ABC

import doc_pages
import pytest
import torch

import moe_interp as mi
from moe_interp import interventions

PAGE = "interventions.md"


def test_the_code_runs(tmp_path):
    names, n_blocks = doc_pages.run_page(PAGE, tmp_path)
    assert n_blocks == 7
    plain = mi.run(names["model"], names["prompts"]).logits
    assert torch.equal(names["same"].logits, plain)
    for changed in ("averaged", "flipped", "result"):
        assert not torch.equal(names[changed].logits, plain)
    chosen = names["chosen"]
    assert not bool(((chosen == 8) | (chosen == 9)).any())
    assert names["null"].p_value < 0.1
    assert names["null"].specificity.p_value < 0.1
    assert abs(names["coalition"].effect[0]) > 0.01
    assert names["free"].intervened != pytest.approx(names["frozen"].intervened, abs=1e-6)


def test_the_table_has_every_intervention():
    kinds = [getattr(interventions, name) for name in interventions.__all__]
    known = {
        kind.__name__
        for kind in kinds
        if isinstance(kind, type)
        and issubclass(kind, mi.Intervention)
        and "edits" in vars(kind)
        and kind is not mi.Intervention
    }
    named = set(re.findall(r"^\| `(\w+)[`(]", doc_pages.read_page(PAGE), re.MULTILINE))
    assert named == known
    assert issubclass(mi.Intervention, ABC)
