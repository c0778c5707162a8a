"""What is recorded is what the experts received, in a forward that knows nothing of us."""

import re

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_interp.capture import open_record, record_routing
from moe_interp.errors import (
    PromptError,
    ResultExistsError,
    SpanError,
    UnsupportedArchitectureError,
)
from moe_interp.models import load_model
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.stats import routing_shares

TEN = (
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"),
    *("gpt_oss", "granitemoe", "glm4_moe", "phimoe"),
)
# The chat template of `conftest.py` writes two tokens before the user's words and one after.
N_BEFORE, N_AFTER = 2, 1


def seen_by_experts(model, tokenizer, texts, padding_side):
    """What the experts modules are called with at real tokens: {layer: (index, weights)}."""
    inputs = tokenizer(list(texts), padding=True, padding_side=padding_side, return_tensors="pt")
    real = inputs["attention_mask"].bool()
    inputs["position_ids"] = (real.cumsum(dim=1) - 1).clamp(min=0)
    seen = {}

    def remember(module, args, kwargs, name):
        _, index, weights = [*args, *kwargs.values()]
        layer = int(re.search(r"layers\.(\d+)\.", name)[1])
        seen[layer] = [value.unflatten(0, real.shape)[real] for value in (index, weights)]

    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: remember(module, args, kwargs, name),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("model_type", TEN)
def test_records_what_the_experts_received(tiny_checkpoint, prompts, model_type, padding_side):
    folder = tiny_checkpoint(model_type)
    # One batch in the order of the record, so that not even rounding differs.
    texts = sorted(prompts.texts, key=lambda text: -len(text.split()))
    record = record_routing(
        load_model(folder, check=False),
        texts,
        batch_size=len(texts),
        padding_side=padding_side,
        progress=False,
    )
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = seen_by_experts(model, AutoTokenizer.from_pretrained(folder), texts, padding_side)
    assert record.layers == tuple(seen)
    for row, (index, weights) in enumerate(seen.values()):
        in_order = weights.float().argsort(dim=-1, descending=True, stable=True)
        for name, expected in (("expert_index", index), ("routing_weights", weights)):
            found = record.dataset[name].values[:, row]
            assert np.array_equal(found, expected.gather(-1, in_order).float().numpy())


def test_router_logits_are_the_routers_own(model, prompts):
    record = record_routing(model, prompts[:1], batch_size=1, progress=False)
    seen = []
    router = model.nnsight._module.model.layers[1].mlp.gate
    hook = router.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompts.texts[0]}], tokenize=False, add_generation_prompt=True
    )
    with torch.no_grad():
        model.nnsight._module(**model.tokenizer(text, return_tensors="pt"))
    hook.remove()
    assert np.array_equal(record.dataset["router_logits"].values[:, 1], seen[0].numpy())


def test_router_probs_are_the_softmax_of_the_logits(model, prompts):
    record = record_routing(
        model, prompts, quantities=("router_logits", "router_probs"), progress=False
    )
    logits = record.dataset["router_logits"].values.astype(np.float64)
    expected = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(record.dataset["router_probs"].values, expected, atol=1e-6)


def test_choices_are_sorted_by_weight_highest_first(make_model, prompts):
    # Group-limited routers hand out their choices in no order.
    record = record_routing(make_model("deepseek_v3"), prompts, progress=False)
    assert (np.diff(record.dataset["routing_weights"].values, axis=-1) <= 0).all()


def test_no_padding_is_recorded(record, model, prompts):
    lengths = [len(text.split()) + N_BEFORE + N_AFTER for text in prompts.texts]
    assert record.n_tokens == sum(lengths)
    assert np.bincount(record.dataset["prompt_index"].values).tolist() == lengths
    assert model.tokenizer.pad_token_id not in record.dataset["token_id"].values
    assert record.dataset["pos"].values.tolist() == [pos for n in lengths for pos in range(n)]


def test_prompts_come_back_in_the_order_given(record, prompts):
    owner = record.dataset["prompt_index"].values
    words = record.dataset["token_text"].values
    for row, text in enumerate(prompts.texts):
        assert words[owner == row][N_BEFORE:-N_AFTER].tolist() == text.split()


def test_a_prompts_routing_is_that_of_the_prompt_alone(record, model, prompts):
    owner = record.dataset["prompt_index"].values
    for row in (0, 7, 15):
        alone = record_routing(model, prompts[row : row + 1], progress=False).dataset
        for name in ("expert_index", "routing_weights"):
            together = record.dataset[name].values[owner == row]
            np.testing.assert_allclose(together, alone[name].values, atol=1e-6)


def test_spans_hold_the_tokens_they_are_named_for(record, prompts):
    inside = {span: record.dataset["in_span"].sel(span=span).values for span in record.spans}
    owner = record.dataset["prompt_index"].values
    assert inside["prompt"].all()
    for row, text in enumerate(prompts.texts):
        n_words = len(text.split())
        own = owner == row
        expected = [False] * N_BEFORE + [True] * n_words + [False] * N_AFTER
        assert inside["user"][own].tolist() == expected
        assert inside["last"][own].tolist() == [False] * (len(expected) - 1) + [True]


@pytest.mark.parametrize("model_type", ["olmoe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 3}, {"padding_side": "left"}], ids=str
)
def test_numbers_do_not_depend_on_the_batch(make_model, prompts, model_type, options):
    model = make_model(model_type)
    first, second = (
        record_routing(
            model, prompts, rng=np.random.default_rng(0), n_random_routers=9, progress=False, **more
        )
        for more in ({}, options)
    )
    assert np.array_equal(first.dataset["expert_index"], second.dataset["expert_index"])
    for name in ("routing_weights", "router_logits"):
        found, expected = second.dataset[name].values, first.dataset[name].values
        # The model's own products are rounded anew in every batch: a few units of float32.
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    for span in first.spans:
        assert np.array_equal(first.shares(span), second.shares(span))
        found, expected = (
            routing_shares(one.profile(span), random_profiles=one.random_profiles(span))
            .to_frame()
            .select_dtypes("number")
            for one in (first, second)
        )
        for column in expected:
            # Random routers choose by the rounded inputs themselves, here of just 16 prompts.
            atol = 1e-5 if "random" in column else 1e-9
            np.testing.assert_allclose(found[column], expected[column], atol=atol)


@pytest.mark.parametrize("span", ["user", "prompt", "last"])
def test_shares_count_the_slots_of_each_prompt(record, span):
    dataset, shares = record.dataset, record.shares(span)
    inside = dataset["in_span"].sel(span=span).values
    for prompt in range(record.n_prompts):
        tokens = np.flatnonzero(inside & (dataset["prompt_index"].values == prompt))
        for row in range(len(record.layers)):
            chosen = [int(e) for t in tokens for e in dataset["expert_index"].values[t, row]]
            expected = [chosen.count(expert) / len(chosen) for expert in range(record.n_experts)]
            np.testing.assert_allclose(shares[prompt, row], expected, atol=1e-12)
        assert record.n_slots(span)[prompt] == len(tokens) * record.top_k


def test_a_profile_carries_the_design(record, prompts):
    profile = record.profile("user")
    assert np.array_equal(profile.shares, record.shares("user"))
    assert profile.layers == record.layers
    assert tuple(profile.topic) == prompts.topics
    assert tuple(profile.pair) == prompts.pairs
    assert tuple(profile.id) == prompts.ids
    assert np.array_equal(profile.harm, prompts.harm)
    assert set(profile.wording) == {None}


def router_inputs(model, prompts, layer):
    """What a router sees at the real tokens of each prompt, by a hook of our own."""
    router, seen = model.nnsight._module.model.layers[layer].mlp.gate, []
    hook = router.register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    for text in prompts.texts:
        turn = [{"role": "user", "content": text}]
        inputs = model.tokenizer.apply_chat_template(turn, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            model.nnsight._module(**inputs)
    hook.remove()
    return seen


def test_random_routers_choose_the_top_k_of_their_own_logits(record, model, prompts):
    rng = np.random.default_rng(0)
    size = (record.n_random_routers, model.architecture.d_model, record.n_experts)
    for row, layer in enumerate(record.layers):
        routers = rng.standard_normal(size, dtype=np.float32)
        for prompt, hidden in enumerate(router_inputs(model, prompts, layer)):
            for draw, router in enumerate(routers):
                logits = hidden.reshape(-1, size[1]) @ router
                chosen = np.argsort(-logits, axis=1)[:, : record.top_k]
                expected = np.bincount(chosen.ravel(), minlength=size[2]) / chosen.size
                found = record.random_profiles("prompt")[draw, prompt, row]
                # Near ties share a slot, half of it at most.
                np.testing.assert_allclose(found, expected, atol=0.51 / chosen.size)


@pytest.mark.parametrize("span", ["user", "prompt", "last"])
def test_random_profiles_are_shares_of_the_span(record, span):
    random = record.random_profiles(span)
    assert random.shape == (5, 16, len(record.layers), record.n_experts)
    np.testing.assert_allclose(random.sum(axis=-1), 1, atol=1e-6)
    if span == "last":
        assert (np.sort(random, axis=-1)[..., : -record.top_k - 1] == 0).all()


def test_random_profiles_differ_by_span_draw_and_prompt(record):
    user, last = record.random_profiles("user"), record.random_profiles("last")
    assert not np.array_equal(user, last)
    assert not np.array_equal(user[0], user[1])
    assert not np.array_equal(user[:, 0], user[:, 1])


def test_the_same_generator_draws_the_same_random_routers(model, prompts):
    few = prompts[:4]
    first, same, other = (
        record_routing(
            model, few, rng=np.random.default_rng(seed), n_random_routers=2, progress=False
        ).random_profiles("user")
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_without_a_generator_there_are_no_random_routers(model, prompts):
    record = record_routing(model, prompts[:2], progress=False)
    assert record.n_random_routers == 0
    with pytest.raises(ValueError, match=r"no random routers. Capture it again with"):
        record.random_profiles("user")


def test_with_a_generator_there_are_99_random_routers(model, prompts):
    rng = np.random.default_rng(0)
    assert record_routing(model, prompts[:2], rng=rng, progress=False).n_random_routers == 99


@pytest.mark.parametrize("options", [{"n_random_routers": 3}, {"n_random_routers": -1}])
def test_random_routers_without_a_generator_are_refused(model, prompts, options):
    with pytest.raises(ValueError, match="`n_random_routers` must be 0, or positive with `rng`"):
        record_routing(model, prompts, progress=False, **options)


def test_random_routers_that_need_too_much_memory_are_refused(model, prompts):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"need 11 GiB; at most 8 GiB.*smaller `n_random"):
        record_routing(model, prompts, rng=rng, n_random_routers=4_000_000, progress=False)


def test_only_the_quantities_asked_for_are_kept(model, prompts):
    dataset = record_routing(model, prompts[:2], quantities=(), progress=False).dataset
    assert set(dataset.data_vars) == {"expert_index", "in_span"}


def test_only_the_spans_asked_for_are_located(model, prompts):
    record = record_routing(model, prompts[:2], spans=("last",), progress=False)
    assert record.spans == ("last",)
    with pytest.raises(SpanError, match=r"The span 'user' was not recorded. Recorded: last"):
        record.shares("user")


def test_plain_texts_are_recorded_too(model):
    record = record_routing(model, ["how do i bake", "a cake"], progress=False)
    assert record.prompts.texts == ("how do i bake", "a cake")


def test_a_record_knows_its_model_and_prompts(record, model, prompts):
    assert record.model == model.architecture.to_dict()
    assert record.prompts == prompts
    assert record.dataset.attrs["prompts"]["digest"] == prompts.digest


def test_the_summary_says_what_was_recorded(record):
    text = record.summary()
    for part in ("16 prompts", "8 pairs", "layers 0, 1, 2", "8 experts, top 2", "5 random routers"):
        assert part in text


def test_double_precision_stays_double(prompts):
    built = tiny_models.build("olmoe", dtype=torch.float64)
    built.set_experts_implementation("eager")
    model = load_model(built, tokenizer=tiny_models.build_tokenizer(), check=False)
    record = record_routing(model, prompts[:2], progress=False)
    assert record.dataset["routing_weights"].dtype == np.float64
    sums = record.dataset["router_logits"].values
    assert not np.array_equal(sums, sums.astype(np.float32))


def test_half_precision_is_kept_exactly(make_model, prompts):
    record = record_routing(make_model("olmoe", dtype=torch.bfloat16), prompts[:2], progress=False)
    weights = torch.from_numpy(record.dataset["routing_weights"].values)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, weights.bfloat16().float())


def test_the_bar_is_on_stderr_and_nothing_on_stdout(model, prompts, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    record_routing(model, prompts[:2])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "capturing routing" in captured.err


def test_there_is_no_bar_where_nobody_sees_it(model, prompts, capfd):
    record_routing(model, prompts[:2])
    assert capfd.readouterr() == ("", "")


def test_the_store_is_written(model, prompts, tmp_path):
    record = record_routing(model, prompts[:2], store=tmp_path / "a.zarr", progress=False)
    assert open_record(tmp_path / "a.zarr").prompts == record.prompts


def test_a_store_that_exists_is_refused_before_the_model_runs(model, tmp_path):
    too_long = ["how " * 1000]
    with pytest.raises(ResultExistsError, match="exists already and was left as it is"):
        record_routing(model, too_long, store=tmp_path, progress=False)


def test_a_prompt_longer_than_the_context_is_refused(model):
    prompts = PromptSet([Prompt("how do"), Prompt("how " * 300, id="endless")])
    with pytest.raises(PromptError, match=r"the 256 tokens .* 'endless \(303 tokens\)'"):
        record_routing(model, prompts, progress=False)


def test_an_unknown_quantity_is_refused(model, prompts):
    with pytest.raises(ValueError, match=r"`quantities` are among .* got 'logits'"):
        record_routing(model, prompts, quantities=("logits",), progress=False)


def test_an_unknown_span_is_refused(model, prompts):
    with pytest.raises(SpanError, match="There is no span 'first'"):
        record_routing(model, prompts, spans=("first",), progress=False)


def test_weights_that_are_not_finite_are_refused_by_layer_and_prompt(prompts):
    broken = tiny_models.build("olmoe")
    with torch.no_grad():
        broken.model.layers[1].mlp.gate.weight.fill_(float("nan"))
    model = load_model(broken, tokenizer=tiny_models.build_tokenizer(), check=False)
    with pytest.raises(ValueError, match=r"not finite, the first in layer 1 of prompt 'p0000'"):
        record_routing(model, prompts, progress=False)


def test_layers_of_unlike_sizes_are_refused(prompts):
    built = tiny_models.build("olmoe")
    model = load_model(built, tokenizer=tiny_models.build_tokenizer(), check=False)
    model.moe[1].top_k = 1
    with pytest.raises(UnsupportedArchitectureError, match=r"differ in their numbers.*\(8, 1\)"):
        record_routing(model, prompts, progress=False)
