"""Which rules of interventions leave a token alone that did not choose the expert."""

from moe_interp.models._traced_rules import (
    choose_next_best,
    put_outputs,
    put_picked,
    put_vectors,
    scale_contribution,
    scale_weight,
    weigh_nothing,
    weigh_the_rest,
)

#: Rules that change only tokens that chose a marked expert. Of others it is known only that they
#: change nothing where nothing is marked.
LOCAL_RULES = frozenset(
    {
        choose_next_best,
        put_outputs,
        put_picked,
        put_vectors,
        scale_contribution,
        scale_weight,
        weigh_nothing,
        weigh_the_rest,
    }
)
