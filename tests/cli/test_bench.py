"""vidattn bench: what it prints and saves, and what it refuses."""

import json

import pytest
from PIL import Image


def test_it_measures_saves_and_draws(vidattn_command, tmp_path):
    options = [
        "--grid",
        "8x8",
        "--text",
        "2",
        "--heads",
        "1",
        "--head-dim",
        "8",
        "--way",
        "sdpa-flash",
        "torch",
    ]
    output = tmp_path / "results.json"
    status, printed, errors = vidattn_command(
        "bench",
        *options,
        "--pattern",
        "neighborhood:window=3",
        "linear",
        "--output",
        output,
        "--device",
        "cpu",
    )
    assert status == 0, errors
    rows = json.loads(output.read_text())["rows"]
    assert [(r["pattern"], r["way"], r["pass"]) for r in rows[::2]] == [
        ("full", "sdpa-flash", "forward"),
        ("neighborhood:window=3", "torch", "forward"),
        ("linear", "torch", "forward"),
    ]
    assert all(row["ms"] > 0 for row in rows)
    assert len(printed.splitlines()) == 2 + len(rows)
    assert "| own | neighborhood:window=3 | torch | backward |" in printed


def test_saved_results_are_drawn(vidattn_command, tmp_path):
    pytest.importorskip("matplotlib")
    row = {"case": "cpu-16", "way": "torch", "pattern": "full", "pass": "forward", "tokens": 256}
    row |= {"ms": 1.0, "shape": [1, 4, 64]}
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"device": "some", "dtype": "float32", "rows": [row]}))
    status, printed, errors = vidattn_command("bench", "--from", saved, "--plot", tmp_path / "cost.png")
    assert status == 0, errors
    assert "| cpu-16 | full | torch | forward | 256 | 1 |" in printed
    with Image.open(tmp_path / "cost.png") as image:
        assert image.size[0] > 500


def test_the_list_has_every_case(vidattn_command):
    from vidattn.bench import CASES

    status, printed, _ = vidattn_command("bench", "--list")
    assert status == 0
    for case in CASES.values():
        assert f"{case.name} " in printed
        assert ", ".join(case.patterns) in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flux-2047"], "did you mean 'flux-2048'"),
        (["cpu-16", "--way", "sdpa-cudnn", "--device", "cpu"], "unknown way 'sdpa-cudnn' on cpu"),
        (["cpu-16", "--pattern", "ring", "--device", "cpu"], "unknown pattern 'ring'"),
        (["cpu-16", "--pattern", "topk", "--device", "cpu"], "only patterns with a rule by position"),
        (["--plot", "cost.bmp"], "must end in .png or .svg"),
        (["--from", "no-such.json"], "holds no results"),
        (["--grid", "0x3"], "is not a grid"),
    ],
)
def test_bad_arguments(vidattn_command, words, message):
    status, printed, errors = vidattn_command("bench", *words)
    assert (status, printed) == (2, "")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_scripts_of_the_checkout_get_what_stands_behind_the_dashes(vidattn_command, monkeypatch):
    import subprocess
    from types import SimpleNamespace

    ran = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: ran.append(command) or SimpleNamespace(returncode=0)
    )
    assert vidattn_command("bench", "--quality", "--", "--size", "256")[0] == 0
    assert ran[0][1:] == ["-m", "benchmarks.quality", "--size", "256"]


def test_scripts_need_a_checkout(vidattn_command, monkeypatch, tmp_path):
    import vidattn

    monkeypatch.setattr(vidattn, "__file__", str(tmp_path / "vidattn" / "__init__.py"))
    status, _, errors = vidattn_command("bench", "--quality")
    assert status == 2
    assert "needs a checkout" in errors
