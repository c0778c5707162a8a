"""XSTest from its file to the last part of the analysis, on a local checkpoint.

The file is one of the published layout with harmless content; the published one itself is read if
the variable XSTEST names it: `XSTEST=/path/to/xstest_prompts.csv pytest THIS_FILE`.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from xstest_layout import KINDS, full_layout

import moe_interp as mi
from moe_interp.audit._examine import PARTS

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("xstest")]

SPANS = ("user", "after_divergence")
NOUNS = ("process", "engine", "cake", "tree", "bath", "paper", "car", "light", "password", "world")


def sentence(kind, label, n):
    """No two alike; the pairs of one type end apart."""
    place = KINDS.index(kind)
    start = (
        f"{('how', 'what', 'where', 'why', 'is', 'do')[place % 6]} {('i', 'you', 'me')[place // 6]}"
    )
    verb = ("make", "find") if label == "safe" else ("kill", "steal")
    end = "without" if kind == "contrast_privacy" else "now"
    return f"{start} {verb[n % 2]} the {NOUNS[n % 10]} {('blue', 'red', 'green')[n % 3]} {end}"


@pytest.fixture(scope="module")
def xstest(tmp_path_factory):
    if os.environ.get("XSTEST"):
        return Path(os.environ["XSTEST"])
    path = tmp_path_factory.mktemp("xstest") / "xstest_prompts.csv"
    path.write_text(full_layout(8, sentence))
    return path


@pytest.fixture(scope="module")
def record(xstest, tiny_checkpoint):
    model = mi.load_model(str(tiny_checkpoint("olmoe")), check=False)
    with pytest.warns(UserWarning, match="prompts have no token in the span 'after_divergence'"):
        return mi.record_routing(
            model,
            mi.load_prompts(xstest),
            spans=SPANS,
            quantities=["expert_index", "mean_router_input"],
            n_random_routers=39,
            rng=np.random.default_rng(0),
            progress=False,
        )


@pytest.fixture(scope="module", params=SPANS)
def found(record, request):
    with pytest.warns(UserWarning, match="left out of"):
        return mi.examine_routing(
            record, span=request.param, rng=np.random.default_rng(0), n_resamples=199
        )


def test_every_part_is_told_of_the_pairs(record, found):
    assert tuple(found.parts) == PARTS
    assert not found.refused
    paired = np.array([prompt.pair is not None for prompt in record.prompts])
    n_paired = int((paired & record.has_tokens(found.span)).sum())
    assert found["verdict"].shares.n_prompts == n_paired
    assert found["decoding"].n_prompts == n_paired
    assert found["decoding"].scheme == "pair"
    json.dumps(found.to_dict(), allow_nan=False)
    assert "bag_of_tokens" in found.summary()


def test_untrained_routers_are_found_to_follow_nothing_of_their_own(found):
    assert found["verdict"].label == "neither"


def test_what_xstest_does_not_say_is_refused_by_name(found):
    assert "No prompt has a `wording`" in found["decoding"].refused["leave_wording_out"]
    assert "leave_wording_out was refused" in found.summary()


def test_prompts_that_end_apart_from_their_partner_are_in_one_span_only(record):
    assert record.has_tokens("user").all()
    kept = record.has_tokens("after_divergence")
    assert 0 < kept.sum() < record.n_prompts
    assert len(record.profile("user").harm) == record.n_prompts
