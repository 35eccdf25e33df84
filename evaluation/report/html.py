"""report.html: a run's figures beside the paper's, its histogram and its pictures.

One file without scripts that asks for nothing from anywhere; pictures are in it as JPEG. All
that comes from a dataset is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rism.evaluation.datasets.sample import Dataset, Sample
from rism.evaluation.metrics.iou import METRICS
from rism.evaluation.report.published_scores import SOURCE, published
from rism.evaluation.report.summary import BINS, Summary
from rism.evaluation.report.thumbnails import FOUND_RGB, TRUE_RGB, data_uri, drawn
from rism.evaluation.run.records import Record
from rism.runtime.errors import RismError, one_line
from rism.runtime.result.rle import decode_rle

__all__ = ["page"]

_SHOWN_PROBLEMS = 100
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem;
       color: #1d2330; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } td { overflow-wrap: anywhere; min-width: 4.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #dfe3ea }
th:first-child, td:first-child { text-align: left } tr.ours td { font-weight: 600 }
.note { background: #fff6dd; padding: .5rem .8rem; border-left: 4px solid #e0a800 }
.bad { background: #fdeaea; border-color: #c0392b }
.row { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; flex: 1 1 15rem;
       max-width: 22rem }
figure img { width: 100%; height: auto; display: block; border-radius: 3px }
figcaption { font-size: .85rem; overflow-wrap: anywhere } small { color: #5a6375 }
.keys { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #dfe3ea;
        padding: .4rem 0; margin-top: 2.2rem; font-size: .9rem }
.keys > span { display: inline-block; margin-right: .9rem }
@media (max-width: 30rem) { body { margin: 1rem auto } th, td { padding: .2rem .3rem }
        table { font-size: .8rem } svg { font-size: 19px } }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 0 }
"""


def page(result: Mapping[str, Any], summary: Summary, dataset: Dataset) -> str:
    """Write the page.

    Args:
        result: what result.json says.
        summary: which samples are shown.
        dataset: their pictures and true masks; one that cannot be read is named instead.

    Returns:
        HTML in UTF-8.
    """
    run, name = result["run"], result["dataset"]["name"]
    parts = [
        f"<h1>{_text(name)}</h1>",
        f"<p>{_text(run['bundle'])} on {_text(run['provider'])} in {_text(run['precision'])}, "
        f"{_text(result['finished'])}</p>",
        *(f'<p class="note">{_text(note)}</p>' for note in result["dataset"]["notes"]),
        *_trouble(result),
        "<h2>Scores</h2>",
        *_scores(result),
        *_groups(result),
        *_absent(result),
        *(["<h2>IoU</h2>", _histogram(result["histogram"])] if any(result["histogram"]) else []),
        *_pictures(summary, dataset),
        "<h2>The run</h2>",
        _table(("", ""), [(key, str(value)) for key, value in _facts(result)]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(name)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    """Make foreign text harmless: one line, printable, and no markup."""
    return escape(one_line(value, limit=400))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, ours: int = 0) -> str:
    """Cells are text, not markup; the first `ours` rows stand out."""
    lines = ['<div class="wide"><table>']
    if any(head):
        lines.append("<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>")
    for number, row in enumerate(rows):
        mark = ' class="ours"' if number < ours else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def _trouble(result: Mapping[str, Any]) -> list[str]:
    found = [*result["left out"], *result["problems"]]
    if not found:
        return []
    counts = result["counts"]
    rows = [(each["where"], each["what"]) for each in found[:_SHOWN_PROBLEMS]]
    rest = len(found) - len(rows)
    return [
        f'<p class="note bad">{counts["not scored"]} of {counts["samples"]} samples could not be '
        f"scored, and {counts['left out on opening']} more things of the dataset were left out. "
        "The figures below are of the others.</p>",
        f"<details><summary>Which, and why</summary>{_table(('', ''), rows)}"
        + (f"<p>and {rest} more, in result.json</p>" if rest else "")
        + "</details>",
    ]


def _row(name: str, figures: Mapping[str, float]) -> list[str]:
    if not figures["n"]:
        return [name, "0", *("" for _ in METRICS)]
    return [name, str(figures["n"]), *(f"{100 * figures[metric]:.2f}" for metric in METRICS)]


def _scores(result: Mapping[str, Any]) -> list[str]:
    ours = [_row(name, figures) for name, figures in result["metrics"].items()]
    theirs = []
    for row in published(result["dataset"]):
        cells = {"mIoU": f"{row.miou:.2f}", "oIoU": f"{row.oiou:.2f}"}
        theirs.append([f"paper: {row.name}", "", *(cells.get(metric, "") for metric in METRICS)])
    source = f"Rows of the paper are from {SOURCE}. " if theirs else ""
    return [
        _table(("", "n", *METRICS), [*ours, *theirs], ours=len(ours)),
        f"<p><small>Percent. {source}One sample per sentence, at the size of the picture. "
        "mIoU is the mean of IoU over samples, oIoU all intersections over all unions, P@X the "
        "share with an IoU of at least X, boundary IoU the mean over samples of the IoU of what "
        "lies within 2 % of the diagonal of a contour.</small></p>",
    ]


def _groups(result: Mapping[str, Any]) -> list[str]:
    rows = [_row(name, figures) for name, figures in result["groups"].items()]
    return ["<h2>By group</h2>", _table(("", "n", *METRICS), rows)] if rows else []


def _absent(result: Mapping[str, Any]) -> list[str]:
    if "absent" not in result:
        return []
    absent = result["absent"]
    rows = [("expressions of what is not there", str(absent["n"])),
            ("of them answered with an empty mask", f"{absent['answered empty']:.2%}")]  # fmt: skip
    if "present answered empty" in result:
        lost = result["present answered empty"]
        rows.append(("present objects answered with an empty mask", f"{lost:.2%}"))
    rows += [
        (f"{name}, present against absent", f"{value:.4f}")
        for name, value in absent.items()
        if name.startswith("AUROC")
    ]
    return ["<h2>What is not there</h2>", _table(("", ""), rows)]


def _histogram(counts: Sequence[int]) -> str:
    """Bars as SVG."""
    width, height, bottom = 34, 160, 24
    highest = max([*counts, 1])
    parts = []
    for at, count in enumerate(counts):
        tall = height * count / highest
        parts.append(
            f'<rect x="{at * width + 2}" y="{20 + height - tall:.1f}" width="{width - 4}" '
            f'height="{tall:.1f}" fill="#3b6ea5"><title>{at / BINS:.2f} to {(at + 1) / BINS:.2f}: '
            f"{count}</title></rect>"
        )
        if count:
            parts.append(
                f'<text x="{at * width + width / 2}" y="{16 + height - tall:.1f}" '
                f'text-anchor="middle">{count}</text>'
            )
    for at in range(0, BINS + 1, 2):
        anchor = "start" if at == 0 else "end" if at == BINS else "middle"
        parts.append(
            f'<text x="{at * width}" y="{height + 20 + 16}" text-anchor="{anchor}">'
            f"{at / BINS:.1f}</text>"
        )
    return (
        f'<svg viewBox="0 0 {BINS * width} {height + 20 + bottom}" width="100%" role="img" '
        'aria-label="samples by IoU" font-size="11" font-family="system-ui, sans-serif">'
        + "".join(parts)
        + "</svg>"
    )


def _pictures(summary: Summary, dataset: Dataset) -> list[str]:
    sorts = (
        ("Best", summary.best),
        ("Worst", summary.worst),
        ("At random", summary.random),
        ("Not there, but found", summary.wrong),
    )
    keys = {record.key for _, records in sorts for record in records}
    wanted = {s.key: s for s in dataset.samples if s.key in keys}
    key = "".join(
        f'<span><span class="key" style="background: rgb{rgb}"></span>{word}</span>'
        for rgb, word in (
            (TRUE_RGB, "contour of what is true; tinted where it was missed"),
            (FOUND_RGB, "contour of what was found; tinted where it is not true"),
        )
    )
    # It stays in sight while the pictures below it are looked at.
    parts = [f'<p class="keys">{key}</p>'] if wanted else []
    for title, records in sorts:
        if records:
            figures = "\n".join(_figure(record, wanted, dataset) for record in records)
            parts += [f"<h2>{title}</h2>", f'<div class="row">{figures}</div>']
    return parts


def _figure(record: Record, wanted: Mapping[str, Sample], dataset: Dataset) -> str:
    said = f"IoU {record.overlap.iou:.3f}, " if record.present else ""
    sure = record.confidence
    said += "confidence not fitted" if sure is None else f"confidence {sure:.3f}"
    caption = (
        f"<figcaption>“<bdi>{_text(record.expression)}</bdi>”<br>{said}"
        f"<br><small>{_text(record.key)}</small></figcaption>"
    )
    try:
        sample = wanted[record.key]
        found_hw = decode_rle(record.counts, record.size_hw)
        picture = drawn(dataset.image(sample), found_hw, dataset.mask(sample))
    except (KeyError, RismError) as error:
        return f"<figure><p>no picture: {_text(error)}</p>{caption}</figure>"
    alt = _text(record.expression)
    return f'<figure><img src="{data_uri(picture)}" alt="{alt}">{caption}</figure>'


def _facts(result: Mapping[str, Any]) -> list[tuple[str, object]]:
    run = dict(result["run"])
    run["shard"] = "/".join(map(str, run["shard"]))
    options, machine = run.pop("options"), run.pop("machine")
    found = {**run, **{f"option {name}": value for name, value in options.items()}, **machine}
    if "ms" in result:
        found["ms of a sample"] = ", ".join(f"{k} {v:.1f}" for k, v in result["ms"].items())
    return [(name.replace("_", " "), value) for name, value in found.items() if value != ""]
