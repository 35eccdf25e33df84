"""The dummy's checkpoint, its modules for the graphs, and its reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mini.tokenizer import train_tokenizer
from rism.export.attention_capture import Capture
from rism.export.checkpoint.chat_template import open_tokenizer, prompt_rules, tokenizer_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part, build_empty, cast_part
from rism.export.checkpoint.safetensors_store import open_folder
from rism.export.graph.rotary import RotaryTable, rotate
from rism.export.precision import Precision
from rism.export.spec import (
    ModelSpec,
    PromptTokens,
    ReferenceCapture,
    ReferenceInputs,
    ReferencePrompt,
    RgbImage,
)
from rism.runtime.bundle.manifest import Geometry
from tests.export.dummy_family import FAMILY

BLOCKS, HEADS, WIDTH, TEXT, LATENT, TOKEN_PX, LENGTH = 3, 2, 32, 16, 12, 8, 128
THETA = 100.0


class Embedder(nn.Module):
    """Text encoder: one vector for each token, zeros for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(320, TEXT)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.table(input_ids) * attention_mask.unsqueeze(-1).float()
        return embeds


class Patches(nn.Module):
    """VAE encoder: one linear map of each token's pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, LATENT, TOKEN_PX, stride=TOKEN_PX)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.conv(image)
        return latents.flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def project(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """(B, N, D) to queries, keys and values (B, heads, N, d)."""
        normal = F.layer_norm(hidden, (WIDTH,))
        parts = self.qkv(normal).reshape(*hidden.shape[:2], 3, HEADS, -1)
        return [part.transpose(1, 2) for part in parts.unbind(2)]


class Step(nn.Module):
    """The transformer's single step: blocks over [prompt; noisy; clean]."""

    modulation_dim = 0

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.image_in, self.text_in = nn.Linear(LATENT, WIDTH), nn.Linear(TEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.rotary = RotaryTable((WIDTH // HEADS // 2,) * 2, THETA)

    def forward(
        self,
        clean_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt: PromptTokens,
        noisy_positions: torch.Tensor,
        positions: torch.Tensor,
        capture: Capture,
    ) -> None:
        image = torch.cat([noise.expand(clean_latents.shape[0], -1, -1), clean_latents], dim=1)
        hidden = torch.cat([self.text_in(prompt.embeds), self.image_in(image)], dim=1)
        rotary = self.rotary.sequence(FAMILY, prompt, noisy_positions, positions)
        for index, block in enumerate(self.blocks):
            q, k, v = block.project(hidden)  # type: ignore[operator]
            q, k = rotate(q, rotary), rotate(k, rotary)
            hidden = hidden + block.out(capture.attend(index, q, k, v))  # type: ignore[operator]


PARTS: dict[str, type[nn.Module]] = {
    "text_encoder": Embedder,
    "vae_encoder": Patches,
    "transformer": Step,
}


class Reference:
    """A `ReferenceModel` that stores every attention matrix."""

    def __init__(self, model: DummyModel) -> None:
        self.tokenizer = model.tokenizer
        self.modules = {name: kind() for name, kind in PARTS.items()}
        for name, module in self.modules.items():
            stored = model.stores[name].items()
            module.load_state_dict({key: tensor.read() for key, tensor in stored})

    @torch.no_grad()
    def text(self, instructions: Sequence[str], picture: RgbImage) -> list[ReferencePrompt]:
        del picture
        said = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for text in instructions
        ]
        options = {"padding": "max_length", "max_length": LENGTH, "return_tensors": "pt"}
        found = self.tokenizer(said, **options)
        embeds = self.modules["text_encoder"](found.input_ids, found.attention_mask)
        return [ReferencePrompt(each) for each in embeds]

    def image_embeds(self, picture: RgbImage) -> None:
        del picture

    @torch.no_grad()
    def vae_latents(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self.modules["vae_encoder"](image) for image in images]

    @torch.no_grad()
    def dit(self, inputs: Sequence[ReferenceInputs], feature_block: int) -> list[ReferenceCapture]:
        return [self._capture(given, feature_block) for given in inputs]

    def _capture(self, given: ReferenceInputs, feature_block: int) -> ReferenceCapture:
        step = self.modules["transformer"]
        assert isinstance(step, Step)
        clean, embeds = given.clean_latents, given.prompt.embeds
        length, tokens = embeds.shape[1], clean.shape[1]
        image = torch.cat([given.noise.expand(len(clean), -1, -1), clean], dim=1)
        hidden = torch.cat([step.text_in(embeds), step.image_in(image)], dim=1)
        grid = torch.cartesian_prod(*(torch.arange(float(n)) for n in given.grid_hw))
        text = torch.stack([torch.zeros(length), torch.arange(float(length))], dim=1)
        places = torch.cat([text, grid[given.noisy_tokens], grid + torch.tensor([30.0, 0.0])])
        pairs = WIDTH // HEADS // 4
        angles = (places[:, :, None] / THETA ** (torch.arange(pairs) / pairs)).flatten(1)
        turns = torch.polar(torch.ones_like(angles), angles)
        rows, features = [], {}
        for index, block in enumerate(step.blocks):
            assert isinstance(block, Block)
            q, k, v = block.project(hidden)
            q, k = (
                torch.view_as_real(
                    torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns
                ).flatten(-2)
                for x in (q, k)
            )
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            mixed = (attention @ v).transpose(1, 2).flatten(2)
            if index == feature_block:
                features["mmsa"] = mixed[:, -tokens:]
            hidden = hidden + block.out(mixed)
            rows.append(attention.mean(1)[:, -tokens:])
        to_all = torch.stack(rows, dim=1)
        to_prompt, to_clean = to_all[..., :length], to_all[..., -tokens:]
        return ReferenceCapture(
            attention_vectors=(to_prompt @ given.prompt_weights[:, None, :, None])[..., 0],
            transition_matrices=to_clean / to_clean.sum(-1, keepdim=True),
            features=features,
            token_attention=to_prompt,
        )


class DummyModel:
    """An `OpenModel`."""

    default_precision = "fp32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tokenizer = open_tokenizer(checkpoint.folder / "tokenizer")
        self.tokenizer_json = tokenizer_json(self.tokenizer)
        self.blocks = BLOCKS
        self.stores = {name: open_folder(checkpoint.folder / name) for name in PARTS}
        geometry = Geometry(
            size_level=64,
            resize="always",
            remainder="stretch",
            multiple_px=TOKEN_PX,
            token_px=TOKEN_PX,
            resample="bilinear",
            max_aspect=8.0,
            mean=0.5,
            std=0.5,
        )
        self.spec = ModelSpec(
            name=checkpoint.name,
            family=FAMILY,
            licence="CC0-1.0",
            demonstrator=False,
            geometry=geometry,
            prompt=prompt_rules(self.tokenizer, max_length=LENGTH),
            text_dim=TEXT,
            prompt_dim=TEXT,
            latent_channels=LATENT,
            double_blocks=0,
            single_blocks=BLOCKS,
            feature_block=1,
            feature_dim=WIDTH,
        )

    def text_encoder(self, precision: Precision) -> Part:
        return self._part("text_encoder", precision)

    def vision_encoder(self, precision: Precision) -> None:
        del precision

    def modulation(self, precision: Precision) -> None:
        del precision

    def vae_encoder(self, precision: Precision) -> Part:
        return self._part("vae_encoder", precision)

    def transformer(self, precision: Precision) -> Part:
        return self._part("transformer", precision)

    def reference(self, precision: Precision) -> Reference:
        del precision
        return Reference(self)

    def first_blocks(self, count: int) -> DummyModel:
        self.blocks = count
        return self

    def samples_of_blocks(self) -> Sequence[DummyModel]:
        return [self]

    def _part(self, name: str, precision: Precision) -> Part:
        step = name == "transformer"
        module = build_empty(lambda: Step(self.blocks) if step else PARTS[name]())
        store = self.stores[name]
        return cast_part(
            name, module, {key: store[key] for key in module.state_dict()}, precision, ()
        )


def open_dummy(checkpoint: Checkpoint) -> DummyModel:
    return DummyModel(checkpoint)


def make_dummy(folder: Path) -> Path:
    """Write a random checkpoint of the family."""
    torch.manual_seed(0)
    train_tokenizer(["remove the red car"] * 20, vocab_size=320).save_pretrained(
        folder / "tokenizer"
    )
    for name, kind in PARTS.items():
        (folder / name).mkdir()
        save_file(kind().state_dict(), folder / name / "model.safetensors")
    index = {"_class_name": "DummyEditPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
