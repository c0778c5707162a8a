"""Gradients of whole tensors reach what is trained in their place."""

import pytest
import torch

from moe_interp.experts import Expert
from moe_interp.tuning._leaves import Leaf, Leaves
from moe_interp.tuning._slices import Slice


def leaf(*, rank):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    part = Slice("experts.up", Expert(0, 1), (1, 2), fused=True)
    if rank is None:
        return Leaf("key", "experts.up", part, base, full=base.clone().requires_grad_(True))
    left = torch.randn(6, rank, generator=generator).requires_grad_(True)
    right = torch.randn(rank, 4, generator=generator).requires_grad_(True)
    return Leaf("key", "experts.up", part, base, left=left, right=right)


@pytest.mark.parametrize("rank", [None, 2])
def test_gradients_are_those_of_autograd_and_add_up(rank):
    one = leaf(rank=rank)
    gradients = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(
        (one.value() * gradients[:, 1].sum(0)).sum(), list(one.trained.values())
    )
    for gradient in gradients:
        one.take(gradient)
    for found, gradient in zip(one.trained.values(), expected, strict=True):
        torch.testing.assert_close(found.grad, gradient)


def test_a_change_of_low_rank_starts_where_the_model_is():
    one = leaf(rank=2)
    torch.testing.assert_close(one.value(), one.base + one.left @ one.right)
    assert one.value().shape == (6, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [None, 1])
def test_steps_too_small_for_half_precision_add_up(dtype, rank):
    root = torch.nn.Module()
    root.up = torch.nn.Parameter(torch.ones(3, 6, 4, dtype=dtype))
    part = Slice("up", Expert(0, 1), (1, 2), fused=True)
    leaves = Leaves(root, [part], [], rank=rank, generator=torch.Generator().manual_seed(0))
    tensors = leaves.trained().values()
    finer = torch.float32 if dtype == torch.bfloat16 else dtype
    assert {tensor.dtype for tensor in tensors} == {finer}
    if rank is None:
        for _ in range(100):
            with torch.no_grad():
                next(iter(tensors)).add_(1e-3)
            leaves.write()
        assert root.up.dtype == dtype
        torch.testing.assert_close(root.up[1], torch.full((6, 4), 1.1, dtype=dtype))
        assert (root.up[[0, 2]] == 1).all()
    leaves.write_base()
    assert (root.up == 1).all()
