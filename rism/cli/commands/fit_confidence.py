"""`rism fit-confidence`: when a bundle answers that nothing in an image fits."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rism.cli.console import Console
from rism.cli.flags import QuietFlags, argument, expecting, option
from rism.runtime.errors import InputError, one_line

# As published datasets, scenes and files are called: "refcoco unc testA", "mine-test.jsonl".
_TEST_SPLIT = re.compile(r"(?<![^\W_])test[ab]?(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FitConfidenceFlags(QuietFlags):
    """The flags of `rism fit-confidence`."""

    run: Path = argument(
        ..., metavar="DIR", help="The folder of a rism eval run over present and absent objects."
    )
    bundle: str = option(..., help="The bundle that was scored; it stores the result.")
    lost: float = option(
        0.01,
        callback=expecting("0 to below 0.5, such as 0.01", lambda share: 0 <= share < 0.5),
        help="Maximum share of present objects that may be rejected.",
    )
    dry_run: bool = option(False, help="Print the result without storing it.")
    allow_test_split: bool = option(False, help="Fit to a test split nevertheless.")


def fit_confidence(flags: FitConfidenceFlags, console: Console) -> None:
    """Fit the confidence below which a bundle rejects an expression, and store it."""
    from rism.evaluation.fit_confidence import fit_confidence as fit_rule
    from rism.evaluation.run.record_log import read_records, read_run
    from rism.runtime.bundle.reader import Bundle, resolve_bundle
    from rism.runtime.bundle.update import expect_own_bundle, update_bundle

    opened = Bundle.open(resolve_bundle(flags.bundle))
    header = read_run(flags.run)
    if header.bundle_digest != opened.digest:
        raise InputError(
            f"{flags.run} is a run of {header.bundle}, not of the bundle {opened.path} as it is "
            f"now: score it again (rism eval ... --bundle {opened.path})"
        )
    if not flags.dry_run:
        expect_own_bundle(opened.path)
        if _TEST_SPLIT.search(header.dataset) and not flags.allow_test_split:
            raise InputError(
                f"{flags.run} is a run on '{one_line(header.dataset, limit=80)}', a test split, "
                "which cannot judge what was fitted to it: fit to a run on the tuning or val "
                "split, or insist with --allow-test-split"
            )
    fit = fit_rule(read_records(flags.run), lost=flags.lost)
    rule = asdict(fit.rule)
    console.note(
        f"{fit.present} present and {fit.absent} absent: AUROC {fit.auroc:.4f}; below "
        f"{fit.rule.threshold:.4f} are {fit.rejected:.1%} of the absent and {fit.lost:.1%} of the "
        "present"
    )
    if flags.dry_run:
        return

    def change(manifest: dict[str, Any]) -> None:
        manifest["method"]["confidence"] = rule

    update_bundle(opened.path, change)
    console.note(f"stored in {opened.path}")
