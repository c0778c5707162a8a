"""Views of tokens with selectors, of an expert's top tokens, of transitions: their numbers."""

import base64
import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from moe_interp.viz import TokenExplorer, show_tokens, show_top_tokens, show_transitions


def data_of(document):
    packed = re.search(r'id="data">(.*?)</script>', document)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def unpacked(pack, kind):
    """Read a pack as the page's script does: a value of each token, layer and expert."""
    shape = (-1, len(pack["layers"]), pack["top_k"])
    index = np.frombuffer(base64.b64decode(pack["index"]), "uint8").reshape(shape)
    steps = np.frombuffer(base64.b64decode(pack["weights"]), kind).reshape(shape)
    return index, steps


@pytest.fixture
def contributions(record):
    shape = (record.dataset.sizes["token"], 4, 16)
    return np.random.default_rng(0).normal(size=shape)


def test_a_record_alone_gives_selectors_over_every_layer_and_expert(record):
    view = show_tokens(record)
    assert isinstance(view, TokenExplorer)
    assert (view.layers, view.n_experts) == ((1, 2, 4, 5), 16)
    page = view.to_html()
    assert [f'id="{name}"' in page for name in ("s-prompt", "s-layer", "s-expert")] == [True] * 3
    assert page.count("<script") == 5


def test_it_starts_with_the_expert_that_gets_most_weight(record):
    index = record.dataset["expert_index"].values.tolist()
    weight = record.dataset["routing_weights"].values.tolist()
    total = {}
    for token in range(len(index)):
        for row, layer in enumerate((1, 2, 4, 5)):
            for slot in range(2):
                key = (layer, index[token][row][slot])
                total[key] = total.get(key, 0.0) + weight[token][row][slot]
    start = show_tokens(record).start
    assert (start.layer, start.expert) == max(total, key=total.get)


def test_values_of_every_expert_arrive_with_their_signs(record, contributions):
    view = show_tokens(record, contributions, prompts=[3, 0], name="contribution")
    pack = data_of(view.to_html())["tokens"]
    index, steps = unpacked(pack, "int8")
    owner = record.dataset["prompt_index"].values
    rows = np.concatenate([np.flatnonzero(owner == prompt) for prompt in (3, 0)])
    expected = np.take_along_axis(contributions[rows], index.astype(int), axis=-1)
    scale = np.abs(contributions[rows]).max()
    assert pack["scale"] == pytest.approx(scale)
    np.testing.assert_allclose(steps / 127 * scale, expected, atol=scale / 127)
    small = np.abs(expected) < scale / 254
    assert small.any()
    assert (np.sign(steps) == np.sign(expected)).all()


def test_of_many_experts_the_largest_magnitudes_are_kept():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 1, 40))
    record = tiny(rng, n_experts=40)
    index, _ = unpacked(data_of(show_tokens(record, values).to_html())["tokens"], "int8")
    for token in range(4):
        best = np.argsort(-np.abs(values[token, 0]))[:16]
        assert set(index[token, 0].tolist()) == set(best.tolist())


def tiny(rng, *, n_experts):
    import xarray as xr

    order = rng.random((4, 1, n_experts)).argsort(-1)[..., :2]
    dataset = xr.Dataset(
        {
            "expert_index": (("token", "layer", "top_k"), order),
            "routing_weights": (("token", "layer", "top_k"), np.full((4, 1, 2), 0.5)),
        },
        coords={
            "layer": [0],
            "prompt_index": ("token", [0, 0, 1, 1]),
            "token_text": ("token", np.array(["a", "b", "c", "d"], dtype=object)),
            "id": ("prompt", np.array(["p", "q"], dtype=object)),
            "text": ("prompt", np.array(["a b", "c d"], dtype=object)),
            "pos": ("token", [0, 1, 0, 1]),
        },
    )
    return SimpleNamespace(dataset=dataset, n_experts=n_experts)


def test_values_in_the_order_of_the_choices_belong_to_the_chosen(record):
    slots = np.arange(record.dataset["expert_index"].size, dtype=float)
    slots = slots.reshape(record.dataset["expert_index"].shape) + 1
    view = show_tokens(record, slots, prompts=[1])
    index, steps = unpacked(data_of(view.to_html())["tokens"], "int8")
    rows = record.dataset["prompt_index"].values == 1
    np.testing.assert_array_equal(index, record.dataset["expert_index"].values[rows])
    np.testing.assert_allclose(steps / 127 * slots[rows].max(), slots[rows], rtol=0.01)


def test_what_has_no_value_is_told_from_zero(record, contributions):
    contributions[:, 0, 3] = np.nan
    contributions[:, 0, 4] = 0.0
    pack = data_of(show_tokens(record, contributions, prompts=[0]).to_html())["tokens"]
    index, steps = unpacked(pack, "int8")
    assert set(steps[:, 0][index[:, 0] == 3]) == {-128}
    assert set(steps[:, 0][index[:, 0] == 4]) == {0}
    html = show_tokens(["a", "b"], [float("nan"), 1.0])._repr_html_()
    assert '<span title="no value" style="border-bottom:2px dotted' in html


def test_one_number_for_each_token_of_a_record_is_cut_into_prompts(record):
    numbers = np.arange(record.dataset.sizes["token"], dtype=float)
    view = show_tokens(record, numbers, prompts=[2, 0])
    owner = record.dataset["prompt_index"].values
    assert [list(line) for line in view.values] == [
        numbers[owner == 2].tolist(),
        numbers[owner == 0].tolist(),
    ]
    with pytest.raises(ValueError, match=r"`values` has 3 numbers for the \d+ tokens"):
        show_tokens(record, np.zeros(3))


def test_values_that_do_not_fit_the_record_are_refused(record, contributions):
    with pytest.raises(ValueError, match=r"\(token, layer, expert\) = \(\d+, 4, 16\) or"):
        show_tokens(record, contributions[..., :7])
    contributions[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"got an infinity\. Give NaN"):
        show_tokens(record, contributions)
    with pytest.raises(ValueError, match=r"`prompts` must lie in 0 to 47, got \[50\]"):
        show_tokens(record, prompts=[50])
    with pytest.raises(ValueError, match="`values` is missing"):
        show_tokens(["a"])


def test_where_scripts_do_not_run_the_first_prompts_are_seen(record):
    html = show_tokens(record)._repr_html_()
    static = html.split("<iframe")[0]
    assert "&lt;bos&gt;" in static
    assert "<img" not in static
    assert "rgba(33, 102, 172" in static


def test_top_tokens_are_the_largest_weights_of_each_expert(record):
    found = show_top_tokens(record, n=3).to_frame()
    texts = record.dataset["token_text"].values
    index = record.dataset["expert_index"].values.tolist()
    weight = record.dataset["routing_weights"].values.tolist()
    for row, layer in enumerate((1, 2, 4, 5)):
        for expert in range(16):
            weights = [
                (weight[t][row][k], t)
                for t in range(len(index))
                for k in range(2)
                if index[t][row][k] == expert
            ]
            weights.sort(key=lambda pair: (-pair[0], pair[1]))
            mine = found[(found["layer"] == layer) & (found["expert"] == expert)]
            assert mine["weight"].tolist() == [weight for weight, _ in weights[:3]]
            assert mine["token"].tolist() == [str(texts[t]) for _, t in weights[:3]]
            assert mine["rank"].tolist() == list(range(1, len(mine) + 1))


def test_a_line_holds_the_words_around_of_the_same_prompt_only(record):
    view = show_top_tokens(record, "L4E5", n=4, context=2)
    data = data_of(view.to_html())
    words = np.frombuffer(base64.b64decode(data["words"]), "<u4").reshape(-1, 5)
    frame = view.to_frame()
    texts = record.dataset["token_text"].values
    owner = record.dataset["prompt_index"].values
    ids = record.dataset["id"].values
    for line, (_, row) in zip(words, frame.iterrows(), strict=True):
        prompt = list(ids).index(row["prompt"])
        own = [str(text) for text in texts[owner == prompt]]
        padded = ["", "", *own, "", ""][row["pos"] : row["pos"] + 5]
        shown = [data["texts"][w - 1].replace("\u2060", "") if w else "" for w in line]
        assert shown == padded


def test_colours_of_a_line_are_the_experts_weights_there(record):
    view = show_top_tokens(record, "L4E5", n=4, context=2)
    data = data_of(view.to_html())
    steps = np.frombuffer(base64.b64decode(data["weights"]), "uint8").reshape(-1, 5)
    weights = view.to_frame()["weight"].to_numpy()
    np.testing.assert_allclose(steps[:, 2] / 255 * data["scale"], weights, atol=1 / 255)
    assert view.start == view.start.parse("L4E5")


def test_top_tokens_of_a_span_lie_in_it(record):
    found = show_top_tokens(record, span="last", n=2).to_frame()
    assert set(found["token"]) == {"<end>"}


def test_top_tokens_that_cannot_be_shown_say_why(record):
    with pytest.raises(ValueError, match=r"no layer 3\. Its layers: 1, 2, 4, 5"):
        show_top_tokens(record, "L3E0")
    with pytest.raises(ValueError, match="0 tokens are to be shown, 1 to 40000 can be"):
        show_top_tokens(record, "L1E0")
    with pytest.raises(ValueError, match="`n` must be at least 1 and `context` at least 0"):
        show_top_tokens(record, n=0)
    with pytest.raises(ValueError, match="'answer' was not recorded"):
        show_top_tokens(record, span="answer")


def test_the_static_view_of_top_tokens_escapes_them(record):
    view = show_top_tokens(record, n=60)
    static = view._repr_html_().split("<iframe")[0]
    assert "<img/src" not in static
    assert str(view.start) in static


def test_transitions_are_shares_of_the_tokens_of_the_first_expert(record):
    found = show_transitions(record, span="user")
    index = record.dataset["expert_index"].values[record.dataset["in_span"].sel(span="user").values]
    for pair in range(3):
        for first in range(16):
            had = [token for token in index if first in token[pair]]
            assert found.count[pair, first] == len(had)
            for then in range(16):
                went = sum(then in token[pair + 1] for token in had)
                share = found.share[pair, first, then]
                assert np.isnan(share) if not had else share == pytest.approx(went / len(had))
                by_chance = sum(then in token[pair + 1] for token in index) / len(index)
                assert found.expected[pair, then] == pytest.approx(by_chance)


def test_the_table_and_the_map_of_transitions_agree(record):
    found = show_transitions(record, layers=[2, 5])
    frame = found.to_frame()
    assert set(frame["layer"]) == {2}
    assert set(frame["next_layer"]) == {5}
    heat = found.plot(2).data[0]
    row = frame.iloc[7]
    place = int(row["expert"]), int(row["next_expert"])
    assert heat.z[place[0]][place[1]] == row["share"]
    beyond = found.plot(2, beyond_chance=True).data[0]
    assert beyond.z[place[0]][place[1]] == pytest.approx(row["share"] - row["expected"])
    assert beyond.zmin == -beyond.zmax
    assert list(heat.z[0]) == [None] * 16


def test_transitions_that_cannot_be_shown_say_why(record):
    with pytest.raises(ValueError, match="`layers` must be two or more of 1, 2, 4, 5"):
        show_transitions(record, layers=[2])
    with pytest.raises(ValueError, match="`layer` must be among 1, 2, 4, got 5"):
        show_transitions(record).plot(5)
    empty = record.dataset.assign(in_span=record.dataset["in_span"] & False)
    with pytest.raises(ValueError, match="no token in the span 'last'"):
        show_transitions(SimpleNamespace(dataset=empty, n_experts=16), span="last")


def test_the_static_view_of_transitions_is_a_picture(record):
    static = show_transitions(record)._repr_html_().split("<iframe")[0]
    assert "data:image/svg+xml;base64," in static


def test_a_record_read_from_disk_has_texts_of_another_kind(record):
    texts = record.dataset["token_text"].values.astype(np.dtypes.StringDType())
    stored = record.dataset.assign_coords(token_text=("token", texts))
    view = show_top_tokens(SimpleNamespace(dataset=stored, n_experts=16), "L4E5", n=2)
    assert view.to_html() == show_top_tokens(record, "L4E5", n=2).to_html()
