"""How the documentation is built: offline, with warnings as errors (`make docs`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import api_pages

import moe_interp

project = "moe_interp"
author = "The moe_interp contributors"
copyright = "the moe_interp contributors, Apache-2.0"
release = version = moe_interp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
]
exclude_patterns = ["_build", "extensions"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks come executed from tutorials/build.py.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
# Figures of notebooks have a picture beside the form that only a running notebook can draw.
suppress_warnings = ["mystnb.unknown_mime_type", "toc.empty_glob"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
# A single backtick in a docstring is code.
default_role = "code"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Formulas are drawn by the browser from what the page holds: no script is fetched.
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "moe_interp"
html_static_path = ["_static"]
html_css_files = ["moe_interp.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb2ea", "color-brand-content": "#7fb2ea"},
}


def setup(app: object) -> None:
    """Write the reference before Sphinx looks for pages."""
    api_pages.write(Path(__file__).parent / "reference")
