"""Open a model for a command, without the progress bars and notices of other libraries."""

from moe_interp.models import MoEModel, load_model


def open_model(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> MoEModel:
    """Load and check a model; only our own words reach the terminal.

    Args:
        model: A hub id, a local folder, or ``organism:NAME``.
        device: Where to put it.
        dtype: Floating-point format of the weights.
        trust_remote_code: Run code that the checkpoint brings along.

    Returns:
        The model.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
