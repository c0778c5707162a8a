import sys

import pytest

from moe_interp.cli import main


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command line in this process; gives exit code, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moe-interp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        code = exit_.value.code
        return (0 if code is None else code), captured.out, captured.err

    return run
