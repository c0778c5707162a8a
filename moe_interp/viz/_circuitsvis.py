r"""circuitsvis, made safe: inert tokens, one copy of its script, no network, honest colours.

circuitsvis inserts tokens as raw HTML, so `<bos>` vanishes and a token that holds a tag with an
event handler runs script; its Python side asks the network on every display, loads its script
from a content-delivery network or repeats 1.3 MB of it per figure, and paints a prompt white on
white when every value is zero. This module keeps its React component (and its script, read from
the installed wheel at run time) and replaces everything around it.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from moe_interp.viz._theme import NEGATIVE, POSITIVE

_WORD_JOINER = "\u2060"
_SCRIPT = "circuitsvis/dist/cdn/iife.js"
_OPENING = '"use strict";var CircuitsVis='
KNOWN_SHA256 = {"1ea7bcd5dcd28ffdb23f4dea9c60db3606dac627fddce1a3b5141b7dfb490763": "1.43.3"}
# Below this bound the component's colour arithmetic turns into 0/0 and the text into white.
SMALLEST_BOUND = 1e-6


def safe_token(token: str) -> str:
    r"""Make a token's text inert where it is inserted as HTML, and readable where it is not.

    An invisible word joiner behind each ``<`` and ``&`` keeps the browser from reading a tag or
    an entity. Escaping as ``&lt;`` would do so too, but shows as such in the tooltip, which is
    plain text.

    Args:
        token: Any text, also hostile.

    Returns:
        The text with word joiners (U+2060) added.

    Example:
        >>> safe_token("<bos>").encode("unicode_escape")
        b'<\\u2060bos>'
    """
    return token.replace("&", "&" + _WORD_JOINER).replace("<", "<" + _WORD_JOINER)


def to_js(value: object) -> str:
    r"""Write a value as JSON that may stand inside a ``<script>`` element.

    Args:
        value: Anything JSON can hold; NaN and infinities are refused.

    Returns:
        JSON without ``<``, U+2028 or U+2029, any of which could end the script.

    Raises:
        ValueError: If a number is not finite.

    Example:
        >>> to_js({"token": "</script>"})
        '{"token": "\\u003c/script>"}'
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def inline_script(source: str) -> str:
    """Escape JavaScript so that it may stand inside a ``<script>`` element.

    Args:
        source: A script; the two escapes are only right inside its string literals, where the
            packed libraries keep these words.

    Returns:
        The script without a closing tag or a comment opening in it.
    """
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def circuitsvis_script() -> str:
    """Read circuitsvis' bundle from the installed wheel; nothing is vendored or downloaded.

    Returns:
        The script; it defines ``window.CircuitsVis``.

    Raises:
        RuntimeError: If the installed circuitsvis has no such bundle.
    """
    try:
        path = Path(str(distribution("circuitsvis").locate_file(_SCRIPT)))
        source = path.read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError) as error:
        raise RuntimeError(
            f"circuitsvis' script {_SCRIPT!r} cannot be read ({error}). "
            "Token views need it: pip install 'circuitsvis>=1.43.3,<2'."
        ) from error
    if not source.startswith(_OPENING):
        raise RuntimeError(
            f"circuitsvis' script starts with {source[:30]!r}, expected {_OPENING!r}. "
            "Token views know the bundle of circuitsvis 1.43.3: install that version."
        )
    return source.split("\n//# sourceMappingURL")[0] + ";window.CircuitsVis=CircuitsVis;"


def script_version() -> str | None:
    """Name the circuitsvis release whose bundle is installed, or None if it was never checked."""
    path = Path(str(distribution("circuitsvis").locate_file(_SCRIPT)))
    return KNOWN_SHA256.get(hashlib.sha256(path.read_bytes()).hexdigest())


def symmetric_bound(values: Sequence[float], bound: float | None = None) -> float:
    """Choose the value that is painted fully: the same distance from zero on both sides.

    circuitsvis scales negative and positive values apart, so that −0.01 may be as red as +5 is
    blue, unless it is given symmetric bounds.

    Args:
        values: What is shown; NaN where there is no value.
        bound: The bound to use instead of the largest magnitude among the values.

    Returns:
        A positive number, also when every value is zero.

    Raises:
        ValueError: If a value is infinite, or `bound` is not a positive number.

    Example:
        >>> symmetric_bound([-0.5, 0.25])
        0.5
    """
    for position, value in enumerate(values):
        if math.isinf(value):
            raise ValueError(
                f"Token values must be finite, got {value!r} at token {position}. "
                "Give NaN to tokens that have no value; they are shown as such."
            )
    if bound is not None:
        if not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"`bound` must be a positive number, got {bound!r}.")
        return max(float(bound), SMALLEST_BOUND)
    known = (abs(value) for value in values if not math.isnan(value))
    return max(max(known, default=0.0), SMALLEST_BOUND)


def coloured_tokens(
    tokens: Sequence[str], values: Sequence[float], *, bound: float | None = None
) -> dict[str, Any]:
    """Build the properties of circuitsvis' ``ColoredTokens`` for one prompt.

    Args:
        tokens: The tokens' texts, in order.
        values: One number for each token; NaN is painted white, as zero is.
        bound: The value painted fully; by default the largest magnitude among the values.

    Returns:
        The component's properties, ready for ``to_js``.

    Raises:
        ValueError: If the lengths differ or a value is infinite.
    """
    if len(tokens) != len(values):
        raise ValueError(
            f"`tokens` and `values` must have one entry for each token, "
            f"got {len(tokens)} tokens and {len(values)} values."
        )
    numbers = [float(value) for value in values]
    limit = symmetric_bound(numbers, bound)
    return {
        "tokens": [safe_token(token) for token in tokens],
        # The component knows no missing value: whoever draws it marks those tokens.
        "values": [0.0 if math.isnan(number) else number for number in numbers],
        "minValue": -limit,
        "maxValue": limit,
        "positiveColor": POSITIVE,
        "negativeColor": NEGATIVE,
    }
