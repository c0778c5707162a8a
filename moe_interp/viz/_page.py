"""One self-contained HTML page: its security policy, its packed scripts, its packed data."""

import base64
import gzip
import html
from functools import cache
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

from moe_interp.viz._circuitsvis import circuitsvis_script, inline_script, to_js
from moe_interp.viz._theme import FACTORS, ON_DARK

# 'unsafe-inline' cannot be avoided in a page without a server, so the policy does not stop an
# injected script: inert tokens and escaped text do. It stops every way of sending data out.
SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'none'; base-uri 'none'; form-action 'none'"
)


def asset(name: str) -> str:
    """Read a packaged piece of a page.

    Args:
        name: File name within ``moe_interp/viz/assets``.

    Returns:
        Its text.
    """
    return files("moe_interp.viz").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """Read plotly.js from the installed wheel.

    Returns:
        The script; it defines ``window.Plotly``.
    """
    path = distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
    return Path(str(path)).read_text(encoding="utf-8")


def _packed(text: str) -> str:
    # mtime=0: the same content gives the same bytes.
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


@cache
def _library(name: str, source: str, *, compress: bool) -> str:
    if compress:
        return f'<script type="text/plain" data-library="{name}">{_packed(source)}</script>'
    return f'<script data-library="{name}">{inline_script(source)}</script>'


def _data(value: object, *, compress: bool) -> str:
    if compress:
        return f'<script type="text/plain" id="data">{_packed(to_js(value))}</script>'
    return f'<script type="application/json" id="data">{to_js(value)}</script>'


def page(
    *,
    title: str,
    body: str,
    style: str,
    script: str,
    data: object,
    plotly: bool = True,
    compress: bool = True,
) -> str:
    """Assemble a page that opens from a file without a network.

    The libraries are unpacked by the browser (``DecompressionStream``: Chrome 80, Firefox 113,
    Safari 16.4 or later). ``body[data-ready]`` tells when everything is drawn.

    Args:
        title: The page's title, as plain text.
        body: The body's HTML; whoever writes it has escaped the text in it.
        style: The style sheet.
        script: JavaScript that defines ``async function draw(data)``.
        data: What `draw` is given; anything finite that JSON can hold.
        plotly: Whether the page needs plotly.js beside circuitsvis.
        compress: Pack scripts and data with gzip; without, the page is 2.5 times as large and
            opens in older browsers.

    Returns:
        The whole document.

    Raises:
        ValueError: If a number in `data` is not finite.
    """
    libraries = [_library("circuitsvis", circuitsvis_script(), compress=compress)]
    if plotly:
        libraries.append(_library("plotly", plotly_script(), compress=compress))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{SECURITY_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            body,
            # circuitsvis' bundle tries WebAssembly and does without it; the policy forbids it, and
            # Firefox would report that as an error.
            "<script>delete window.WebAssembly;</script>",
            *libraries,
            _data(data, compress=compress),
            f"<script>{script}</script>",
            f"<script>{asset('loader.js')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def page_palette() -> str:
    """Give the colours of the factors as CSS variables, for light, dark and printed pages."""
    light = "".join(f"--{name}:{look['colour']};" for name, look in FACTORS.items())
    dark = "".join(f"--{name}:{ON_DARK[look['colour']]};" for name, look in FACTORS.items())
    return (
        f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{{light}}}}}"
    )
