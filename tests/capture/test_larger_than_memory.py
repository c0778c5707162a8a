"""What is computed of a record is the same number wherever its arrays are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dask.distributed import Client

import moe_interp as mi
from moe_interp.capture import _windows, decoding_baselines, open_record, token_routing
from moe_interp.capture._windows import read_inside, sum_by_prompt, windows
from moe_interp.errors import MissingPackageError
from moe_interp.stats import expert_tests, harm_test, routing_shares, verdict

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory():
    """A record in memory whose parts are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_windows, "WINDOW_BYTES", 2**15)
        prompts = mi.load_prompts("organism", per_topic=8)
        yield mi.record_routing(
            mi.load_model("organism:topic", check=False),
            prompts,
            rng=np.random.default_rng(0),
            n_random_routers=39,
            progress=False,
        )


@pytest.fixture(scope="module")
def folder(memory, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "a.zarr"
    memory.save(path)
    return path


def statistics(record):
    """Everything that is computed of a record, as arrays."""
    rng = np.random.default_rng(0)
    found = {}
    for span in ("user", "last"):
        profile = record.profile(span)
        found[f"shares {span}"] = profile.shares
        tokens = token_routing(record, span)
        found |= {f"{span} {name}": value for name, value in vars(tokens).items()}
        for name, value in decoding_baselines(record, span).items():
            found[f"{name} {span}"] = value
    profile, random = record.profile("user"), record.random_profiles("user")
    found["tests"] = expert_tests(profile, n_resamples=99, rng=rng).to_frame().to_numpy()
    found["decomposition"] = routing_shares(profile, random_profiles=random).to_frame().to_numpy()
    found["harm"] = np.array(str(harm_test(profile, n_resamples=99, rng=rng)))
    found["verdict"] = np.array(str(verdict(profile, random, n_resamples=99, rng=rng).numbers))
    for score in (mi.selection_frequency, mi.mean_routing_weight, mi.mean_router_prob):
        found[score.__name__] = score(record).array.values
    found["difference"] = mi.risk_difference(record).array.values
    return found


@pytest.fixture(scope="module")
def expected(memory):
    return statistics(memory)


def check_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_an_opened_record_gives_the_same_numbers(folder, expected):
    check_same(statistics(open_record(folder)), expected)


def test_dask_gives_the_same_numbers(folder, expected):
    record = open_record(folder, chunks="auto")
    assert record.dataset["expert_index"].chunks is not None
    check_same(statistics(record), expected)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_gives_the_same_numbers(folder, memory):
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        record = open_record(folder, chunks="auto")
        assert np.array_equal(record.shares("user"), memory.shares("user"))
        found, known = (mi.mean_router_prob(one).array.values for one in (record, memory))
        assert np.array_equal(found, known)


def test_a_report_is_the_same(folder, memory):
    from moe_interp.viz._sample import pack_tokens

    assert pack_tokens(open_record(folder).dataset) == pack_tokens(memory.dataset)


def test_parts_do_not_change_counts_and_hold_every_token(memory, monkeypatch):
    parts = windows(memory.dataset, ["router_logits"])
    assert len(parts) > 5
    assert sum(part.stop - part.start for part in parts) == memory.n_tokens
    shares = memory.shares("user")
    monkeypatch.setattr(_windows, "WINDOW_BYTES", 2**30)
    assert len(windows(memory.dataset, ["router_logits"])) == 1
    assert np.array_equal(memory.shares("user"), shares)


def test_shares_are_those_counted_token_by_token(memory):
    dataset, inside = memory.dataset, memory.inside("user")
    shares = np.zeros((memory.n_prompts, len(memory.layers), memory.n_experts))
    for token in np.flatnonzero(inside):
        for layer, chosen in enumerate(dataset["expert_index"].values[token]):
            for expert in chosen:
                shares[dataset["prompt_index"].values[token], layer, expert] += 1
    shares /= memory.n_slots("user")[:, None, None]
    np.testing.assert_allclose(memory.shares("user"), shares, rtol=1e-15)


def test_prompts_in_another_order_keep_their_tokens(memory):
    order = np.array([5, 2, 9])
    chosen = memory.select(order)
    assert np.array_equal(chosen.shares("user"), memory.shares("user")[order])


def test_no_part_is_read_that_holds_no_token_of_the_span(memory):
    seen = []

    def count(values, owner, n_prompts):
        seen.append(len(owner))
        return np.bincount(owner, minlength=n_prompts).astype(float)

    inside = memory.inside("last")
    total = sum_by_prompt(memory.dataset, ["router_logits"], inside, count, ())
    assert total.tolist() == [1.0] * memory.n_prompts
    assert min(seen) > 0
    assert np.array_equal(
        read_inside(memory.dataset, "routing_weights", inside),
        memory.dataset["routing_weights"].values[inside],
    )


def test_without_dask_it_is_told_how_to_get_it(folder, monkeypatch):
    monkeypatch.setattr("moe_interp.capture._store.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"`chunks` needs dask. Install it: pip install"):
        open_record(folder, chunks="auto")


@pytest.mark.long
def test_memory_stays_under_the_bound_on_a_record_four_times_larger(tmp_path):
    """The script fails if the bound does not hold; the record is made and read in its processes."""
    command = [sys.executable, SCRIPT, "--bound", "192", "--folder", tmp_path, "--only", "larger"]
    subprocess.run(list(map(str, command)), check=True, timeout=400)
