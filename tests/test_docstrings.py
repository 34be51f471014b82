"""The examples in the core's docstrings run and give what they say."""

import doctest
import importlib

import pytest
import torch

import vidattn
import vidattn.patterns as patterns

MODULES = ["layout", "patterns.text", "patterns.window", "metrics"]


def _examples():
    for name in MODULES:
        module = importlib.import_module(f"vidattn.{name}")
        yield from doctest.DocTestFinder(exclude_empty=True).find(module)
    # vidattn.attention the function hides the module of that name
    yield from doctest.DocTestFinder().find(vidattn.attention, "attention", globs={})


EXAMPLES = [e for e in _examples() if e.examples]


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_example(example):
    example.globs = {**vars(patterns), **vars(vidattn), "torch": torch, **example.globs}
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert result.failed == 0
