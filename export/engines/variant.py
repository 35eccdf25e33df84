"""Engine variants in a bundle: their files, the self-test, removal."""

from pathlib import Path
from typing import Any

from rism.export.errors import BuildError
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.reader import Bundle
from rism.runtime.bundle.update import update_bundle
from rism.runtime.diagnostics.selftest import check_variant
from rism.runtime.errors import InputError, ProviderError


def check_here(folder: Path, name: str, *, unchecked: bool = False) -> str:
    """Run the self-test on an engine variant, if this machine can run it.

    Args:
        folder: the bundle.
        name: the variant, which is removed from the bundle if it fails.
        unchecked: keep it even if it fails.

    Returns:
        One line: the result, or why there was no test.

    Raises:
        BuildError: it does not return what the bundle's graphs return.
        OutputError: the bundle cannot be written to.
    """
    bundle = Bundle.open(folder, verify=False)
    if bundle.manifest.self_test is None:
        return f"not tested: no test vectors, rism doctor {folder} --record makes them"
    try:
        found = check_variant(bundle, name)
    except (InputError, ProviderError) as error:
        return f"not tested: {error}"
    failed = [each for each in found if not each.passed]
    if not failed:
        worst = max(found, key=lambda each: each.error / each.limit)
        return f"ok ({worst.graph}: {worst.output} off by {worst.error:.2g} of {worst.limit:g})"
    said = "; ".join(
        f"{each.graph}: {each.output} off by {each.error:.2g}, expected at most {each.limit:g}"
        for each in failed[:4]
    )
    if unchecked:
        return f"FAILED ({said})"
    remove_variant(bundle, name)
    raise BuildError(
        f"engine '{name}' does not return what the graphs do ({said}) and was removed: update the "
        "library or the driver, or keep it with --unchecked"
    )


def remove_variant(bundle: Bundle, name: str) -> None:
    """Remove a variant and its files from a bundle."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["engines"] = [each for each in manifest["engines"] if each["name"] != name]

    update_bundle(bundle.path, change, remove=files_of(bundle.manifest, name))


def files_of(manifest: Manifest, variant: str) -> list[str]:
    """Return the paths of a variant's own files, relative to the bundle."""
    for each in manifest.engines:
        if each.name == variant:
            prefix = f"engines/{variant}/"
            refits = [plan.refit for plan in each.graphs.values() if plan.refit is not None]
            own = [name for name in refits if name.endswith(f".{variant}.refit.onnx")]
            return [name for name in manifest.files if name.startswith(prefix)] + own
    return []
