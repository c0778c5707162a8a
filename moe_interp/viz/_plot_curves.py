"""What a change of more or less does, and whether probabilities mean what they say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_interp.viz._figure import Figure
from moe_interp.viz._tables import Rows, rows_of
from moe_interp.viz._theme import INK, RANDOM_ROUTER, plain_axis, plain_figure

# Okabe and Ito's hues, each with its own marker.
_SERIES = (
    ("#2b7bba", "circle"),
    ("#d55e00", "diamond"),
    ("#009e73", "square"),
    ("#c2187a", "triangle-up"),
)
# Normal quantile of a two-sided interval of 95 %.
_Z = 1.959964


def plot_dose(
    doses: Rows | Mapping[float, Any],
    *,
    dose: str = "dose",
    value: str = "effect",
    series: str | None = None,
) -> Figure:
    """Plot how a metric follows the size of a change, with intervals and matched nulls.

    A cause that is one answers to its dose. A curve that is no steeper than the grey band of
    random experts of like use says that any change so large would have done the same.

    Args:
        doses: Effects of `measure_effect` by dose (a mapping from number to effect), an ablation
            curve, or a table with the columns `dose` and `value`, where known ``low``, ``high``,
            ``null_low`` and ``null_high``.
        dose: Column of the size of the change.
        value: Column of what is measured.
        series: Column that tells several curves apart.

    Returns:
        The figure.

    Raises:
        ValueError: If columns are missing, or there are more than four curves.

    Example:
        >>> figure = plot_dose([{"dose": d, "effect": d * d} for d in (0, 0.5, 1)])
        >>> figure.data[0].y
        (0, 0.25, 1)
    """
    title = dose
    if isinstance(doses, Mapping) and all(hasattr(one, "mean") for one in doses.values()):
        doses, value, title = _of_effects(doses)
    elif hasattr(doses, "order") and hasattr(doses, "shown"):
        metric = str(getattr(doses, "metric", "the behaviour")).replace("_", " ")
        doses = doses.to_frame().rename(
            columns={"n": "experts taken out", "shown": f"prompts that show {metric}"}
        )
        dose, value = "experts taken out", f"prompts that show {metric}"
        title = dose
    rows = rows_of(doses, "doses", (dose, value))
    names = list(dict.fromkeys(str(row[series]) for row in rows)) if series else [""]
    if len(names) > len(_SERIES):
        raise ValueError(
            f"`series` has {len(names)} values; {len(_SERIES)} curves can be told apart. "
            "Plot fewer of them."
        )
    figure = plain_figure(height=400, margin={"t": 44})
    for name, (colour, symbol) in zip(names, _SERIES, strict=False):
        chosen = [row for row in rows if not series or str(row[series]) == name]
        chosen = sorted((row for row in chosen if row[value] is not None), key=lambda r: r[dose])
        _band(figure, chosen, dose, legend=name == names[0])
        arms = [_arms(row, value) for row in chosen]
        figure.add_scatter(
            x=[row[dose] for row in chosen],
            y=[row[value] for row in chosen],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_y={
                "array": [up for up, _ in arms],
                "arrayminus": [down for _, down in arms],
                "color": colour,
                "thickness": 1.6,
                "width": 0,
            },
            name=name or value,
            hovertemplate="%{x:.4g}: %{y:.4g}<extra></extra>",
        )
    figure.update_xaxes(plain_axis(title))
    figure.update_yaxes(plain_axis(value))
    return _legend(figure)


def plot_calibration(calibrations: Any) -> Figure:  # noqa: ANN401
    """Plot probabilities of harm against how often prompts were harmful: the diagonal is honest.

    Points lie where the prompts of a bin of probability are: their mean probability, and the
    share of them that were harmful, with its 95 % Wilson interval over prompts.

    Args:
        calibrations: A calibration, a mapping from names to calibrations, or a table with the
            columns predicted, harmful and n_prompts.

    Returns:
        The figure.

    Raises:
        ValueError: If columns are missing, or there are more than four calibrations.

    Example:
        >>> rows = [{"predicted": p, "harmful": p, "n_prompts": 20} for p in (0.1, 0.9)]
        >>> plot_calibration(rows).data[1].y
        (0.1, 0.9)
    """
    several = calibrations if isinstance(calibrations, Mapping) else {"": calibrations}
    if len(several) > len(_SERIES):
        raise ValueError(
            f"There are {len(several)} calibrations; {len(_SERIES)} can be told apart. "
            "Plot fewer of them."
        )
    figure = plain_figure(height=440, margin={"t": 44})
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"dash": "dot", "color": INK, "width": 1.4},
        name="as often as said",
        hoverinfo="skip",
    )
    for (name, found), (colour, symbol) in zip(several.items(), _SERIES, strict=False):
        rows = rows_of(found, "reliability", ("predicted", "harmful", "n_prompts"))
        ends = [_wilson(float(row["harmful"]), float(row["n_prompts"])) for row in rows]
        brier = getattr(found, "brier", None)
        label = name or str(getattr(found, "method", "predictions"))
        figure.add_scatter(
            x=[row["predicted"] for row in rows],
            y=[row["harmful"] for row in rows],
            mode="lines+markers",
            line={"color": colour, "width": 1.5},
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_y={
                "array": [high - row["harmful"] for row, (_, high) in zip(rows, ends, strict=True)],
                "arrayminus": [
                    row["harmful"] - low for row, (low, _) in zip(rows, ends, strict=True)
                ],
                "color": colour,
                "thickness": 1.6,
                "width": 0,
            },
            customdata=[row["n_prompts"] for row in rows],
            name=label + (f" (Brier score {brier:.3f})" if brier is not None else ""),
            hovertemplate="said %{x:.1%}, were %{y:.1%} of %{customdata:.3g} prompts"
            "<extra></extra>",
        )
    figure.update_xaxes(plain_axis("predicted probability of harm", range=[-0.02, 1.02]))
    figure.update_yaxes(plain_axis("share of prompts that were harmful", range=[-0.02, 1.02]))
    return _legend(figure)


def _of_effects(effects: Mapping[float, Any]) -> tuple[list[dict[str, Any]], str, str]:
    rows, value = [], "effect"
    for dose, effect in effects.items():
        mean, low, high = effect.mean()
        value = f"change of {effect.metric.replace('_', ' ')} ({effect.unit})"
        rows.append({"dose": float(dose), value: mean, "low": low, "high": high})
    return rows, value, "dose"


def _arms(row: Mapping[str, Any], value: str) -> tuple[float, float]:
    low, high = row.get("low"), row.get("high")
    if low is None or high is None:
        return 0.0, 0.0
    return high - row[value], row[value] - low


def _band(figure: Figure, rows: Sequence[Mapping[str, Any]], dose: str, *, legend: bool) -> None:
    known = [row for row in rows if None not in (row.get("null_low"), row.get("null_high"))]
    if not known:
        return
    figure.add_scatter(
        x=[row[dose] for row in known] + [row[dose] for row in reversed(known)],
        y=[row["null_low"] for row in known] + [row["null_high"] for row in reversed(known)],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=RANDOM_ROUTER,
        name="random experts of like use, 95%",
        legendgroup="null",
        showlegend=legend,
        hoverinfo="skip",
    )


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's (1927) interval; it stays within 0 and 1."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    # Rounding must not turn an arm of length zero into a negative one.
    return min(max(middle - reach, 0.0), share), max(min(middle + reach, 1.0), share)


def _legend(figure: Figure) -> Figure:
    return figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
