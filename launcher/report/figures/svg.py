"""A figure as part of a page: small, in the colours of the page, with words for the pointer."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_STAND_IN = re.compile(r"#fe00([0-9a-f]{2})")
_NUMBER = re.compile(r"(\d+\.\d)\d+")
_PATHS = re.compile(r' d="([^"]*)"')
_PLACE = re.compile(r'( (?:x|y|x1|y1|x2|y2|width|height|transform)=")([^"]*)"')
_PLAIN_ID = re.compile(r' id="(?:figure|axes|patch|line2d|text|legend|matplotlib\.axis|[xy]tick|'
                       r"[A-Za-z]*Collection|table|image)[^\"]*\"")  # fmt: skip
_CUT = re.compile(r"<\?xml.*?(?=<svg )|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
_BAR = re.compile(r"(<path [^>]*?)/>")


def inline_svg(
    figure: Figure, *, name: str, label: str, titles: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The figure as an element of a page.

    Args:
        name: unlike that of any other figure of the page.
        label: what is seen, for those who do not see it.
        titles: of the shapes of a collection by its gid, in order; shown under the pointer.
    """
    out = io.StringIO()
    # The salt makes the names of clips and marks its own: those of a hidden figure do not work.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata={"Date": None})
    markup = _CUT.sub("", out.getvalue())
    for gid, words in (titles or {}).items():
        markup = _with_titles(markup, gid, words)
    markup = _PATHS.sub(lambda m: f' d="{_short(m[1])}"', markup)
    markup = _PLACE.sub(lambda m: f'{m[1]}{_short(m[2])}"', markup)
    markup = _PLAIN_ID.sub("", markup)
    markup = _STAND_IN.sub(lambda m: f"var(--t{int(m[1], 16)})", markup)
    markup = re.sub(r"\n\s*", "\n", markup)
    # The page says how large it is; the shape of it stays.
    markup = re.sub(r'<svg ([^>]*?) width="[^"]*" height="[^"]*"', r"<svg \1", markup, count=1)
    return markup.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _short(markup: str) -> str:
    """A tenth of a point is less than a pixel."""
    return " ".join(_NUMBER.sub(r"\1", markup).split())


def _with_titles(markup: str, gid: str, words: Sequence[str]) -> str:
    begin = markup.find(f'<g id="{gid}">')
    if begin < 0:
        return markup
    end = markup.find("</g>", begin)
    part, left = markup[begin:end], iter(words)
    # Shapes outside the axes are not drawn, and then nobody knows which is which.
    if len(_BAR.findall(part)) != len(words):
        return markup
    part = _BAR.sub(lambda m: f"{m[1]}><title>{escape(next(left))}</title></path>", part)
    # The name has served: another figure of the page may have it as well.
    return markup[:begin] + part.replace(f' id="{gid}"', "", 1) + markup[end:]
