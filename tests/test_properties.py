"""What holds for every input of a kind: records, pairs, spans and what is read from text."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from moe_interp.capture import open_record
from moe_interp.capture._arrays import DIMS, empty_arrays, to_dataset
from moe_interp.capture._blocks import BlockPlan
from moe_interp.capture._record import RoutingRecord
from moe_interp.errors import PromptError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.models import load_model
from moe_interp.prompts import Prompt, PromptSet, load_prompts, tokenize
from moe_interp.prompts._spans import pair_spans

CHEAP = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    # What fails is small already; shrinking it further costs more than it tells.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Everything that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
# Names are cells of a table, where blanks around them are no part of them.
NAME = TEXT.map(str.strip)
WORDS = st.lists(
    st.sampled_from(["how", "do", "i", "kill", "a", "python", "cake", "steal"]),
    min_size=1,
    max_size=9,
).map(" ".join)


def outcome(read, error):
    """What is read, or what the error says; any other error is one of the test."""
    try:
        return read(), ""
    except error as found:
        return None, str(found)


@st.composite
def prompt_fields(draw, text=TEXT):
    """The fields of prompts, some of them in pairs; checked types draw on chance, so no prompts."""
    found = []
    for number in range(draw(st.integers(1, 6))):
        topic = draw(st.none() | NAME)
        if draw(st.booleans()):
            words = {"pair": f"pair {number}", "topic": topic}
            found += [{"text": draw(text), "harm": harm, **words} for harm in (False, True)]
        else:
            harm, response = draw(st.none() | st.booleans()), draw(st.none() | TEXT)
            found.append({"text": draw(text), "harm": harm, "topic": topic, "response": response})
    return draw(st.permutations(found))


def prompts_of(fields):
    return PromptSet(Prompt(**own) for own in fields)


@pytest.fixture(scope="module")
def model():
    built = tiny_models.build("olmoe")
    return load_model(built, tokenizer=tiny_models.build_tokenizer(), check=False)


@CHEAP
@given(fields=prompt_fields(text=WORDS), seed=st.integers(0, 2**31), half=st.booleans())
def test_a_record_survives_the_disk(model, fields, seed, half):
    prompts = prompts_of(fields)
    tokens = tokenize(model.tokenizer, prompts, spans=("prompt", "last"))
    names = ("expert_index", "routing_weights", "router_logits")
    dtype = "float16" if half else "float32"
    arrays = empty_arrays(model.architecture, tokens, names, n_draws=2, weight_dtype=dtype)
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        drawn = rng.integers(0, 8, array.shape) if array.dtype.kind == "u" else None
        array[...] = rng.normal(size=array.shape) if drawn is None else drawn
    record = RoutingRecord(to_dataset(model.architecture, prompts, tokens, arrays, names))
    with tempfile.TemporaryDirectory() as folder:
        record.save(Path(folder) / "a.zarr")
        opened = open_record(Path(folder) / "a.zarr")
        assert opened.prompts == prompts
        for name in (*DIMS, "in_span", "token_id", "token_text", "prompt_index", "pos"):
            if name in record.dataset:
                found, expected = opened.dataset[name].values, record.dataset[name].values
                assert found.tolist() == expected.tolist()
                assert found.dtype.kind in "OT" or found.dtype == expected.dtype
        assert np.array_equal(opened.shares("prompt"), record.shares("prompt"))


@CHEAP
@given(fields=prompt_fields(), kind=st.sampled_from(["csv", "jsonl"]))
@example(fields=[{"text": "a\rb"}], kind="csv")
def test_prompts_survive_their_files(fields, kind):
    prompts = prompts_of(fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}"
        getattr(prompts, f"to_{kind}")(path)
        texts = [prompt.text for prompt in prompts]
        if len(set(texts)) == len(texts):
            assert load_prompts(path) == prompts


@CHEAP
@given(
    content=st.binary(max_size=60), name=st.sampled_from(["a.csv", "a.jsonl", "a.json", "a.tsv"])
)
def test_any_bytes_are_prompts_or_a_named_error(content, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        found, said = outcome(lambda: load_prompts(path), PromptError)
        assert (found is not None and len(found) > 0) or name in said


@CHEAP
@given(
    cells=st.lists(
        st.tuples(st.text(max_size=5), st.sampled_from(["0", "1", "", "x"]), st.text(max_size=3)),
        max_size=5,
    )
)
@pytest.mark.filterwarnings("ignore")
def test_any_table_is_prompts_or_a_named_error(cells):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        rows = ["text,harm,pair", *(",".join(row) for row in cells)]
        path.write_text("\n".join(rows), encoding="utf-8", errors="replace")
        found, said = outcome(lambda: load_prompts(path), PromptError)
        assert (found is not None and len(found) <= len(cells)) or "a.csv" in said


@CHEAP
@given(experts=st.sets(st.tuples(st.integers(0, 200), st.integers(0, 600)), max_size=12))
def test_experts_are_read_back_as_they_are_written(experts):
    chosen = ExpertSet(experts)
    assert ExpertSet.parse(str(chosen)) == chosen
    assert ExpertSet.parse(str(chosen).lower().replace(",", " , ")) == chosen
    assert {(one.layer, one.expert) for one in chosen} == experts
    assert sorted(chosen) == list(chosen)


@CHEAP
@given(text=st.text(max_size=12))
def test_any_text_is_experts_or_a_named_error(text):
    found, said = outcome(lambda: ExpertSet.parse(text), ValueError)
    if found is None:
        assert "An expert is written like 'L7E3'" in said
    else:
        assert all(isinstance(one, Expert) for one in found)


@CHEAP
@given(fields=prompt_fields(text=WORDS))
def test_pairs_are_one_of_each_kind_and_selecting_keeps_them_so(fields):
    prompts = prompts_of(fields)
    for harmless, harmful in prompts.pair_positions:
        assert prompts[harmless].pair == prompts[harmful].pair
        assert (prompts[harmless].harm, prompts[harmful].harm) == (False, True)
    assert len(prompts.unpaired) + 2 * prompts.n_pairs == len(prompts)
    half = prompts.select(range(0, len(prompts), 2))
    assert set(half.unpaired) | {half.ids[n] for pair in half.pair_positions for n in pair} == set(
        half.ids
    )


@CHEAP
@given(fields=prompt_fields(text=WORDS), left=st.booleans(), data=st.data())
def test_spans_hold_no_padding_whatever_the_batch(model, fields, left, data):
    prompts = prompts_of(fields)
    tokens = tokenize(model.tokenizer, prompts, spans=("user", "prompt", "last"))
    chosen = data.draw(st.permutations(range(len(prompts))))
    side = "left" if left else "right"
    batch = tokens.batch(chosen, padding_side=side)
    real = batch.attention_mask.bool()
    assert real.sum(dim=1).tolist() == tokens.lengths[chosen].tolist()
    for name, span in batch.spans.items():
        assert not (span & ~real).any()
        assert span.sum(dim=1).tolist() == [int(tokens.spans[name][n].sum()) for n in chosen]
    assert (batch.spans["last"].sum(dim=1) == 1).all()
    part = tokens.part(0, len(prompts))
    assert part.token_ids == tokens.token_ids


@CHEAP
@given(fields=prompt_fields(text=WORDS))
def test_members_of_a_pair_have_the_same_tokens_in_what_they_share(model, fields):
    prompts = prompts_of(fields)
    ids = tokenize(model.tokenizer, prompts, spans=("prompt",)).token_ids
    found = pair_spans(ids, prompts.pair_positions)
    paired = {n for pair in prompts.pair_positions for n in pair}
    for name, span in found.items():
        assert not any(span[n].any() for n in range(len(prompts)) if n not in paired), name
    for one, other in prompts.pair_positions:
        ends = [found["after_divergence"][n] for n in (one, other)]
        both = [found["identical_tokens"][n] for n in (one, other)]
        for masks in (ends, both):
            texts = [np.array(ids[n])[mask] for n, mask in zip((one, other), masks, strict=True)]
            assert np.array_equal(*texts)
        n_end, start = int(ends[0].sum()), first_difference(ids[one], ids[other])
        for end, same, n in zip(ends, both, (one, other), strict=True):
            # An end is an end, is part of what is the same, and comes after where they part.
            assert end[len(end) - n_end :].all()
            assert not (end & ~same).any()
            assert not same[:start].any()
            assert len(ids[n]) - n_end >= start
        # The end is as long as can be: the tokens before it differ, or the start is reached.
        before = [len(ids[n]) - n_end - 1 for n in (one, other)]
        if min(before) >= start:
            assert ids[one][before[0]] != ids[other][before[1]]


def first_difference(one, other):
    """How many tokens two prompts begin with that are the same."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@CHEAP
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    block=st.integers(1, 9),
    rows=st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_blocks_share_no_chunk_that_is_written_by_one_alone(lengths, block, rows):
    """Every row is in one block: either in chunks of its own, or in one part of a chunk beside."""
    ends = np.cumsum(lengths)
    plan = BlockPlan(len(lengths), int(ends[-1]), min(block, len(lengths)), rows, 1)
    writer = np.zeros(-(-plan.n_tokens // rows), dtype=int)
    seen = np.zeros(plan.n_tokens, dtype=int)
    for number in range(plan.n_blocks):
        low, high = plan.prompts(number)
        first, end = int(ends[low] - lengths[low]), int(ends[high - 1])
        start, stop = plan.inner(first, end)
        assert first <= start <= stop <= end
        seen[start:stop] += 1
        writer[start // rows : -(-stop // rows) if start < stop else start // rows] += 1
        for begin, until in plan.edges(first, end):
            seen[begin:until] += 1
            assert begin // rows == (until - 1) // rows
            # Nobody writes that chunk by itself.
            assert writer[begin // rows] == 0
    assert (seen == 1).all()
    assert (writer <= 1).all()
