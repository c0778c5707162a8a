"""What runs the experts besides transformers' own code, and whether it is read: for the page.

A row names the tests of `tests/models/test_models_kernels.py`, or `_devices.py`, that hold it, and
a test looks that they are there. Rows without a test say how it was found out.
"""

from dataclasses import dataclass

TESTED = "tested"
STAND_IN = "tested, with a CPU stand-in for the kernel"
ONCE = "run once, not part of the tests"
SOURCE = "from transformers' source, not run"


@dataclass(frozen=True)
class Kernel:
    """One way to run experts.

    Attributes:
        what: What runs them.
        verdict: Read, or refused.
        comment: Why, or what to do.
        evidence: How that is known.
        tests: The tests that hold it.
    """

    what: str
    verdict: str
    comment: str
    evidence: str
    tests: tuple[str, ...] = ()


KERNELS = (
    Kernel(
        "`eager`, `batched_mm`, `grouped_mm`",
        "read",
        "an expert's output is had by calling the experts on one (token, expert) pair per row",
        TESTED,
        ("test_every_implementation_and_format_is_read_exactly",),
    ),
    Kernel(
        "`grouped_mm` in float64",
        "refused",
        "torch has no such product; take `eager` or `batched_mm`",
        TESTED,
        ("test_float64_is_refused_where_there_is_no_such_product",),
    ),
    Kernel(
        "`deepgemm` (bfloat16)",
        "read",
        "the same call",
        STAND_IN,
        ("test_deepgemm_is_read_exactly",),
    ),
    Kernel(
        "`deepgemm_megamoe`",
        "refused",
        "its kernel exchanges tokens between processes; take `deepgemm` or `grouped_mm`",
        TESTED,
        ("test_the_kernel_that_exchanges_tokens_between_processes_is_refused",),
    ),
    Kernel("`sonicmoe`", "read", "the same call", STAND_IN, ("test_sonicmoe_is_read_exactly",)),
    Kernel(
        "an implementation of your own in `ExpertsInterface`",
        "read",
        "the same call; one that mixes tokens is caught by the self-check",
        TESTED,
        (
            "test_an_experts_implementation_of_a_user_is_read_through_the_call",
            "test_an_experts_implementation_that_mixes_tokens_is_caught",
        ),
    ),
    Kernel(
        "fine-grained FP8 (`FP8Experts`)",
        "read",
        "the same call; activations are scaled row by row, so that rows do not touch each other",
        STAND_IN,
        ("test_fp8_experts_are_read_exactly",),
    ),
    Kernel(
        "FP8 with `dequantize=True`, GGUF, compressed-tensors",
        "read",
        "plain weights once loaded",
        SOURCE,
    ),
    Kernel("FBGEMM FP8 (llama4)", "read", "the experts keep their call", SOURCE),
    Kernel(
        "gpt_oss in MXFP4, `Mxfp4Config(dequantize=True)`",
        "read",
        "plain weights once loaded; also what transformers falls back to without its kernels",
        TESTED,
        ("test_gpt_oss_dequantised_from_mxfp4_is_read_exactly",),
    ),
    Kernel(
        "gpt_oss in MXFP4 kernels",
        "refused",
        "the block routes inside a kernel; load it with `Mxfp4Config(dequantize=True)`",
        TESTED,
        ("test_mxfp4_blocks_are_refused_with_the_way_to_dequantise",),
    ),
    Kernel(
        "bitsandbytes, 4 and 8 bit",
        "read",
        "only linear layers are quantised; fused experts and routers keep their format",
        ONCE,
    ),
    Kernel("torchao, linear layers", "read", "as bitsandbytes", ONCE),
    Kernel(
        "torchao, experts (`FqnToConfig`)",
        "read under `eager`",
        "in the other two, transformers' own forward fails; scales over a whole tensor of "
        "activations make contributions depend on the batch",
        ONCE,
    ),
    Kernel(
        "GPTQ, AWQ, HQQ, quanto, EETQ, HIGGS, AQLM, VPTQ, SpQR, BitNet, NVFP4",
        "read while experts stay one module",
        "a library that splits the experts is refused: “the experts behind … are not known”",
        SOURCE,
    ),
    Kernel(
        "a hub kernel over the experts alone",
        "read",
        "the same call; refused below a hook of accelerate, which a trace passes by",
        TESTED,
        (
            "test_a_kernel_over_the_experts_alone_is_read_through_the_call",
            "test_a_kernel_over_the_experts_below_a_hook_is_refused",
        ),
    ),
    Kernel(
        "a hub kernel over block or router",
        "refused",
        "the operations that are read do not run; load with `use_kernels=False`",
        TESTED,
        ("test_a_hub_kernel_over_block_or_router_is_refused",),
    ),
    Kernel(
        "hub kernels elsewhere (norms, rotary, attention)",
        "read",
        "no part of a MoE block",
        TESTED,
        ("test_a_kernel_elsewhere_is_nobodys_business",),
    ),
    Kernel(
        '`device_map="auto"` (accelerate)',
        "read",
        "its hooks replace nothing",
        TESTED,
        (
            "test_hooks_of_accelerate_are_no_replacement",
            "test_hooks_of_accelerate_itself_are_passed_through",
            "test_a_model_spread_over_devices_records_the_same",
        ),
    ),
    Kernel(
        "tensor or expert parallelism (`tp_plan`, `distributed_config`)",
        "refused",
        "a call of the experts reaches one process's share; load in one process",
        TESTED,
        (
            "test_parts_spread_over_processes_are_refused",
            "test_experts_split_over_processes_are_refused",
            "test_a_model_that_transformers_splits_over_two_processes_is_refused",
        ),
    ),
    Kernel(
        "`experts.forward = torch.compile(experts.forward)`",
        "read",
        "the compiled code lies inside the call",
        TESTED,
        ("test_experts_with_a_compiled_forward_are_read_exactly",),
    ),
    Kernel(
        "a compiled model, layer, block, router or experts module",
        "refused",
        "the compiler would go on into the trace's own code; load without compiling",
        TESTED,
        (
            "test_what_is_compiled_around_the_operations_is_refused",
            "test_experts_compiled_as_a_module_are_refused",
        ),
    ),
)
