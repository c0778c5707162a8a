"""The same prompts from files of every kind, and a named error for each that cannot be read."""

import gzip
import json
import lzma
import sys

import pandas as pd
import pytest

from moe_interp.errors import PromptError
from moe_interp.prompts import Prompt, PromptSet, load_prompts

ROWS = [
    {"text": "bake, then eat", "topic": "food", "harm": False, "pair": "1", "id": "a"},
    {"text": 'say "no"\nthen go', "topic": "food", "harm": True, "pair": "1", "id": "b"},
]
JSONL = "\n".join(map(json.dumps, ROWS))
TABLE = """text|topic|harm|pair|id
"bake, then eat"|food|false|1|a
"say ""no""
then go"|food|true|1|b
"""
CSV, TSV = TABLE.replace("|", ","), TABLE.replace("|", "\t")
EXPECTED = PromptSet(Prompt(**row) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.json", json.dumps(ROWS)),
        ("a.csv", CSV),
        ("A.CSV", CSV),
        ("a.tsv", TSV),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
        ("a.csv.xz", lzma.compress(CSV.encode())),
    ],
)
def test_every_kind_of_file_gives_the_same_prompts(written, name, content):
    assert load_prompts(written(name, content)) == EXPECTED


def test_a_parquet_file_gives_the_same_prompts(written, monkeypatch):
    frame = pd.DataFrame([*ROWS, {"text": "why", "topic": None, "harm": None}])
    monkeypatch.setattr(pd, "read_parquet", lambda file: frame if file.read() == b"PAR1" else None)
    prompts = load_prompts(written("a.parquet", b"PAR1"))
    assert prompts[:2] == EXPECTED
    assert prompts[2] == Prompt("why", id="p0000")


def test_a_parquet_file_without_its_library_says_what_to_install(written, monkeypatch):
    for library in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(PromptError, match=r"a.parquet is a parquet file.*Install pyarrow"):
        load_prompts(written("a.parquet", b"PAR1"))


def test_a_broken_parquet_file_is_named(written, monkeypatch):
    def read(file):
        raise OSError("no magic bytes")

    monkeypatch.setattr(pd, "read_parquet", read)
    with pytest.raises(PromptError, match=r"a.parquet cannot be read as a parquet .*no magic"):
        load_prompts(written("a.parquet", b"nothing"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"text": "x"}', r"a.json: a dict where a list of objects is needed"),
        ("a.json", '[{"text": "x"}, 3]', r"a.json, item 2: a int where an object is needed"),
        ("a.json", '[{"text": "x"}, {"text": ""}]', r"a.json, item 2: `text` is missing or empty"),
        ("a.json", '{"text": "x"}\n{"text": "y"}', r"a.json: not valid JSON .* ends in .jsonl"),
        ("a.json", "[]", r"a.json holds no prompts"),
        ("a.json", " ", r"a.json holds no prompts"),
        ("a.tsv", "text\tharm\nx\n", r"a.tsv, row 2: 1 cells under a header of 2 .* hold tabs"),
        ("a.csv.gz", b"text\nx\n", r"a.csv.gz' cannot be read \(Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"text\nx\n", mtime=0)[:-9], r"a.csv.gz' cannot be read"),
        ("a.csv.xz", b"text\nx\n", r"a.csv.xz' cannot be read"),
        ("a.csv", "text\nx\n".encode("utf-16"), r"a.csv, line 1: byte 0xff is not UTF-8"),
        ("a.tsv", b"text\nx\ncaf\xe9\n", r"a.tsv, line 3: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(written, name, content, message):
    with pytest.raises(PromptError, match=message):
        load_prompts(written(name, content))


def test_a_file_that_must_not_be_read_is_named(written, monkeypatch):
    path = written("a.csv", CSV)

    def refuse(_):
        raise PermissionError("not yours")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(PromptError, match=r"a.csv' cannot be read \(not yours\)"):
        load_prompts(path)


def test_files_in_a_folder_make_one_set_in_the_order_of_their_names(written, tmp_path):
    written("b.jsonl", '{"text": "second"}\n')
    written("a.csv", "text\nfirst\n")
    written("notes.txt", "no prompts")
    assert load_prompts(tmp_path).texts == ("first", "second")


def test_a_list_of_files_makes_one_set_in_their_order(written):
    paths = [written("b.jsonl", '{"text": "first"}\n'), str(written("a.csv", "text\nsecond\n"))]
    prompts = load_prompts(paths)
    assert prompts.texts == ("first", "second")
    assert prompts.source == "b.jsonl + a.csv"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder, harm in (("one", "true"), ("two", "perhaps")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text(f"text,harm\nx,{harm}\n")
    with pytest.raises(PromptError, match=r"two/a.csv, row 2: `harm` is 'perhaps'"):
        load_prompts([tmp_path / "one" / "a.csv", tmp_path / "two" / "a.csv"])


def test_an_id_that_two_files_use_is_named_with_both_rows(written, tmp_path):
    written("a.csv", "text,id\nx,7\n")
    written("b.csv", "text,id\ny,7\n")
    with pytest.raises(PromptError, match=r"a.csv, row 2 and b.csv, row 2 are both called '7'"):
        load_prompts(tmp_path)


def test_a_folder_without_prompt_files_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"holds no prompt file; one ends in .jsonl"):
        load_prompts(tmp_path)


def test_a_file_of_no_known_layout_in_a_folder_is_left_out_by_name(written, tmp_path):
    written("a.csv", "text\nx\n")
    written("judges.csv", "score,judge\n1,me\n")
    with pytest.warns(UserWarning, match=r"no known layout and were left out: 'judges.csv'"):
        assert load_prompts(tmp_path).texts == ("x",)


def test_a_listed_file_of_no_known_layout_is_refused(written):
    paths = [written("a.csv", "text\nx\n"), written("judges.csv", "score,judge\n1,me\n")]
    with pytest.raises(PromptError, match=r"judges.csv has the columns \('score', 'judge'\)"):
        load_prompts(paths)


def test_files_of_two_layouts_are_not_joined(written, tmp_path):
    written("a.csv", "text\nx\n")
    written("b.csv", "goal,target\nbake,Sure\n")
    with pytest.raises(PromptError, match=r"differ in layout: a.csv as own, b.csv as advbench"):
        load_prompts(tmp_path)


def test_an_empty_list_of_files_is_refused():
    with pytest.raises(PromptError, match="The list of prompt files is empty"):
        load_prompts([])
