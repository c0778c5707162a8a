"""Prompt files that are broken, or strange, end in one named error, and stay as they are."""

import gzip

import pytest

from moe_interp.errors import PromptError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.prompts import Prompt, PromptSet, load_prompts

FILES = [
    ("a.csv", b"", "holds no prompts"),
    ("a.csv", b"\n\n\n", "holds no prompts"),
    ("a.csv", b"text,topic,harm\n", "holds no prompts"),
    ("a.csv", b"topic,harm\na,1\n", "text"),
    ("a.csv", b"text,text\na,b\n", "names these columns twice: text"),
    ("a.csv", b"text,harm\na\n", "row 2: 1 cells under a header of 2"),
    ("a.csv", b"text,harm\na,1,2\n", "row 2: 3 cells under a header of 2"),
    ("a.csv", b'text\n"never closed\n', "row 2 .*Check the quotes"),
    ("a.csv", b'text\n"a"b\n', "row 2 .*Check the quotes"),
    ("a.csv", b"text,harm\na,perhaps\n", "row 2.*perhaps"),
    ("a.csv", b"text,harm\na,2\n", "row 2.*'2'"),
    ("a.csv", b"text\n \n", "row 2"),
    ("a.csv", b"text,harm,pair\na,1,p\nb,1,p\n", "row 3"),
    ("a.csv", b"text,harm,pair\na,1,p\nb,0,p\nc,0,p\n", "row 4"),
    ("a.csv", b"text,topic,harm,pair\na,x,1,p\nb,y,0,p\n", "row 3"),
    ("a.csv", b"text,harm,pair\na,,p\nb,0,p\n", "row 2"),
    ("a.csv", b"text,id\na,i\nb,i\n", "row 2 and a.csv, row 3 are both called 'i'"),
    ("a.csv", b"text\n\xff\xfe\n", "line 2: byte 0xff is not UTF-8"),
    ("a.csv", "text\na\n".encode("utf-16"), "is not UTF-8"),
    ("a.csv", b"text\na\x00b\n" * 0 + b"PK\x03\x04\x00\x00", "a.csv"),
    ("a.tsv", b"text\tharm\na\n", "row 2: 1 cells under a header of 2"),
    ("a.jsonl", b"", "holds no prompts"),
    ("a.jsonl", b"{", "line 1: not valid JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "line 2: not valid JSON"),
    ("a.jsonl", b"[1]\n", "line 1: a list where an object is needed"),
    ("a.jsonl", b"5\n", "line 1: a int where an object is needed"),
    ("a.jsonl", b"null\n", "line 1: a NoneType where an object is needed"),
    ("a.jsonl", b'"text"\n', "line 1: a str where an object is needed"),
    ("a.jsonl", b'{"text": 5}\n', "line 1"),
    ("a.jsonl", b'{"text": null}\n', "line 1"),
    ("a.jsonl", b'{"text": ["a"]}\n', "line 1"),
    ("a.jsonl", b'{"text": ""}\n', "line 1"),
    ("a.jsonl", b'{"text": "a", "harm": "often"}\n', "line 1.*often"),
    ("a.jsonl", b'{"text": "a", "harm": 0.5}\n', "line 1"),
    ("a.jsonl", b'{"text": "a", "harm": []}\n', "line 1"),
    ("a.jsonl", b'{"text": "a", "topic": {}}\n', "line 1"),
    ("a.jsonl", b'{"text": "a", "response": "  "}\n' * 0 + b'{"texts": "a"}\n', "text"),
    ("a.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
    ("a.jsonl", b'{"a":' * 100_000, "line 1: not valid JSON"),
    ("a.json", b"{}", "a dict where a list of objects is needed"),
    ("a.json", b'{"text": "a"}\n{"text": "b"}', "not valid JSON"),
    ("a.json", b"[1, 2]", "item 1: a int where an object is needed"),
    ("a.json", b"[]", "holds no prompts"),
    ("a.json", b"nul", "not valid JSON"),
    ("a.csv.gz", b"not packed", "cannot be read"),
    ("a.csv.gz", gzip.compress(b"text\na\n", mtime=0)[:-6], "cannot be read"),
    ("a.jsonl.xz", b"\xfd7zXZ\x00broken", "cannot be read"),
    ("a.parquet", b"PAR1 and no more", "a.parquet"),
    ("a.pkl", b"cos\nsystem\n(S'touch executed'\ntR.", "nor a file that ends in"),
    ("a.txt", b"text\na\n", "nor a file that ends in"),
    ("a.xlsx", b"PK\x03\x04", "nor a file that ends in"),
    ("a", b"text\na\n", "nor a file that ends in"),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_file_is_refused_by_name_and_place(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=said):
        load_prompts(path)
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("source", ["none.csv", "none", "", "../../etc/passwd", "a\x00b.csv", []])
def test_what_is_no_file_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((PromptError, ValueError)):
        load_prompts(source)
    assert list(tmp_path.iterdir()) == []


def test_a_formula_in_a_cell_stays_a_text(tmp_path):
    (tmp_path / "a.csv").write_text("text\n\"=cmd|'/c calc'!A1\"\n")
    assert load_prompts(tmp_path / "a.csv").texts == ("=cmd|'/c calc'!A1",)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prompt(""),
        lambda: Prompt(" \n\t"),
        lambda: Prompt("a", response=""),
        lambda: PromptSet([]),
        lambda: PromptSet([Prompt("a", id="i"), Prompt("b", id="i")]),
        lambda: PromptSet([Prompt("a", pair="p", harm=True), Prompt("b", pair="p", harm=True)]),
        lambda: PromptSet([Prompt("a", pair="p"), Prompt("b", pair="p", harm=True)]),
        lambda: PromptSet([Prompt("a"), Prompt("b")]).select([False, False]),
        lambda: PromptSet([Prompt("a"), Prompt("b")]).harm,
    ],
)
def test_prompts_that_contradict_each_other_are_refused(make):
    with pytest.raises(PromptError):
        make()


@pytest.mark.parametrize(
    "text",
    [
        *("L", "7", "L7", "E3", "L7E", "LE3", "L-1E3", "L7E-3", "L7 E3", "L7E3E4", "7,3", "L7E3;"),
        *("L1.5E2", "LxEy", "L7E3 L7E4", "L٣E4x", "(7, 3)", "L7E3,,L", "layer 7", "\x00"),
    ],
)
def test_what_is_no_expert_is_refused(text):
    with pytest.raises(ValueError, match="An expert is written like 'L7E3'"):
        ExpertSet.parse(text)


@pytest.mark.parametrize("pair", [(-1, 0), (0, -1), (True, 0), (0, True)])
def test_numbers_that_name_no_expert_are_refused(pair):
    with pytest.raises(ValueError, match="must be an integer of at least 0"):
        Expert(*pair)
