"""Site: the plain facts of one MoE block, which everything that reads or edits it goes by."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Site:
    """One MoE block of a model; paths are those of the model's modules.

    Attributes:
        layer: Absolute layer of the decoder, or of the encoder.
        stack: "decoder" or "encoder".
        block: The block that holds router and experts.
        router: The router.
        experts: The experts module.
        entry: The module whose input is the block's input.
        leaving: The module where the block's output is read.
        leaves_as: Whether that is the module's "output" or "input".
        shared: The shared expert, if there is one.
        shared_gate: The linear map whose sigmoid multiplies the shared expert's output.
        reads_block_source: Whether operations of the block's source are read.
        shared_inside: Whether the block's output contains the shared expert's.
        projection: The module applied to the experts' sum, if there is one.
        final_norm: The norm applied to the sum of everything, if there is one.
        n_experts: Number of experts that the router chooses among.
        top_k: Experts chosen per token.
        dispatch: How tokens get to experts: "indexed", "input_scaled", "sorted" or "one_hot".
        logits: Operation of the router's source that holds the logits.
        further_logits: Entries after those of the experts that the router's logits have.
        logits_in_inference: The one that does where no gradient is wanted, if it is another.
        choice: Operation that makes the choice.
        choice_gives: What it holds: "values" and index, an "index", the scores of an "argmax", or
            "sparsemixer".
        choice_scores: Operation that holds the scores chosen by; "" if they are its argument.
        choice_values: Operation that the chosen weights are taken from; "" if it is the same.
        choice_index: Operation that holds the index where the choice is an "argmax".
        follows_logits: Whether the choice depends on the logits.
        score_function: "softmax", "sigmoid" or "sqrtsoftplus".
        experts_arguments: The names under which the experts take hidden states, index, weights.
        reading_order: Readable quantities in the order in which the layer computes them.
        unselectable_score: Score of experts that a group limit has ruled out.
        sparsemixer_jitter: The router's jitter, which sets the window of sparsemixer's softmax.
        skips: Whether the last expert is none: tokens that choose it skip the experts.
        columns_apart: Slots that a call of the experts needs, at least.
        sum: Operation of the block that holds the experts' sum; "" if the experts return it.
        adds_bias: Whether the block adds a bias, which is what it makes of nothing.
        sum_scale: Factor of the block on the experts' sum.
        shared_scale: Factor of the block on the shared expert's output.
        runs: How the experts run: transformers' name of the implementation, or "".
        adds_slots_up: Whether the slots' products add up to the experts' output bit for bit.
        refused: Quantities that are not offered, and why.
        router_class: Name of the router's class.
        block_class: Name of the block's class.
    """

    layer: int
    stack: str
    block: str
    router: str
    experts: str
    entry: str
    leaving: str
    leaves_as: str
    shared: str | None
    shared_gate: str | None
    reads_block_source: bool
    shared_inside: bool
    projection: str | None
    final_norm: str | None
    n_experts: int
    top_k: int
    dispatch: str
    logits: str
    further_logits: int
    logits_in_inference: str
    choice: str
    choice_gives: str
    choice_scores: str
    choice_values: str
    choice_index: str
    follows_logits: bool
    score_function: str
    experts_arguments: tuple[str, ...]
    reading_order: tuple[str, ...]
    unselectable_score: float
    sparsemixer_jitter: float
    skips: bool
    columns_apart: int
    sum: str
    adds_bias: bool
    sum_scale: float
    shared_scale: float
    runs: str
    adds_slots_up: bool
    refused: dict[str, str]
    router_class: str
    block_class: str

    def facts(self) -> dict[str, object]:
        """The fields as a plain dict, which can enter a trace."""
        return asdict(self)
