"""The releases of nnsight and transformers that exact access was tested with."""

from importlib.metadata import version

from moe_interp.errors import UnsupportedVersionError

# Package -> first release tested, first release not tested. Access names operations inside the
# routers' source, so a release is added here only after the tests passed on it.
TESTED = {"nnsight": ("0.8.1", "0.9"), "transformers": ("5.23", "5.24")}


def check_versions(installed: dict[str, str] | None = None) -> None:
    """Refuse releases of nnsight and transformers that were not tested.

    Args:
        installed: Versions by package name; those of this environment if not given.

    Raises:
        UnsupportedVersionError: If one lies outside its tested range.

    Example:
        >>> check_versions({"nnsight": "0.8.1", "transformers": "5.23.0"})
    """
    for package, (first, end) in TESTED.items():
        found = version(package) if installed is None else installed[package]
        if not _numbers(first) <= _numbers(found) < _numbers(end):
            raise UnsupportedVersionError(
                f"{package} {found} is installed, but access to routers was tested with "
                f">={first},<{end}. Install it with: pip install '{package}>={first},<{end}'."
            )


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, enough of them to compare releases."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple((*numbers, 0, 0, 0)[:3])
