"""Results as HTML: small tables and bars. Whatever a person or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vidattn.pipelines import Stage

from .catalog import Facts
from .engine import Step, Waiting
from .generate import Result
from .highres import Stages
from .memory import GIB
from .preview import Preview

CSS = """
.va-head {margin: 0 0 .3em 0} .va-head p {opacity: .75; margin: 0}
.va-facts {font-size: .92em; line-height: 1.45} .va-facts p {margin: .15em 0}
.va-swatch {display: inline-block; width: .85em; height: .85em; border-radius: 3px; margin-right: .45em;
            vertical-align: -.08em; border: 1px solid #0002}
.va-state {min-height: 3.1em} .va-state progress {width: 100%; height: .7em; accent-color: #4285c4}
.va-state p {margin: .1em 0} .va-good {font-size: 1.06em}
.va-table {border-collapse: collapse; width: 100%; margin: .4em 0}
.va-table td, .va-table th {padding: .22em .6em; text-align: right; border-bottom: 1px solid #8884}
.va-table, .va-table tr {border: 0 !important}
.va-table td, .va-table th {border-width: 0 0 1px 0 !important}
.va-table td:first-child, .va-table th:first-child {text-align: left}
.va-report {font-family: ui-monospace, monospace; font-size: .78em; white-space: pre; overflow-x: auto}
.va-wrong {color: #b3261e}
.va-gap img {width: 100%; height: 100%; object-fit: contain}
.va-clip-row {display: flex; gap: .8em} .va-clip-row figure {flex: 1; margin: 0; text-align: center}
.va-clip-row img {width: 100%}
footer {display: none !important}
"""


def state(news: Step | Waiting | str) -> str:
    """One line on what is going on, with a bar while something runs."""
    if isinstance(news, Waiting):
        runs = "1 run is" if news.ahead == 1 else f"{news.ahead} runs are"
        return f'<div class="va-state"><p>Waiting: {runs} before yours.</p><progress></progress></div>'
    if isinstance(news, Step):
        text, bar = escape(news.what.capitalize()), ""
        if news.total > 1:
            text += f": step {news.done} of {news.total}"
            bar = f' value="{news.done}" max="{news.total}"'
        return f'<div class="va-state"><p>{text}</p><progress{bar}></progress></div>'
    return f'<div class="va-state"><p>{escape(news)}</p></div>'


def model(facts: Facts) -> str:
    """What the chosen model is."""
    lines = [f"{facts.pipeline}; one token stands for {facts.step}x{facts.step} pixels."]
    if "height" in facts.defaults and "width" in facts.defaults:
        lines[0] += f" At home at {facts.defaults['height']}x{facts.defaults['width']}."
    note = f'<div class="va-facts">{_paragraphs(lines)}</div>'
    return note + (wrong(f"It cannot be patched: {facts.patch}") if facts.patch else "")


def drawing(preview: Preview, cost: Sequence[str]) -> str:
    """Legend and facts of a drawn pattern, and what it costs in sentences."""
    legend = "".join(
        f'<p><span class="va-swatch" style="background:{color}"></span>{escape(meaning)}</p>'
        for color, meaning in preview.legend
    )
    return f'<div class="va-facts">{legend}{_paragraphs([*preview.facts, *cost])}</div>'


def wrong(text: str) -> str:
    """Why something cannot be drawn, where the facts would stand."""
    return f'<div class="va-facts va-wrong"><p>{escape(text)}</p></div>'


def verdict(result: Result) -> str:
    """The outcome in a sentence and a table."""
    sparse, dense = result.outcome.sparse, result.outcome.dense
    columns = [("patched", sparse)] if dense is None else [("patched", sparse), ("dense", dense)]
    rows = [["seconds", *(f"{run.seconds:.1f}" for _, run in columns if run)]]
    rows.append(["highest memory", *(f"{result.peaks[name] / GIB:.2f} GiB" for name, _ in columns)])
    if result.density is not None:
        rows.append(["attention pairs computed", f"{result.density:.0%}", "100%"][: len(columns) + 1])
    sentence = f'<p class="va-good">{escape(_sentence(result))}</p>'
    return f'<div class="va-state">{sentence}{_table(["", *(name for name, _ in columns)], rows)}</div>'


def stage_title(stage: Stage) -> str:
    """A stage in a few words."""
    return f"stage {stage.index + 1}: {stage.height}x{stage.width}"


def stages(made: Stages) -> str:
    """What each stage was and took."""
    head = ["stage", "size", "steps", "seconds", "pairs computed"]
    rows = [
        [
            str(stage.index + 1),
            f"{stage.height}x{stage.width}",
            str(stage.steps),
            f"{stage.seconds:.1f}",
            "100%" if stage.density is None else f"{stage.density:.0%}",
        ]
        for stage, _ in made.done
    ]
    if made.direct is not None:
        size = f"{made.order.height}x{made.order.width}"
        rows.append(["at once", size, str(made.order.steps), f"{made.direct[1]:.1f}", "100%"])
    return _table(head, rows)


def clips(urls: dict[str, str]) -> str:
    """Clips side by side, with their names below."""
    made = "".join(
        f'<figure><img src="{escape(url)}" alt=""><figcaption>{escape(name)}</figcaption></figure>'
        for name, url in urls.items()
    )
    return f'<div class="va-clip-row">{made}</div>'


def report(result: Result) -> str:
    """What ran in every layer."""
    return f'<div class="va-report">{escape(result.report)}</div>'


def _sentence(result: Result) -> str:
    sparse, dense, quality = result.outcome.sparse, result.outcome.dense, result.outcome.quality()
    if sparse is None or dense is None:
        return "Patched picture done." + (" Now the dense one, to compare." if result.order.compare else "")
    ratio = dense.seconds / sparse.seconds
    speed = f"{ratio:.2f} times as fast as dense" if ratio >= 1 else f"{1 / ratio:.2f} times as slow as dense"
    ssim = f", SSIM {quality['ssim']:.3f}" if "ssim" in quality else ""
    if quality["psnr"] == float("inf"):
        return f"Patched was {speed}, and the pictures are equal."
    return f"Patched was {speed}. Likeness: PSNR {quality['psnr']:.1f} dB{ssim} (higher is nearer)."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="va-table"><tr>{top}</tr>{body}</table>'


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


TITLE = """<div class="va-head"><h2 style="margin:0">vidattn</h2><p>Sparse attention for diffusion models:
make a picture with it and without it, and see what it costs and what it changes.</p></div>"""


def heading(number: str, text: str) -> str:
    """A column's heading."""
    return f'<h3 style="margin:0">{escape(number)} · {escape(text)}</h3>'
