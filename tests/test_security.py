"""What `docs/security.md` promises of the source as a whole."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moe_interp"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "torch.load", "pandas.read_pickle", "pd.read_pickle", "os.system"}


def called(node):
    """The dotted name of what is called."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    # What a method is called on may be no name at all.
    first = node.id if isinstance(node, ast.Name) else "?"
    return ".".join([first, *reversed(parts)])


def dangers(source):
    """What in a source unpickles, or runs text as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        found += sorted(names & MODULES)
        if isinstance(node, ast.Call):
            found += [name for name in [called(node.func)] if name in CALLS]
            for word in node.keywords:
                true = isinstance(word.value, ast.Constant) and word.value.value is True
                if word.arg in ("allow_pickle", "trust_remote_code", "shell") and true:
                    found.append(word.arg)
    return found


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from dill import loads", "eval('1')", "import torch\ntorch.load(x)"),
        *("np.load(x, allow_pickle=True)", "f(trust_remote_code=True)", "run(x, shell=True)"),
    ],
)
def test_what_is_looked_for_is_found(source):
    assert dangers(source)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_and_no_text_is_run(path):
    assert dangers(path.read_text("utf-8")) == []


def test_code_of_a_checkpoint_runs_only_where_it_is_asked_for():
    """Every default of ours is False, in functions and in dataclasses."""
    defaults = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                plain = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                pairs = [
                    *zip(plain, node.args.defaults, strict=True),
                    *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
                ]
                defaults += [
                    value for name, value in pairs if name.arg == "trust_remote_code" and value
                ]
    assert len(defaults) >= 3
    assert all(isinstance(value, ast.Constant) and value.value is False for value in defaults)
