"""`rism fit-confidence`: the door to rism.evaluation.fit_confidence."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.bundle.update import expect_own_bundle, update_bundle
from rism.runtime.cli.console import Console
from rism.runtime.errors import InputError, one_line
from rism.runtime.extras import import_extra

__all__ = ["fit_bundle"]

# As published datasets, scenes and files are called: "refcoco unc testA", "mine-test.jsonl".
_TEST_SPLIT = re.compile(r"(?<![^\W_])test[ab]?(?![^\W_])", re.IGNORECASE)


def fit_bundle(
    run: Path,
    bundle: str,
    console: Console,
    *,
    lost: float = 0.01,
    dry_run: bool = False,
    allow_test_split: bool = False,
) -> None:
    """Fit a bundle's confidence to a run of `rism eval`, and store it in the manifest.

    Args:
        run: the folder of the run.
        bundle: the bundle that was scored.
        console: where to say what was found.
        lost: share of the present samples that may be called absent.
        dry_run: store nothing.
        allow_test_split: store even what was fitted to a test split.

    Raises:
        InputError: the run is of another bundle or of a test split, or has too few samples of a
            class.
        OutputError: the bundle is a built-in one.
        RismError: the folder or the bundle cannot be used.
    """
    journal = import_extra("rism.evaluation.run.record_log", command="fit-confidence", extra="eval")
    fitting = import_extra("rism.evaluation.fit_confidence", command="fit-confidence", extra="eval")
    opened = Bundle.open(resolve_bundle(bundle))
    header = journal.read_run(run)
    if header.bundle_digest != opened.digest:
        raise InputError(
            f"{run} is a run of {header.bundle}, not of the bundle {opened.path} as it is now: "
            f"score it anew (rism eval ... --bundle {opened.path})"
        )
    if not dry_run:
        expect_own_bundle(opened.path)
        if _TEST_SPLIT.search(header.dataset) and not allow_test_split:
            raise InputError(
                f"{run} is a run on '{one_line(header.dataset, limit=80)}', a test split: what is "
                "fitted to it cannot be judged by it; fit to a run on the tuning or val split, or "
                "insist with --allow-test-split"
            )
    fit = fitting.fit_confidence(journal.read_records(run), lost=lost)
    rule = asdict(fit.rule)
    console.note(
        f"{fit.present} present and {fit.absent} absent: AUROC {fit.auroc:.4f}; below "
        f"{fit.rule.threshold:.4f} are {fit.rejected:.1%} of the absent and {fit.lost:.1%} of the "
        "present"
    )
    if dry_run:
        return

    def change(manifest: dict[str, Any]) -> None:
        manifest["method"]["confidence"] = rule

    update_bundle(opened.path, change)
    console.note(f"stored in {opened.path}")
