"""The code of docs/linear.md and docs/distill.md runs, on tiny pipelines."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file

from tests.linear.test_linfusion_patch import published
from tests.linear.test_mixers_patch import flux_weights
from tests.patches.tiny_pipelines import build

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_run(tmp_path, monkeypatch, capsys):
    names = {"pipe": build("sd"), "flux": build("flux")}
    monkeypatch.chdir(tmp_path)
    save_file(published(names["pipe"].unet), "linfusion.safetensors")
    save_file(flux_weights(names["flux"].transformer), "clear_local.safetensors")
    save_file(flux_weights(names["flux"].transformer, 2), "clear_down.safetensors")
    for page in ("linear.md", "distill.md"):
        blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
        assert blocks
        for block in blocks:
            exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    assert "linfusion" in printed
    assert "gated, gate=elementwise" in printed
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
