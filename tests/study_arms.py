"""What the tests of studies ask of a change."""


def ends_refusal(arm):
    """Whether a change ends most refusals, and random experts of like use do not."""
    return arm.null.p_value <= 0.05 and arm.null.observed < 0.5 < arm.null.null.mean()
