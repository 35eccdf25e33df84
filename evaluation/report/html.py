"""report.html: the metrics of a run beside the paper's, a histogram, and images.

One file without scripts or outside references; its images are JPEG in base 64. All text from a
dataset is escaped.
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
    """Return the page as HTML.

    `result` is the content of result.json, and `summary` has the samples that are shown. An image
    that cannot be read is named instead.
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
        *_images(summary, dataset),
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
    """Escape a text and fold it into one printable line."""
    return escape(one_line(value, limit=400))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, ours: int = 0) -> str:
    """Return a table of text cells whose first `ours` rows are bold."""
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
        f"scored, and {counts['left out on opening']} more entries of the dataset were left out. "
        "The scores below are of the others.</p>",
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
        f"<p><small>Percent. {source}One sample per sentence, at the size of the image. "
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
    rows = [
        ("expressions of absent objects", str(absent["n"])),
        ("of them with an empty mask", f"{absent['answered empty']:.2%}"),
    ]
    if "present answered empty" in result:
        rows.append(("present with an empty mask", f"{result['present answered empty']:.2%}"))
    for name, value in absent.items():
        if name.startswith("AUROC"):
            rows.append((f"{name}, present against absent", f"{value:.4f}"))
    return ["<h2>Absent objects</h2>", _table(("", ""), rows)]


def _histogram(counts: Sequence[int]) -> str:
    """Return bars as SVG."""
    width, height, bottom, highest = 34, 160, 24, max([*counts, 1])
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


def _images(summary: Summary, dataset: Dataset) -> list[str]:
    sections = (
        ("Best", summary.best),
        ("Worst", summary.worst),
        ("At random", summary.random),
        ("Absent, but found", summary.wrong),
    )
    legend = "".join(
        f'<span><span class="key" style="background: rgb{rgb}"></span>{word}</span>'
        for rgb, word in (
            (TRUE_RGB, "contour of the true mask; tinted where it was missed"),
            (FOUND_RGB, "contour of the mask found; tinted where it is not true"),
        )
    )
    parts = [f'<p class="keys">{legend}</p>'] if any(picks for _, picks in sections) else []
    samples = {sample.key: sample for sample in dataset.samples}
    for title, picks in sections:
        if picks:
            figures = "\n".join(_figure(record, samples, dataset) for _, record in picks)
            parts += [f"<h2>{title}</h2>", f'<div class="row">{figures}</div>']
    return parts


def _figure(record: Record, samples: Mapping[str, Sample], dataset: Dataset) -> str:
    expression, confidence = _text(record.sample.expression), record.confidence
    facts = f"IoU {record.overlap.iou:.3f}, " if record.sample.present else ""
    facts += "confidence not fitted" if confidence is None else f"confidence {confidence:.3f}"
    caption = (
        f"<figcaption>“<bdi>{expression}</bdi>”<br>{facts}"
        f"<br><small>{_text(record.key)}</small></figcaption>"
    )
    try:
        sample = samples[record.key]
        found_hw = decode_rle(record.counts, record.size_hw)
        image = drawn(dataset.image(sample), found_hw, dataset.mask(sample))
    except (KeyError, RismError) as error:
        return f"<figure><p>no image: {_text(error)}</p>{caption}</figure>"
    return f'<figure><img src="{data_uri(image)}" alt="{expression}">{caption}</figure>'


def _facts(result: Mapping[str, Any]) -> list[tuple[str, object]]:
    run = dict(result["run"])
    run["shard"] = "/".join(map(str, run["shard"]))
    options, machine = run.pop("options"), run.pop("machine")
    found = {**run, **{f"option {name}": value for name, value in options.items()}, **machine}
    if "ms" in result:
        found["ms of a sample"] = ", ".join(f"{k} {v:.1f}" for k, v in result["ms"].items())
    return [(name.replace("_", " "), value) for name, value in found.items() if value != ""]
