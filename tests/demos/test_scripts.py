"""The demo scripts run, on a tiny pipeline with random weights."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from demos.scripts import finetune_digits, one_patch_three_sizes


def test_one_patch_three_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tests.patches import tiny_pipelines

    model = tmp_path / "model"
    tiny_pipelines.build("flux").save_pretrained(model)
    defaults = {"max_sequence_length": 16, "true_cfg_scale": 3.0, "negative_prompt": ""}
    (model / "vidattn.json").write_text(json.dumps({"defaults": defaults}))
    out = tmp_path / "out" / "sizes.png"
    words = ["--model", str(model), "--sizes", "512x512", "512x528", "--steps", "1", "--output", str(out)]
    one_patch_three_sizes.main([*words, "--pattern", "neighborhood:window=9x9"])
    printed = capsys.readouterr().out
    for grid in ("1x32x32", "1x32x33"):  # both of at least 1,024 tokens, so both are sparse
        assert f"  {grid}  16    neighborhood:window=9x9" in printed
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 512 + 2 * 528, 512)


def test_finetune_digits(tmp_path: Path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model so small is slower on more
    try:
        result = finetune_digits.main(["--model", "litv2_s", "--epochs", "1", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert result == json.loads((tmp_path / "accuracy.json").read_text())
    assert result["digits 0 to 4"][-1] > 0.4 > result["digits 0 to 4"][0]  # five classes: 0.2 by chance
    assert len(result["fine-tuned"]) == len(result["from random weights"]) == 2
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert picture.width > 300
