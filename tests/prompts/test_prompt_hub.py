"""Public sets by name: fetched where the library and the hub are there, refused by name else."""

import sys
from types import SimpleNamespace

import pytest

from moe_interp.errors import PromptError
from moe_interp.prompts import load_prompts


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets` that knows these splits and remembers what it was asked for."""
    splits, asked = {}, []

    def load_dataset(repository, configuration, *, split, **options):
        asked.append((repository, configuration, split, options))
        if (repository, split) not in splits:
            raise ConnectionError("no route to the hub")
        return splits[repository, split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return SimpleNamespace(splits=splits, asked=asked)


def behaviours(word):
    return [
        {"Index": n, "Goal": f"{word} {n}", "Target": "Sure", "Behavior": "b", "Category": "c"}
        for n in range(3)
    ]


def test_jailbreakbench_is_fetched_split_by_split_and_paired(hub):
    hub.splits["JailbreakBench/JBB-Behaviors", "harmful"] = behaviours("burn")
    hub.splits["JailbreakBench/JBB-Behaviors", "benign"] = behaviours("bake")
    prompts = load_prompts("jbb")
    assert prompts.n_pairs == 3
    assert prompts.source == "jbb"
    assert prompts.harm.tolist() == [True] * 3 + [False] * 3
    assert prompts.card.licence == "MIT"
    assert [one[1] for one in hub.asked] == ["behaviors"] * 2


@pytest.mark.parametrize(
    ("name", "repository", "split", "row", "topic"),
    [
        ("harmbench", "walledai/HarmBench", "train", {"prompt": "x", "category": "c"}, "c"),
        (
            "strongreject",
            "walledai/StrongREJECT",
            "train",
            {"prompt": "x", "category": "c", "source": "me"},
            "c",
        ),
        ("advbench", "walledai/AdvBench", "train", {"prompt": "x", "target": "t"}, None),
        (
            "beavertails",
            "PKU-Alignment/BeaverTails",
            "30k_train",
            {"prompt": "x", "response": "y", "category": {"c": True}, "is_safe": False},
            "c",
        ),
        (
            "xstest",
            "Paul/XSTest",
            "train",
            {"id": 1, "prompt": "x", "type": "contrast_c", "label": "unsafe", "focus": "f"},
            "c",
        ),
        (
            "saferlhf",
            "PKU-Alignment/PKU-SafeRLHF",
            "train",
            {
                "prompt": "x",
                "response_0": "y",
                "response_1": "z",
                "is_response_0_safe": False,
                "is_response_1_safe": False,
                "response_0_harm_category": {"c": True},
                "response_1_harm_category": {},
            },
            "c",
        ),
        (
            "wildjailbreak",
            "allenai/wildjailbreak",
            "train",
            {"vanilla": "x", "adversarial": "", "completion": "y", "data_type": "vanilla_harmful"},
            "vanilla",
        ),
    ],
)
def test_every_set_is_read_in_the_columns_of_its_hub(hub, name, repository, split, row, topic):
    hub.splits[repository, split] = [row]
    first = load_prompts(name)[0]
    assert (first.text, first.topic, first.harm) == ("x", topic, True)


def test_wildjailbreak_is_read_as_a_table_of_texts(hub):
    row = {"vanilla": "null", "adversarial": "", "data_type": "vanilla_benign"}
    hub.splits["allenai/wildjailbreak", "train"] = [row]
    assert load_prompts("wildjailbreak").texts == ("null",)
    assert hub.asked[0][3] == {"delimiter": "\t", "keep_default_na": False}


def test_a_mistake_in_a_fetched_row_is_named_with_its_split(hub):
    hub.splits["walledai/AdvBench", "train"] = [{"prompt": "x", "target": "t"}, {"prompt": ""}]
    with pytest.raises(PromptError, match=r"advbench \(train\), row 2: `goal` is missing"):
        load_prompts("advbench")


def test_an_unreachable_hub_is_told_with_its_reason_and_the_way_around(hub):
    message = r"'jbb' could not be fetched from .* \(ConnectionError: no route.*path of its file"
    with pytest.raises(PromptError, match=message):
        load_prompts("jbb")


def test_without_the_library_a_set_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"'xstest' \(Paul/XSTest\) is fetched by the library `datasets`, which is not inst"
    with pytest.raises(PromptError, match=message):
        load_prompts("xstest")


def test_a_set_from_a_hub_takes_no_options(hub):
    with pytest.raises(TypeError, match="takes no options, got split"):
        load_prompts("jbb", split="harmful")
