"""The interpreter, made quicker."""

import functools
import inspect

import pytest


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter():
    """The interpreter lists the members of triton's modules at every call of a helper; once is enough."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    class Inspect:
        getmembers = staticmethod(functools.lru_cache(maxsize=None)(inspect.getmembers))

        def __getattr__(self, name):
            return getattr(inspect, name)

    before, interpreter.inspect = interpreter.inspect, Inspect()
    yield
    interpreter.inspect = before
