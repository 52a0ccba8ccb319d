"""One HTML page that needs nothing else: the look, the tables and the lists of all our pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from trimtab import __version__
from trimtab.drawing.shapes import INKS

STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:880px;margin:2rem auto;padding:0 1rem;"
    f"overflow-wrap:break-word;background:{INKS['ground'][0]};color:{INKS['ink'][0]}}}"
    "h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}"
    # what is wider than a phone scrolls in its own frame, and stays large enough to read
    ".wide{overflow-x:auto;margin:1rem 0}.wide svg{display:block;width:100%;height:auto;min-width:40rem}"
    "table{border-collapse:collapse}td,th{padding:.25rem 1.5rem .25rem 0;text-align:left;font-weight:400;"
    f"vertical-align:top;border-bottom:1px solid {INKS['line'][0]}}}thead th{{font-weight:600}}"
    "td{text-align:right;font-variant-numeric:tabular-nums}tr.sum>*{font-weight:600}"
    "th{white-space:nowrap}.words td{text-align:left}"
    f".good{{color:{INKS['good'][0]}}}.bad{{color:{INKS['bad'][0]}}}"
    f"footer,.soft{{color:{INKS['soft'][0]}}}"
    f"pre{{overflow:auto;font-size:13px;padding:1rem;border:1px solid {INKS['line'][0]};border-radius:6px}}"
    "@media(prefers-color-scheme:dark){"
    f"body{{background:{INKS['ground'][1]};color:{INKS['ink'][1]}}}"
    f"td,th,pre{{border-color:{INKS['line'][1]}}}"
    f".good{{color:{INKS['good'][1]}}}.bad{{color:{INKS['bad'][1]}}}"
    f"footer,.soft{{color:{INKS['soft'][1]}}}}}"
)
Row = tuple[str, Sequence[str]]


def page(title: str, sections: Iterable[str], *, style: str = "", said: str = "") -> str:
    """A whole page of ``sections``, in the look of all our pages and with ``style`` after it.

    No script, no font and no picture comes from elsewhere.  ``said`` ends the footer.
    """
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n"
        f"<footer><p>Trimtab {__version__}{said}</p></footer>\n</body>\n</html>\n"
    )


def wide(part: str) -> str:
    """A picture or a table in a frame that scrolls where the page is narrower."""
    return f'<div class="wide">{part}</div>'


def table(heads: Sequence[str], rows: Sequence[Row], *, sums: int = 0, words: bool = False) -> str:
    """A table with names on the left; the last ``sums`` rows stand out, ``words`` stand on the left too."""
    head = "".join(f"<td>{escape(name)}</td>" for name in heads)
    parts = [f"<thead><tr><th></th>{head}</tr></thead>"] if heads else []
    for place, (name, values) in enumerate(rows):
        kind = ' class="sum"' if place >= len(rows) - sums else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        parts.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return wide(f"<table{' class=words' * words}>{''.join(parts)}</table>")


def items(lines: Iterable[object]) -> str:
    """A list of lines; nothing where there are none."""
    parts = [f"<li>{escape(str(line))}</li>" for line in lines]
    return f"<ul>{''.join(parts)}</ul>" if parts else ""
