"""What all tests share: GPU tests are skipped where there is no GPU, Triton's kernels are interpreted there,
and every test starts from the same seed.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # read when a kernel is defined, so it has to be set before anything imports one
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
