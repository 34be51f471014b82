"""docs/backbones.md: its code runs and its table is the one that the script prints."""

import re
from pathlib import Path

from vidattn.backbones import list_models
from vidattn.backbones.parameter_table import table

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")


def test_the_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/backbones.md", "exec"), names)
    assert len(names["maps"]) == 4
    assert names["registers"].shape == (2, 5, 32)


def test_the_table_is_up_to_date():
    assert table() in PAGE
    assert table().count("\n") == len(list_models()) + 1
