"""The app's queue, and what it takes from a person: models, sizes, numbers."""

import threading
from pathlib import Path

import pytest

from demos.gui.catalog import Catalog, Facts
from demos.gui.engine import Busy, Cancelled, Engine, Job, Step, Waiting
from demos.gui.order import Order, in_words, read_size, read_whole
from vidattn.cli.arguments import BadArgument
from vidattn.patterns import Disc, Full


@pytest.fixture
def engine():
    made = Engine(limit=3)
    yield made
    made.close()


class Gate:
    """Work that waits until it is let go, looking now and then whether it shall stop."""

    def __init__(self) -> None:
        self.open, self.started = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> str:
        self.started.set()
        while not self.open.wait(0.01):
            job.check()
        return "through"


# ---------------------------------------------------------------------- the queue
def test_jobs_run_one_after_the_other_and_say_how_many_are_ahead(engine: Engine):
    gate, ran = Gate(), []
    first = engine.submit("a", gate)
    gate.started.wait()
    second = engine.submit("b", lambda job: ran.append("b"))
    third = engine.submit("c", lambda job: ran.append("c"))
    news = third.follow(every=0.01)
    assert next(news) == Waiting(2)
    assert ran == []
    gate.open.set()
    for waited in news:
        assert isinstance(waited, Waiting)
    assert first.future.result() == "through"
    assert second.future.done()
    assert ran == ["b", "c"]


def test_news_arrive_in_order_before_the_end(engine: Engine):
    def work(job: Job) -> int:
        for i in range(3):
            job.tell(Step("patched", i, 3))
        return 7

    job = engine.submit("a", work)
    assert list(job.follow()) == [Step("patched", i, 3) for i in range(3)]
    assert job.future.result() == 7


def test_cancel_stops_what_waits_and_what_runs(engine: Engine):
    gate, ran = Gate(), []
    running = engine.submit("a", gate)
    gate.started.wait()
    waiting = engine.submit("b", lambda job: ran.append("b"))
    assert engine.cancel("b")
    with pytest.raises(Cancelled):
        list(waiting.follow(every=0.01))
    assert engine.cancel("a")
    with pytest.raises(Cancelled):
        list(running.follow(every=0.01))
    assert not ran
    assert not engine.cancel("a")  # nothing is left
    assert engine.submit("a", lambda job: "next").future.result(5) == "next"


def test_who_stops_looking_stops_the_job(engine: Engine):
    gate = Gate()
    job = engine.submit("a", gate)
    gate.started.wait()
    news = job.follow(every=0.01)
    job.tell("something")
    assert next(news) == "something"
    news.close()  # as when the page is closed
    with pytest.raises(Cancelled):
        job.future.result(5)


def test_a_full_queue_and_a_second_run_are_refused(engine: Engine):
    gate = Gate()
    for session in ("a", "b", "c"):
        engine.submit(session, gate)
    with pytest.raises(Busy, match="3 runs are waiting already"):
        engine.submit("d", gate)
    engine.cancel("c")
    with pytest.raises(Busy, match="your last run is not over yet"):
        engine.submit("a", gate)


def test_errors_reach_the_follower(engine: Engine):
    def fail(job: Job) -> None:
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        list(engine.submit("a", fail).follow(every=0.01))


# ---------------------------------------------------------------------- models
def test_only_models_below_allowed_folders_are_opened(tmp_path: Path):
    inside, outside = tmp_path / "allowed" / "deep" / "model", tmp_path / "secret"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (tmp_path / "allowed" / "link").symlink_to(outside)
    (tmp_path / "allowed" / "broken").mkdir()
    (tmp_path / "allowed" / "broken" / "model_index.json").write_text("[]")
    catalog = Catalog([tmp_path / "allowed"], device="cpu")
    assert catalog.find(str(inside)).pipeline == "WanPipeline"
    assert str(inside) in catalog.names(moving=True)
    assert str(inside) not in catalog.names(moving=False)
    assert "emoji-flux" in catalog.names(moving=False)
    for name in (outside, tmp_path / "allowed" / ".." / "secret", tmp_path / "allowed" / "link", "/etc", ""):
        with pytest.raises(ValueError, match="only folders allowed at launch"):
            catalog.find(str(name))
    assert not [name for name in catalog.names() if "secret" in name or "link" in name or "broken" in name]
    with pytest.raises(ValueError, match=r"cannot read|must hold"):
        catalog.find(str(tmp_path / "allowed" / "broken"))
    with pytest.raises(ValueError, match="start the app with --models"):
        Catalog(device="cpu").find(str(inside))
    with pytest.raises(ValueError, match="there is no such folder"):
        Catalog([tmp_path / "nowhere"], device="cpu")


def test_grids_of_stills_and_clips():
    assert Facts("m", "P", 8, 0, "", {}).grid(128, 256) == (1, 16, 32)
    assert Facts("m", "P", 16, 4, "", {}).grid(128, 256, 9) == (3, 8, 16)
    assert Facts("m", "P", 8, 0, "", {"height": 256, "width": 128}).native == (32, 16)


# ---------------------------------------------------------------------- what a person typed
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "x" * 2001}, "at most 2000"),
        ({"steps": 0}, "steps=0: must be 1 to 200"),
        ({"steps": 201}, "must be 1 to 200"),
        ({"dense_steps": 5}, "dense steps=5: must be 0 to 4"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_orders_that_cannot_be(change: dict, words: str):
    good = {
        "model": "m",
        "prompt": "cat",
        "height": 64,
        "width": 64,
        "steps": 4,
        "seed": 1,
        "pattern": Full(),
    }
    Order(**good)
    with pytest.raises(ValueError, match=words):
        Order(**good | change)


def test_orders_mean_what_the_command_line_means():
    order = Order("m", " cat ", 64, 96, 4, 7, Disc(3), dense_steps=2)
    given = vars(order.namespace())
    assert (given["prompt"], given["size"], given["pattern"]) == ("cat", (64, 96), "disc:radius=3")
    assert (given["seed"], given["dense_steps"], given["min_tokens"]) == (7, 2, 0)


def test_reading_numbers():
    assert read_size(" 512 ") == (512, 512)
    assert read_size("384 x 512") == (384, 512)
    assert read_whole(3.0, "seed") == 3
    for bad in ("", "cat", "0", "12x", None, "-5"):
        with pytest.raises(ValueError, match="is not a size"):
            read_size(bad)
    for bad in (None, 2.5, float("nan"), float("inf"), True, "3"):
        with pytest.raises(ValueError, match=r"seed=.*must be a whole number"):
            read_whole(bad, "seed")


def test_errors_are_sentences_without_options_of_the_command_line():
    assert in_words(BadArgument("--size", "250x250: too odd")) == "Size: 250x250: too odd"
    assert in_words(ValueError("two\n  lines")) == "Two lines"
    assert in_words(KeyError()) == "KeyError"
    assert len(in_words(ValueError("x" * 5000))) == 600
