"""Tiny pipelines shared by the tests of a module; every test leaves them as they were."""

from collections.abc import Callable
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.patches import tiny_pipelines as tiny

STEPS = 4


@pytest.fixture(scope="package")
def pipes() -> Callable[[str], Any]:
    """Pipelines by name, built once."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = tiny.build(name)
            if name == "flux":
                # diffusers shifts image-to-image runs by the new size; a fixed shift is the same in both
                made[name].scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return made[name]

    return get


def options(name: str) -> dict[str, Any]:
    """Arguments for a quick run."""
    made: dict[str, Any] = {"num_inference_steps": STEPS, "progress": False}
    if name in ("flux", "wan"):
        made["max_sequence_length"] = tiny.TEXT
    if name == "wan":
        made["num_frames"] = 5
    return made
