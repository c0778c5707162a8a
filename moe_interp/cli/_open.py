"""Open a model for a command, without the progress bars and notices of other libraries."""

from moe_interp.models import MoEModel, load_model

_CONFIGURED = "ndif"


def open_model(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    remote: str | None = None,
) -> MoEModel:
    """Load and check a model; only our own words reach the terminal.

    Args:
        model: A hub id, a local folder, or ``organism:NAME``.
        device: Where to put it.
        dtype: Floating-point format of the weights.
        trust_remote_code: Run code that the checkpoint brings along.
        remote: The server to run it on: an address, ``"ndif"`` for the one that nnsight is
            configured with, or None for this machine.

    Returns:
        The model.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    there = {None: False, _CONFIGURED: True}.get(remote, remote)
    return load_model(model, **options, remote=there)
