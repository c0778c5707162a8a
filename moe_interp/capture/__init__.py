"""RECORD: what the routers of a model chose for every token of a set of prompts."""

from moe_interp.capture._batches import plan_batches
from moe_interp.capture._capture import QUANTITIES, record_routing
from moe_interp.capture._features import decoding_baselines
from moe_interp.capture._job import CaptureJob, all_jobs, open_job, submit_routing
from moe_interp.capture._record import RoutingRecord, open_record
from moe_interp.capture._store import check_free, replace_record
from moe_interp.capture._stream import check_blocks
from moe_interp.capture._tokens import check_confounds, slots_changed, token_routing
from moe_interp.capture._windows import read_inside, sum_by_prompt

__all__ = [
    "QUANTITIES",
    "CaptureJob",
    "RoutingRecord",
    "all_jobs",
    "check_blocks",
    "check_confounds",
    "check_free",
    "decoding_baselines",
    "open_job",
    "open_record",
    "plan_batches",
    "read_inside",
    "record_routing",
    "replace_record",
    "slots_changed",
    "submit_routing",
    "sum_by_prompt",
    "token_routing",
]
