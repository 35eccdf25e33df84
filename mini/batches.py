"""Training batches: scenes, questions, edited scenes, and labels of tokens and words."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mini.architecture import CONFIG
from mini.concepts import Said, said, seen
from mini.conditions import FORMS, Form
from mini.scenes import EmojiScene, SceneMaker, Split
from mini.words import Question, Questions

T = TypeVar("T")
# Token grids (rows, columns) of about the same area, for parts of an image and for whole ones.
PARTS = ((16, 16), (18, 14), (14, 18))
WHOLES = ((24, 24), (27, 21), (21, 27))
PER_WHOLE = 2  # scenes of parts that cost as much as one whole
FORM_WEIGHTS: dict[Form, float] = {
    "kind": 0.2, "colour": 0.12, "size": 0.1, "place": 0.13, "order": 0.07, "relation": 0.13,
    "look": 0.02, "not": 0.04, "all": 0.08, "absent": 0.14, "unknown": 0.03,
}  # fmt: skip


@dataclass
class Movable:
    """Tensors that go to a device together."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, **{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: each.to(device) for name, each in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


@dataclass
class Prompts(Movable):
    """B questions in words, and what they say."""

    input_ids: torch.Tensor  # (B, P) int64
    attention_mask: torch.Tensor  # (B, P) int64
    said: dict[str, torch.Tensor]  # (B, entries) float32 each: mini.concepts.Said


@dataclass
class Batch(Prompts):
    """S scenes with E questions each (B = S * E, scene by scene)."""

    grid_hw: tuple[int, int]
    source: torch.Tensor  # (S, 3, H, W) float32 in [-1, 1]
    target: torch.Tensor  # (S, 3, H, W) float32, without what each first question means
    mask: torch.Tensor  # (B, H, W) uint8, 1 where what the question means is seen
    kinds: torch.Tensor  # (S, N_v), (S, N_v, entries) and (S, N_v): mini.concepts.Seen
    colours: torch.Tensor
    looks: torch.Tensor


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


def ask(
    scene: EmojiScene,
    rng: np.random.Generator,
    count: int,
    *,
    weights: Mapping[Form, float] = FORM_WEIGHTS,
    test: bool = False,
) -> list[Question]:
    """Questions about a scene, of forms by weight as far as the scene allows them."""
    questions = Questions(scene, rng, test=test)
    shares = np.array([weights.get(form, 0.0) for form in FORMS])
    found: list[Question] = []
    for _ in range(4 * count):
        question = questions.draw(FORMS[int(rng.choice(len(FORMS), p=shares / shares.sum()))])
        if question is not None:
            found.append(question)
        if len(found) == count:
            return found
    return found + [questions.draw_unknown() for _ in range(count - len(found))]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """Images (H, W, 3) uint8 of one size to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def union(scene: EmojiScene, targets: tuple[int, ...]) -> np.ndarray:
    """Where any of these things is seen, (h, w) bool."""
    found = np.zeros(scene.size_wh[::-1], bool)
    for index in targets:
        found |= scene.things[index].mask_hw
    return found


def prompts(tokenizer: PreTrainedTokenizerBase, asked: list[Question]) -> Prompts:
    """Questions as the text encoder gets them, and what they say."""
    texts = [question.text for question in asked]
    ids, attention = instruction_ids(tokenizer, texts, max_length=CONFIG.max_sequence_length)
    words = [said(question) for question in asked]
    names = Said.__dataclass_fields__
    return Prompts(
        ids,
        attention,
        {n: torch.from_numpy(np.stack([getattr(each, n) for each in words])) for n in names},
    )


class Stream(torch.utils.data.IterableDataset[T], ABC):
    """Endless batches, each determined by its step number alone.

    Args:
        tokenizer: of the text encoder.
        folder: of the sprites.
        first_step: step of the first batch.
        split: of the scenes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        first_step: int = 0,
        split: Split = "training",
    ) -> None:
        self.tokenizer, self.folder, self.split = tokenizer, folder, split
        self.first_step = first_step
        self._maker: SceneMaker | None = None

    def __iter__(self) -> Iterator[T]:
        worker = torch.utils.data.get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_step + start
        while True:
            yield self.batch(step)
            step += stride

    @property
    def maker(self) -> SceneMaker:
        """What draws; opened in the process that uses it."""
        if self._maker is None:
            self._maker = SceneMaker(self.folder)
        return self._maker

    def scene(self, seed: tuple[int, ...], size_wh: tuple[int, int], **more: int) -> EmojiScene:
        """A scene of the split."""
        return self.maker.scene(seed, split=self.split, size_wh=size_wh, **more)

    @abstractmethod
    def batch(self, step: int) -> T:
        """The batch of one step."""


class PromptStream(Stream[Prompts]):
    """192 questions about 24 small scenes a step."""

    def batch(self, step: int) -> Prompts:
        """The batch of one step."""
        asked = list[Question]()
        for i in range(24):
            scene = self.scene((step, i, 2), (64, 64))
            asked += ask(scene, np.random.default_rng([step, i, 19]), 8)
        return prompts(self.tokenizer, asked)


class BatchStream(Stream[Batch]):
    """Scenes with questions.

    A part of an image is a scene of less than half its area with things as large as in the whole.

    Args:
        scenes: S, of parts; a batch of whole images has half as many.
        questions: E.
        wholes: share of the batches that are of whole images.
        crowded: share of the batches of parts with as many things as find a place.
        others: arguments of `Stream`.
    """

    def __init__(
        self,
        *args: Any,
        scenes: int,
        questions: int,
        wholes: float,
        crowded: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        self.scenes, self.questions, self.wholes = scenes, questions, wholes
        self.crowded = crowded

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = np.random.default_rng([step, 17])
        whole = bool(rng.random() < self.wholes)
        grid = (WHOLES if whole else PARTS)[int(rng.integers(3))]
        crowded = not whole and bool(rng.random() < self.crowded)
        more = {} if whole else {"least_px": CONFIG.size_level // 12}
        px = CONFIG.token_px
        size_wh = (grid[1] * px, grid[0] * px)
        sources, targets, masks, labels, asked = [], [], [], [], list[Question]()
        for i in range(max(1, self.scenes // PER_WHOLE) if whole else self.scenes):
            scene = self.scene((step, i), size_wh, least=10 if crowded else 1, **more)
            own = ask(scene, np.random.default_rng([step, i, 11]), self.questions)
            sources.append(scene.image_hwc)
            targets.append(scene.without(own[0].targets))
            masks += [union(scene, question.targets) for question in own]
            labels.append(seen(scene.things, token_px=px))
            asked += own
        words = prompts(self.tokenizer, asked)
        return Batch(
            **vars(words),
            grid_hw=grid,
            source=to_tensor(sources),
            target=to_tensor(targets),
            mask=torch.from_numpy(np.stack(masks)).to(torch.uint8),
            kinds=torch.from_numpy(np.stack([each.kinds for each in labels])),
            colours=torch.from_numpy(np.stack([each.colours for each in labels])),
            looks=torch.from_numpy(np.stack([each.looks for each in labels])),
        )
