"""The code of docs/high_resolution.md runs, with a tenth of the pixels."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.patches import tiny_pipelines as tiny
from tests.pipelines.hunyuan_i2v import build
from vidattn import pipelines

PAGE = Path(__file__).parents[2] / "docs" / "high_resolution.md"
SMALL = {
    "4096": "64",
    "2048": "32",
    "1024": "16",
    "1088": "64",
    "1920": "96",
    "frames=81": "frames=5",
    "512": "32",
}
SMALL |= {"num_inference_steps=28": "num_inference_steps=2"}


def test_every_block_runs(tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    words = re.compile("|".join(rf"\b{word}\b" for word in SMALL))
    quick = {"num_inference_steps": 2, "max_sequence_length": tiny.TEXT, "progress": False}
    for name in ("upscale_generate", "dual_path_video"):
        function = getattr(pipelines, name)
        extra = quick | ({"base": (32, 48)} if name == "dual_path_video" else {})
        short = lambda *args, function=function, extra=extra, **call: function(*args, **{**extra, **call})  # noqa: E731
        monkeypatch.setattr(pipelines, name, short)
    short = lambda *args, function=pipelines.image_from_video_model, **call: function(  # noqa: E731
        *args, num_inference_steps=2, **call
    )
    monkeypatch.setattr(pipelines, "image_from_video_model", short)
    names = {"pipe": tiny.build("flux"), "wan": tiny.build("wan"), "out": tmp_path}
    names |= {"hunyuan_i2v": build({}), "edges": Image.new("RGB", (40, 40), "gray")}
    for block in blocks:
        exec(compile(words.sub(lambda found: SMALL[found[0]], block), str(PAGE), "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} >= {"fox.png", "fox.mp4", "fox.json", "out"}
