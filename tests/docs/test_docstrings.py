"""Every public name has a docstring, and every example in one is run as a doctest."""

import doctest
import importlib.util
import inspect

import doc_pages
import pytest


def _reference():
    place = doc_pages.DOCS / "extensions" / "api_pages.py"
    spec = importlib.util.spec_from_file_location("api_pages", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = _reference()
NAMES = [(package, name) for package in REFERENCE.PACKAGES for name in REFERENCE.names_of(package)]


def public_parts(value):
    """A function, or a class with its own public methods and properties."""
    yield value.__name__, value
    if inspect.isclass(value):
        for name, member in vars(value).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{value.__name__}.{name}", function


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_and_its_methods_have_docstrings(package, name):
    value = getattr(importlib.import_module(f"moe_interp.{package}"), name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return  # A constant: the reference lists what it holds.
    for path, part in public_parts(value):
        told = inspect.getdoc(part)
        assert told, f"{path} has no docstring"
        assert told.splitlines()[0].rstrip()[-1] in ".:?", f"{path}: {told.splitlines()[0]!r}"


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_an_example_is_one_that_doctest_finds(package, name):
    value = getattr(importlib.import_module(f"moe_interp.{package}"), name)
    told = getattr(value, "__doc__", None) or ""
    if "Example:" in told:
        assert doctest.DocTestParser().get_examples(told), f"{name} has an example nobody runs"


def test_the_reference_has_every_name_at_the_top_of_the_package():
    import moe_interp

    written = {REFERENCE.short_path(package, name) for package, name in NAMES}
    assert {f"moe_interp.{name}" for name in moe_interp._PUBLIC} <= written
