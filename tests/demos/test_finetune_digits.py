"""The example that fine-tunes a backbone runs, and learns."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from demos.scripts import finetune_digits


def test_finetune_digits(tmp_path: Path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model so small is slower on more
    try:
        result = finetune_digits.main(["--epochs", "1", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert result == json.loads((tmp_path / "accuracy.json").read_text())
    assert result["digits 0 to 4"][-1] > 0.4 > result["digits 0 to 4"][0]  # five classes: 0.2 by chance
    assert len(result["fine-tuned"]) == len(result["from random weights"]) == 2
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert picture.width > 300
