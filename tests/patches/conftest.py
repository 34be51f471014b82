"""Fixtures of the patch tests."""

from collections.abc import Iterator

import pytest
import torch

from vidattn.patches import routes


class Calls(list):
    """(pattern's text, grid) of each call of the sparse core."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models here are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sparse_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the routes handed to ``vidattn.attention``: proof that a patched model used it."""
    calls, real = Calls(), routes.attention

    def counted(query, key, value, pattern, layout, **options):
        calls.append((str(pattern), layout.grid))
        return real(query, key, value, pattern, layout, **options)

    monkeypatch.setattr(routes, "attention", counted)
    return calls
