"""HTML page of a merge's report; it needs nothing else: no script, no picture file, no request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from .. import __version__
from ..plots import curves
from .charts import heat_maps, histograms, words
from .document import GENERATOR, Document

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
DATA_ID = "ziplora-report"
STYLE = """
:root { color-scheme: light dark; --line: #d4d4d8; --quiet: #52525b; --back: #fff; --text: #18181b; }
@media (prefers-color-scheme: dark) { :root { --line: #3f3f46; --quiet: #a1a1aa; --back: #18181b; --text: #f4f4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2rem 0 0.5rem; font-size: 1.15rem; }
p { margin: 0.3rem 0; } .quiet { color: var(--quiet); font-size: 0.9rem; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; }
.wide { overflow-x: auto; overflow-wrap: normal; } .wide td:nth-child(5) { min-width: 12rem; overflow-wrap: anywhere; }
.wide td:nth-child(3) { min-width: 8rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.5rem; border-top: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--quiet); font-weight: normal; } thead th { border-top: 0; }
tr.changed th, tr.changed td { font-weight: 600; color: inherit; }
.ziplora-warnings li { color: #a15c00; }
.ziplora-maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
.ziplora-heat { overflow-x: auto; overflow-wrap: normal; font-size: 0.85rem; }
.ziplora-heat summary { cursor: pointer; font-weight: 600; }
.ziplora-heat th, .ziplora-heat td { padding: 0.1rem 0.3rem; text-align: center; }
.ziplora-heat th[scope="row"] { text-align: left; white-space: nowrap; } .ziplora-heat p { color: var(--quiet); }
.ziplora-curves, .ziplora-histograms { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); }
figure { margin: 0; } figcaption { font-size: 0.85rem; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; }
.ziplora-curves svg { height: 6rem; border: 1px solid var(--line); border-radius: 4px; }
polyline { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.ziplora-marks line { stroke: var(--quiet); stroke-width: 0.5; stroke-dasharray: 2 2; }
.ziplora-marks text { fill: currentColor; font-size: 9px; }
.ziplora-line-0 { stroke: #2563eb; } .ziplora-fill-0 { fill: #2563eb; } .ziplora-key-0 { color: #2563eb; }
.ziplora-line-1 { stroke: #ea580c; } .ziplora-fill-1 { fill: #ea580c; } .ziplora-key-1 { color: #c2410c; }
.ziplora-line-2 { stroke: #16a34a; } .ziplora-fill-2 { fill: #16a34a; } .ziplora-key-2 { color: #15803d; }
.ziplora-line-3 { stroke: #a855f7; } .ziplora-fill-3 { fill: #a855f7; } .ziplora-key-3 { color: #9333ea; }
@media (prefers-color-scheme: dark) {
  .ziplora-warnings li { color: #fbbf24; }
  .ziplora-key-0 { color: #93c5fd; } .ziplora-key-1 { color: #fdba74; }
  .ziplora-key-2 { color: #86efac; } .ziplora-key-3 { color: #d8b4fe; }
}
"""


def page(document: Document) -> str:
    """The whole page; names and prompts are somebody's input and are escaped."""
    sections = [
        _section("What the merge did", words(document.words)),
        _section("Warnings", _warnings(document.warnings)),
        _section("Figures", _rows(document.figures())),
        _section("LoRAs", _inputs(document.inputs())),
        _section("While it learnt", curves(document.saved.history)),
        _section("The coefficients", histograms(document.explanation)),
        _section("Block by block", heat_maps(document.explanation)),
        _section("Settings", _settings(document.settings())),
    ]
    name = escape(document.name)
    tag = escape(f"<lora:{document.name}:1>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{GENERATOR} {__version__}">'
        f"<title>{name}</title><style>{STYLE}</style></head><body>"
        f'<h1>{name}</h1><p><code>{tag}</code></p><p class="quiet">A merge by ZipLoRA.</p>'
        f"{''.join(sections)}{_data(document)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _warnings(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="ziplora-warnings">{items}</ul>' if items else ""


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows
    )
    return f"<table>{cells}</table>"


def _inputs(loras: Sequence[dict[str, str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in loras[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in lora.values())}</tr>" for lora in loras
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _settings(rows: Iterable[tuple[str, str, bool]]) -> str:
    cells = "".join(
        f'<tr{"" if default else " class=changed"}><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, value, default in rows
    )
    return f'<p class="quiet">Those that are not the default stand out.</p><table>{cells}</table>'


def _data(document: Document) -> str:
    """The same as data for programs; no text in it can end the element."""
    text = json.dumps(document.to_json(), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{DATA_ID}">{text}</script>'
