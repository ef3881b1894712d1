"""The post as one HTML file that needs no network: figures embedded, numbers with their source.

Without JavaScript everything is there to read; with it tables sort, the heat map shows each cell's
interval and layer curve, and models can be switched off in the layer curves.
"""

import base64
import itertools
import json
import re
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import latex2mathml.converter
import matplotlib as mpl
import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from steercube.analysis.conclusions.grades import GRADES
from steercube.report.marks import holds_zero, marks, notes_of_heat_map, shade
from steercube.report.post import MARK, Citation, Post, Results, asset, without_marks
from steercube.report.style import name_of
from steercube.report.write import AS_SVG
from steercube.schema import read_text

FIGURE = re.compile(
    r'<p><img src="figures/(?P<name>[\w-]+)\.png" alt="(?P<alt>[^"]*)" ?/?></p>\n'
    r"(?:<p><em>(?P<caption>.*?)</em></p>)?",
    re.DOTALL,
)
GRADE = re.compile(r"<strong>Grade: (<span[^>]*>([\w, ]+)</span>)\.</strong>")
GRADE_IN_TABLE = re.compile(rf"<td>({'|'.join(map(re.escape, GRADES))})</td>")
LONG = re.compile(r"<td>(?=[^<]{45})")
"""A table cell with a sentence, which may wrap; numbers and intervals stay on one line."""
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
REASON = re.compile(r"<td>(?P<reason>[^<]{10,})</td>\n</tr>")
"""A reason of ten or more characters, in the last column."""
ANCHOR = re.compile(r"&lt;a id=&quot;(ref-[\w-]+)&quot;&gt;&lt;/a&gt;")


PAGE, STYLE, SCRIPT = "page/page.html.j2", "page/page.css", "page/page.js"


def page(post: Post, results: Results, folder: str | Path, assets: str | Path) -> str:
    """The page of a study whose figures are in `folder`.

    The page's template, style and script are those in the folder `assets`, else the package's.
    """
    parser = _parser()
    tokens = parser.parse(post.marked)
    body = parser.renderer.render(tokens, parser.options, {})
    body = ANCHOR.sub(r'<span id="\1"></span>', body)
    body = _with_tables(body)
    body = FIGURE.sub(lambda found: _figure(found, results, Path(folder)), body)
    body = _with_sources(body, post.citations)
    body = GRADE.sub(r'<strong class="grade" data-grade="\2">Grade: \1</strong>', body)
    body = GRADE_IN_TABLE.sub(r'<td><span class="grade" data-grade="\1">\1</span></td>', body)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    template = environment.from_string(read_text(asset(assets, PAGE)))
    return template.render(
        title=without_marks(_text_of(tokens, "h1")[0][1]),
        contents=[(slug, without_marks(text)) for slug, text in _text_of(tokens, "h2")],
        body=body,
        style=read_text(asset(assets, STYLE)),
        script=read_text(asset(assets, SCRIPT)),
        data=_json_in_html(_data(results)),
    )


def _parser() -> MarkdownIt:
    return (
        MarkdownIt("commonmark", {"html": False})
        .enable("table")
        .use(anchors_plugin, max_level=3)
        .use(dollarmath_plugin, renderer=_mathml)
    )


def _mathml(equation: str, options: Mapping[str, Any]) -> str:
    display = "block" if options.get("display_mode") else "inline"
    converted: str = latex2mathml.converter.convert(equation, display=display)
    return converted


def _text_of(tokens: Sequence[Token], tag: str) -> list[tuple[str, str]]:
    """Slug and text of every heading of one level."""
    return [
        (str(token.attrs["id"]), tokens[at + 1].content)
        for at, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == tag
    ]


def _with_tables(body: str) -> str:
    """The body with each table in a box that scrolls sideways, so that the page does not."""
    number = itertools.count(1)
    body = TABLE.sub(lambda found: _with_folded_reasons(found.group()), body)
    body = LONG.sub('<td class="long">', body)
    opened = re.sub(
        r'<table(?: class="(?P<folded>folded)")?>',
        lambda found: (
            f'<div class="scroll" role="region" tabindex="0" aria-label="Table '
            f'{next(number)}">\n<table class="sortable{" folded" * bool(found["folded"])}">'
        ),
        body,
    )
    return opened.replace("</table>", "</table>\n</div>")


def _with_folded_reasons(table: str) -> str:
    """The table with long reasons of its last column folded behind a `why`."""
    if "<th>reason</th>\n</tr>" not in table:
        return table
    return REASON.sub(
        lambda found: f"<td><details><summary>why</summary>{found['reason']}</details></td>\n</tr>",
        table.replace("<table>", '<table class="folded">'),
    )


def _with_sources(body: str, citations: Sequence[Citation]) -> str:
    """Each cited number as an element whose title names its source; plain text in attributes."""
    body = re.sub(r'="[^"]*"', lambda found: without_marks(found.group()), body)

    def element(found: re.Match[str]) -> str:
        citation = citations[int(found.group(1))]
        source = escape(f"{citation.id} ({citation.table})", quote=True)
        if citation.value is None:
            kind = "cited" if len(found.group(2)) < 25 else "said"
            return f'<span class="{kind}" title="{source}">{found.group(2)}</span>'
        value = f"{citation.value:.10g}"
        return f'<data class="cited" value="{value}" title="{source}">{found.group(2)}</data>'

    return MARK.sub(element, body)


def _figure(found: re.Match[str], results: Results, folder: Path) -> str:
    name, alt = found["name"], without_marks(found["alt"])
    if re.fullmatch(r"effect_size_heatmap_\d+", name):
        return ""  # the first page's table holds all models and concepts
    drawn = {"effect_size_heatmap": _heat_map}.get(name, _image)
    if AS_SVG.fullmatch(name):
        drawn = _curves
    caption = f"<figcaption>{found['caption']}</figcaption>" if found["caption"] else ""
    return f'<figure id="{name}">{drawn(name, alt, results, folder)}{caption}</figure>'


def _image(name: str, alt: str, results: Results, folder: Path) -> str:
    """The figure as PNG with its size, so that the text does not move when it loads."""
    png = (folder / "figures" / f"{name}.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{width}" height="{height}">'


def _curves(name: str, alt: str, results: Results, folder: Path) -> str:
    """The figure as SVG, each model's curves in groups that the script can switch off."""
    path = folder / "figures" / f"{name}.svg"
    if not path.is_file():
        return _image(name, alt, results, folder)
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    return svg.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def _heat_map(name: str, alt: str, results: Results, folder: Path) -> str:
    """Cohen's d as a table with shaded cells, each with a button that shows its details."""
    effects = results.tables["effects"]
    models = list(dict.fromkeys(effects["model"].astype(str)))
    concepts = list(dict.fromkeys(effects["concept"]))
    cells = {(str(r["model"]), r["concept"]): r for r in effects.to_dict("records")}
    head = "".join(f'<th scope="col">{escape(model)}</th>' for model in models)
    rows = "".join(
        f'<tr><th scope="row">{escape(name_of(concept))}</th>'
        + "".join(_heat_cell(cells[model, concept]) for model in models)
        + "</tr>"
        for concept in concepts
    )
    said = "; ".join(notes_of_heat_map(effects))
    note = f'<p class="marks">{escape(said)}</p>' if said else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{alt}">'
        f'<table class="heat"><caption class="unseen">{alt}</caption>'
        f'<thead><tr><th scope="col">concept \\ model</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f"{note}"
        '<div class="cell-detail" aria-live="polite"></div>'
    )


def _heat_cell(row: Mapping[str, Any]) -> str:
    """The effect and its interval on its colour, as the figure has them."""
    d, low, high = (row[name] for name in ("cohens_d", "cohens_d_low", "cohens_d_high"))
    if not np.isfinite(d):
        return f'<td class="empty">{escape((row["reason"] or "not run").replace("_", " "))}</td>'
    colour = shade(d)
    ink = "#000" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5 else "#fff"
    where = f"{row['model']}|{row['concept']}"
    shown = " ".join([f"{d:.2f}", marks(row)]).rstrip()
    ends = f"{low:.2f} to {high:.2f}" if np.isfinite(low) else "no interval"
    hatched = ' class="zero"' if holds_zero(row) else ""
    return (
        f'<td{hatched} style="background-color:{mpl.colors.to_hex(colour)};color:{ink}" '
        f'data-cell="{escape(where, quote=True)}">'
        f"{shown.replace('-', '−')}<small>{ends.replace('-', '−')}</small></td>"
    )


def _data(results: Results) -> dict[str, Any]:
    """What the script shows of a cell: its d, interval, items, layer, and its layer curve."""
    curves = {
        f"{model}|{concept}": {
            name: [_short(v) for v in of[name]]
            for name in ("layer", "depth", "cohens_d", "cohens_d_low", "cohens_d_high")
        }
        for (model, concept), of in results.tables["layer_effects"].groupby(["model", "concept"])
    }
    cells = {}
    for row in results.tables["effects"].to_dict("records"):
        where = f"{row['model']}|{row['concept']}"
        if np.isfinite(row["cohens_d"]):
            fields = ("layer", "depth", "n", "cohens_d", "cohens_d_low", "cohens_d_high")
            cells[where] = {name: _short(row[name]) for name in fields} | {
                "model": str(row["model"]),
                "concept": name_of(row["concept"]),
                "notes": _notes(row),
                "curve": curves.get(where, {}),
            }
    models = results.tables["about_models"]["model"].astype(str).tolist()
    return {"models": models, "cells": cells, "level": _level(results)}


def _notes(row: Mapping[str, Any]) -> str:
    """Whether a cell steers and its flags, as the end of a sentence."""
    steers = {"yes": "steers", "no": "does not steer"}.get(row.get("steers", ""), "")
    beside = f"best layer: {row['layer_flag']}" if row.get("layer_flag") else ""
    said = [steers, beside, row.get("direction_flag", ""), row.get("influence_flag", "")]
    return "; ".join(text for text in said if text)


def _level(results: Results) -> str:
    return f"{float(results.settings['confidence_level']):.0%}"


def _short(value: float) -> float | None:
    """The value to four digits, None for NaN."""
    return None if pd.isna(value) else float(f"{value:.4g}")


def _json_in_html(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
