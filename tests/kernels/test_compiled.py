"""Kernels compiled for Hopper, without one: the tensor cores and the copy engine are used, nothing spills."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

tools = Path(find_spec("triton").origin).parent / "backends/nvidia/bin"


@pytest.mark.skipif(
    not (tools / "ptxas").exists() or not (tools / "cuobjdump").exists(), reason="needs ptxas"
)
def test_hopper_code():
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled"],
        capture_output=True,
        text=True,
        env=clean,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert line["wgmma"] > 0, line
        # at least one load of each operand: query, key, value
        assert line["copies"] >= 3, line
        assert line["stack"] == line["local"] == 0, line
        assert line["shared"] <= 227 * 1024, line
