"""How far Step1X-Edit's graphs' modules are from what was published, piece by piece.

The single step is compared with the reference transcription, connector and every block; the text
side with the classes of transformers: token ids, pixels, positions and hidden states.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rism.export.attention_capture import Capture, Spans
from rism.export.families.step1x import reference as reference
from rism.export.families.step1x.model import Step1XModel
from rism.export.families.step1x.pipeline_reference import ReferenceStep1XEdit
from rism.export.parity.inputs import Samples, text_feeds, vision_feeds
from rism.export.precision import PRECISIONS
from rism.export.spec import PromptTokens, ReferenceInputs, RgbImage

FP32 = PRECISIONS["fp32"]


def random_inputs(
    model: Step1XModel, grid_hw: tuple[int, int], *, batch: int = 2
) -> ReferenceInputs:
    """Random latents and prompts; prompts are of several lengths where there is padding."""
    spec = model.spec
    generator = torch.Generator().manual_seed(grid_hw[0])
    tokens, padded = grid_hw[0] * grid_hw[1], spec.prompt.padding == "zeros"
    length = spec.prompt.max_length if padded else 21

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    embeds, mask = normal(batch, length, spec.prompt_dim), torch.ones(batch, length)
    if padded:
        mask[0, 30:] = 0
        mask[1:, 17:] = 0
        embeds = embeds * mask.unsqueeze(-1)
    positions = normal(length, 3) * 9 if spec.prompt.positions == "grid" else None
    with torch.no_grad():
        modulation = model.modulation(FP32).fill()(embeds, mask)
    return ReferenceInputs(
        clean_latents=normal(batch, tokens, spec.latent_channels),
        noise=normal(1, tokens, spec.latent_channels),
        prompt=PromptTokens(embeds, mask, positions, modulation),
        prompt_weights=torch.rand((batch, length), generator=generator),
        grid_hw=grid_hw,
    )


def block_differences(model: Step1XModel, given: ReferenceInputs) -> dict[str, float]:
    """Run both forms of the transformer in float32.

    Returns:
        Largest difference over the largest value, of the connector's tokens, the modulation and the
        whole stream after every block but the last, of which nobody asks more than where it looks.
    """
    wanted, found = _reference(model, given), _tapped(model, given)
    assert wanted.tokens is not None
    prompt = given.prompt
    assert prompt.mask is not None
    assert prompt.modulation is not None
    found["modulation"] = prompt.modulation
    with torch.no_grad():
        modulation = _transcribed(model).modulation(prompt.embeds, prompt.mask, 1.0)
    expected = {"connector tokens": wanted.tokens, "modulation": modulation}
    expected |= {f"block {i}": hidden for i, hidden in enumerate(wanted.blocks[:-1])}
    return {
        name: float((found[name] - value).abs().max() / value.abs().max())
        for name, value in expected.items()
    }


def _transcribed(model: Step1XModel) -> reference.ReferenceStep1X:
    tensors = reference.makers_tensors(model.files.transformer)
    return reference.ReferenceStep1X(model.sizes, reference.Weights(tensors, FP32))


def _reference(model: Step1XModel, given: ReferenceInputs) -> reference.Step1XRecord:
    embeds, hidden = given.prompt.embeds, model.sizes.connector.hidden
    rows, columns = given.grid_hw
    noisy = torch.tensor([[0.0, r, c] for r in range(rows) for c in range(columns)])
    # As each version's code writes them down.
    first = {"1.0": [0.0, 0.0, 0.0], "1.1": [1.0, 1.0, 1.0], "1.2": [1.0, 0.0, 0.0]}
    own = given.prompt.positions
    assert given.prompt.mask is not None
    with torch.no_grad():
        return _transcribed(model)(
            given.clean_latents,
            given.noise,
            embeds[..., :hidden],
            given.prompt.mask,
            torch.zeros(embeds.shape[1], 3) if own is None else own,
            noisy,
            noisy + torch.tensor(first[model.version.name]),
            1.0,
            embeds[..., hidden:] if model.sizes.mapping else None,
            keep_blocks=True,
        )


def _tapped(model: Step1XModel, given: ReferenceInputs) -> dict[str, torch.Tensor]:
    """What the single step computes on its way, by the names that the transcription has."""
    found: dict[str, torch.Tensor] = {}
    dit: Any = model.transformer(FP32).fill()

    def connected(_module: Any, _args: Any, out: torch.Tensor) -> None:
        found["connector tokens"] = out

    def joined(name: str, _module: Any, _args: Any, out: Sequence[torch.Tensor]) -> None:
        found[name] = torch.cat(out, dim=1)

    def entered(name: str, _module: Any, args: Sequence[torch.Tensor]) -> None:
        found.setdefault(name, args[0])

    dit.connector.register_forward_hook(connected)
    for index, block in enumerate(dit.transformer_blocks):
        block.register_forward_hook(partial(joined, f"block {index}"))
    singles = [block.norm for block in dit.single_transformer_blocks]
    for index, norm in enumerate([*singles, dit.last_norm], model.sizes.double - 1):
        # What a single-stream block is given is what the one before it has left.
        norm.register_forward_pre_hook(partial(entered, f"block {index}"))
    tokens = given.noise.shape[1]
    spans = Spans(given.prompt.embeds.shape[1], tokens, tokens)
    capture = Capture(spans, given.prompt_weights, model.spec.feature_block)
    grid = torch.from_numpy(np.indices(given.grid_hw).reshape(2, -1).T.copy()).float()
    with torch.no_grad():
        dit(given.clean_latents, given.noise, given.prompt, grid, grid, capture)
    return found


class TextComparison:
    """The lean runtime's steps and the traced modules, against the classes of transformers."""

    def __init__(self, model: Step1XModel) -> None:
        reference = model.reference(FP32)
        assert isinstance(reference, ReferenceStep1XEdit)
        self.model, self.reference = model, reference
        self.vision, self.text = model.vision_encoder(FP32).fill(), model.text_encoder(FP32).fill()

    def differences(self, picture: RgbImage, expression: str) -> dict[str, float]:
        """Compare one expression about one picture, which is at the model's size.

        Returns:
            Of ids, pixels and positions the largest difference; of the two encoders' outputs over
            their largest value. Infinity where a shape differs.
        """
        spec = self.model.spec
        instruction = spec.prompt.template.replace("{expression}", expression)
        size_wh = (picture.shape[1], picture.shape[0])
        sample = Samples((0, 0), size_wh, picture, torch.zeros(0), (expression,), (instruction,))
        pixels, _ = vision_feeds(spec, sample)
        seen = self.reference.image_embeds(picture)
        feeds, encoded = text_feeds(spec, self.model.tokenizer_json, sample, seen)
        wanted = self.reference.processed(instruction, picture)
        with torch.no_grad():
            looked = self.vision(**{k: torch.from_numpy(v) for k, v in pixels.items()})
            read = self.text(**{k: torch.from_numpy(v) for k, v in feeds.items()})
        (prompt,) = self.reference.text([instruction], picture)
        length = int(encoded.lengths[0])
        return {
            "token ids": _far(feeds["input_ids"], wanted.input_ids),
            "pixel patches": _far(pixels["pixel_values"], wanted.pixel_values),
            "position ids": _far(feeds["position_ids"], wanted.position_ids),
            "vision states": _far(looked, seen, relative=True),
            "hidden states": _far(read[0], prompt.embeds[:length], relative=True),
        }


def _far(found: Any, wanted: torch.Tensor, *, relative: bool = False) -> float:
    given = torch.as_tensor(found)
    if given.shape != wanted.shape:
        return float("inf")
    worst = float((given.double() - wanted.double()).abs().max())
    return worst / float(wanted.abs().max()) if relative else worst
