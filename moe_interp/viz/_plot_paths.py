"""Where tokens go from layer to layer: the widest ways between experts."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from plotly.subplots import make_subplots

from moe_interp.viz._figure import Figure
from moe_interp.viz._sample import tokens_inside
from moe_interp.viz._tables import Recorded
from moe_interp.viz._theme import FACTORS, INK, plain_axis, plain_figure

# A way's width says how large its share of tokens is, in this many steps.
_STEPS = 6
_WIDEST = 9.0


def plot_paths(
    record: Recorded,
    *,
    span: str | None = None,
    layers: Sequence[int] | None = None,
    n_ways: int = 10,
    by_harm: bool = False,
) -> Figure:
    """Plot the ways that most tokens take from each layer's first choice to the next layer's.

    Each token has one first choice in every layer, the expert with its largest routing weight.
    A line from expert to expert is as wide as the share of tokens that go this way; only the
    `n_ways` widest between two layers are drawn, for all of them are too many to see.

    Args:
        record: A routing record.
        span: The token set; by default all tokens.
        layers: Decoder layers to show; by default all recorded ones.
        n_ways: How many ways between two layers to draw.
        by_harm: Draw harmless and harmful prompts in a panel each.

    Returns:
        The figure.

    Raises:
        ValueError: If a layer or the span was not recorded, fewer than two layers are asked for,
            or no token is left.
    """
    dataset = record.dataset
    known = [int(layer) for layer in dataset["layer"].values]
    wanted = list(layers) if layers is not None else known
    if len(wanted) < 2 or any(layer not in known for layer in wanted):
        raise ValueError(
            f"`layers` must be two or more of {', '.join(map(str, known))}, got {wanted!r}."
        )
    inside = tokens_inside(record, span)
    groups = _by_harm(record, inside) if by_harm else {"all tokens": inside}
    for name, chosen in groups.items():
        if not chosen.any():
            raise ValueError(f"There is no token of {name} to draw. Choose another `span`.")
    rows = [known.index(layer) for layer in wanted]
    first = dataset["expert_index"].transpose("token", "layer", "top_k").values[:, rows, 0]
    figure = make_subplots(
        rows=len(groups),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.1,
        subplot_titles=list(groups) if by_harm else None,
        figure=plain_figure(height=110 + 300 * len(groups), margin={"t": 30}),
    )
    widest = max(
        max(share for *_, share in ways(first[chosen], pair, 1))
        for chosen in groups.values()
        for pair in range(len(wanted) - 1)
    )
    colours = [FACTORS["topic"]["colour"], FACTORS["harm"]["colour"]]
    for panel, chosen in enumerate(groups.values(), start=1):
        _draw(figure, first[chosen], panel, n_ways, widest, colours[panel - 1])
        inside = [-0.5, record.n_experts - 0.5]
        figure.update_yaxes(plain_axis("expert", range=inside), row=panel, col=1)
        last = panel == len(groups)
        figure.update_xaxes(
            plain_axis(
                "layer" if last else "",
                tickvals=list(range(len(wanted))),
                ticktext=[str(layer) for layer in wanted],
                range=[-0.3, len(wanted) - 0.7],
                showticklabels=last,
            ),
            row=panel,
            col=1,
        )
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    return figure


def ways(first: Int[ndarray, "token layer"], pair: int, n: int) -> list[tuple[int, int, float]]:
    """Count the ways between the first choices of two layers that follow one another.

    Args:
        first: Each token's first choice in each layer.
        pair: Row of the first of the two layers.
        n: How many ways to give.

    Returns:
        From, to, and the share of tokens, the largest first; ties in order of the experts.
    """
    found, counts = np.unique(
        first[:, pair : pair + 2].astype(np.int64), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:n]
    return [(int(found[i, 0]), int(found[i, 1]), float(counts[i] / len(first))) for i in order]


def _by_harm(
    record: Recorded, inside: Bool[ndarray, " token"]
) -> dict[str, Bool[ndarray, " token"]]:
    dataset = record.dataset
    owner = dataset["prompt_index"].values
    # A missing label is neither 0 nor 1: None or NaN.
    labels = dataset["harm"].values
    return {
        name: inside & np.array([bool(label == harm) for label in labels])[owner]
        for name, harm in (("harmless prompts", False), ("harmful prompts", True))
    }


def _draw(
    figure: Figure,
    first: Int[ndarray, "token layer"],
    panel: int,
    n_ways: int,
    widest: float,
    colour: str,
) -> None:
    steps: dict[int, tuple[list[float | None], list[float | None]]] = {}
    middles: tuple[list[float], list[float], list[str]] = ([], [], [])
    for pair in range(first.shape[1] - 1):
        for start, end, share in ways(first, pair, n_ways):
            step = max(1, round(_STEPS * share / widest))
            x, y = steps.setdefault(step, ([], []))
            x += [pair, pair + 1, None]
            y += [start, end, None]
            middles[0].append(pair + 0.5)
            middles[1].append((start + end) / 2)
            middles[2].append(f"E{start} → E{end}: {share:.1%} of tokens")
    for step, (x, y) in sorted(steps.items()):
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"width": _WIDEST * step / _STEPS, "color": colour},
            opacity=0.25 + 0.55 * step / _STEPS,
            hoverinfo="skip",
            row=panel,
            col=1,
        )
    ends = sorted(
        {end for x, y in steps.values() for end in zip(x, y, strict=True) if end[0] is not None}
    )
    figure.add_scatter(
        x=[x for x, _ in ends],
        y=[y for _, y in ends],
        mode="markers",
        marker={"size": 6, "color": INK},
        hovertemplate="layer at %{x}: expert %{y}<extra></extra>",
        row=panel,
        col=1,
    )
    figure.add_scatter(
        x=middles[0],
        y=middles[1],
        mode="markers",
        marker={"size": 12, "color": colour, "opacity": 0},
        text=middles[2],
        hovertemplate="%{text}<extra></extra>",
        row=panel,
        col=1,
    )
