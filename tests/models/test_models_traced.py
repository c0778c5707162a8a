"""The files that run inside a trace keep to plain code, which travels as source."""

import ast
from pathlib import Path

import pytest

import moe_interp.models

FILES = sorted(Path(moe_interp.models.__file__).parent.glob("_traced*.py"))
files = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
# What a server surely has; jaxtyping and collections.abc serve quoted annotations only.
ALLOWED = {"torch", "numpy", "math", "typing", "nnsight", "jaxtyping", "collections"}


def nodes(file, *kinds):
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)]


@files
def test_there_is_no_decorator_but_property(file):
    for node in nodes(file, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef):
        for decorator in node.decorator_list:
            assert ast.unparse(decorator) == "property" or ast.unparse(decorator).endswith(
                ".setter"
            ), f"{node.name} at line {node.lineno}"


@files
def test_nothing_calls_super_or_rebinds_outer_names(file):
    assert nodes(file, ast.Nonlocal, ast.Global) == []
    names = {node.id for node in nodes(file, ast.Name)}
    assert names.isdisjoint({"super", "NamedTuple", "namedtuple", "dataclass"})


@files
def test_imports_stand_at_the_top_and_stay_with_what_a_server_has(file):
    tree = ast.parse(file.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(top) == len(nodes(file, ast.Import, ast.ImportFrom))
    for node in top:
        names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        for name in names:
            ours = name.startswith(("moe_interp.models._traced", "moe_interp.errors"))
            assert ours or name.partition(".")[0] in ALLOWED, name


@files
def test_annotations_travel_as_text(file):
    for node in nodes(file, ast.FunctionDef):
        arguments = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]
        for annotation in [*(argument.annotation for argument in arguments), node.returns]:
            plain = annotation is None or isinstance(annotation, ast.Constant)
            builtin = isinstance(annotation, ast.Subscript | ast.Name) and all(
                name.id in ("int", "tuple", "bool", "float", "str", "dict", "list")
                for name in ast.walk(annotation)
                if isinstance(name, ast.Name)
            )
            assert plain or builtin, f"{node.name}: {ast.unparse(annotation)}"


@files
def test_no_parameter_is_read(file):
    attributes = {node.attr for node in nodes(file, ast.Attribute)}
    forbidden = {"weight", "bias", "gate_up_proj", "down_proj", "up_proj", "parameters"}
    assert attributes.isdisjoint({*forbidden, "state_dict", "_module"})


def test_the_rules_are_held_to_some_files():
    assert {"_traced.py", "_traced_choice.py", "_traced_parts.py"} <= {file.name for file in FILES}
