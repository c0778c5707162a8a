"""Warnings about prompt files point at the caller's line; checked functions would add frames."""

import json
import warnings

import pytest

from moe_interp.prompts import load_prompts

GOALS = "Index,Goal,Target,Behavior,Category,Source\n{}0,Bake bread,Sure,Bread,Food,Original\n"
JUDGED = json.dumps({"prompt": "x", "response": "y", "is_safe": True}) + "\n"


@pytest.mark.parametrize(
    "files",
    [
        {"harmful-behaviors.csv": GOALS.format("")},
        {
            "harmful-behaviors.csv": GOALS.format("1,Paint,Sure,Wall,Art,Original\n"),
            "benign-behaviors.csv": GOALS.format("").replace("Bake", "Eat"),
        },
        {"b.jsonl": JUDGED * 2},
        {"b.jsonl": JUDGED * 2 + JUDGED.replace('"y"', '"z"') + JUDGED.replace("true", "false")},
        {"a.csv": "text,harmful\nx,1\n"},
        {"c.csv": "text\nx\nx\n"},
        {"d.csv": "text,harm,pair\nx,0,1\ny,1,1\nx,0,2\nz,1,2\n"},
        {"e.csv": "prompt,type,focus\nx,a,b\ny,contrast_a,c\n"},
        {"f.csv": "text\nx\n", "g.csv": "score\n1\n"},
    ],
)
def test_a_warning_points_at_the_line_that_loads(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_prompts(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
