"""What a build of engines left in a bundle."""

from dataclasses import dataclass

from rism.export.engines.process import BuiltEngine


@dataclass(frozen=True)
class BuildReport:
    """An engine variant that was built and added to a bundle, or kept in it.

    Attributes:
        name: of the variant.
        target: the library.
        version: of the library.
        compute_capabilities: of the GPUs that it was built for.
        precision: one of `ENGINE_PRECISIONS`.
        graphs: its engines; none where it was kept.
        self_test: the result on the bundle's test vectors, or why there was no test.
        was_there: "" for a new variant, "kept" for one that the bundle had as asked, "replaced"
            for one that it had otherwise, or that `force` built anew.
    """

    name: str
    target: str
    version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    graphs: tuple[BuiltEngine, ...] = ()
    self_test: str = ""
    was_there: str = ""

    def table(self) -> str:
        """Return one line for each engine, and one for each check of its layers."""
        rows = []
        for each in self.graphs:
            rows.append(
                f"{each.graph:<28} {each.plan_bytes / 1e6:9.1f} MB  {each.seconds:6.1f} s  "
                f"{each.peak_bytes / 1e9:5.1f} GB memory  {len(each.layers)} layers"
            )
            if each.activation_bytes is not None:
                rows.append(
                    f"  a run takes {each.activation_bytes / 1e9:.2f} GB beside the weights at most"
                )
            rows += [
                f"  {check.question}: {check.answer} ({check.detail})" for check in each.checks
            ]
        return "\n".join(rows)
