"""Hooks on every family: a look changes nothing, an edit is live, the cache is what is seen."""

import pytest
import torch
import zoo_runs

from moe_interp.models._hooks import HOOKS
from moe_interp.models._traced_hooks import READ_ONLY

pytestmark = [
    pytest.mark.conformance,
    # llama4's rotary table is complex, and is cast with the weights.
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
]
families = pytest.mark.parametrize("family", zoo_runs.FAMILIES)
WRITABLE = tuple(hook for hook, (quantity, _) in HOOKS.items() if quantity not in READ_ONLY)


def change(value, hook):
    """Something else of the same kind."""
    if hook.name.endswith("hook_expert_indices"):
        return value.flip(0)
    if hook.name.endswith("hook_expert_weights"):
        return value * torch.linspace(0.2, 0.9, value.shape[-1])
    return value.flip(-1)


def load(family):
    return zoo_runs.wrapped(family, zoo_runs.implementations(family)[-1])


def plain(model, batch):
    with torch.no_grad(), model.trace(batch):
        logits = model.nnsight.output.logits.save()
    return logits  # noqa: RET504  Only a name bound in the block leaves it.


@families
def test_functions_see_what_is_cached_and_neither_changes_the_model(family):
    model, batch, seen = load(family), zoo_runs.prompts(family), {}

    def look(value, hook):
        seen[hook.name] = value.clone()

    with torch.no_grad():
        logits, cache = model.run_with_cache(batch)
        looked = model.run_with_hooks(batch, fwd_hooks=[(lambda name: True, look)])
    assert torch.equal(logits, plain(model, batch))
    assert torch.equal(looked, logits)
    assert seen.keys() == cache.keys() == model.hook_dict.keys()
    for name, value in cache.items():
        assert value.dim() == len(model.hook_dict[name].axes)
        torch.testing.assert_close(seen[name], value, rtol=1e-5, atol=1e-5)


@families
def test_what_is_returned_is_what_the_model_goes_on_with(family):
    model, batch = load(family), zoo_runs.prompts(family)
    names = [name for name, info in model.hook_dict.items() if info.writable]
    with torch.no_grad():
        same = model.run_with_hooks(
            batch, fwd_hooks=[(name, lambda value, hook: value) for name in names]
        )
        assert torch.equal(same, plain(model, batch))
        for hook in WRITABLE:
            name = next((name for name in names if name.endswith(f".mlp.{hook}")), None)
            if name is None:
                assert "expert_outputs" in next(iter(model.moe.values())).refused
                continue
            edited = model.run_with_hooks(batch, fwd_hooks=[(name, change)])
            assert not torch.equal(edited, same), hook
