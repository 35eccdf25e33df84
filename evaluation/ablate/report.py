"""The folder of a run: tables as CSV, plots as SVG, and a page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rism.evaluation.ablate.choices import choice_rows
from rism.evaluation.ablate.claims import ABOUT_AS_GOOD, findings
from rism.evaluation.ablate.scoring import Outcome
from rism.evaluation.ablate.tables import CHOICES, tables
from rism.runtime.atomic_write import write_atomically

_SHOWN = {
    "figure3": ("figure3.svg", "figure3-blocks.svg"),
    "figure4": ("figure4.svg",),
    "figure5": ("figure5.svg",),
}
_PROBLEMS_SHOWN = 20


def write_report(outcome: Outcome, folder: Path, *, title: str, about: Sequence[str]) -> list[Path]:
    """Write all files of the report into a folder, and return their paths.

    The outcome is of at least one sample; `about` are sentences for the beginning of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    from rism.evaluation.ablate.plots import plots

    files = {
        f"{each.name}.csv": each.to_csv(outcome.summaries).encode() for each in tables(outcome)
    }
    files |= plots(outcome)
    files["ablation.md"] = page(outcome, title=title, about=about).encode()
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def page(outcome: Outcome, *, title: str, about: Sequence[str]) -> str:
    """Return the page, in Markdown."""
    parts = [f"# {title}\n", *(f"{sentence}\n" for sentence in about)]
    for table in tables(outcome):
        parts.append(f"## {table.title}\n")
        shown = _SHOWN.get(table.name, ())
        if shown:
            parts += [f"![{table.title}]({name})\n" for name in shown]
        elif table.name == CHOICES:
            parts.append(choice_rows(outcome))
        else:
            parts.append(table.to_markdown(outcome.summaries))
        parts.append(f"Numbers: [{table.name}.csv]({table.name}.csv).\n")
    parts += [_findings(outcome), _problems(outcome)]
    return "\n".join(part for part in parts if part)


def _findings(outcome: Outcome) -> str:
    found = findings(outcome)
    if not found:
        return ""
    lines = [
        "## Beside the paper's findings\n",
        "Differences are of mIoU in points, the first setting minus the second, with the 95 % "
        "interval of the paired differences over the samples. A claim holds if the whole interval "
        f"is on its side of zero; two settings are about as good within {100 * ABOUT_AS_GOOD:g} "
        "points. For a claim of the best setting, the second is the best of the others on these "
        "samples.\n",
        "| the paper says | first | second | difference | holds here |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for each in found:
        one, other = each.compared
        difference = f"{100 * each.difference:+.2f} ± {100 * each.margin:.2f}"
        lines.append(f"| {each.claim} | {one} | {other} | {difference} | {each.verdict} |")
    return "\n".join(lines) + "\n"


def _problems(outcome: Outcome) -> str:
    if not outcome.problems:
        return ""
    lines = [f"## Not scored: {len(outcome.problems)}\n"]
    lines += [f"- {each.where}: {each.what}" for each in outcome.problems[:_PROBLEMS_SHOWN]]
    if len(outcome.problems) > _PROBLEMS_SHOWN:
        lines.append(f"- and {len(outcome.problems) - _PROBLEMS_SHOWN} more")
    return "\n".join(lines) + "\n"
