"""Every mistake in a prompt file is named with its row."""

import pytest

from moe_interp.errors import PromptError
from moe_interp.prompts import load_prompts


def test_a_csv_is_read(written):
    path = written("a.csv", "text,topic,harm,pair\nbake,food,false,1\n\npoison,food,true,1\n")
    prompts = load_prompts(path)
    assert prompts.texts == ("bake", "poison")
    assert prompts.harm.tolist() == [False, True]
    assert prompts.n_pairs == 1
    assert prompts.source == "a.csv"


def test_a_jsonl_is_read(written):
    prompts = load_prompts(written("a.jsonl", '{"text": "bake", "harm": false, "pair": 7}\n\n'))
    assert prompts.pairs == ("7",)
    assert prompts.harm.tolist() == [False]
    assert prompts.topics == (None,)


def test_a_byte_order_mark_is_no_part_of_a_column(written):
    assert load_prompts(written("a.csv", b"\xef\xbb\xbftext\nbake\n")).texts == ("bake",)


@pytest.mark.parametrize("value", ["true", "True", "YES", "1"])
def test_harm_may_be_said_in_several_ways(written, value):
    assert load_prompts(written("a.csv", f"text,harm\nx,{value}\n")).harm.tolist() == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,label\nx,y\n", r"a.csv has the columns \('prompt', 'label'\). Needed are `text`"),
        ("text\n", r"a.csv holds no prompts"),
        ("", r"a.csv holds no prompts"),
        ("text,harm\nx,1\ny,maybe\n", r"a.csv, row 3: `harm` is 'maybe'; needed is one of 'true'"),
        ("text,harm\nx,1\n  ,0\n", r"a.csv, row 3: `text` is '  '; a text is needed"),
        ("text,harm\nx,1\n,0\n", r"a.csv, row 3: `text` is missing or empty"),
        ("text,harm\nx,1\n\ny,0,z\n", r"a.csv, row 4: 3 cells under a header of 2 columns"),
        ('text,harm\nx,1\n"y,0\n', r"a.csv, row 3 \(line 3\): unexpected end of data"),
        ("text,text\nx,y\n", r"a.csv: the header names these columns twice: text"),
        (b"text\nx\ncaf\xe9\n", r"a.csv, line 3: byte 0xe9 is not UTF-8"),
        (
            "text,harm,pair\nx,1,a\nz,0,a\ny,1,a\n",
            r"Pair 'a' has two harmful prompts, a.csv, row 2 and a.csv, row 4",
        ),
        ("text,id\nx,1\ny,1\n", r"a.csv, row 2 and a.csv, row 3 are both called '1'"),
        ("text,pair\nx,a\n", r"a.csv, row 2 belongs to pair 'a' but does not say"),
    ],
)
def test_a_broken_csv_is_refused_with_its_row(written, content, message):
    with pytest.raises(PromptError, match=message):
        load_prompts(written("a.csv", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n{"text": \n', r"a.jsonl, line 2: not valid JSON"),
        ('{"text": "x"}\n["y"]\n', r"a.jsonl, line 2: a list where an object is needed"),
        ('{"text": "x"}\n{"topic": "y"}\n', r"a.jsonl, line 2: `text` is missing"),
        ('{"text": 3}\n', r"a.jsonl, line 1: `text` is 3"),
        ('{"text": "x", "harm": 2}\n', r"a.jsonl, line 1: `harm` is 2"),
        ('{"text": "x", "harm": []}\n', r"a.jsonl, line 1: `harm` is \[\]"),
        ('{"text": "x", "topic": true}\n', r"a.jsonl, line 1: `topic` is True; a name"),
        ("[" * 100_000, r"a.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_broken_jsonl_is_refused_with_its_line(written, content, message):
    with pytest.raises(PromptError, match=message):
        load_prompts(written("a.jsonl", content))


def test_a_line_separator_inside_a_text_does_not_move_the_line_numbers(written):
    path = written("a.jsonl", '{"text": "x\u2028y"}\n{"text": ""}\n')
    with pytest.raises(PromptError, match="line 2: `text` is missing or empty"):
        load_prompts(path)


def test_columns_that_are_not_used_are_named(written):
    with pytest.warns(UserWarning, match=r"a.csv: these columns were not used: 'harmful'"):
        load_prompts(written("a.csv", "text,harmful\nx,1\n"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PromptError, match=r"There is no prompt file '.*none.csv'"):
        load_prompts(tmp_path / "none.csv")


@pytest.mark.parametrize("source", ["organsim", "prompts.txt"])
def test_what_is_neither_a_file_nor_a_set_is_refused(source):
    message = (
        r"neither a built-in prompt set \(organism\), nor one that can be fetched \(jbb, .*\), nor "
        r"a folder, nor a file that ends in .jsonl, .json, .csv"
    )
    with pytest.raises(PromptError, match=message):
        load_prompts(source)


def test_a_file_takes_no_options(written):
    with pytest.raises(TypeError, match="A prompt file takes no options, got per_topic"):
        load_prompts(written("a.csv", "text\nx\n"), per_topic=3)


def test_a_built_in_set_gets_its_options():
    prompts = load_prompts("organism", per_topic=4)
    assert len(prompts) < len(load_prompts("organism", per_topic=8))
