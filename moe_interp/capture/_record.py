"""RoutingRecord: which experts every token went to, with all that is needed to study it."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from moe_interp.capture._store import open_dataset, save_dataset
from moe_interp.capture._windows import count_slots, sum_by_prompt
from moe_interp.errors import SpanError
from moe_interp.notebook import Shown
from moe_interp.prompts import DataCard, Prompt, PromptSet, listed
from moe_interp.stats import RoutingProfile

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class RoutingRecord(Shown):
    """Routing of a set of prompts; made by `record_routing`, read back by `open_record`.

    Attributes:
        dataset: Dimensions token, layer, top_k, expert, prompt, span and draw. By token:
            ``expert_index`` and ``routing_weights`` ``[token layer top_k]``, sorted by weight,
            highest first; ``router_logits`` ``[token layer expert]``; ``in_span`` ``[span token]``;
            and as coordinates ``prompt_index``, ``pos`` (from 0, no padding), ``token_id`` and
            ``token_text``. By prompt: ``text``, ``topic``, ``harm``, ``pair``, ``wording``, ``id``
            and ``response``; a missing text is empty. ``layer`` is the absolute decoder layer.
            ``random_profile`` ``[span draw prompt layer expert]`` is the share of slots of each
            span that random routers gave to each expert.
    """

    dataset: xr.Dataset

    @property
    def layers(self) -> tuple[int, ...]:
        """Absolute decoder layer of each recorded MoE layer, in order."""
        return tuple(int(layer) for layer in self.dataset["layer"].values)

    @property
    def spans(self) -> tuple[str, ...]:
        """The recorded spans."""
        return tuple(str(span) for span in self.dataset["span"].values)

    @property
    def n_experts(self) -> int:
        """Routed experts per layer."""
        return int(self.dataset.attrs["model"]["n_experts"])

    @property
    def top_k(self) -> int:
        """Experts chosen per token."""
        return self.dataset.sizes["top_k"]

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.dataset.sizes["prompt"]

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all prompts; none is padding."""
        return self.dataset.sizes["token"]

    @property
    def n_random_routers(self) -> int:
        """Number of random routers whose choices were counted; 0 if none were."""
        return self.dataset.sizes.get("draw", 0)

    @property
    def model(self) -> dict[str, Any]:
        """What is known of the model, as `MoEModel.architecture.to_dict` gives it."""
        return dict(self.dataset.attrs["model"])

    @property
    def failed(self) -> dict[str, str]:
        """The reason for each prompt that failed and was left out, by its id."""
        return dict(self.dataset.attrs.get("failed") or {})

    @property
    def prompts(self) -> PromptSet:
        """The prompts that were recorded."""
        # Records that were written before there were responses have none.
        known = ("text", "topic", "pair", "wording", "id", "response")
        fields = [name for name in known if name in self.dataset.coords]
        columns = {name: self.dataset[name].values.tolist() for name in fields}
        card = self.dataset.attrs["prompts"].get("card")
        harm = [None if value != value else bool(value) for value in self.dataset["harm"].values]
        return PromptSet(
            (
                Prompt(harm=harm[row], **{name: columns[name][row] or None for name in fields})
                for row in range(self.n_prompts)
            ),
            source=self.dataset.attrs["prompts"]["source"],
            card=None if card is None else DataCard(**card),
        )

    def inside(self, span: str) -> Bool[ndarray, " token"]:
        """Which tokens lie in a span.

        Args:
            span: A recorded span.

        Returns:
            One boolean for each token of the record.

        Raises:
            SpanError: If the span was not recorded.
        """
        self._check_span(span)
        return self.dataset["in_span"].sel(span=span).values

    def has_tokens(self, span: str) -> Bool[ndarray, " prompt"]:
        """Which prompts have a token in a span.

        Args:
            span: A recorded span.

        Returns:
            One boolean for each prompt.

        Raises:
            SpanError: If the span was not recorded.
        """
        return self.n_slots(span) > 0

    def check_every_prompt(self, span: str) -> None:
        """Refuse a span in which some prompt has no token, for a mean over none is no number.

        Args:
            span: A recorded span.

        Raises:
            SpanError: If the span was not recorded, or some prompt has no token in it.
        """
        empty = ~self.has_tokens(span)
        if empty.any():
            raise SpanError(
                f"{int(empty.sum())} of {len(empty)} prompts have no token in the span {span!r}: "
                f"{self._named(empty)}. Leave them out: "
                f"record.select(record.has_tokens({span!r}))."
            )

    def select(
        self, chosen: "Bool[ndarray, ' prompt'] | Int[ndarray, ' chosen'] | Iterable[int]"
    ) -> "RoutingRecord":
        """Keep some of the prompts.

        Args:
            chosen: One boolean for each prompt, or the positions of those to keep, in order.

        Returns:
            The record of those prompts and their tokens.

        Raises:
            PromptError: If none is kept.
            ValueError: If a mask has another length than there are prompts.
            IndexError: If a position is out of range.
        """
        positions = np.asarray(chosen if isinstance(chosen, ndarray) else list(chosen))
        kept = self.prompts.select(positions)
        if positions.dtype == bool:
            positions = np.flatnonzero(positions)
        positions = np.arange(self.n_prompts)[positions]
        owner = self.dataset["prompt_index"].values
        by_owner = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=self.n_prompts))
        starts = ends - np.diff(ends, prepend=0)
        rows = [by_owner[starts[position] : ends[position]] for position in positions]
        new_owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        dataset = self.dataset.isel(prompt=positions, token=np.concatenate(rows))
        dataset = dataset.assign_coords(prompt_index=("token", new_owner.astype(owner.dtype)))
        prompts = {**self.dataset.attrs["prompts"], "digest": kept.digest}
        return RoutingRecord(dataset.assign_attrs(prompts=prompts))

    def n_slots(self, span: str) -> Int[ndarray, " prompt"]:
        """Count the top-k slots of each prompt in a span.

        Args:
            span: A recorded span.

        Returns:
            The number of tokens times `top_k`.

        Raises:
            SpanError: If the span was not recorded.
        """
        owner = self.dataset["prompt_index"].values[self.inside(span)]
        return np.bincount(owner, minlength=self.n_prompts) * self.top_k

    def shares(self, span: str) -> Float[ndarray, "prompt layer expert"]:
        """Share of each prompt's top-k slots in a span that went to each expert.

        Args:
            span: A recorded span.

        Returns:
            The shares; they sum to 1 over experts.

        Raises:
            SpanError: If the span was not recorded, or some prompt has no token in it.
        """
        self.check_every_prompt(span)
        shape = (len(self.layers), self.n_experts)
        count = partial(count_slots, n_experts=self.n_experts)
        counts = sum_by_prompt(self.dataset, ["expert_index"], self.inside(span), count, shape)
        return counts / rearrange(self.n_slots(span), "prompt -> prompt 1 1")

    def profile(self, span: str) -> RoutingProfile:
        """The shares of a span with the design of the prompts, for the statistics.

        Prompts without a token in the span, such as those without a partner in
        ``"after_divergence"``, are left out with a warning.

        Args:
            span: A recorded span.

        Returns:
            The profile.

        Raises:
            PromptError: If some prompt does not say whether it is harmful.
            SpanError: If the span was not recorded, or no prompt has a token in it.
        """
        kept = self.has_tokens(span)
        if not kept.all():
            warnings.warn(
                f"{int((~kept).sum())} of {len(kept)} prompts have no token in the span {span!r} "
                f"and were left out of its profile: {self._named(~kept)}.",
                stacklevel=2,
            )
            return self.select(kept).profile(span)
        prompts = self.prompts
        return RoutingProfile(
            shares=self.shares(span),
            layers=self.layers,
            span=span,
            topic=prompts.topics,
            harm=prompts.harm,
            pair=prompts.pairs,
            wording=prompts.wordings,
            id=prompts.ids,
            n_slots=self.n_slots(span),
            top_k=self.top_k,
        )

    def random_profiles(self, span: str) -> Float[ndarray, "draw prompt layer expert"]:
        """Shares of a span as random routers give them on the same router inputs.

        Args:
            span: A recorded span.

        Returns:
            The shares of each draw, of the same prompts as `profile`; they sum to 1 over experts.

        Raises:
            SpanError: If the span was not recorded.
            ValueError: If no random routers were drawn.
        """
        self._check_span(span)
        if not self.n_random_routers:
            raise ValueError(
                "This record has no random routers. Capture it again with "
                "record_routing(..., n_random_routers=99, rng=numpy.random.default_rng(0))."
            )
        profiles = self.dataset["random_profile"].sel(span=span).values
        kept = self.has_tokens(span)
        return profiles if kept.all() else profiles[:, kept]

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the record to a zarr folder, which appears only once it is whole.

        Args:
            path: The folder to make.
            force: Whether a record that is there may be replaced.

        Raises:
            ResultExistsError: If something is there, and it is no record or `force` is not given.
        """
        save_dataset(self.dataset, Path(path), force=force)

    def summary(self) -> str:
        """A few lines that say what was recorded."""
        layers = ", ".join(map(str, self.layers))
        lines = [
            f"Routing record of {self.dataset.attrs['model']['source']}",
            *(f"  {line}" for line in self.prompts.summary().splitlines()),
            f"  {self.n_tokens} tokens; spans: {', '.join(self.spans)}",
            f"  layers {layers}; {self.n_experts} experts, top {self.top_k}",
            f"  quantities: {', '.join(map(str, self.dataset.data_vars))}",
        ]
        if self.failed:
            lines.append(f"  {len(self.failed)} prompts failed: {listed(self.failed)}")
        if self.n_random_routers:
            lines.append(f"  {self.n_random_routers} random routers on the same inputs")
        return "\n".join(lines)

    def to_frame(self) -> "DataFrame":
        """Give one row per prompt: its text and labels, and how many tokens it has."""
        counts = np.bincount(self.dataset["prompt_index"].values, minlength=self.n_prompts)
        return self.prompts.to_frame().assign(n_tokens=counts)

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def _named(self, prompts: Bool[ndarray, " prompt"]) -> str:
        return listed(str(name) for name in self.dataset["id"].values[prompts])

    def _check_span(self, span: str) -> None:
        if span not in self.spans:
            raise SpanError(
                f"The span {span!r} was not recorded. Recorded: {', '.join(self.spans)}."
            )


def open_record(path: str | Path, *, chunks: str | None = None) -> RoutingRecord:
    """Open a record that is on disk.

    What is computed of it is read part by part, so that it may be larger than the memory.

    Args:
        path: Its folder.
        chunks: ``"auto"`` opens its arrays as dask's: dask computes shares and scores, on a
            cluster where one is connected (``dask.distributed.Client``). The numbers are the same.

    Returns:
        The record; its arrays are read when they are asked for.

    Raises:
        ResultError: If there is no record there, it is not whole, is of a version that is not
            known, or holds what no record holds.
        MissingPackageError: If `chunks` is given and dask is not installed.
    """
    return RoutingRecord(open_dataset(Path(path), chunks=chunks))
