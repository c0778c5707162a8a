"""Everything a record says about topic and harm, in one call."""

import json

import numpy as np
import pytest

import moe_interp as mi
from moe_interp.audit._examine import PARTS
from moe_interp.errors import DesignError, SpanError


def record_of(name, *, per_topic=8, n_random_routers=39):
    return mi.record_routing(
        mi.load_model(f"organism:{name}", check=False),
        mi.load_prompts("organism", per_topic=per_topic),
        n_random_routers=n_random_routers,
        rng=np.random.default_rng(0),
        progress=False,
    )


@pytest.fixture(scope="module")
def record():
    return record_of("harm")


def examine(record, **options):
    return mi.examine_routing(record, rng=np.random.default_rng(0), n_resamples=199, **options)


@pytest.fixture(scope="module")
def found(record):
    return examine(record)


def test_a_record_tells_every_part(found):
    assert tuple(found.parts) == PARTS
    assert not found.refused
    assert found["verdict"].label == "harm_driven"
    assert found["decoding"]["leave_wording_out"].auc > 0.9
    assert found["controls"]["none"].label == "harm_driven"
    said = found.summary()
    for part in found.parts.values():
        assert part.summary() in said
    assert set(json.loads(json.dumps(found.to_dict()))) == {"span", "refused", *PARTS}


def test_parts_do_not_depend_on_each_other(record, found):
    bare = mi.RoutingRecord(record.dataset.drop_dims("draw"))
    again = examine(bare)
    assert list(again.refused) == ["verdict"]
    assert "Capture it again with n_random_routers=99" in again.refused["verdict"]
    assert "No verdict: the record has no random routers" in again.summary()
    with pytest.raises(KeyError, match=r"There is no 'verdict'.*no random routers"):
        again["verdict"]
    with pytest.raises(KeyError, match=r"'shares': it is none of verdict, experts"):
        again["shares"]
    assert again["experts"].to_dict() == found["experts"].to_dict()
    assert again["power"].to_dict() == found["power"].to_dict()


def test_what_cannot_be_asked_is_refused(record):
    with pytest.raises(SpanError, match=r"'answer' was not recorded"):
        examine(record, span="answer")
    harm = record.prompts.harm
    harmful = mi.record_routing(
        mi.load_model("organism:harm", check=False),
        record.prompts.select(harm),
        n_random_routers=0,
        progress=False,
    )
    with pytest.raises(DesignError, match=r"are harmful"):
        examine(harmful)
