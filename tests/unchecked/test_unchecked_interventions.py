import re

import pytest
import torch

from moe_interp.interventions import AddVector, Mean, PatchOutput, Transplant
from moe_interp.interventions._intervention import as_recipe


def test_something_that_is_no_intervention_is_refused_by_kind():
    with pytest.raises(TypeError, match=r"Intervention values such as Ban\('L3E8'\), got 'L3E8'"):
        as_recipe(["L3E8"])


def test_sources_of_another_kind_are_refused_with_what_makes_them():
    said = "`reference` of Mean must be what mean_outputs returns, or a mapping of experts"
    with pytest.raises(TypeError, match=said):
        Mean("L1E0", [1.0])
    said = "`source` must be what routing_of or record_routing returns, got 'x'"
    with pytest.raises(TypeError, match=said):
        Transplant("x")
    with pytest.raises(TypeError, match="`source` must be what outputs_of returns, got None"):
        PatchOutput("L1E0", None)


def test_a_vector_of_two_axes_is_refused_by_its_shape():
    said = re.escape("`vector` must have one axis (d_model), got (2, 16).")
    with pytest.raises(ValueError, match=said):
        AddVector(1, torch.zeros(2, 16))
