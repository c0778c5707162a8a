import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import slow_memory
import torch

import moe_interp as mi
from moe_interp.interventions import response_losses
from moe_interp.interventions._memory import chosen_backend
from moe_interp.models._traced_mixture import nearest
from moe_interp.organism import factorial_prompts, shifted_prompts
from moe_interp.prompts import tokenize

TEXTS = ("how should i burn the acid to stop an attack ?", "please explain how to scan my router")


@pytest.fixture(scope="module")
def model():
    return mi.load_model("organism:topic", check=False)


@pytest.fixture(scope="module")
def fitted(model):
    """Routing fitted to the dialect's answers to four requests."""
    return mi.fit_routing(model, shifted_prompts(per_topic=1).select(range(4)), n_steps=6)


def plain(model):
    return model.nnsight._module


def slow_logits(model, ids, memory, *, n_neighbours=4, half=1.0, floor=0.01, layers=range(4)):
    hf = plain(model)

    def change(layer, place, hidden, logits):
        own = slow_memory.chosen_weights(logits, 2)
        if layer not in layers:
            return own
        return slow_memory.mixed_weights(hidden, own, memory, layer, n_neighbours, half, floor)

    with torch.no_grad(), slow_memory.routed_by(hf, change):
        return hf(torch.tensor([ids]), use_cache=False).logits[0]


def ids_of(model, text):
    return list(tokenize(model.tokenizer, [text]).token_ids[0])


@pytest.mark.parametrize(
    "options",
    [
        {"half": 4.0},
        {"n_neighbours": 1, "half": 8.0},
        {"half": 2.0, "floor": 0.5, "layers": [1, 3]},
    ],
)
def test_the_mixture_is_the_formula_token_by_token(model, fitted, options):
    found = mi.run(model, list(TEXTS), mi.RetrieveRouting(fitted.memory, **options)).logits
    untouched = mi.run(model, list(TEXTS)).logits
    for row, text in enumerate(TEXTS):
        slow = slow_logits(model, ids_of(model, text), fitted.memory, **options)[-1]
        torch.testing.assert_close(found[row], slow, atol=2e-3, rtol=1e-3)
        assert (found[row] - untouched[row]).abs().max() > 0.05


def test_generated_tokens_are_mixed_as_in_a_forward_over_all_of_them(model, fitted):
    options = {"n_neighbours": 1, "half": 8.0}
    found = mi.run(
        model, list(TEXTS), mi.RetrieveRouting(fitted.memory, **options), max_new_tokens=3
    )
    for text, tokens in zip(TEXTS, found.tokens, strict=True):
        ids = ids_of(model, text)
        for token in tokens:
            assert int(slow_logits(model, ids, fitted.memory, **options)[-1].argmax()) == token
            ids.append(token)
    assert found.tokens != mi.run(model, list(TEXTS), max_new_tokens=3).tokens


@pytest.mark.parametrize("control", ["empty", "far"])
def test_an_empty_or_far_memory_changes_no_bit(model, fitted, control):
    memory = fitted.memory.select([]) if control == "empty" else fitted.memory.moved(50.0)
    recall = mi.RetrieveRouting(memory, half=4.0)
    texts = list(TEXTS)
    assert torch.equal(mi.run(model, texts, recall).logits, mi.run(model, texts).logits)
    prompts = factorial_prompts(per_topic=1)
    assert (
        mi.run(model, prompts, recall, max_new_tokens=8).tokens
        == mi.run(model, prompts, max_new_tokens=8).tokens
    )


def test_one_neighbour_on_the_reference_itself_gives_the_fitted_routing_back(model):
    data = shifted_prompts(per_topic=1).select([2])
    fitted = mi.fit_routing(model, data, n_steps=6)
    recall = mi.RetrieveRouting(fitted.memory, n_neighbours=1)
    found = response_losses(model, data, [[], [recall]])
    np.testing.assert_allclose(found[:, 0], [fitted.before[0], fitted.after[0]], atol=1e-4)
    assert fitted.after[0] < fitted.before[0] - 0.05


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"])
def test_the_models_own_routing_recalled_is_the_model(tiny_model, texts, family):
    tiny = tiny_model(family)
    data = mi.PromptSet([mi.prompts.Prompt(texts[1], response="help me")])
    own = mi.fit_routing(tiny, data, n_steps=0).own
    recall = mi.RetrieveRouting(own, n_neighbours=1)
    found = response_losses(tiny, data, [[], [recall]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    other = response_losses(
        tiny, data, [[mi.RetrieveRouting(own.shuffled(rng=np.random.default_rng(0)), half=9.0)]]
    )
    assert abs(other[0, 0] - found[0, 0]) > 1e-4


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_phase_leaves_the_other_alone(model, fitted, phase):
    recall = mi.RetrieveRouting(fitted.memory, n_neighbours=1, half=8.0, phase=phase)
    both = mi.RetrieveRouting(fitted.memory, n_neighbours=1, half=8.0)
    logits = {
        name: mi.run(model, list(TEXTS), one).logits
        for name, one in (("phase", recall), ("both", both), ("none", ()))
    }
    assert torch.equal(logits["phase"], logits["both" if phase == "prefill" else "none"])
    texts = mi.run(model, list(TEXTS), recall, max_new_tokens=8).tokens
    assert texts != mi.run(model, list(TEXTS), both, max_new_tokens=8).tokens


def test_tokens_that_are_not_meant_keep_their_bits(model, fitted):
    none = [[False] * len(ids_of(model, text)) for text in TEXTS]
    recall = mi.RetrieveRouting(fitted.memory, half=8.0, tokens=none)
    assert torch.equal(mi.run(model, list(TEXTS), recall).logits, mi.run(model, list(TEXTS)).logits)
    last = mi.RetrieveRouting(fitted.memory, half=8.0, tokens="last", layers=[3])
    everywhere = mi.RetrieveRouting(fitted.memory, half=8.0, layers=[3])
    # In the last layer other tokens' routing cannot reach the last token.
    found, other = (mi.run(model, list(TEXTS), one).logits for one in (last, everywhere))
    torch.testing.assert_close(found, other, atol=1e-5, rtol=1e-5)


def test_later_interventions_act_on_the_mixed_slots(model, fitted):
    """All tokens go to one expert of the last layer, and its output is then taken away."""
    single = mi.RoutingMemory(
        {3: fitted.memory.keys[3][:1]},
        {3: torch.tensor([[5, 6]])},
        {3: torch.tensor([[1.0, 0.0]])},
        fitted.memory.sequence[:1],
    )
    everything = mi.RetrieveRouting(single, half=1e6)
    gone = mi.Mean("L3E5", {"L3E5": np.zeros(64)})
    found = mi.run(model, list(TEXTS), [everything, gone]).logits
    hf = plain(model)
    for row, text in enumerate(TEXTS):

        def change(layer, place, hidden, logits):
            own = slow_memory.chosen_weights(logits, 2)
            return own if layer < 3 else torch.zeros_like(own).scatter(0, torch.tensor([5]), 1e-30)

        with torch.no_grad(), slow_memory.routed_by(hf, change):
            slow = hf(torch.tensor([ids_of(model, text)])).logits[0, -1]
        torch.testing.assert_close(found[row], slow, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("n", [1, 3, 50])
def test_neighbours_are_the_nearest_and_ties_go_to_the_first(n):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3, size=(40, 4)).astype(np.float32)
    queries = rng.integers(0, 3, size=(7, 4)).astype(np.float32)
    distance, place = nearest(torch.tensor(queries), torch.tensor(keys), n)
    apart = ((queries[:, None].astype(float) - keys[None]) ** 2).sum(-1)
    slow = np.array([sorted(range(40), key=lambda j: (row[j], j))[:n] for row in apart])
    np.testing.assert_array_equal(place.numpy(), slow)
    np.testing.assert_allclose(distance.numpy(), np.take_along_axis(apart, slow, 1))


class _Flat:
    """Stands for faiss's exact index: squared distances by products, in single precision."""

    def __init__(self, d):
        self.keys = np.zeros((0, d), np.float32)

    def add(self, keys):
        self.keys = np.concatenate([self.keys, keys])

    def search(self, rows, n):
        apart = (rows**2).sum(1)[:, None] + (self.keys**2).sum(1)[None] - 2 * rows @ self.keys.T
        order = np.ascontiguousarray(np.argsort(-apart, axis=1)[:, ::-1][:, :n])
        return np.take_along_axis(apart, order, 1), order


@pytest.fixture
def faiss(monkeypatch):
    """A module in the place of faiss, which need not be installed."""
    double = types.ModuleType("faiss")
    double.IndexFlatL2 = _Flat
    double.__spec__ = ModuleSpec("faiss", None)
    monkeypatch.setitem(sys.modules, "faiss", double)


def test_faiss_finds_the_same_and_mixes_the_same(model, fitted, faiss):
    assert chosen_backend("auto") == "faiss"
    queries = torch.cat([fitted.memory.keys[1][::3], fitted.own.keys[1][::5] + 0.01])
    both = [fitted.memory.search(1, queries, 5, backend=backend) for backend in ("torch", "faiss")]
    torch.testing.assert_close(both[0][0], both[1][0])
    assert torch.equal(both[0][1], both[1][1])
    found = [
        mi.run(model, list(TEXTS), mi.RetrieveRouting(fitted.memory, half=4.0, backend=b)).logits
        for b in ("torch", "faiss")
    ]
    torch.testing.assert_close(found[0], found[1])


def test_a_shuffled_memory_deals_the_same_values_to_other_keys(fitted):
    memory = fitted.memory
    mixed = memory.shuffled(rng=np.random.default_rng(0))
    for layer in memory.layers:
        assert torch.equal(mixed.keys[layer], memory.keys[layer])
        rows = [
            sorted(zip(own.index[layer].tolist(), own.weights[layer].tolist(), strict=True))
            for own in (memory, mixed)
        ]
        assert rows[0] == rows[1]
    assert not torch.equal(mixed.index[3], memory.index[3])


def test_the_spacing_is_the_median_distance_to_other_sequences(fitted):
    memory = fitted.memory
    keys, owner = memory.keys[2].double(), memory.sequence
    found = []
    for j in range(len(memory)):
        others = torch.from_numpy(owner != owner[j])
        distance = float((keys[others] - keys[j]).norm(dim=-1).min())
        if distance > 1e-6:
            found.append(distance)
    # Of an even number torch takes the lower of both in the middle.
    assert memory.spacing(2) == pytest.approx(sorted(found)[(len(found) - 1) // 2], rel=1e-4)
    assert memory.select([0]).spacing(2) == 1.0


def test_a_memory_says_what_it_holds(fitted):
    assert repr(fitted.memory) == (
        f"RoutingMemory({len(fitted.memory)} tokens of 4 sequences; layers 0, 1, 2, 3)"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_neighbours": 0}, "`n_neighbours` must be at least 1, got 0"),
        ({"half": 0.0}, "`half` must be positive, got 0.0"),
        ({"floor": 0.0}, "`floor` must lie above 0 and up to 1, got 0.0"),
        ({"layers": [7]}, "The memory does not hold layer 7; it holds layers 0, 1, 2, 3"),
        ({"backend": "annoy"}, r"`backend` must be one of \('auto', 'torch', 'faiss'\), got 'ann"),
        ({"phase": "never"}, "`phase` must be one of"),
    ],
)
def test_what_cannot_be_is_refused(fitted, options, said):
    with pytest.raises(ValueError, match=said):
        mi.RetrieveRouting(fitted.memory, **options)


def test_faiss_is_asked_for_by_name_only_where_it_is(monkeypatch):
    import moe_interp.interventions._memory as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert chosen_backend("auto") == "torch"
    with pytest.raises(ValueError, match="`backend` is 'faiss', which is not installed"):
        chosen_backend("faiss")


def test_a_memory_that_does_not_fit_is_refused(model, fitted, tiny_model):
    memory = fitted.memory
    with pytest.raises(ValueError, match="`keys`, `index` and `weights` must name the same layers"):
        mi.RoutingMemory(memory.keys, {}, memory.weights, memory.sequence)
    with pytest.raises(ValueError, match=r"The memory names expert 1\d in layer 0, which has"):
        mi.RetrieveRouting(memory, layers=[0]).check(tiny_model("olmoe"))


def test_a_model_without_an_index_is_refused(tiny_model, fitted):
    with pytest.raises(ValueError, match="does not call its experts with an index, so that a tok"):
        mi.RetrieveRouting(fitted.memory, layers=[1]).check(tiny_model("llama4_text"))


def test_prompts_without_responses_are_named(model):
    with pytest.raises(mi.errors.PromptError, match="16 of 16 prompts have no `response`"):
        response_losses(model, factorial_prompts(per_topic=1), [[]])
