"""What words and image tokens mean, as numbers that both encoders are taught to agree on.

Each space has a table of vectors. A linear map of an image token, and another of the prompt's
padding, point at the vectors of what is seen and of what is said; the DiT starts with both maps as
its input layers, so that it can match them from the first step. Tables and maps are thrown away.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mini.assets import kinds
from mini.colours import COLOUR_NAMES
from mini.nouns import meanings, phrases
from mini.scenes import Thing
from mini.words import Question

LOOKS = ("flat", "3d", "outlined")
# Entries beside the names: the first is background, the last that nothing is said, and the kind
# before it a word that is not known.
SPACES = {"kind": (len(kinds()) + 3, 96), "colour": (len(COLOUR_NAMES) + 2, 16), "look": (5, 8)}
IGNORE = -100


@cache
def kind_index() -> dict[str, int]:
    """Place of each kind in its table."""
    return {kind: 1 + place for place, kind in enumerate(kinds())}


@cache
def said_index() -> dict[str, int]:
    """Place of each concept that has no table: sides, sizes, relations and the like."""
    named = (*phrases("concepts"), *(f"anchor {name}" for name in COLOUR_NAMES))
    return {name: place for place, name in enumerate(named)}


@dataclass
class Seen:
    """What each token of an image shows, (N_v,) or (N_v, entries)."""

    kinds: np.ndarray  # int64, IGNORE where it is unclear
    colours: np.ndarray  # float32 shares
    looks: np.ndarray  # int64


def seen(things: list[Thing], *, token_px: int) -> Seen:
    """Labels of the tokens of a scene."""
    masks = np.stack([thing.mask_hw for thing in things]).astype(np.float32)
    height, width = (size // token_px for size in masks.shape[1:])
    covers = masks.reshape(-1, height, token_px, width, token_px).mean((2, 4))
    covers = covers.reshape(len(things), -1)
    best, cover, total = covers.argmax(0), covers.max(0), covers.sum(0)
    unclear = (total > 0.1) & (cover < 0.4)
    kind = np.array([kind_index()[thing.kind] for thing in things])
    look = np.array([1 + LOOKS.index(t.look) if t.look else IGNORE for t in things])
    colours = np.stack([np.concatenate([[0], thing.colours, [0]]) for thing in things])
    inside = cover >= 0.4
    nothing = np.eye(colours.shape[1], dtype=np.float32)[0]
    return Seen(
        np.where(unclear, IGNORE, np.where(inside, kind[best], 0)),
        np.where(inside[:, None], colours[best], nothing).astype(np.float32),
        np.where(unclear, IGNORE, np.where(inside, look[best], 0)),
    )


@dataclass
class Said:
    """What a question says: shares over the entries of each space, and other concepts (0 or 1)."""

    kind: np.ndarray
    anchor: np.ndarray  # the kind that a relation or a "not" names
    colour: np.ndarray
    look: np.ndarray
    other: np.ndarray


def said(question: Question) -> Said:
    """The concepts of a question."""
    kind, anchor, colour, look = (
        np.zeros(SPACES[name][0], np.float32) for name in ("kind", "kind", "colour", "look")
    )
    found = Said(kind, anchor, colour, look, np.zeros(len(said_index()), np.float32))
    for concept in question.concepts:
        first, _, rest = concept.partition(" ")
        if concept in COLOUR_NAMES:
            found.colour[1 + COLOUR_NAMES.index(concept)] = 1
        elif concept in LOOKS:
            found.look[1 + LOOKS.index(concept)] = 1
        elif concept in said_index():
            found.other[said_index()[concept]] = 1
            if concept == "unknown":
                found.kind[-2] = 1
        elif first == "anchor":
            found.anchor[kind_index()[rest]] = 1
        else:
            word = rest if first == "noun" else concept
            for meant in meanings()[word]:
                found.kind[kind_index()[meant]] = 1
    for shares in (found.kind, found.anchor, found.colour, found.look):
        shares[-1] = float(not shares.any())
        shares /= shares.sum()
    return found


class Spaces(nn.Module):
    """Tables, and the linear maps into them of `seen_width` and of `said_width` values.

    The tables are random and stay so: nearly orthogonal, and the same for whatever learns them.
    """

    def __init__(self, seen_width: int, said_width: int) -> None:
        super().__init__()
        dims = {name: dim for name, (_, dim) in SPACES.items()}
        draw = torch.Generator().manual_seed(0)
        for name, (count, dim) in SPACES.items():
            table = F.normalize(torch.randn(count, dim, generator=draw), dim=-1)
            self.register_buffer(f"{name}_table", table)
        self.see = nn.ModuleDict({n: nn.Linear(seen_width, d, bias=False) for n, d in dims.items()})
        self.say = nn.ModuleDict({n: nn.Linear(said_width, d, bias=False) for n, d in dims.items()})
        self.anchor = nn.Linear(said_width, dims["kind"], bias=False)
        self.other = nn.Linear(said_width, len(said_index()))
        self.see_scale = nn.Parameter(torch.tensor(2.5))
        self.say_scale = nn.Parameter(torch.tensor(2.5))

    def _cosines(self, name: str, vectors: torch.Tensor) -> torch.Tensor:
        table: torch.Tensor = getattr(self, f"{name}_table")
        return F.normalize(vectors.float(), dim=-1) @ table.T

    def seen(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (..., entries) of what image tokens (..., seen_width) show."""
        return self.see_scale.exp() * self._cosines(name, self.see[name](tokens))

    def said(self, name: str, prompt: torch.Tensor) -> torch.Tensor:
        """Logits (B, entries) of what prompt embeddings (B, P, said_width) say by their padding."""
        head = self.anchor if name == "anchor" else self.say[name]
        after = prompt[:, -8:].float().mean(1)
        return self.say_scale.exp() * self._cosines(name.replace("anchor", "kind"), head(after))

    def kind_loss(self, tokens: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Of image tokens (B, N, seen_width) against their kinds."""
        labels = kinds.flatten()
        loss = F.cross_entropy(
            self.seen("kind", tokens).flatten(0, 1), labels, ignore_index=IGNORE, reduction="none"
        )
        weight = _weight(labels)
        return (weight * loss).sum() / weight.sum()

    def seen_losses(
        self, tokens: torch.Tensor, kinds: torch.Tensor, colours: torch.Tensor, looks: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Of image tokens (B, N, seen_width) against their labels."""
        weight = _weight(kinds)
        colour = -(colours * self.seen("colour", tokens).log_softmax(-1)).sum(-1)
        look = self.seen("look", tokens).flatten(0, 1)
        return {
            "kinds": self.kind_loss(tokens, kinds),
            "colours": (weight * colour).sum() / weight.sum(),
            "looks": F.cross_entropy(look, looks.flatten(), ignore_index=IGNORE),
        }

    def said_losses(
        self, prompt: torch.Tensor, wanted: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Of prompt embeddings (B, P, said_width) against what they say."""
        losses = {
            name: F.cross_entropy(self.said(name, prompt), wanted[name])
            for name in ("kind", "anchor", "colour", "look")
        }
        other = self.other(prompt[:, -8:].float().mean(1))
        losses["other"] = F.binary_cross_entropy_with_logits(other, wanted["other"])
        return losses


def _weight(kinds: torch.Tensor) -> torch.Tensor:
    """Most tokens are background: each counts as a fifth of one of a thing."""
    return torch.where(kinds == 0, 0.2, torch.where(kinds == IGNORE, 0.0, 1.0))
