"""Baseline: importing what a diffusers pipeline of these models is made of, and nothing more.

Source: the imports of diffusers' own examples for Flux2KleinPipeline. Whoever segments in PyTorch
waits for them before the first byte of a model is read.
"""

from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

__all__ = ["Flux2KleinPipeline"]
