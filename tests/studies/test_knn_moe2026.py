import json
import sys

import doc_pages
import numpy as np
import pytest

import moe_interp as mi
from moe_interp.errors import DesignError, PromptError
from moe_interp.interventions import RetrieveRouting, response_losses
from moe_interp.organism import shifted_prompts
from moe_interp.studies import knn_moe2026


def run_on(model, **options):
    prompts = mi.load_prompts("organism", per_topic=8)
    options = {"n_shuffles": 3, "n_neighbours": 1} | options
    return knn_moe2026(model, prompts, rng=np.random.default_rng(0), **options)


@pytest.fixture(scope="module")
def found(organism):
    """The study on `organism:topic`, smaller than by default."""
    return run_on(organism("topic"))


def holds(found):
    rows, numbers = found.tables["memories"].set_index("memory"), found.numbers
    assert rows.loc["memory", "gain"] > 0.2
    assert rows.loc["memory", "low"] > 0
    assert rows.loc["memory", "sequences_better"] > 0.8
    assert numbers["fit"]["after"] < numbers["fit"]["before"] - 0.3
    # The same keys with each other's values do not do it, nor do neighbours alone.
    assert numbers["shuffled_gains"].max() < rows.loc["memory", "gain"] / 2
    assert numbers["beyond_shuffled"]["low"] > 0
    assert abs(rows.loc["unfitted memory", "gain"]) < 0.1


def test_retrieval_raises_the_held_out_likelihood_and_shuffled_values_do_not(found):
    holds(found)


@pytest.mark.long
def test_so_it_does_on_harm_with_the_usual_settings(organism):
    prompts = mi.load_prompts("organism", per_topic=16)
    result = knn_moe2026(organism("harm"), prompts, rng=np.random.default_rng(0))
    rows, numbers = result.tables["memories"].set_index("memory"), result.numbers
    assert rows.loc["memory", "low"] > 0
    assert rows.loc["memory", "p"] <= 0.05
    assert numbers["p_shuffled"] == 0.05
    assert numbers["beyond_shuffled"]["low"] > 0


def test_an_empty_or_far_memory_changes_nothing(found):
    assert found.numbers["empty_is_identical"]
    assert found.numbers["far_is_identical"]
    rows = found.tables["memories"].set_index("memory")
    assert (rows.loc[["far memory", "empty memory"], "gain"] == 0).all()
    assert found.answers[-1] == (
        "An empty memory changes nothing, bit for bit; one far from everything changes nothing, "
        "bit for bit."
    )


def test_wordings_stay_in_one_half_and_are_the_units(found):
    data = shifted_prompts(per_topic=8)
    wording = dict(zip(data.ids, data.wordings, strict=True))
    held_out = {wording[one] for one in found.tables["sequences"]["prompt"]}
    rows = found.tables["memories"]
    assert (rows["units"] == len(held_out)).all()
    assert len(held_out) < len(set(wording.values()))
    settings = found.settings
    assert settings["reference sequences"] + settings["held-out sequences"] == len(data)


def test_the_gain_and_its_interval_are_those_of_the_units(found):
    from scipy import stats

    table = found.tables["sequences"]
    data = shifted_prompts(per_topic=8)
    wording = dict(zip(data.ids, data.wordings, strict=True))
    gain = table["untouched"] - table["memory"]
    by_unit = gain.groupby(table["prompt"].map(wording)).mean()
    low, high = stats.t.interval(
        0.95, len(by_unit) - 1, loc=by_unit.mean(), scale=stats.sem(by_unit)
    )
    row = found.tables["memories"].iloc[0]
    assert row["gain"] == pytest.approx(gain.mean())
    assert (row["low"], row["high"]) == pytest.approx((low, high))


@pytest.mark.long
def test_the_losses_can_be_had_again_from_the_parts(found, organism):
    model, data = organism("topic"), shifted_prompts(per_topic=8)
    held_out = list(found.tables["sequences"]["prompt"])
    reference = data.select([n for n, one in enumerate(data.ids) if one not in held_out])
    chosen = data.select([n for n, one in enumerate(data.ids) if one in held_out])
    memory = mi.fit_routing(model, reference, n_steps=25).memory
    again = response_losses(model, chosen, [[RetrieveRouting(memory, n_neighbours=1, half=4.0)]])
    np.testing.assert_allclose(again[0], found.tables["sequences"]["memory"], atol=0.02)


def test_the_tables_say_how_near_and_how_far_routing_went(found):
    layers, experts = found.tables["layers"], found.to_frame()
    assert ((layers["coefficient"] > 0.5) & (layers["coefficient"] <= 1)).all()
    assert layers["rerouted_reference_tokens"].between(0.05, 1).all()
    # The weights of an organism's two experts add up to 1, fitted or not.
    sums = experts.groupby("layer")[["own", "fitted", "difference"]].sum()
    np.testing.assert_allclose(sums["own"], 1, atol=1e-4)
    np.testing.assert_allclose(sums["fitted"], 1, atol=1e-4)


def test_prompts_with_responses_are_taken_as_they_are(organism):
    data = shifted_prompts(per_topic=1, seed=5)
    options = {"n_steps": 0, "n_shuffles": 1, "n_reference": 2, "n_held_out": 3}
    # Its only wording makes one unit, which cannot be split: the prompts given are used.
    with pytest.raises(PromptError, match="All prompts hang together in one exchange unit"):
        knn_moe2026(organism("topic"), data, rng=np.random.default_rng(0), **options)


def test_what_cannot_be_studied_is_refused(organism):
    model = organism("topic")
    plain = mi.load_model(model.nnsight._module, tokenizer=model.tokenizer, check=False)
    prompts = mi.load_prompts("organism", per_topic=1)
    rng = np.random.default_rng(0)
    with pytest.raises(PromptError, match="16 of 16 prompts have no `response`, and routing"):
        knn_moe2026(plain, prompts, rng=rng)
    with pytest.raises(ValueError, match="`n_shuffles` must be at least 1, got 0"):
        knn_moe2026(model, prompts, rng=rng, n_shuffles=0)
    data = shifted_prompts(per_topic=2)
    with pytest.raises(ValueError, match="held-out sequences must be at least 1, got 0"):
        knn_moe2026(model, data, rng=rng, n_held_out=0)
    with pytest.raises(DesignError, match="The held-out sequences are one unit"):
        knn_moe2026(plain, data, rng=rng, n_reference=1, n_held_out=1, n_steps=0, n_shuffles=1)


@pytest.mark.long
def test_it_runs_from_a_shell(tmp_path, monkeypatch):
    from moe_interp.cli import main

    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    shifted_prompts(per_topic=4).to_jsonl(file)
    command = ["moe-interp", "study", "knn_moe2026", "-m", "organism:topic", "-p", file, "-o", out]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    written = json.loads((out / "results.json").read_text())
    assert written["numbers"]["empty_is_identical"]
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "report.html",
        *(f"{name}.csv" for name in ("experts", "memories", "layers", "sequences")),
    }


@pytest.mark.long
def test_the_code_of_the_page_gives_the_gain_it_shows(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/knn_moe2026.md", tmp_path)
    assert n_blocks == 2
    assert names["result"].numbers["gain"] > 0.2
    assert names["texts"] is not None
