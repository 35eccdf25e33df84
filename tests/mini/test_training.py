"""The recipe of the built-in model runs, learns something, and goes on where it stopped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers.models.transformers import transformer_flux2 as flux2  # noqa: E402
from transformers import Qwen2TokenizerFast  # noqa: E402

from mini.architecture import CONFIG  # noqa: E402
from mini.batches import PER_WHOLE, Batch, BatchStream, PromptStream  # noqa: E402
from mini.concepts import kind_index  # noqa: E402
from mini.ground import GROUND_WEIGHTS, Draw, Learner, ground_losses, ground_scores  # noqa: E402
from mini.muon import orthogonal  # noqa: E402
from mini.probe import _Attention, rotate  # noqa: E402
from mini.scenes import SceneMaker  # noqa: E402
from mini.see import (  # noqa: E402
    SAY_WEIGHTS,
    SEE_WEIGHTS,
    Encoders,
    draw_losses,
    say_losses,
    see_losses,
    see_scores,
)  # fmt: skip
from mini.sheets import CELLS, SHEET_PX, Sheet, SheetStream  # noqa: E402
from mini.train import TrainingRun, learning_rate, tokenizer_in  # noqa: E402
from rism.export.families.flux2.reference import encode_image  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> Qwen2TokenizerFast:
    return tokenizer_in(tmp_path_factory.mktemp("training"), sprites, scenes=40)


@pytest.fixture(scope="module")
def encoders(tokenizer: Qwen2TokenizerFast, stage: SceneMaker) -> Encoders:
    torch.manual_seed(0)
    return Encoders(tokenizer, stage, images=20)


@pytest.fixture(scope="module")
def batch(tokenizer: Qwen2TokenizerFast, sprites: Path) -> Batch:
    return BatchStream(tokenizer, sprites, scenes=2, questions=3, wholes=0).batch(1)


def test_the_encoder_is_the_published_one_and_keeps_what_it_sees(
    encoders: Encoders, batch: Batch
) -> None:
    eye = encoders.eye().eval()
    with torch.no_grad():
        tokens = encode_image(encoders.vae.eval(), batch.source)
        torch.testing.assert_close(eye(batch.source), tokens, atol=1e-4, rtol=1e-4)


def test_batches_say_what_is_asked(batch: Batch) -> None:
    tokens = batch.grid_hw[0] * batch.grid_hw[1]
    assert batch.kinds.shape == (2, tokens) and batch.mask.shape[0] == 6
    assert (batch.attention_mask.sum(1) < CONFIG.max_sequence_length).all()
    for shares in (batch.said[name] for name in ("kind", "anchor", "colour", "look")):
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert torch.equal(batch.said["other"], batch.said["other"].round())
    assert (batch.kinds > 0).any() and (batch.kinds == 0).any()


def test_a_whole_image_has_the_tokens_of_its_level(
    tokenizer: Qwen2TokenizerFast, sprites: Path
) -> None:
    whole = BatchStream(tokenizer, sprites, scenes=4, questions=1, wholes=1).batch(0)
    assert whole.source.shape[0] == 4 // PER_WHOLE
    assert whole.grid_hw[0] * whole.grid_hw[1] >= CONFIG.size_level**2 // CONFIG.token_px**2 - 16


def test_a_sheet_shows_one_kind_in_each_cell(
    tokenizer: Qwen2TokenizerFast, sprites: Path, stage: SceneMaker
) -> None:
    stream = SheetStream(BatchStream(tokenizer, sprites, scenes=1, questions=1, wholes=0))
    sheet = next(b for b in map(stream.batch, range(40)) if isinstance(b, Sheet))
    _, kinds = stage.draw_sprites(np.random.default_rng(0), 500, "training")
    drawn = {kind_index()[kind] for kind in kinds}
    shown = sheet.kinds[sheet.kinds > 0]
    assert set(shown.tolist()) <= drawn and len(set(shown.tolist())) > 10
    rows = sheet.kinds.view(len(sheet.source), -1, SHEET_PX // CONFIG.token_px)
    sides = {side // CONFIG.token_px for side in CELLS}
    # Some size of cells fits: in none of them are two kinds.
    assert any(
        all(
            len(set(cell[cell > 0].tolist())) <= 1
            for sheet_rows in rows
            for strip in sheet_rows.split(side)
            for cell in strip.split(side, dim=1)
        )
        for side in sides
    )


def test_the_faster_attention_and_rotation_have_the_derivatives_of_the_plain_ones() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(_Attention.apply, (q, k, v))
    x = torch.randn(2, 7, 3, 8, requires_grad=True)
    angle = torch.rand(7, 4).repeat_interleave(2, 1)
    turn, wanted = (angle.cos(), angle.sin()), torch.randn(x.shape)
    plain, ours = (f(x, turn, sequence_dim=1) for f in (flux2.apply_rotary_emb, rotate))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, wanted)[0], torch.autograd.grad(plain, x, wanted)[0]
    )


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(24, 60)))
    assert values.min() > 0.6 and values.max() < 1.3


def _steps(
    run: TrainingRun,
    losses: Callable[[], dict[str, torch.Tensor]],
    weights: dict[str, float],
    count: int,
) -> tuple[float, float]:
    """The weighted loss before and after some steps on one batch."""
    found = []
    for _ in range(count):
        now = losses()
        assert now.keys() == weights.keys()
        found.append(sum(weights[name] * value.item() for name, value in now.items()))
        run.learn(now, weights)
    return found[0], found[-1]


@pytest.mark.slow
def test_each_part_learns_and_goes_on_from_its_checkpoint(
    encoders: Encoders, tokenizer: Qwen2TokenizerFast, batch: Batch, sprites: Path, tmp_path: Path
) -> None:
    eye = encoders.eye()
    prompts = PromptStream(tokenizer, sprites).batch(0)

    def run(name: str, module: torch.nn.Module, *trained: str) -> TrainingRun:
        file = tmp_path / f"{name}.pt"
        return TrainingRun(module, file, trained=trained, minutes=1, rates=(0.1, 0.1), workers=1)

    say = run("say", encoders, "text_encoder.", "spaces.say", "spaces.anchor", "spaces.other")
    before, after = _steps(say, lambda: say_losses(encoders, prompts), SAY_WEIGHTS, 4)
    assert after < before
    see = run("see", encoders, "vae.encoder.down_blocks.3", "vae.encoder.mid", "spaces.see")
    before, after = _steps(see, lambda: see_losses(encoders, eye, batch), SEE_WEIGHTS, 4)
    assert after < before
    assert set(see_scores(encoders, eye, batch)) == {"things", "background"}
    draw = run("draw", encoders, "vae.decoder.")
    before, after = _steps(draw, lambda: draw_losses(encoders, eye, batch), {"drawn": 1.0}, 4)
    assert after < before

    encoders.eval()
    learner = Learner(encoders)
    with torch.no_grad():
        clean, edited = eye(batch.source), eye(batch.target)
        learner.start(clean, encoders.embed(batch.input_ids, batch.attention_mask))
    frozen = {name: value.clone() for name, value in encoders.state_dict().items()}
    ground = run("ground", learner, "transformer.", "spaces.see", "target.")
    before, after = _steps(
        ground,
        lambda: ground_losses(learner, batch, clean, edited, Draw.of_step(1)),
        GROUND_WEIGHTS,
        4,
    )
    assert after < before
    for name, value in encoders.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    assert ground_scores(learner, batch, clean, noisy_grid=4).keys() >= {"cam", "ram", "full"}
    ground.elapsed = 12.0
    ground.save()
    other = Learner(Encoders(tokenizer, None))
    again = run("ground", other, "transformer.", "spaces.see", "target.")
    assert (again.step, again.elapsed) == (4, 12.0)
    for old, new in zip(learner.parameters(), other.parameters(), strict=True):
        assert torch.equal(old, new)
    assert [path.name for path in tmp_path.iterdir()] == ["ground.pt"]


def test_the_rate_rises_holds_and_falls() -> None:
    assert learning_rate(0, 0.0) == pytest.approx(0.01)
    assert learning_rate(500, 0.3) == 1.0
    assert learning_rate(5000, 0.75) == pytest.approx(0.5)
    assert learning_rate(9000, 1.0) == pytest.approx(0.01)
