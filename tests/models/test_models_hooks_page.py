"""The page for users of TransformerLens: its code runs, and its table is complete."""

import re

import doc_pages
import torch

import moe_interp as mi
from moe_interp.models._hooks import HOOKS

PAGE = "migration-from-transformer-lens.md"
TEXT = doc_pages.read_page(PAGE)


def test_the_code_runs(tmp_path):
    names, n_blocks = doc_pages.run_page(PAGE, tmp_path)
    assert n_blocks == 4
    assert not torch.equal(names["banned"], names["logits"])
    index = names["cache"].stack("hook_expert_indices")
    assert tuple(index.shape) == (4, 2, *index.shape[2:])


def test_the_table_has_every_hook_and_its_axes():
    for hook, (_, axes) in HOOKS.items():
        assert re.search(rf"^\|.*`{hook}`.*\| `\[{' '.join(axes)}\]`", TEXT, re.MULTILINE), hook
    assert set(re.findall(r"`(hook_\w+)`", TEXT)) <= {*HOOKS, "hook_dict", "hook_out", "hook_in"}


def test_cache_is_a_public_name():
    model = mi.load_model("organism:topic", check=False)
    assert isinstance(model.run_with_cache("how do i bake bread ?")[1], mi.RoutingCache)
