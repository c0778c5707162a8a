"""Write the pages of the reference: one a package, with every public name in it."""

import inspect
from importlib import import_module
from pathlib import Path

import moe_interp

# Package -> what its page is called, in the order in which data flows.
PACKAGES = {
    "models": "Access: models",
    "prompts": "Prompts",
    "capture": "Record: capture",
    "interventions": "Intervene: interventions",
    "metrics": "What a run is judged by: metrics",
    "experts": "Names of experts: experts",
    "scores": "Score and select: scores",
    "stats": "Test: stats",
    "tuning": "Tune: tuning",
    "viz": "Show: viz",
    "audit": "The main job: audit",
    "studies": "Studies",
    "organism": "Model organisms: organism",
    "remote": "Servers: remote",
    "errors": "Errors",
}


def names_of(package: str) -> list[str]:
    """The public names of a package: its ``__all__``, or what a single file defines itself."""
    module = import_module(f"moe_interp.{package}")
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=lambda name: (not name[0].isupper(), name.lower()))
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return own if package == "errors" else sorted(own)


def short_path(package: str, name: str) -> str:
    """How users call a name: from the package's top if it is there."""
    table = moe_interp._PUBLIC
    return f"moe_interp.{name}" if table.get(name) == package else f"moe_interp.{package}.{name}"


def write(folder: Path) -> None:
    """Write a page a package and their index; files that would not change are left alone."""
    folder.mkdir(exist_ok=True)
    for package, title in PACKAGES.items():
        _write(folder / f"{package}.rst", _page(package, title))
    pages = "\n".join(f"   {package}" for package in PACKAGES)
    intro = (
        "Every public name, from its docstring. ``mi`` is ``import moe_interp as mi``. The "
        "examples are run by the tests. What is not on these pages is private and may change."
    )
    toctree = f".. toctree::\n   :maxdepth: 1\n\n{pages}\n"
    _write(folder / "index.rst", f"Reference\n=========\n\n{intro}\n\n{toctree}")


def _page(package: str, title: str) -> str:
    module = import_module(f"moe_interp.{package}")
    parts = [title, "=" * len(title), "", (inspect.getdoc(module) or "").split("\n")[0], ""]
    for name in names_of(package):
        path, value = short_path(package, name), getattr(module, name)
        kind = "class" if inspect.isclass(value) else "function"
        if not inspect.isclass(value) and not inspect.isroutine(value):
            parts += [f".. py:data:: {path}", "", f"   {_told(value)}", ""]
            continue
        if inspect.isclass(value) and issubclass(value, BaseException):
            kind = "exception"
        extra = ["   :no-members:"] if kind == "exception" else []
        parts += [f".. auto{kind}:: {path}", *extra, ""]
    return "\n".join(parts)


def _told(value: object) -> str:
    """What a constant holds: the keys or entries of a table, or the value."""
    if isinstance(value, dict | tuple | list | frozenset):
        return "One of " + ", ".join(f"``{entry}``" for entry in value) + "."
    return f"``{value}``"


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
