"""Effects beside their evidence, and counts beside causes: one point for every expert."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moe_interp.experts import Expert, as_expert
from moe_interp.viz._figure import Figure
from moe_interp.viz._tables import Rows, rows_of
from moe_interp.viz._theme import INK, NEGATIVE, NULL, OBSERVED, POSITIVE, plain_axis, plain_figure

_SMALLEST_Q = 1e-12
_WORDS = {
    "effect": "use by harmful minus harmless prompts",
    "selection_frequency": "fraction of tokens that choose the expert",
    "ablation_effect": "change of the metric when the expert is taken out",
    "attribution": "gradient attribution to the metric",
    "q": "q-value",
    "p_adjusted": "adjusted p-value",
}


def plot_volcano(
    experts: Rows,
    *,
    effect: str = "effect",
    evidence: str = "q",
    alpha: float = 0.05,
    n_labels: int = 6,
) -> Figure:
    """Plot every expert's effect against how sure it is: far from zero and high up counts.

    The height is −log₁₀ of the q-value (Benjamini and Hochberg). Points above the dotted line lie
    below `alpha`; blue ones rise with harm, red ones fall, grey ones are not told from chance.

    Args:
        experts: An audit's results, expert tests, or a table with the columns layer, expert,
            `effect` and `evidence`.
        effect: Column with the effect.
        evidence: Column with q-values or adjusted p-values.
        alpha: Level of the dotted line.
        n_labels: How many of the surest experts to name.

    Returns:
        The figure.

    Raises:
        ValueError: If rows or columns are missing, or no expert has both numbers.

    Example:
        >>> rows = [{"layer": 3, "expert": e, "effect": e / 9, "q": 0.5**e} for e in range(9)]
        >>> plot_volcano(rows).data[0].name
        'q-value below 0.05'
    """
    rows = rows_of(experts, "experts", ("layer", "expert", effect, evidence))
    rows = [row for row in rows if None not in (row[effect], row[evidence])]
    if not rows:
        raise ValueError(
            f"No expert has both {effect!r} and {evidence!r}, so there is nothing to draw. "
            "Measure both first."
        )
    words = _WORDS.get(evidence, evidence)
    figure = plain_figure(height=440, showlegend=True, margin={"t": 44})
    sure = [row for row in rows if row[evidence] < alpha]
    unsure = [row for row in rows if not row[evidence] < alpha]
    for name, chosen, look in (
        (f"{words} below {alpha:g}", sure, {"symbol": "diamond", "size": 9}),
        ("not told from chance", unsure, {"symbol": "circle", "size": 6, "color": NULL}),
    ):
        if chosen is sure:
            look = look | {"color": [POSITIVE if r[effect] >= 0 else NEGATIVE for r in chosen]}
        figure.add_scatter(
            x=[row[effect] for row in chosen],
            y=[_height(row[evidence]) for row in chosen],
            mode="markers",
            marker=look,
            name=name,
            customdata=[str(Expert(row["layer"], row["expert"])) for row in chosen],
            hovertemplate=f"%{{customdata}}<br>effect %{{x:.3g}}<br>−log₁₀ {words} "
            "%{y:.3g}<extra></extra>",
        )
    figure.add_hline(y=_height(alpha), line={"dash": "dot", "color": INK, "width": 1.2})
    surest = sorted(sure, key=lambda row: (row[evidence], -abs(row[effect])))[:n_labels]
    _name(figure, [(row, row[effect], _height(row[evidence])) for row in surest])
    reach = 1.2 * max(max(abs(row[effect]) for row in rows), 1e-9)
    top = max(_height(min(alpha, *(row[evidence] for row in rows))), 0.1)
    figure.update_xaxes(plain_axis(_WORDS.get(effect, effect), range=[-reach, reach]))
    figure.update_yaxes(plain_axis(f"−log₁₀ {words}", range=[-0.06 * top, 1.12 * top]))
    return _legend(figure)


def plot_compare(
    scores: Rows,
    *,
    x: str | None = None,
    y: str | None = None,
    named: Iterable[Expert | tuple[int, int] | str] = (),
) -> Figure:
    """Plot two scores of every expert against each other: how much it is used, what it causes.

    Experts that are used much and cause nothing lie along one axis, those that matter although
    they are hardly used along the other: counting is no substitute for taking out.

    Args:
        scores: What `compare` returns, an audit's results, or a table with the columns layer,
            expert and two scores.
        x: Column from left to right; by default the first score.
        y: Column upwards; by default the second score.
        named: Experts to name and to mark with a diamond.

    Returns:
        The figure; a comparison's rank correlation stands in it.

    Raises:
        ValueError: If columns are missing or fewer than two experts have both scores.

    Example:
        >>> rows = [{"layer": 3, "expert": e, "use": e, "cause": e * e} for e in range(4)]
        >>> figure = plot_compare(rows, named=["L3E3"])
        >>> figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
        ('use', 'cause')
    """
    if isinstance(scores, Mapping):
        x, y = x or "selection_frequency", y or "ablation_effect"
    every = rows_of(scores, "experts", ("layer", "expert"))
    columns = [name for name in every[0] if name not in ("layer", "expert")]
    x = x or next(iter(columns), "x")
    y = y or next((name for name in columns if name != x), "y")
    rows = rows_of(scores, "experts", ("layer", "expert", x, y))
    rows = [row for row in rows if None not in (row[x], row[y])]
    if len(rows) < 2:
        raise ValueError(
            f"{len(rows)} experts have both {x!r} and {y!r}; at least 2 are needed. "
            "Measure both scores of the same experts."
        )
    wanted = {(one.layer, one.expert) for one in map(as_expert, named)}
    groups = {
        "named experts": [row for row in rows if (row["layer"], row["expert"]) in wanted],
        "experts": [row for row in rows if (row["layer"], row["expert"]) not in wanted],
    }
    looks = {
        "named experts": {"symbol": "diamond", "size": 11, "color": OBSERVED},
        "experts": {"symbol": "circle", "size": 7, "color": POSITIVE, "opacity": 0.65},
    }
    figure = plain_figure(height=440, showlegend=bool(wanted), margin={"t": 44})
    for name, chosen in groups.items():
        if chosen:
            figure.add_scatter(
                x=[row[x] for row in chosen],
                y=[row[y] for row in chosen],
                mode="markers",
                marker=looks[name],
                name=name,
                customdata=[str(Expert(row["layer"], row["expert"])) for row in chosen],
                hovertemplate="%{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
            )
    _name(figure, [(row, row[x], row[y]) for row in groups["named experts"]])
    said = _correlation(scores, x, y)
    figure.update_xaxes(plain_axis(_WORDS.get(x, x)))
    figure.update_yaxes(plain_axis(_WORDS.get(y, y)))
    if said:
        figure.add_annotation(
            text=said,
            xref="paper",
            yref="paper",
            x=0,
            y=1,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
        figure.update_layout(margin={"t": 64})
    return _legend(figure, 1.07 if said else 1.02)


def _correlation(scores: Any, x: str, y: str) -> str:  # noqa: ANN401
    names = [score.name for score in getattr(scores, "scores", ())]
    if x not in names or y not in names:
        return ""
    i, j = names.index(x), names.index(y)
    said = f"Spearman's rank correlation {scores.correlation[i, j]:.2f}".replace("-", "−")
    if np.isfinite(scores.low[i, j]):
        ends = f"{scores.low[i, j]:.2f} to {scores.high[i, j]:.2f}".replace("-", "−")
        said += f" ({scores.confidence:.0%} interval {ends})"
    return said


def _name(figure: Figure, points: Iterable[tuple[dict[str, Any], Any, Any]]) -> None:
    for turn, (row, x, y) in enumerate(points):
        # Neighbours are named on either side, so that their names stay apart.
        left = turn % 2 == 1
        figure.add_annotation(
            x=x,
            y=y,
            xref="x",
            yref="y",
            text=str(Expert(row["layer"], row["expert"])),
            showarrow=False,
            xanchor="right" if left else "left",
            yanchor="bottom",
            xshift=-4 if left else 4,
        )


def _legend(figure: Figure, y: float = 1.02) -> Figure:
    return figure.update_layout(legend={"orientation": "h", "x": 0, "y": y, "yanchor": "bottom"})


def _height(q: float) -> float:
    return abs(math.log10(max(q, _SMALLEST_Q)))
