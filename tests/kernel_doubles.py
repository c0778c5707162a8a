"""Stand-ins on the CPU for kernels that need a GPU; everything around them is transformers' own.

Each double keeps the interface of the kernel it stands for and computes the same in plain torch:
the modules that hold quantised weights, their dispatch and the sum over experts stay as they are.
"""

from types import SimpleNamespace

import torch
from torch.nn.functional import linear, silu
from transformers import FineGrainedFP8Config
from transformers.integrations import deepgemm, finegrained_fp8, mxfp4, sonicmoe

BLOCK = 16
FLOAT8_MAX = 448.0


def quantise_experts_to_fp8(model, monkeypatch):
    """Give a model FP8 experts as transformers does, with a kernel that runs here."""
    config = FineGrainedFP8Config(
        weight_block_size=(BLOCK, BLOCK),
        # Only the experts: everything else stays what it is.
        modules_to_not_convert=[
            name for name, module in model.named_modules() if type(module) is torch.nn.Linear
        ],
    )
    kernel = finegrained_fp8.FineGrainedFP8(_fp8_matmul, _fp8_batched, _fp8_grouped)
    monkeypatch.setattr(finegrained_fp8, "_FINEGRAINED_FP8", kernel)
    old = {name: module for name, module in model.named_modules() if name.endswith(".experts")}
    finegrained_fp8.replace_with_fp8_linear(
        model, config.modules_to_not_convert, quantization_config=config
    )
    quantiser = finegrained_fp8.Fp8Quantize(SimpleNamespace(quantization_config=config))
    for path, experts in old.items():
        new = model.get_submodule(path)
        for name, weight in list(experts.named_parameters()):
            for key, value in quantiser.convert({name: weight.detach()}).items():
                setattr(new, key, torch.nn.Parameter(value, requires_grad=False))
    return model.eval()


def _fp8_rows(rows, block):
    """Round activations to FP8 with a scale for each block of each row, as the kernel does."""
    blocks = rows.float().unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FLOAT8_MAX
    return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)


def _fp8_weight(weight, scale, block_size):
    return finegrained_fp8._dequantize_fp8_weight(weight, scale, block_size, torch.float32)


def _fp8_matmul(rows, weight, scale, block_size, dtype, activation_scale=None):
    return linear(_fp8_rows(rows, block_size[1]), _fp8_weight(weight, scale, block_size)).to(dtype)


def _fp8_batched(rows, weight, scale, block_size, expert_ids):
    weight = _fp8_weight(weight, scale, block_size)
    pairs = zip(_fp8_rows(rows, block_size[1]), expert_ids.tolist(), strict=True)
    return torch.stack([linear(row, weight[expert]) for row, expert in pairs]).to(rows.dtype)


def _fp8_grouped(rows, weight, scale, offsets, tokens_per_expert, block_size):
    weight, rounded = _fp8_weight(weight, scale, block_size), _fp8_rows(rows, block_size[1])
    ends = offsets.tolist()
    parts = [
        linear(rounded[start:end], weight[expert])
        for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
    ]
    return torch.cat(parts).to(rows.dtype)


def put_mxfp4_experts(model, monkeypatch):
    """Replace gpt-oss's blocks as quantised loading does; the kernels themselves are not run."""
    monkeypatch.setattr(
        "transformers.integrations.hub_kernels.get_kernel", lambda *_, **__: SimpleNamespace()
    )
    monkeypatch.setattr(mxfp4, "triton_kernels_hub", None, raising=False)
    return mxfp4.replace_with_mxfp4_linear(model, SimpleNamespace(dequantize=False))


def pack_mxfp4(weight):
    """Round ``[expert in out]`` to MXFP4, as a checkpoint of gpt-oss holds it: blocks, scales."""
    values = torch.tensor(mxfp4.FP4_VALUES)
    blocks = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = (blocks.abs().amax(-1) / 6).log2().ceil().clamp(-127, 127)
    scaled = blocks / exponent.exp2()[..., None]
    code = (scaled[..., None] - values).abs().argmin(-1).to(torch.uint8)
    return code[..., 0::2] | code[..., 1::2] << 4, (exponent + 127).to(torch.uint8)


def put_deepgemm(monkeypatch):
    """Let the experts implementation "deepgemm" run: rows of one expert each, padded in between."""
    names = list(deepgemm.DeepGEMM.__dataclass_fields__)
    entry_points = dict.fromkeys(names) | {
        "grouped_bf16_matmul_nt": _deepgemm_grouped,
        "grouped_bf16_matmul_nn": lambda rows, weight, out, *rest, **options: _deepgemm_grouped(
            rows, weight.transpose(1, 2), out, *rest, **options
        ),
        "m_alignment": 8,
    }
    monkeypatch.setattr(deepgemm, "_DEEPGEMM", deepgemm.DeepGEMM(**entry_points))
    monkeypatch.setattr(deepgemm, "is_sm100", lambda: False)


def _deepgemm_grouped(rows, weight, out, expert_of_row, use_psum_layout):
    assert not use_psum_layout
    for expert in expert_of_row.unique().tolist():
        if expert >= 0:
            mine = expert_of_row == expert
            out[mine] = linear(rows[mine].float(), weight[expert].float()).to(out.dtype)


def put_sonicmoe(monkeypatch):
    """Let the experts implementation "sonicmoe" run."""
    kinds = SimpleNamespace(SWIGLU="swiglu")
    monkeypatch.setattr(sonicmoe, "_SONICMOE", sonicmoe.SonicMoE(kinds, _sonic_experts))


def _sonic_experts(hidden, scores, token, expert, w1, b1, w2, b2, *, activation_type, **options):
    """Sum over (token, expert) pairs; weights come as ``[out in expert]``."""
    assert activation_type == "swiglu"
    assert options["concat_layout"]
    out = torch.zeros_like(hidden, dtype=torch.float32)
    for each in range(options["E"]):
        mine = (expert == each).nonzero()[:, 0]
        gate, up = linear(hidden[token[mine]], w1[..., each]).chunk(2, -1)
        written = linear(silu(gate) * up, w2[..., each]).float()
        out.index_add_(0, token[mine].long(), written * scores[mine, None].float())
    return out.to(hidden.dtype), None


def put_kernel(module, forward):
    """Put a function over a module's forward, as the `kernels` package's `kernelize` does."""
    module.forward = forward.__get__(module)


class AlignDevices:
    """A hook of accelerate's kind, which places a module's inputs and outputs."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs

    def post_forward(self, module, output):
        return output


def put_accelerate_hook(module):
    """Hook a module as `accelerate.hooks.add_hook_to_module` does."""
    hook = AlignDevices()
    module._old_forward = module.forward
    module._hf_hook = hook

    def forward(*args, **kwargs):
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        return hook.post_forward(module, module._old_forward(*args, **kwargs))

    module.forward = forward
    return hook
