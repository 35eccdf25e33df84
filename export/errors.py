"""What can go wrong while exporting; all of them are `RismError`s of one line."""

from rism.runtime.errors import RismError


class ExportError(RismError):
    """An export that could not be finished."""


class CheckpointError(ExportError):
    """A checkpoint that is missing, incomplete, or not what its configuration says."""


class UnsupportedModelError(ExportError):
    """A model that the method cannot be used with, and why."""


class ParityError(ExportError):
    """A graph that does not compute what the PyTorch model computes."""


class BuildError(ExportError):
    """An engine could not be built, or is not what was asked for."""
