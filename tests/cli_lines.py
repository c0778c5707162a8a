"""How a command says that it cannot go on."""


def says_one_line(found, text):
    """Exit code 2, nothing on standard output, and one line with the text on the other."""
    code, out, err = found
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("moe-interp: ")
    assert text in err
