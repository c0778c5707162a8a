import subprocess
import sys

import pytest

import moe_interp as mi


@pytest.mark.parametrize("name", [name for name in mi.__all__ if name != "__version__"])
def test_every_listed_name_loads_and_has_a_docstring(name):
    value = getattr(mi, name)
    assert value.__doc__
    assert value.__name__ == name


def test_an_unknown_name_is_an_attribute_error_as_in_any_module():
    with pytest.raises(AttributeError, match=r"module 'moe_interp' has no attribute 'abblate'"):
        mi.abblate  # noqa: B018


def test_the_list_is_what_dir_shows():
    assert dir(mi) == sorted(mi.__all__)


def test_importing_the_package_loads_no_model_library():
    code = (
        "import sys, moe_interp; "
        "print([name for name in ('torch', 'transformers', 'nnsight', 'xarray', 'plotly') "
        "if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_statistics_load_without_torch():
    code = "import sys, moe_interp.stats; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
