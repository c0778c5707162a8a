import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium")
    if found is None and os.environ.get("CI"):
        pytest.fail("CI is set and there is no chromium: apt-get install chromium")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium")
    return found
