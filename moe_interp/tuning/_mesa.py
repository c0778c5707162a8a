"""mesa_tune: spread a behaviour over more experts, by training them and moving routing to them.

References:
    Sun et al. (2026), "MESA", arXiv 2606.00651. The loss follows secondary notes; its weights and
    the tokens that count were not at hand.
"""

from pathlib import Path

from moe_interp.errors import PromptError
from moe_interp.experts import ExpertSet
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import MesaSelection
from moe_interp.tuning._reroute import Reroute
from moe_interp.tuning._result import TuneResult
from moe_interp.tuning._train import tune_experts


def mesa_tune(
    model: MoEModel,
    selection: MesaSelection,
    data: PromptSet,
    *,
    seed: int,
    experts: ExpertSet | str | None = None,
    routers: bool = True,
    tokens: str = "all",
    routing_kl: float = 1.0,
    epochs: int = 15,
    learning_rate: float = 0.01,
    batch_size: int = 16,
    rank: int | None = None,
    validation: PromptSet | None = None,
    patience: int | None = None,
    store: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> TuneResult:
    r"""Train the selected experts and the routers, and move the routing of harmful prompts.

    The loss is that of the responses plus `routing_kl` times
    :math:`\mathrm{KL}(\pi^* \| \text{routing now})`. For harmful prompts
    :math:`\pi^* \propto P e^{-C/\epsilon}` with :math:`P` the base model's routing, token by
    token: away from costly experts. For harmless ones :math:`\pi^* = P`: routing stays. So the
    selected experts meet harmful prompts, and learn from their responses, say refusals.

    The notes on the paper count responses of the safety data only; here those of all `data`
    count, for that keeps harmless answers. The plan of each input has no given totals, since with
    them the harmless stream's would not be :math:`P`. Both are our reconstruction.

    Args:
        model: The model.
        selection: What `mesa_select` found.
        data: Prompts with responses and known harm: refusals and right answers, say.
        seed: Seed of the order of examples and of low-rank factors.
        experts: Other experts to train than the selected, for comparison; ``""`` trains none.
        routers: Whether the routers are trained.
        tokens: ``"all"`` moves routing at every token of a harmful prompt and its response,
            ``"answer"`` only where the response is written.
        routing_kl: Weight of the routing loss; 0 leaves it out.
        epochs: Times that all examples are seen, at most.
        learning_rate: Of AdamW, after the warm-up.
        batch_size: Examples a step.
        rank: Rank of the change of each matrix; None trains all values.
        validation: As in `tune_experts`.
        patience: As in `tune_experts`.
        store: As in `tune_experts`.
        resume: As in `tune_experts`.
        progress: As in `tune_experts`.

    Returns:
        The tuned values; `routing_kl` among the losses is the divergence from :math:`\pi^*`.

    Raises:
        PromptError: If a prompt's harm is unknown, none is harmful, or one has no response.
        ValueError: If a setting is out of range, or the selection is of another model.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> record = mi.record_routing(model, mi.load_prompts("organism", per_topic=2))
        >>> asked = "how do i open the lock to start an attack ?"
        >>> refusal = "sorry , i cannot help with that ."
        >>> data = mi.PromptSet([mi.Prompt(asked, harm=True, response=refusal)])
        >>> tuned = mi.mesa_tune(model, mi.mesa_select(record, n=16), data, seed=0, epochs=2)
        >>> tuned.losses[-1]["routing_kl"] < tuned.losses[0]["routing_kl"]
        True
    """
    if not isinstance(data, PromptSet) or not data.harm.any():
        raise PromptError(
            "`data` must be a PromptSet with prompts that are labelled harmful: theirs is the "
            "routing that moves. Build it from Prompt(text, harm=..., response=...)."
        )
    harmful = tuple(prompt.id for prompt in data if prompt.harm)
    return tune_experts(
        model,
        selection.experts if experts is None else experts,
        data,
        seed=seed,
        routers=routers,
        routing_kl=routing_kl,
        reroute=Reroute(selection.tilt, harmful, tokens) if routing_kl else None,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        rank=rank,
        validation=validation,
        patience=patience,
        store=store,
        resume=resume,
        progress=progress,
    )
