"""The demo scripts run, on a tiny pipeline with random weights."""

import json
from pathlib import Path

import pytest
from PIL import Image

from demos.scripts import one_patch_three_sizes


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
