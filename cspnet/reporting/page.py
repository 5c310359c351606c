"""One HTML page that needs nothing but itself: no network, no other file, no script.

Text is escaped where it enters; what is `Html` has been.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from cspnet.errors import on_one_line

__all__ = ["Html", "bar", "details", "document", "escape", "figure", "join", "picture", "section", "table", "tag"]


class Html(str):
    """Text of a page: markup, and what has been escaped."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Any text as text of a page: what HTML would read is written out, and what no reader shows, too."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(on_one_line(str(text))))


def join(parts: Iterable[object], between: str = "\n") -> Html:
    """Several parts, one after the other; what stands between them is markup."""
    return Html(between.join(map(escape, parts)))


def tag(name: str, content: object = "", **attributes: object) -> Html:
    """An element. Attributes of None are left out; `_class` is class, and `aria_label` aria-label."""
    named = {key.strip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = (f' {key}="{escape(value)}"' for key, value in named.items())
    return Html(f"<{name}{''.join(written)}>{escape(content)}</{name}>")


def section(title: str, *parts: object) -> Html:
    """A part of the page under a heading."""
    return tag("section", join([tag("h2", title), *parts]))


def details(summary: str, *parts: object) -> Html:
    """What is folded away until somebody opens it."""
    return tag("details", join([tag("summary", summary), *parts]))


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()
) -> Html:
    """A table in a box of its own, which scrolls where it is too wide. The first cell of a row names it.

    Args:
        numbers: the columns, from 0, that stand to the right.
    """
    right = set(numbers)

    def cells(name: str, values: Sequence[object], scope: str) -> Html:
        return join(
            (
                tag(
                    "th" if name == "th" or i == 0 else "td",
                    value,
                    scope=scope if name == "th" or i == 0 else None,
                    _class="number" if i in right else None,
                )
                for i, value in enumerate(values)
            ),
            "",
        )

    head = tag("thead", tag("tr", cells("th", header, "col")))
    body = tag("tbody", join(tag("tr", cells("td", row, "row")) for row in rows))
    inner = tag("table", join([tag("caption", caption), head, body]))
    return tag("div", inner, _class="wide", role="region", aria_label=caption, tabindex="0")


def bar(ratio: float) -> Html:
    """A share of 1 as a length; the number stands beside it."""
    inner = tag("span", style=f"width:{100 * min(1.0, max(0.0, ratio)):.1f}%")
    return tag("span", inner, _class="bar", aria_hidden="true")


def picture(jpeg: bytes | None, text: str, side_px: int) -> Html:
    """A picture that the page carries with it; in the place of one that there is not stands its text.

    Args:
        side_px: its longer side, in its own pixels: small ones are shown larger, pixel by pixel.
    """
    if jpeg is None:
        return tag("span", text, _class="nothing")
    kind = ' class="tiny"' if side_px < 64 else ""
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return Html(f'<img{kind} alt="{escape(text)}" src="{source}">')


def figure(content: Html, *caption: object) -> Html:
    """A picture or a drawing, and what it shows."""
    return tag("figure", join([content, tag("figcaption", join(caption))]))


def document(title: str, body: Html, *, kind: str, about: str) -> Html:
    """The whole page.

    Args:
        kind: what made it.
        about: what it is of; both can be found again in its first lines.
    """
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta name="generator" content="{escape(kind)}">'),
        Html(f'<meta name="about" content="{escape(about)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        Html(f"<style>\n{_STYLE}</style>"),
    ]
    page = tag("html", join([tag("head", join(head)), tag("body", tag("main", body))]), lang="en")
    return Html(f"<!DOCTYPE html>\n{page}\n")


_STYLE = """\
:root { --paper: #ffffff; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de; --box: #f6f8fa; --bar: #2f7ed8;
  --link: #0b5cad; --good: #1a7f37; --bad: #b3261e; --side: 7rem; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161b; --ink: #e6e9ee; --faint: #a3adb8; --line: #343b44; --box: #1b2027; --bar: #4c9aee;
    --link: #7ab8ff; --good: #5fcf80; --bad: #ff938a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.faint, figcaption, caption { color: var(--faint); font-size: .875rem; }
.best { font-size: 2.2rem; font-weight: 600; line-height: 1.2; margin: .4rem 0 0; font-variant-numeric: tabular-nums; }
.best small { display: inline-block; font-size: 1rem; font-weight: 400; color: var(--faint); }
.warning { border-left: .25rem solid var(--bad); padding: .3rem .8rem; background: var(--box); }
.verdict { border-left: .25rem solid var(--bar); padding: .3rem .8rem; background: var(--box); }
td code { display: block; min-width: 6rem; max-width: 34rem; max-height: 10rem; overflow: auto;
  overflow-wrap: anywhere; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
  margin: .5rem 0; white-space: pre-wrap; font-size: .875rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.wide { overflow-x: auto; margin: .8rem 0; overflow-wrap: normal; }
.pairs .wide { overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; padding: .2rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  min-width: 3.5rem; }
th { font-weight: 600; }
tbody th { font-weight: 400; max-width: 22rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: block; width: 7rem; height: .7rem; margin-top: .4rem; background: var(--line); border-radius: .2rem; }
.bar span { display: block; height: 100%; background: var(--bar); border-radius: .2rem; }
.pairs thead, .pairs caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.pairs tbody th { color: var(--faint); min-width: 6.5rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; padding: .4rem 0; color: var(--link); }
figure { margin: 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem; }
.curves figcaption { color: var(--ink); font-weight: 600; }
.curves figure { display: flex; flex-direction: column-reverse; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; margin: .5rem 0 1rem; padding: 0;
  font-size: .875rem; }
.key svg { display: inline-block; width: 2rem; height: .7rem; margin-right: .5rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--side), 1fr)); gap: 1rem .8rem; }
.pictures img, .nothing { display: flex; width: 100%; max-width: var(--side); height: var(--side); object-fit: contain;
  background: var(--box); border: 1px solid var(--line); border-radius: .3rem; align-items: center; padding: 0;
  font-size: .75rem; color: var(--faint); }
img.tiny { image-rendering: pixelated; }
.pictures figcaption { color: var(--ink); font-size: .8125rem; line-height: 1.35; margin-top: .25rem; }
.sure { white-space: nowrap; }
.wrong { color: var(--bad); } .right { color: var(--good); }
@media (max-width: 30rem) { :root { --side: 6rem; } .bar { width: 4rem; } th, td { padding-right: .5rem; } }
footer { margin: 3rem 0 1rem; color: var(--faint); font-size: .875rem; }
"""
