"""Parts of the page that several tabs have: the model with its prompt, and the pattern with its drawing."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vidattn.cli.arguments import BadArgument

from . import pages
from .catalog import Catalog
from .engine import Busy, Cancelled, Engine, Job
from .order import in_words

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""No handler is an endpoint of a public API."""
QUIET: dict[str, Any] = PRIVATE | {"show_progress": "hidden"}
MANY: dict[str, Any] = QUIET | {"concurrency_limit": 16}
"""For handlers that wait for the engine, whose queue is the one that counts."""


@dataclass(frozen=True)
class Shop:
    """What all tabs share: the models and the queue."""

    catalog: Catalog
    engine: Engine

    def cancel(self, request: gr.Request) -> None:
        """Stop this person's run."""
        if not self.engine.cancel(str(request.session_hash)):
            gr.Info("Nothing of yours is running.")

    def left(self, request: gr.Request) -> None:
        """The page was closed: nobody waits for the run."""
        self.engine.cancel(str(request.session_hash))


def followed(
    shop: Shop, request: gr.Request, work: Callable[[Job], Any], suffix: str = ""
) -> Iterator[tuple[Any, bool]]:
    """Runs work in the queue; gives (what it tells, False), and at the end (what it returned, True).

    Args:
        shop: whose queue.
        request: of the person.
        work: called with its job.
        suffix: what is beside the person's run has another name, and does not count as it.

    Raises:
        Cancelled: it was stopped.
        gr.Error: whatever went wrong, in words.
    """
    try:
        job = shop.engine.submit(f"{request.session_hash}{suffix}", work)
        for news in job.follow():
            yield news, False
        assert job.future is not None, "submit sets it"
        yield job.future.result(), True
    except Cancelled:
        raise
    except Exception as error:  # models, drivers and sizes fail in their own ways: the person gets a sentence
        raise complaint(error) from error


def guarded(outputs: Iterator[list[Any]], others: int) -> Iterator[list[Any]]:
    """The outputs of a handler, the first of which is the state; errors are told there and in a message.

    Args:
        outputs: lists of values for the handler's outputs.
        others: how many outputs there are beside the state.
    """
    try:
        yield from outputs
    except Cancelled:
        yield [pages.state("Stopped."), *[gr.skip()] * others]
    except (ValueError, TypeError, gr.Error) as error:
        told = complaint(error)
        yield [pages.wrong(told.message), *[gr.skip()] * others]
        raise told from error


def complaint(error: Exception) -> gr.Error:
    """The error as the page shows it; what was not foreseen is also written to the server's log."""
    if isinstance(error, gr.Error):
        return error
    words = in_words(error)
    if not isinstance(error, (ValueError, TypeError, BadArgument, Busy, Cancelled)):
        traceback.print_exception(error, file=sys.stderr)
        words = f"This failed: {type(error).__name__}: {words}"
    return gr.Error(words, title="That did not work", duration=None, print_exception=False)
