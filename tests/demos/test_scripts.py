"""The demo scripts run, on a tiny pipeline with random weights."""

import json
from pathlib import Path

import pytest
from PIL import Image

from demos.scripts import (
    flux_4k,
    longer_video,
    one_patch_three_sizes,
    sdxl_16k,
    upscale_sheet,
    wan_1080p,
)


def test_one_patch_three_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tests.patches import tiny_pipelines

    model = tmp_path / "model"
    tiny_pipelines.build("flux").save_pretrained(model)
    defaults = {"max_sequence_length": 16, "true_cfg_scale": 3.0, "negative_prompt": ""}
    (model / "vidattn.json").write_text(json.dumps({"defaults": defaults}))
    out = tmp_path / "out" / "sizes.png"
    words = ["--model", str(model), "--sizes", "512x512", "512x528", "--steps", "1", "--output", str(out)]
    one_patch_three_sizes.main([*words, "--pattern", "neighborhood:window=9x9", "--min-tokens", "0"])
    printed = capsys.readouterr().out
    for grid in ("1x32x32", "1x32x33"):
        assert f"  {grid}  16    neighborhood:window=9x9" in printed
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 512 + 2 * 528, 512)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """Folders of tiny pipelines, with the text length that suits them."""
    from tests.patches import tiny_pipelines

    def folder(name: str) -> str:
        model = tmp_path_factory.mktemp(name)
        tiny_pipelines.build(name).save_pretrained(model)
        if name != "sdxl":
            hints = {"defaults": {"max_sequence_length": 16}}
            (model / "vidattn.json").write_text(json.dumps(hints))
        return str(model)

    return folder


def test_flux_and_sdxl_in_stages(tiny, tmp_path, capsys):
    for name, script in (("flux", flux_4k), ("sdxl", sdxl_16k)):
        out = tmp_path / f"{name}.png"
        script.main(
            ["--model", tiny(name), "--base", "32", "--size", "128", "--steps", "4", "--output", str(out)]
        )
        with Image.open(out) as image:
            assert image.size == (128, 128)
            assert json.loads(image.text["sizes"]) == [[32, 32], [64, 64], [128, 128]]
        assert "stage 3/3: 128x128" in capsys.readouterr().out


def test_sheet(tiny, tmp_path):
    out = tmp_path / "sheet.png"
    words = ["--model", tiny("flux"), "--base", "32", "--size", "64", "--steps", "2", "--plain-steps", "1"]
    upscale_sheet.main([*words, "--cell", "64", "--output", str(out)])
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 72 - 8, 84)  # two stages, and the one at once


def test_clips(tiny, tmp_path, capsys):
    pytest.importorskip("av")
    wan = ["--model", tiny("wan"), "--height", "64", "--width", "96", "--frames", "5", "--steps", "2"]
    first = ["--base-height", "32", "--base-width", "48"]
    wan_1080p.main([*wan, *first, "--output", str(tmp_path / "a.mp4")])
    assert "stage 2/2: 64x96" in capsys.readouterr().out
    longer_video.main([*wan, "--pattern", "radial", "--output", str(tmp_path / "b.mp4")])
    assert "density of the whole run" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["refresh"] == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".json"}
