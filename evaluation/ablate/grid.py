"""The settings that the ablations compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rism.export.capture_blocks import choose_blocks
from rism.export.names import FEATURE_SITES, MAX_NOISY_GRID
from rism.runtime.errors import InputError, one_line

MAPS = ("CAM", "RAM")
SITES = FEATURE_SITES[::-1]
"""Table 3's order."""
SITE_NAMES = {"block": "Block", "adaln": "AdaLN", "mmsa": "MMSA"}
TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAP_THRESHOLD = 0.5
"""Threshold of the maps in the paper's tables and figures."""

_EVERY = (2, 3, 4)
_FEW_STEPS = 6
_STEP = 5


@dataclass(frozen=True)
class MapSetting:
    """A thresholded attention map.

    Attributes:
        timestep: of the attention.
        blocks: "all", "shallow" (double-stream), "deep" (single-stream) or a block's number.
        map: one of `MAPS`.
    """

    timestep: int
    blocks: str
    map: str

    def __str__(self) -> str:
        return f"{self.map} > {MAP_THRESHOLD:g} t {self.timestep} blocks {self.blocks}"


@dataclass(frozen=True)
class FeatureSetting:
    """The full method, with the region of step 0 and all blocks.

    Features are of this time step, block (counted over double-stream, then single-stream blocks)
    and site, one of `SITES`; tau is of the region.
    """

    timestep: int
    block: int
    site: str
    tau: float

    def __str__(self) -> str:
        return f"FSL t {self.timestep} block {self.block} {self.site} tau {self.tau:g}"


@dataclass(frozen=True)
class ChoiceSetting:
    """The full method on less: the region of some blocks and noisy tokens, at step 0.

    Attributes:
        blocks: that attention is read from, see `rism.export.capture_blocks.choose_blocks`.
        noisy_grid: k, where only every k-th row and column has noisy tokens.
    """

    blocks: str
    noisy_grid: int

    def __str__(self) -> str:
        return f"FSL attention of blocks {self.blocks} noisy grid {self.noisy_grid}"


Setting = MapSetting | FeatureSetting | ChoiceSetting


@dataclass(frozen=True)
class Grid:
    """All settings of a run.

    Attributes:
        double, single: numbers of blocks of each kind.
        timesteps: rising, beginning with 0.
        blocks: of the compared features, rising, with the default one.
        sites: of these features, with the default one.
        feature_block, feature_site, tau: the defaults.
    """

    double: int
    single: int
    timesteps: tuple[int, ...]
    blocks: tuple[int, ...]
    sites: tuple[str, ...]
    feature_block: int
    tau: float
    feature_site: str = "mmsa"
    noisy_grids: tuple[int, ...] = (1,)

    @classmethod
    def choose(
        cls,
        *,
        double: int,
        single: int,
        feature_block: int,
        tau: float,
        steps: int,
        timesteps: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        sites: Sequence[str] | None = None,
        noisy_grids: Sequence[int] = (1,),
    ) -> Grid:
        """Complete a choice of settings with the defaults.

        The first five arguments are the model's. Without `timesteps` there are all of at most six,
        or every fifth of more, as in the paper; without `blocks` or `sites` all.

        Raises:
            InputError: the model has no such step, block or site.
        """
        if timesteps is None:
            timesteps = range(0, steps, 1 if steps <= _FEW_STEPS else _STEP)
        some = range(double + single) if blocks is None else blocks
        _check("timestep", timesteps, range(steps))
        _check("block", some, range(double + single))
        _check("site", sites or (), SITES)
        _check("noisy grid", noisy_grids, range(1, MAX_NOISY_GRID + 1))
        return cls(
            double,
            single,
            tuple(sorted({0, *timesteps})),
            tuple(sorted({feature_block, *some})),
            tuple(site for site in SITES if sites is None or site in (*sites, "mmsa")),
            feature_block,
            tau,
            noisy_grids=tuple(sorted({1, *noisy_grids})),
        )

    @property
    def subsets(self) -> dict[str, slice]:
        """The blocks that maps are summed over, as rows by name."""
        count = self.double + self.single
        shallow = {"shallow": slice(0, self.double)} if self.double else {}
        each = {str(block): slice(block, block + 1) for block in range(count)}
        return {"all": slice(0, count), **shallow, "deep": slice(self.double, count), **each}

    def default(self, *, tau: float | None = None) -> FeatureSetting:
        """Return the method's default setting, or with another tau."""
        own = self.tau if tau is None else tau
        return FeatureSetting(0, self.feature_block, self.feature_site, own)

    def maps(self, timestep: int) -> list[MapSetting]:
        """Return the map settings of a step."""
        return [MapSetting(timestep, name, kind) for name in self.subsets for kind in MAPS]

    def features(self, timestep: int) -> list[FeatureSetting]:
        """Return the feature settings of a step; for step 0 also the default with every tau."""
        found = [
            FeatureSetting(timestep, block, site, self.tau)
            for block in self.blocks
            for site in self.sites
        ]
        if timestep == 0:
            found += [self.default(tau=tau) for tau in TAUS]
        return list(dict.fromkeys(found))

    def choices(self, noisy_grid: int) -> list[ChoiceSetting]:
        """Return the settings that read less; with fewer noisy tokens only the presets' blocks."""
        names = ["all", "to-features"]
        if noisy_grid == 1:
            names += ["deep", *(f"every:{k}" for k in _EVERY), "to-features,every:2"]
            names += [f"0-{block}" for block in range(self.double + self.single - 1)]
        return [ChoiceSetting(name, noisy_grid) for name in names]

    def rows(self, setting: ChoiceSetting) -> list[int]:
        """Return the numbers of the blocks that a setting reads."""
        return list(
            choose_blocks(
                setting.blocks,
                double=self.double,
                single=self.single,
                feature_block=self.feature_block,
            )
        )

    @property
    def settings(self) -> list[Setting]:
        """All settings, in the order in which they are computed."""
        found: list[Setting] = []
        for timestep in self.timesteps:
            found += [*self.maps(timestep), *self.features(timestep)]
            found += self.choices(1) if timestep == 0 else []
        for noisy_grid in self.noisy_grids[1:]:
            found += self.choices(noisy_grid)
        return found


def _check(what: str, given: Sequence[object], known: Sequence[object]) -> None:
    for each in given:
        if each not in known:
            wanted = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(SITES)
            raise InputError(
                f"{what} {one_line(each, limit=40)} is not of this model, expected {wanted}"
            )
