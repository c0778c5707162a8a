"""The page for users of TransformerLens: its code runs, and its table is complete."""

import re
from pathlib import Path

import torch

import moe_interp as mi
from moe_interp.models._hooks import HOOKS

PAGE = Path(__file__).parents[2] / "docs" / "migration-from-transformer-lens.md"
TEXT = PAGE.read_text(encoding="utf-8")


def run_blocks(folder):
    """Run the page's blocks one after the other, as a file, which nnsight reads them from."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    script = folder / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    names = {"__name__": "page", "__file__": str(script)}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), names)
    return names, len(blocks)


def test_the_code_runs(tmp_path):
    names, n_blocks = run_blocks(tmp_path)
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
