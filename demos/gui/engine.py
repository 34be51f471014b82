"""A queue for one device: one job at a time, each can be stopped while it waits and while it runs.

Gradio's own queue cannot stop a function that is running, and a patched pipeline must not be shared by two
runs; so jobs wait here, where that is seen to.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


class Cancelled(Exception):
    """The job was stopped by the person who started it."""


class Busy(Exception):
    """The job cannot be taken in: the queue is full, or the session has one already."""


@dataclass(frozen=True)
class Waiting:
    """The job waits.

    Args:
        ahead: how many jobs run before it.
    """

    ahead: int


@dataclass(frozen=True)
class Step:
    """How far the running job is.

    Args:
        what: in words, "patched".
        done: steps finished.
        total: steps in all.
    """

    what: str
    done: int
    total: int


class Job:
    """One piece of work of one session.

    Args:
        session: whose it is.
        ahead: tells how many jobs run before it.
    """

    def __init__(self, session: str, ahead: Callable[[Job], int]) -> None:
        self.session = session
        self.future: Future[Any] | None = None
        self._ahead = ahead
        self._stop = threading.Event()
        self._news: queue.Queue[Any] = queue.Queue()

    def tell(self, news: Any) -> None:
        """Called by the work: hand something to whoever follows the job."""
        self._news.put(news)

    def check(self) -> None:
        """Called by the work, often.

        Raises:
            Cancelled: the job was to stop.
        """
        if self._stop.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Stop the job: at once while it waits, at its next ``check`` while it runs."""
        self._stop.set()
        if self.future is not None:
            self.future.cancel()

    def follow(self, every: float = 0.25) -> Iterator[Any]:
        """What the job tells, until it ends; ``Waiting`` where its place in the queue has changed.

        Leaving the loop early cancels the job.

        Args:
            every: seconds between looks at the queue.

        Raises:
            Cancelled: it was stopped.
            Exception: whatever the work raised.
        """
        assert self.future is not None, "the engine sets it"
        place = -1
        try:
            while not (self.future.done() and self._news.empty()):
                try:
                    yield self._news.get(timeout=every)
                except queue.Empty:
                    now = self._ahead(self)
                    if now > 0 and now != place:
                        yield Waiting(now)
                    place = now
            if self.future.cancelled():
                raise Cancelled
            self.future.result()
        finally:
            self.cancel()


class Engine:
    """Runs the jobs of all sessions, one after the other.

    Args:
        limit: how many jobs may wait or run; further ones are refused.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit = limit
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vidattn-app")

    def submit(self, session: str, work: Callable[[Job], Any]) -> Job:
        """Put work into the queue. It is called with its job, on the engine's own thread.

        Raises:
            Busy: the queue is full, or this session has a job in it.
        """
        with self._lock:
            if any(job.session == session for job in self._jobs):
                raise Busy("your last run is not over yet: stop it, or wait for it")
            if len(self._jobs) >= self.limit:
                raise Busy(f"{self.limit} runs are waiting already, no more are taken in; try again later")
            job = Job(session, self._ahead)
            self._jobs.append(job)
            job.future = self._pool.submit(self._run, job, work)
        job.future.add_done_callback(lambda _: self._forget(job))
        return job

    def cancel(self, session: str) -> bool:
        """Stop the session's job; whether there was one."""
        with self._lock:
            mine = [job for job in self._jobs if job.session == session]
        for job in mine:
            job.cancel()
        return bool(mine)

    def close(self) -> None:
        """Stop all jobs and take no more."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        self._pool.shutdown(wait=True)

    def _run(self, job: Job, work: Callable[[Job], Any]) -> Any:
        job.check()
        return work(job)

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._jobs.remove(job)

    def _ahead(self, job: Job) -> int:
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0
