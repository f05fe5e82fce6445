"""Pure: the page of a report, of figures and tables; it asks for nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from bundlerun.launcher.report.figures.look import css, css_name, css_series
from bundlerun.launcher.report.run_data import Option, RunData
from bundlerun.launcher.report.status_text import metrics_text, progress_text, rate_text

RELOAD_S = 60
"""A page of a run that goes on loads itself again after so long."""

_CSS = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1240px;padding:12px 20px 40px;font:15px/1.45 system-ui,sans-serif;
color:INK;background:var(--page)}
:root{--page:#fff;--soft:#f4f6f8}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--soft:#161b22}}
h1{font-size:1.5em;margin:.5em 0 .2em}h2{font-size:1.15em;margin:1.8em 0 .4em}
h3{font-size:1em;margin:1em 0 .2em}
p{margin:.4em 0}.quiet,figcaption{color:QUIET;font-size:.9em}
figure{margin:.3em 0}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit!important}
.narrow{display:none}
@media(max-width:700px){.wide{display:none}.narrow{display:block}body{padding:8px 12px 30px}}
.scroll{overflow-x:auto}
.columns{display:grid;gap:0 28px;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr))}
.columns>div{min-width:0}
table{border-collapse:collapse;font-size:.92em}
th,td{text-align:left;vertical-align:top;padding:3px 14px 3px 0;border-bottom:1px solid GRID;
overflow-wrap:break-word}
th{font-weight:600}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
tr.differs td{background:var(--soft)}
.good{color:GOOD}.bad{color:BAD}.doubt{color:DOUBT}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
details{margin:.6em 0}summary{cursor:pointer}code{font-size:.95em;overflow-wrap:anywhere}
"""
_MOST_BOUNDS = 8
_STATE_CLASSES = {
    "running": "good", "done": "good", "stopped": "doubt", "quiet": "doubt", "not begun": "doubt",
    "lost": "bad", "failed": "bad",
}  # fmt: skip


class Picture(NamedTuple):
    """A figure for wide pages and for narrow ones, and what is to be known of it.

    wide: empty where the narrow one stands in a column on both.
    """

    wide: str
    narrow: str
    caption: str = ""


class Section(NamedTuple):
    """A part of the page: HTML under a title."""

    title: str
    body: str


def page(
    title: str, head: str, sections: Iterable[Section], *, foot: str, is_going_on: bool = False
) -> str:
    """The whole page.

    Args:
        title: text. head, foot: HTML.
        is_going_on: whether there will be a newer one in its place.
    """
    style = _CSS
    for word, name in (("INK", "ink"), ("QUIET", "quiet"), ("GRID", "grid"), ("GOOD", "good"),
                       ("BAD", "bad"), ("DOUBT", "doubt")):  # fmt: skip
        style = style.replace(word, css_name(name))  # type: ignore[arg-type] # names of tones
    reload = f'<meta http-equiv="refresh" content="{RELOAD_S}">' if is_going_on else ""
    body = "\n".join(f"<section><h2>{escape(s.title)}</h2>\n{s.body}</section>" for s in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # Without it a browser would ask for one.
        f'<link rel="icon" href="data:,">{reload}\n'
        f"<title>{escape(title)}</title>\n<style>{css()}{style}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{head}\n{body}\n"
        f'<p class="quiet">{foot}</p>\n</body></html>\n'
    )


def picture_html(picture: Picture) -> str:
    """A figure; a narrow page shows one that is made for it."""
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    if not picture.wide:
        return f"<figure>{picture.narrow}{caption}</figure>\n"
    return (
        f'<figure><div class="wide">{picture.wide}</div>'
        f'<div class="narrow">{picture.narrow}</div>{caption}</figure>\n'
    )


def columns(blocks: Iterable[str]) -> str:
    """Blocks of HTML side by side, or one below the other on a narrow page."""
    return f'<div class="columns">{"".join(f"<div>{block}</div>" for block in blocks)}</div>\n'


def table(rows: Iterable[Sequence[str]], *, head: Sequence[str] = (), differs: bool = False) -> str:
    """Rows of HTML; `differs` marks those whose cells after the first are not alike."""
    lines = ["<div class=scroll><table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>")
    for row in rows:
        mark = " class=differs" if differs and len(set(row[1:])) > 1 else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table></div>\n"])


def summary_html(runs: Sequence[RunData]) -> str:
    """How each run fares, a column each."""
    head = ["", *(name_html(n, run, len(runs)) for n, run in enumerate(runs))]
    rows = [[escape(name), *cells] for name, cells in _summary(runs) if any(cells)]
    return table(rows, head=head if len(runs) > 1 else ())


def name_html(number: int, run: RunData, of: int) -> str:
    """The name of a run, with its colour where there are several."""
    key = f'<span class=key style="background:{css_series(number)}"></span>' if of > 1 else ""
    return f"{key}{escape(run.name)}"


def _summary(runs: Sequence[RunData]) -> Iterator[tuple[str, list[str]]]:
    states = []
    for run in runs:
        reason = f" ({escape(run.status.reason)})" if run.status.reason else ""
        kind = _STATE_CLASSES.get(run.status.state, "")
        states.append(f'<b class="{kind}">{escape(run.status.state)}</b>{reason}')
    yield "state", states
    yield "step", [escape(progress_text(run.status)) for run in runs]
    yield "validation", [escape(metrics_text(run.status.validation)) for run in runs]
    yield "metrics of the last step", [escape(metrics_text(run.status.metrics)) for run in runs]
    yield "speed of the last steps", [escape(rate_text(run.status)) for run in runs]
    goodputs = [run.status.goodput for run in runs]
    yield (
        "goodput",
        ["" if g is None else f"{g:.1%} of the time went into steps that stay" for g in goodputs],
    )
    yield (
        "nodes",
        [
            escape(f"{', '.join(s.nodes) or 'none'} (round {s.round})")
            for s in (r.status for r in runs)
        ],
    )
    yield "restarts", [str(run.status.num_restarts) for run in runs]
    yield (
        "checkpoints",
        [", ".join(f"step {step}" for step in run.status.checkpoints[:6]) for run in runs],
    )
    yield "folder", [f"<code>{escape(str(run.root))}</code>" for run in runs]


def bounds_html(run: RunData) -> str:
    """What bound the steps of the last epochs."""
    last = list(run.bounds.items())[-_MOST_BOUNDS:]
    return table([[f"epoch {epoch + 1}", escape(text)] for epoch, text in last]) if last else ""


def incidents_html(run: RunData) -> str:
    """What failed, and how long each interruption took."""
    parts = []
    if run.status.failures:
        parts.append(table([[escape(text)] for text in run.status.failures], head=["failures"]))
    recoveries = run.status.recoveries
    if recoveries:
        names = list(dict.fromkeys(name for each in recoveries for name in each.phases))
        rows = [
            [
                escape(each.when[:19].replace("T", " ")),
                escape(each.node),
                escape(each.why),
                *(f"{each.phases[name]:.2f}" if name in each.phases else "" for name in names),
            ]
            for each in recoveries
        ]
        head = ["recovery", "node", "what was seen first", *(f"{escape(n)}, s" for n in names)]
        parts.append(table(rows, head=head))
        parts.append(
            '<p class="quiet">Seconds are from the first sign to the end of each part.</p>'
        )
    return "".join(parts)


def options_html(runs: Sequence[RunData]) -> str:
    """All options with their sources; first those that somebody has set, or that differ."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    told: list[list[str]] = []
    rest: list[list[str]] = []
    for name in names:
        found = [run.options.get(name) for run in runs]
        is_set = any(o is not None and o.source not in ("", "default") for o in found)
        is_unlike = len({o.value if o is not None else None for o in found}) > 1
        row = [f"<code>{escape(name)}</code>", *map(_option_html, found)]
        (told if is_set or is_unlike else rest).append(row)
    head = ["option", *(name_html(n, run, len(runs)) for n, run in enumerate(runs))]
    parts = []
    if told:
        parts.append(table(told, head=head, differs=True))
    if rest:
        by = "by default" if told else ""
        parts.append(
            f"<details{'' if told else ' open'}><summary>{len(rest)} options {by}</summary>"
            f"{table(rest, head=head)}</details>"
        )
    return "".join(parts)


def _option_html(option: Option | None) -> str:
    if option is None:
        return ""
    source = f' <span class="quiet">{escape(option.source)}</span>' if option.source else ""
    return f"{escape(option.value) or '-'}{source}"
