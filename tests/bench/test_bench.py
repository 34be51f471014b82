"""Benchmarks measure what they say: cases, checks before figures, ratios, records, tables and plots."""

import json
import time

import pytest
import torch

from vidattn import patterns
from vidattn.bench import CASES, Case, check, measure, plot, record, runner, ways
from vidattn.bench.call import Call
from vidattn.bench.cases import CPU, GPU, LINEAR, default_cases
from vidattn.linear import linear_attention
from vidattn.testing import reference_attention

DEVICE = torch.device("cpu")
SMALL = Case("small", 2, 2, 8, (1, 10, 14), ("neighborhood:window=5", LINEAR), text_before=3)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_case_is_well_formed(case):
    for text in case.patterns:
        if text == LINEAR:
            continue
        assert (text == "full") == patterns.from_text(text).covers(case.grid)
    assert {text for text, _ in case.published} <= set(case.patterns)


def test_the_cases_are_those_of_the_models():
    assert CASES["flux-2048"].layout.tokens == 128 * 128 + 512
    assert CASES["wan-14b"].layout.tokens == 75_600
    assert default_cases("cuda") == GPU
    assert max(case.layout.tokens for case in default_cases("cpu")) <= 10_000
    assert {case.name for case in CPU}.isdisjoint(case.name for case in GPU)


def test_the_work_is_counted():
    call = Call(SMALL, "neighborhood:window=5")
    mask = call.pattern.mask(call.layout)
    assert call.density == pytest.approx(mask.double().mean().item())
    assert call.density < call.visited < 1
    assert call.flops(False) == pytest.approx(4 * int(mask.sum()) * 2 * 2 * 8)
    assert call.flops(True) == 2.5 * call.flops(False)
    assert Call(SMALL, "full").visited == pytest.approx(1)
    assert call.bytes(4, False) == 4 * 4 * 2 * 143 * 2 * 8


@pytest.mark.parametrize("text", ["neighborhood:window=5", "full", LINEAR])
def test_the_reference_is_the_definition(text):
    call = Call(SMALL, text)
    q, k, v, _ = call.inputs(DEVICE, torch.float32)
    rows = call.rows(DEVICE)
    if text == LINEAR:
        right = linear_attention(q.double(), k.double(), v.double())
    else:
        right, _ = reference_attention(q, k, v, call.pattern.mask(call.layout))
    torch.testing.assert_close(call.reference(q, k, v, rows), right[:, rows])
    assert {0, 142} <= set(rows.tolist())


@pytest.mark.parametrize("text", SMALL.patterns)
def test_right_results_pass_and_wrong_ones_are_refused(text, monkeypatch):
    call = Call(SMALL, text)
    tensors = call.inputs(DEVICE, torch.float32)
    right = ways.build("torch", call)
    for error in (check.error_forward, check.error_backward):
        assert error(call, right, tensors) < 1e-5
        assert error(call, lambda q, k, v: right(q, k * 1.05, v), tensors) > 1e-3
    # a wrong value is wrong in dv alone when only the gradient is
    wrong_gradient = lambda q, k, v: right(q, k, v.detach() + (v - v.detach()) * 1.05)  # noqa: E731
    assert check.error_forward(call, wrong_gradient, tensors) < 1e-5
    assert check.error_backward(call, wrong_gradient, tensors) > 1e-3
    assert check.complaint(float("nan"), torch.float32)

    monkeypatch.setattr(ways, "build", lambda way, call: lambda q, k, v: right(q, k, v) * 1.05)
    rows = next(runner.run([SMALL], ["torch"], DEVICE, torch.float32, patterns=[text], memory=False))
    assert len(rows) == 2
    for row in rows:
        assert "ms" not in row
        assert "differs from the float64 reference by 5.0e-02" in row["note"]


def test_a_run_gives_figures_and_ratios():
    rows = next(runner.run([SMALL], ["sdpa-flash", "torch", "natten"], DEVICE, torch.float32))
    found = {(row["pattern"], row["way"], row["pass"]): row for row in rows}
    assert len(found) == len(rows) == 2 + 2 + 1 + 2
    assert "cannot run" in found["neighborhood:window=5", "natten", "forward"]["note"]
    for number in ("forward", "backward"):
        base = found["full", "sdpa-flash", number]
        one = found["neighborhood:window=5", "torch", number]
        assert one["times dense"] == base["ms"] / one["ms"] == one["times sdpa-flash"]
        assert one["of visited ideal"] == pytest.approx(one["times dense"] * one["visited"])
        assert one["of density ideal"] == pytest.approx(one["times dense"] * one["density"])
        assert one["MiB"] is None or one["MiB"] >= 0
        assert found[LINEAR, "torch", number]["of copy"] > 0


def test_times_and_memory_are_those_of_the_call(monkeypatch):
    # some milliseconds of work, and 50 of sleep that only the clock sees
    def action():
        time.sleep(0.05)
        torch.ones(8 << 20).sum()

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    figures = measure.milliseconds(action, DEVICE, repeats=3)
    assert figures["clock ms"] > figures["ms"] + 49
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert measure.milliseconds(action, DEVICE, repeats=3)["ms"] > 50
    taken = measure.peak_memory(action, DEVICE)
    assert taken is None or 30 < taken < 40


def test_a_record_says_what_was_measured_and_on_what(tmp_path):
    path = record.save(tmp_path / "new" / "name.json", [{"ms": 1.5}], DEVICE, dtype="float32")
    content = json.loads(path.read_text())
    assert content["rows"] == [{"ms": 1.5}]
    assert content["dtype"] == "float32"
    assert content["versions"]["torch"] == torch.__version__
    assert {"command", "date", "commit", "device", "threads"} <= set(content)


def test_tables_are_markdown():
    rows = [{"a": 0.123456, "b": "x"}, {"b": 3}]
    assert record.table(rows, ["a", "b"]).splitlines() == [
        "| a | b |",
        "|---|---|",
        "| 0.1235 | x |",
        "|  | 3 |",
    ]


def test_curves_are_per_head():
    row = {"way": "torch", "pattern": "p", "pass": "forward", "shape": [1, 24, 128]}
    rows = [
        row | {"tokens": 16896, "ms": 48.0},
        row | {"tokens": 4608, "ms": 24.0},
        row | {"tokens": 4608, "ms": 99.0, "pass": "backward"},
        row | {"tokens": 4608},
    ]
    assert plot.curves(rows) == {"torch p": [(4608, 500.0), (16896, 1000.0)]}


@pytest.mark.gpu
def test_a_run_on_a_gpu():
    rows = next(runner.run([SMALL], ways.names("cuda"), torch.device("cuda"), torch.bfloat16))
    ran = {row["way"] for row in rows if "ms" in row}
    assert {"sdpa-cudnn", "torch"} <= ran
    assert all(row["MiB"] > 0 for row in rows if "ms" in row)
