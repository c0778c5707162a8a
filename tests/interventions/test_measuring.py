"""Effects of one and of many interventions, and what is refused on the way."""

import json
import re

import numpy as np
import pytest
import torch
from scipy import stats

from moe_interp import (
    Ban,
    ExpertSet,
    Prompt,
    PromptSet,
    RefusalLogOdds,
    RefusalRate,
    Zero,
    measure_effect,
    run,
)
from moe_interp.interventions import AddVector, check_experts, measure_many

METRIC = RefusalLogOdds(token_ids=[7, 30])


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("olmoe")


@pytest.fixture(scope="module")
def prompts(texts):
    return PromptSet(
        [
            Prompt(text, topic="t", harm=harm, id=f"n{place}")
            for place, (text, harm) in enumerate(
                zip(texts, [True, True, False, False], strict=True)
            )
        ]
    )


def test_an_effect_is_intervened_minus_baseline_for_each_prompt(model, prompts):
    effect = measure_effect(model, prompts, Ban("L1E0,L2E1"), metric=METRIC)
    before = METRIC(run(model, prompts).logits).numpy()
    after = METRIC(run(model, prompts, Ban("L1E0,L2E1")).logits).numpy()
    np.testing.assert_allclose(effect.baseline, before, atol=1e-5)
    np.testing.assert_allclose(effect.intervened, after, atol=1e-5)
    np.testing.assert_allclose(effect.effect, after - before, atol=1e-5)
    frame = effect.to_frame()
    assert frame["harm"].tolist() == [True, True, False, False]
    np.testing.assert_allclose(frame["effect"], effect.effect)
    assert json.loads(json.dumps(effect.to_dict()))["metric"] == "refusal_log_odds"
    assert "harmful (2)" in effect.summary()


def test_the_mean_effect_has_the_t_interval_across_prompts(model, prompts):
    effect = measure_effect(model, prompts, Ban("L1E0,L2E1"), metric=METRIC)
    expected = stats.ttest_1samp(effect.effect, 0.0).confidence_interval(0.9)
    assert effect.mean(confidence=0.9) == pytest.approx((effect.effect.mean(), *expected))
    alone = effect.mean(np.array([True, False, False, False]))
    assert alone[0] == pytest.approx(effect.effect[0])
    assert np.isnan(alone[1:]).all()
    with pytest.raises(ValueError, match="No prompt is chosen"):
        effect.mean(np.zeros(4, dtype=bool))


@pytest.mark.parametrize("batch_rows", ["auto", 1, 3])
def test_many_sets_at_once_equal_a_loop_over_runs(model, prompts, batch_rows):
    sets = ["", "L1E0", "L2E1,L1E2", "L1E0", "L0E3,L0E4"]
    measured = measure_many(model, prompts, sets, metric=METRIC, batch_rows=batch_rows)
    for row, experts in zip(measured, sets, strict=True):
        loop = [METRIC(run(model, [text], Ban(experts)).logits).item() for text in prompts.texts]
        np.testing.assert_allclose(row, loop, atol=1e-5)


def test_many_sets_are_measured_by_their_texts_too(model, prompts):
    # A word that comes last, so that fewer tokens than asked for would miss it.
    metric = RefusalRate([run(model, prompts, max_new_tokens=5).texts[1].split()[-1]])
    sets = ["", "L1E0,L2E1,L2E2"]
    measured = measure_many(model, prompts, sets, metric=metric, mode="zero", max_new_tokens=5)
    for row, experts in zip(measured, sets, strict=True):
        generated = run(model, prompts, Zero(experts), max_new_tokens=5).texts
        assert row.tolist() == metric.of_texts(generated).tolist()
    assert measured[0].sum() > 0


def test_a_mode_may_be_any_function_from_a_set_to_an_intervention(model, prompts):
    def ban_at_last(experts: ExpertSet) -> Ban:
        return Ban(experts, tokens="last")

    measured = measure_many(model, prompts, ["L1E0,L2E1"], metric=METRIC, mode=ban_at_last)[0]
    alone = measure_effect(model, prompts, Ban("L1E0,L2E1", tokens="last"), metric=METRIC)
    np.testing.assert_allclose(measured, alone.intervened, atol=1e-5)


def test_rows_may_mix_interventions_at_all_tokens_and_at_some(model, prompts):
    def mixed(experts: ExpertSet) -> Ban:
        return Ban(experts, tokens="last" if (1, 0) in experts else None)

    sets = ["L1E0,L1E1,L1E2", "L1E4,L1E5,L1E6"]
    measured = measure_many(model, prompts, sets, metric=METRIC, mode=mixed)
    for row, experts in zip(measured, sets, strict=True):
        alone = measure_effect(model, prompts, mixed(ExpertSet.parse(experts)), metric=METRIC)
        np.testing.assert_allclose(row, alone.intervened, atol=1e-5)


def test_results_do_not_depend_on_batches(model, prompts):
    whole = run(model, prompts, Ban("L1E0"))
    single = run(model, prompts, Ban("L1E0"), batch_size=1)
    torch.testing.assert_close(whole.logits, single.logits, rtol=0, atol=1e-5)
    pair = run(model, prompts, Ban("L1E0"), batch_size=2, max_new_tokens=4)
    assert pair.tokens == run(model, prompts, Ban("L1E0"), max_new_tokens=4).tokens


def test_a_result_tells_what_was_said(model, prompts):
    result = run(model, prompts, max_new_tokens=3)
    frame = result.to_frame()
    assert frame["generated"].tolist() == list(result.texts)
    assert json.loads(json.dumps(result.to_dict()))["prompts"] == ["n0", "n1", "n2", "n3"]
    words = run(model, prompts).next_tokens
    assert words == tuple(text.split()[0] for text in result.texts) == result.next_tokens
    assert result.summary().startswith("4 prompts; likeliest next tokens: ")


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        ("L3E0", "There is no layer 3 in 'OlmoeForCausalLM', whose MoE layers are 0–2."),
        ("L1E8,L1E2", "Layer 1 of 'OlmoeForCausalLM' has experts 0–7, got 8."),
    ],
)
def test_experts_that_do_not_exist_are_refused_with_those_that_do(experts, said, model, prompts):
    for attempt in (
        lambda: run(model, prompts, Ban(experts)),
        lambda: measure_many(model, prompts, [experts], metric=METRIC, mode="zero"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            attempt()


def test_a_dense_layer_has_no_experts(tiny_model):
    said = "Layer 0 of 'DeepseekV3ForCausalLM' is dense, it has no experts. MoE layers: 1–2."
    with pytest.raises(ValueError, match=re.escape(said)):
        check_experts(tiny_model("deepseek_v3"), ExpertSet.parse("L0E0"))


def test_a_ban_must_leave_enough_experts_to_choose_from(model, tiny_model, texts):
    with pytest.raises(ValueError, match=r"Banning 7 of the 8 experts of layer 1 leaves fewer"):
        run(model, texts, Ban([(1, expert) for expert in range(7)]))
    grouped = [(1, expert) for expert in (0, 1, 2, 4, 5, 6)]
    with pytest.raises(ValueError, match=r"Layer 1: the ban leaves a token with fewer than 2"):
        run(tiny_model("deepseek_v3"), texts, Ban(grouped))


def test_tokens_and_phases_that_make_no_sense_are_refused(model, texts):
    with pytest.raises(ValueError, match=r"`phase` must be one of \('prefill', 'decode', 'both'\)"):
        Ban("L1E0", phase="always")
    with pytest.raises(ValueError, match=r"not there in phase 'decode'"):
        Ban("L1E0", tokens="last", phase="decode")
    with pytest.raises(ValueError, match=r"There is no span 'middle'\. Spans are 'prompt', 'user'"):
        run(model, texts, Ban("L1E0", tokens="middle"))
    with pytest.raises(ValueError, match=r"mask has 1 rows, but there are at least 4 prompts"):
        run(model, texts, Ban("L1E0", tokens=[[True] * 20]))
    with pytest.raises(ValueError, match=r"of prompt 1 has 5 entries, but the prompt has 16"):
        run(model, texts, Ban("L1E0", tokens=[[True] * 5] * 4), batch_size=1)
    with pytest.raises(ValueError, match=r"is an empty mask"):
        Zero("L1E0", tokens=[])


def test_metrics_and_options_that_do_not_fit_are_refused(model, texts):
    with pytest.raises(ValueError, match=r"'tanh' must turn logits .* \(4,\), got \(4, \d+\)"):
        measure_many(model, texts, [""], metric=torch.tanh)
    with pytest.raises(ValueError, match=r"refusal_rate judges texts, so `max_new_tokens`"):
        measure_many(model, texts, [""], metric=RefusalRate(), max_new_tokens=0)
    with pytest.raises(ValueError, match=r"`mode` must be one of \('ban', 'zero'\), or a function"):
        measure_many(model, texts, ["L1E0"], metric=METRIC, mode="mean")
    with pytest.raises(ValueError, match=r"`max_new_tokens` must be at least 0, got -1"):
        run(model, texts, max_new_tokens=-1)
    with pytest.raises(ValueError, match=r"`batch_size` must be 'auto' or a number of rows"):
        run(model, texts, batch_size="big")
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1, got 0"):
        run(model, texts, batch_size=0)
    with pytest.raises(ValueError, match=r"longer than the 253 tokens"):
        run(model, ["the " * 254], max_new_tokens=3)


def test_logits_that_are_not_numbers_name_the_prompt_and_the_intervention(model, prompts):
    bias = model.nnsight._module.lm_head
    handle = bias.register_forward_hook(lambda module, args, output: output * float("nan"))
    try:
        with pytest.raises(ValueError, match=r"prompt 'n1' under \[Ban\(.*L1E0.*\)\] are not"):
            run(model, prompts, Ban("L1E0"))
    finally:
        handle.remove()


@pytest.mark.parametrize("phase", ["both", "decode"])
def test_an_intervention_that_breaks_the_numbers_is_named_alone(phase, model, prompts):
    broken = [AddVector(2, [3e38] * 32, phase=phase)] * 2  # Infinite only together.
    said = r"prompt 'n\d' under \[AddVector\(layer=2.* are not numbers \(NaN\), as in 4 of"
    with pytest.raises(ValueError, match=said):
        run(model, prompts, broken, max_new_tokens=3)
    if phase == "both":
        with pytest.raises(ValueError, match=said):
            measure_effect(model, prompts, broken, metric=METRIC)
    else:
        assert measure_effect(model, prompts, broken, metric=METRIC).effect.max() == 0


def test_what_follows_the_end_of_a_text_may_be_no_number(model, prompts, monkeypatch):
    ends = [tokens[0] for tokens in run(model, prompts, max_new_tokens=1).tokens]
    monkeypatch.setattr(model.nnsight._module.generation_config, "eos_token_id", ends[:3])
    broken = [AddVector(2, [3e38] * 32, phase="decode")] * 2
    said = r"prompt 'n3' under .* are not numbers \(NaN\), as in 1 of 4 rows"
    assert ends[3] not in ends[:3]
    with pytest.raises(ValueError, match=said):
        run(model, prompts, broken, max_new_tokens=3)


def test_metrics_that_give_no_number_are_refused(model, prompts):
    def logarithm(logits):
        return torch.tensor([1.0, -1.0, 1.0, -1.0]).log()

    said = "'logarithm' gives NaN for 2 of 4 rows, whose logits are numbers. Let it give"
    with pytest.raises(ValueError, match=said):
        measure_many(model, prompts, [""], metric=logarithm)

    class Silent(RefusalRate):
        def of_texts(self, texts):
            return np.full(self.n, np.nan if self.n == len(texts) else 1.0)

    said = r"'refusal_rate' must judge each of the 4 texts by one number, shape \(4,\), got "
    for n, got in ((4, r"\[nan, nan, nan, nan\]"), (1, r"\(1,\)")):
        silent = Silent()
        object.__setattr__(silent, "n", n)
        with pytest.raises(ValueError, match=said + got):
            measure_many(model, prompts, [""], metric=silent, max_new_tokens=2)
