"""Training batches: scenes, expressions, edited scenes and labels for each token."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rism.evaluation.scenes.expressions import pick_expression
from rism.evaluation.scenes.judged import training_scene
from rism.evaluation.scenes.kinds import COLOUR_NAMES, KIND_NAMES
from rism.evaluation.scenes.scene import Scene

# Token grids (rows, columns) of about the same area: squares and both orientations.
GRIDS = ((16, 16), (18, 14), (14, 18))
IGNORE = -100


@dataclass
class Batch:
    """One training batch of S scenes with E expressions each (B = S * E, scene by scene)."""

    grid_hw: tuple[int, int]
    source: torch.Tensor  # (S, 3, H, W) float32 in [-1, 1]
    target: torch.Tensor  # (B, 3, H, W) float32 in [-1, 1]
    mask: torch.Tensor  # (B, H, W) float32, the visible part of the object to remove
    kinds: torch.Tensor  # (S, h * w) int64, kind per token, 0 is background, -100 unclear
    colours: torch.Tensor  # (S, h * w) int64, likewise
    input_ids: torch.Tensor  # (B, P) int64
    attention_mask: torch.Tensor  # (B, P) int64
    named_kinds: torch.Tensor  # (B,) int64, kind of the object to remove, -100 if not named


def instruction_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (B, max_length) of "remove <text>" in the chat template."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"remove {text}"}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for text in texts
    ]
    encoded = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    )
    return encoded["input_ids"], encoded["attention_mask"]


def token_labels(scene: Scene, *, token_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Kind and colour per token, (h * w,) int64 each; 0 is background."""
    masks = np.stack([o.mask_hw for o in scene.objects]).astype(np.float32)
    height, width = (size // token_px for size in masks.shape[1:])
    covers = masks.reshape(-1, height, token_px, width, token_px).mean((2, 4))
    best, cover = covers.argmax(0), covers.max(0)
    unclear = (cover > 0.15) & (cover < 0.5)
    labels = []
    for names, attribute in ((KIND_NAMES, "kind"), (COLOUR_NAMES, "colour")):
        index = np.array([1 + names.index(getattr(o, attribute)) for o in scene.objects])
        labels.append(np.where(unclear, IGNORE, np.where(cover >= 0.5, index[best], 0)).ravel())
    return labels[0], labels[1]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """Images (H, W, 3) uint8 of one size to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """Endless batches, each determined by its step number alone."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        scenes: int,
        expressions: int,
        max_length: int,
        token_px: int,
        first_step: int = 0,
        form_weights: dict[str, float] | None = None,
    ) -> None:
        self.tokenizer, self.max_length, self.token_px = tokenizer, max_length, token_px
        self.scenes, self.expressions, self.form_weights = scenes, expressions, form_weights
        self.first_step = first_step

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_step + start
        while True:
            yield self.batch(step)
            step += stride

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        grid = GRIDS[step % len(GRIDS)]
        size_wh = (grid[1] * self.token_px, grid[0] * self.token_px)
        sources, targets, masks, kinds, colours, texts, named = [], [], [], [], [], [], []
        for i in range(self.scenes):
            rng = np.random.default_rng([step, i, 11])
            scene, _ = training_scene((step, i), size_wh=size_wh, form_weights=self.form_weights)
            sources.append(scene.image_hwc)
            kind, colour = token_labels(scene, token_px=self.token_px)
            kinds.append(kind)
            colours.append(colour)
            removed: dict[int, np.ndarray] = {}
            for _ in range(self.expressions):
                expression = pick_expression(scene, rng, form_weights=self.form_weights)
                index = expression.target
                if index not in removed:
                    removed[index] = scene.without(index)
                targets.append(removed[index])
                masks.append(scene.objects[index].mask_hw.astype(np.float32))
                texts.append(expression.text)
                kind_name = scene.objects[index].kind
                is_named = kind_name in expression.text.split()
                named.append(KIND_NAMES.index(kind_name) if is_named else IGNORE)
        ids, attention = instruction_ids(self.tokenizer, texts, max_length=self.max_length)
        return Batch(
            grid_hw=grid,
            source=to_tensor(sources),
            target=to_tensor(targets),
            mask=torch.from_numpy(np.stack(masks)),
            kinds=torch.from_numpy(np.stack(kinds)).long(),
            colours=torch.from_numpy(np.stack(colours)).long(),
            input_ids=ids,
            attention_mask=attention,
            named_kinds=torch.tensor(named),
        )
