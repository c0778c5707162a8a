import pytest

from moe_interp.interventions._run import as_recipe


def test_something_that_is_no_intervention_is_refused_by_kind():
    with pytest.raises(TypeError, match=r"Intervention values such as Ban\('L3E8'\), got 'L3E8'"):
        as_recipe(["L3E8"])
