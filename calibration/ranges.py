"""Measures FP8 scales of a bundle's transformer on images, block by block."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rism.calibration.activation_moments import Moments
from rism.calibration.blockwise_run import OnStep, StreamedGraph
from rism.calibration.e4m3 import E4M3_MAX, SMALLEST_SCALE, channel_scales, weight_error
from rism.calibration.histogram import Histogram
from rism.calibration.kept_layers import OUTSIDE, kept_layers
from rism.calibration.layers import Layer, find_layers, fingerprint, values
from rism.calibration.names import SCALE_RULES
from rism.calibration.open_graph import (
    OpenGraph,
    expect_float_weights,
    open_graph,
    open_transformer,
)
from rism.calibration.qdq import quantise
from rism.calibration.report import CalibrationReport, LayerReport, MaskAgreement
from rism.calibration.samples import CalibrationSample, PreparedSamples, prepare
from rism.calibration.scales import Scales
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays
from rism.runtime.errors import BundleError, InputError, one_line

CANDIDATES = (100.0, 99.9999, 99.999, 99.99, 99.9)
"""Percentiles that the rule "mask" tries; between equally good ones the first is chosen."""

Mask = npt.NDArray[np.bool_]


CalibrationProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, its steps done and their total: first 0 and 0."""


@dataclass(frozen=True)
class CalibrationOptions:
    """The options of a calibration.

    Attributes:
        rule: "max" scales the largest activation to 448; "percentile" the magnitude that
            `percentile` of the activations do not exceed; "mask" tries `CANDIDATES` and chooses
            the one whose masks agree best with those of the bundle as it is.
        percentile: for the rule of that name, above 0 to 100.
        keep: patterns of layers that are not quantised, besides those that never are.
        threads: CPU threads; None for as many as this process may use.
    """

    rule: str = "max"
    percentile: float = 99.99
    keep: tuple[str, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the rule and the percentile.

        Raises:
            InputError: one of them is not valid.
        """
        if self.rule not in SCALE_RULES:
            raise InputError(
                f"rule is '{one_line(self.rule)}', expected one of {', '.join(SCALE_RULES)}"
            )
        if not 0 < self.percentile <= 100:
            raise InputError(
                f"percentile is {self.percentile:g}, expected above 0 to 100, such as 99.99"
            )

    @property
    def candidates(self) -> tuple[float, ...]:
        """The percentiles that the rule compares."""
        return {"max": (100.0,), "percentile": (self.percentile,), "mask": CANDIDATES}[self.rule]


def calibrate(
    bundle: Bundle,
    samples: Sequence[CalibrationSample],
    options: CalibrationOptions | None = None,
    *,
    progress: CalibrationProgress | None = None,
) -> CalibrationReport:
    """Find the scales of a bundle's transformer.

    Every block runs on all samples before the next one's weights are read; the activations between
    blocks are in a temporary folder. The bundle is of any precision.

    Returns:
        The scales, and the error that they cause in each layer.

    Raises:
        InputError: an image, an expression or an option that cannot be used.
        BundleError: the transformer computes numbers that are not finite.
        ProviderError: onnxruntime failed.
    """
    options = options or CalibrationOptions()
    stage = partial(_stage, progress or (lambda _name, _done, _total: None))
    expect_float_weights(bundle)
    if not samples:
        raise InputError("there are no images to calibrate on, expected at least one")
    layers = find_layers(open_transformer(bundle).model)
    names = [layer.name for layer in layers]
    always = kept_layers(names)
    if len(always) == len(names) and OUTSIDE in always.values():
        raise BundleError(
            f"bundle '{bundle.path}' has {len(layers)} layers and no layer of a numbered block: "
            "rism export --model MODEL -o DIR makes one that names them"
        )
    kept = kept_layers(names, options.keep)
    if len(kept) == len(layers):
        raise InputError(
            f"all {len(layers)} layers stay unquantised, expected some to be left: fewer --keep"
        )
    with tempfile.TemporaryDirectory(prefix="rism-") as folder:
        on_step = stage(f"encoding {len(samples)} images and expressions")
        ready = prepare(bundle, samples, Path(folder), threads=options.threads, on_step=on_step)
        run = _Run(bundle, ready, options, stage, layers, kept)
        wanted = run.measure()
        percentile, masks = options.candidates[0], {}
        if options.rule == "mask":
            masks = {each: _agreement(wanted, run.masks(each)) for each in options.candidates}
            percentile = max(masks, key=lambda each: masks[each].mean_iou)
        scales = run.scales(percentile)
        return CalibrationReport(scales, [*run.report(scales)], masks, run.moments())


def _stage(progress: CalibrationProgress, name: str) -> OnStep:
    """Begin a stage."""
    progress(name, 0, 0)
    return partial(progress, name)


class _Run:
    """The state of one calibration."""

    def __init__(
        self,
        bundle: Bundle,
        samples: PreparedSamples,
        options: CalibrationOptions,
        stage: Callable[[str], OnStep],
        layers: Sequence[Layer],
        kept: Mapping[str, str],
    ) -> None:
        self.bundle, self.samples, self.options = bundle, samples, options
        self.stage, self.layers, self.kept = stage, layers, kept
        self.capture = bundle.manifest.default_capture
        # By layer; layers with the same input tensor share one histogram.
        self.histograms: dict[str, Histogram] = {}

    def measure(self) -> dict[int, Mask]:
        """Measure the activations of the bundle's own graph; return its masks for rule "mask"."""
        masks: dict[int, Mask] = {}
        on_step = self.stage("measuring activations, block by block")
        for name, numbers in self.samples.by_graph(self.capture).items():
            graph = open_graph(self.bundle, name)
            tensors: dict[str, Histogram] = {}
            for layer in find_layers(graph.model):
                if layer.name in self.kept:
                    continue
                tensor = layer.activation.name or ""
                shared = tensors.get(tensor) or self.histograms.get(layer.name) or Histogram()
                tensors[tensor] = self.histograms[layer.name] = shared
            masks |= self._stream(
                graph, numbers, tensors, on_step, wanted=self.options.rule == "mask"
            )
        self.check()
        return masks

    def check(self) -> None:
        """Raise a `BundleError` if an activation was infinite or not a number."""
        for name, histogram in self.histograms.items():
            if histogram.unsound:
                raise BundleError(
                    f"{histogram.unsound} values before '{one_line(name, limit=80)}' are not "
                    "finite: the bundle cannot be calibrated; export it with --precision bf16"
                )

    def masks(self, percentile: float) -> dict[int, Mask]:
        """Run the graph quantised at a percentile; return its masks."""
        on_step = self.stage(f"comparing masks at percentile {percentile:g}")
        masks: dict[int, Mask] = {}
        for name, numbers in self.samples.by_graph(self.capture).items():
            graph = open_graph(self.bundle, name)
            quantise(graph.model, self.scales(percentile), casts=True)
            masks |= self._stream(graph, numbers, {}, on_step, wanted=True)
        return masks

    def moments(self) -> dict[str, Moments]:
        """Return mean products of the activations of each layer, (in / G, G, G) float32."""
        return {
            name: (each.products * _places(each) / max(each.count, 1)).astype(np.float32)
            for name, each in self.histograms.items()
        }

    def scales(self, percentile: float) -> Scales:
        """Return the scales at a percentile."""
        manifest = self.bundle.manifest
        scales = {
            name: max(histogram.percentile(percentile) / E4M3_MAX, SMALLEST_SCALE)
            for name, histogram in self.histograms.items()
        }
        return Scales(
            fingerprint=fingerprint(self.layers),
            model=manifest.model.name,
            precision=manifest.precision.compute,
            rule=self.options.rule,
            percentile=percentile,
            samples=len(self.samples),
            layers={name: float(np.float32(scale)) for name, scale in scales.items()},
            kept=self.kept,
        )

    def report(self, scales: Scales) -> Iterator[LayerReport]:
        """Report each layer and its rounding errors."""
        on_step = self.stage("measuring weights")
        for number, layer in enumerate(self.layers):
            weight = values(layer.weight)
            if layer.name in self.kept:
                yield LayerReport(layer.name, weight.shape, self.kept[layer.name])
                continue
            histogram, scale = self.histograms[layer.name], scales.layers[layer.name]
            error, axis = histogram.error(scale), layer.channel_axis
            yield LayerReport(
                layer.name,
                weight.shape,
                amax=histogram.largest,
                scale=scale,
                activation_error=error.relative,
                saturated=error.saturated,
                weight_error=weight_error(weight, channel_scales(weight, axis), axis),
            )
            on_step(number + 1, len(self.layers))

    def _stream(
        self,
        graph: OpenGraph,
        numbers: Sequence[int],
        tensors: Mapping[str, Histogram],
        on_step: OnStep,
        *,
        wanted: bool,
    ) -> dict[int, Mask]:
        masks: dict[int, Mask] = {}

        def finish(at: int, outputs: Arrays) -> None:
            masks[numbers[at]] = self.samples.mask(numbers[at], self.capture, outputs)

        StreamedGraph(graph, threads=self.options.threads).run_all(
            lambda at: self.samples.feeds(numbers[at]),
            len(numbers),
            tapped=tensors,
            on_tap=lambda tensor, array: tensors[tensor].add(array),
            on_step=on_step,
            on_result=finish if wanted else None,
        )
        return masks


def _places(histogram: Histogram) -> int:
    groups, width = histogram.products.shape[:2]
    return int(groups * width)


def _agreement(wanted: Mapping[int, Mask], found: Mapping[int, Mask]) -> MaskAgreement:
    ious = [_iou(mask, found[number]) for number, mask in wanted.items()]
    return MaskAgreement(sum(ious) / len(ious), min(ious))


def _iou(one: Mask, other: Mask) -> float:
    """Intersection over union; two empty masks agree."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
