"""The cost model: counted work, fitted times, and the choice between dense and sparse that rests on them."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import RESULTS, fit
from vidattn import TokenLayout, backends
from vidattn.backends import cost
from vidattn.backends.cost import Shape, Times, Work
from vidattn.backends.pays import LEAST_GAIN, duration, why_dense
from vidattn.patterns import Full, Neighborhood, PerHead

CPU = torch.device("cpu")
FLOAT = Shape(1, 4, 64, torch.float32)


# ---------------------------------------------------------------------- work
def test_the_work_of_a_call_is_counted():
    shape = Shape(2, 3, 8)
    layout = TokenLayout((6, 10), text_before=5)
    dense = Work.dense(layout, shape)
    assert (dense.pairs, dense.flops) == (2 * 3 * 65**2, 4 * 8 * 2 * 3 * 65**2)
    assert dense.elements == 4 * 65 * 2 * 3 * 8
    pattern = Neighborhood(3)
    plan = pattern.plan(layout)
    sparse = Work.sparse(pattern, layout, shape)
    # grid queries see their boxes and the text, text queries everything
    assert sparse.pairs == 2 * 3 * (plan.visited_pairs + 60 * 5 + 5 * 65)
    assert sparse.tiles == 2 * len(plan.tiles)
    assert Work.sparse(Full(), TokenLayout((6, 10)), shape).pairs == 2 * 3 * 60**2


def test_heads_count_by_their_share():
    layout = TokenLayout((32, 32))
    pattern = PerHead([Neighborhood(3), Full()], (0, 0, 0, 1))
    assert pattern.visited(layout) == pytest.approx(0.75 * Neighborhood(3).visited(layout) + 0.25)
    mixed, one, other = (Work.sparse(p, layout, FLOAT) for p in (pattern, Neighborhood(3), Full()))
    assert mixed.pairs == pytest.approx(0.75 * one.pairs + 0.25 * other.pairs)
    assert mixed.calls == 2


# ---------------------------------------------------------------------- fit
def test_a_fit_finds_the_times_that_made_the_samples():
    rates = {"calls": 1e-4, "flops": 2e-11, "elements": 3e-9}
    works = [
        Work.dense(TokenLayout((n, n)), Shape(1, h, d)) for n in (5, 20, 40) for h in (1, 4) for d in (32, 64)
    ]
    found = fit.fit([(work, work.seconds(rates)) for work in works])
    for work in works:
        assert work.seconds(found) == pytest.approx(work.seconds(rates), rel=1e-3)
    assert min(found.values()) > 0


def test_the_shipped_table_is_what_the_script_makes_of_the_committed_results():
    made, errors = fit.build(sorted(RESULTS.glob("attention_*.json")))
    shipped = json.loads(cost.TABLE.read_text())
    assert made.keys() == shipped.keys()
    for device, entry in made.items():
        assert entry["about"] == shipped[device]["about"]
        for way, known in entry["ways"].items():
            assert shipped[device]["ways"][way]["source"] == known["source"]
            for dtype, rates in known["rates"].items():
                assert shipped[device]["ways"][way]["rates"][dtype] == pytest.approx(rates)
    assert made["cpu"]["ways"]["torch"]["source"] == "fitted"
    assert all(row["median error"] < 0.15 for row in errors)


def test_predictions_are_near_what_was_measured(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    record = json.loads(Path(RESULTS / "attention_cpu_float32.json").read_text())
    seen = 0
    for row in record["rows"]:
        if row["pass"] == "forward" and row["pattern"] != "linear":
            way = fit.WAYS.get(row["way"], row["way"])
            seconds = Times.on("cpu").seconds(way, fit.work_of(row, "float32"), torch.float32)
            assert seconds == pytest.approx(row["ms"] / 1e3, rel=0.3), row
            seen += 1
    assert seen > 20


def test_ways_that_were_not_measured_stay_estimates(tmp_path):
    row = {"way": "sdpa-flash", "pattern": "full", "pass": "forward", "shape": [1, 2, 64], "text": [0, 0]}
    rows = [row | {"grid": [1, n, n], "ms": n**4 / 1e6} for n in (8, 16, 24, 32, 48, 64)]
    record = {"device": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16", "rows": rows}
    path = tmp_path / "attention_h100.json"
    path.write_text(json.dumps(record))
    made, _ = fit.build([path])
    assert made["h100"]["ways"]["dense"]["source"] == "fitted"
    assert made["h100"]["ways"]["triton"]["source"] == "estimate"
    assert "attention_h100.json" in made["h100"]["about"]
    assert all(way["source"] == "estimate" for way in made["a100"]["ways"].values())


# ---------------------------------------------------------------------- choice
def test_more_work_takes_longer_and_small_windows_pay_on_large_grids():
    times = Times.on("cpu")
    windows = [
        times.seconds("torch", Work.sparse(Neighborhood(n), TokenLayout((64, 64)), FLOAT), torch.float32)
        for n in (9, 17, 33, 49)
    ]
    assert windows == sorted(windows)
    assert why_dense(Neighborhood(9), TokenLayout((64, 64)), CPU, FLOAT) == ""
    reason = why_dense(Neighborhood(59), TokenLayout((64, 64)), CPU, FLOAT)
    assert reason.startswith("dense is as fast: predicted ")
    assert reason.endswith(" by torch (cpu, fitted)")
    assert why_dense(Neighborhood(3), TokenLayout((4, 4)), CPU, FLOAT)


def test_the_choice_is_by_predicted_time(monkeypatch):
    seconds = {"dense": 1.0, "torch": 0.5}
    monkeypatch.setattr(Times, "seconds", lambda self, way, work, dtype: seconds.get(way))
    assert why_dense(Neighborhood(3), TokenLayout((9, 9)), CPU, FLOAT) == ""
    seconds["torch"] = 1.0 / LEAST_GAIN + 0.01
    reason = why_dense(Neighborhood(3), TokenLayout((9, 9)), CPU, FLOAT)
    assert (
        reason
        == "dense is as fast: predicted 1 s a call, neighborhood:window=3 962 ms by torch (cpu, fitted)"
    )
    for backend in ("flex", "dense"):  # nothing is known of the one, the other was asked for
        assert why_dense(Neighborhood(3), TokenLayout((9, 9)), CPU, FLOAT, backend=backend) == ""
    assert why_dense(Neighborhood(9), TokenLayout((9, 9)), CPU, FLOAT) == "every query sees every key"


@pytest.mark.parametrize(
    ("device", "name"), [("h100", "h100"), ("cpu", "cpu"), ("cuda", "cuda"), ("mps", "cuda")]
)
def test_devices_have_a_class(device, name):
    assert Times.on(device).device == name


def test_unknown_classes_are_refused():
    with pytest.raises(ValueError, match="device 'h900': must be one of a100, cpu, cuda, h100"):
        Times.on("h900")


def test_the_estimates_are_the_rates_that_they_were_made_from():
    """Peers' figures on an H100: 24 heads of 128 at 16,384 tokens took FlashAttention-2 9.4 ms."""
    times, shape = Times.on("h100"), Shape(1, 24, 128)
    work = Work.dense(TokenLayout((128, 128)), shape)
    assert times.seconds("dense", work, torch.bfloat16) == pytest.approx(9.4e-3, rel=0.05)
    assert times.seconds("cudnn", work, torch.bfloat16) == pytest.approx(5.2e-3, rel=0.05)
    assert times.source("dense", "triton") == "estimate"


def test_durations_have_a_unit():
    assert [duration(t) for t in (12.34, 0.01234, 1.5e-5)] == ["12.3 s", "12.3 ms", "15 us"]


def test_resolve_names_a_backend_and_a_reason():
    layout = TokenLayout((8, 8))
    assert backends.resolve("auto", Neighborhood(3), layout)[0] == "torch"
    assert backends.resolve("auto", Neighborhood(8), layout) == ("dense", "every query sees every key")
    assert backends.resolve("dense", Neighborhood(3), layout) == ("dense", "asked for")
    with pytest.raises(ValueError, match="did you mean 'torch'"):
        backends.resolve("touch", Neighborhood(3), layout)
