"""How to train: everything that decides the numbers, in one value."""

from dataclasses import asdict, dataclass, fields
from typing import Any

ROUTING_TOKENS = ("all", "last")


@dataclass(frozen=True)
class TuneSettings:
    """The settings of a tuning run; equal settings on equal inputs give equal numbers.

    Attributes:
        seed: Seed of the order of examples and of low-rank factors.
        epochs: Times that all examples are seen, at most.
        learning_rate: Of AdamW, reached after the warm-up.
        warmup: Fraction of all steps over which the rate rises from 0; afterwards it falls to 0
            in a straight line.
        batch_size: Examples a step.
        weight_decay: Of AdamW, on what is trained alone.
        max_grad_norm: Gradients longer than this are shortened to it.
        rank: Rank of the change of each expert's matrices; None trains all their values.
        routing_kl: Weight of the penalty on changed routing, see `tune_experts`.
        routing_temperature: What routers' logits are divided by in that penalty.
        routing_tokens: ``"all"``, or the ``"last"`` of each prompt, where the penalty counts.
        patience: Epochs without a better validation loss after which training stops; None trains
            to the end.
        gradient_checkpointing: Whether layers are run again in the backward to save memory.

    Raises:
        ValueError: If a number is out of its range, or a penalty on routing is asked for together
            with gradient checkpointing.
    """

    seed: int
    epochs: int = 3
    learning_rate: float = 1e-4
    warmup: float = 0.1
    batch_size: int = 8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rank: int | None = None
    routing_kl: float = 0.0
    routing_temperature: float = 1.0
    routing_tokens: str = "all"
    patience: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 1, "rank": 1, "patience": 1, "seed": 0}
        at_least |= {"weight_decay": 0, "routing_kl": 0, "warmup": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if self.routing_tokens not in ROUTING_TOKENS:
            raise ValueError(
                f"`routing_tokens` must be one of {ROUTING_TOKENS}, got {self.routing_tokens!r}."
            )
        for name in ("learning_rate", "max_grad_norm", "routing_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if self.warmup >= 1:
            raise ValueError(f"`warmup` is a fraction of the steps below 1, got {self.warmup}.")
        if self.routing_kl and self.gradient_checkpointing:
            raise ValueError(
                "`routing_kl` reads the routers in a trace, which gradient checkpointing would run "
                "twice. Leave one of them out."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-safe values."""
        return asdict(self)

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = int(self.warmup * n_steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (n_steps - step) / (n_steps - rising)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(field.name for field in fields(cls))
