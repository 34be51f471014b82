"""The offline search for tilings: its plumbing, without a GPU."""

import json
import shutil

import pytest
import torch

from benchmarks import tune
from vidattn.kernels import tiling
from vidattn.kernels.tiling import Tiling


def test_every_kernel_has_a_tiling_for_every_device_and_head_size():
    for kernel in tune.KERNELS:
        for device in ("sm_80", "sm_86", "sm_90", "any"):
            for bits in (16, 32):
                for size in (16, 32, 64, 128, 256):
                    found = tiling.choose(kernel, device, bits, size)
                    assert found.rows >= 16
                    assert found.columns >= 16
    with pytest.raises(ValueError, match="head size 512"):
        tiling.choose("forward", "sm_90", 16, 512)


def test_the_fastest_that_works_is_taken():
    def measure(option):
        if option.rows == 1:
            raise RuntimeError("out of shared memory")
        return float(option.rows)

    options = [Tiling(3, 1, 4, 1), Tiling(1, 1, 4, 1), Tiling(2, 1, 4, 1)]
    assert tune.best(iter(options), measure, 60) == (options[2], 2.0)
    assert tune.best(iter(options), measure, -1) is None


@pytest.mark.parametrize(("device", "size"), [("sm_90", 128), ("sm_80", 128), ("sm_90", 32)])
def test_a_written_entry_is_the_one_that_is_chosen(tmp_path, monkeypatch, device, size):
    path = tmp_path / "tiles.json"
    shutil.copy(tune.TABLE, path)
    new = Tiling(256, 16, 16, 7)
    tune.write(path, tune.entry("forward", device, size, new))
    monkeypatch.setattr(tiling, "table", lambda: json.loads(path.read_text())["entries"])
    tiling.choose.cache_clear()
    assert tiling.choose("forward", device, 16, size) == new
    assert tiling.choose("forward", device, 16, 256) != new
    tiling.choose.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        tune.main([])
    assert "needs a CUDA device" in capsys.readouterr().err
