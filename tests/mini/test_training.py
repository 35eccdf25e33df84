"""The recipe of the built-in model runs, learns something, and goes on where it stopped."""

import argparse
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from mini.architecture import build_vae  # noqa: E402
from mini.encoder import set_encoder, skip_silent_layers  # noqa: E402
from mini.train import TrainingRun, learning_rate  # noqa: E402
from mini.train_vae import scene_batch, set_batch_norm  # noqa: E402
from rism.export.families.flux2.reference import encode_image  # noqa: E402


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    made = build_vae().eval()
    set_encoder(made, images=20)
    set_batch_norm(made, images=32)
    made.save_pretrained(folder)
    return folder


def test_the_encoder_keeps_what_the_picture_shows(vae: Path) -> None:
    from diffusers import AutoencoderKLFlux2

    made = AutoencoderKLFlux2.from_pretrained(vae).eval()
    x = scene_batch(1, scenes=6, crops=1, crop_px=64)
    with torch.no_grad():
        tokens = encode_image(made, x)
        skip_silent_layers(made)
        assert torch.equal(encode_image(made, x), tokens)
    # Pixels as a linear function of latents: what the encoder lost cannot be fitted.
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    design = torch.cat([tokens.flatten(0, 1), torch.ones(len(patches), 1)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, patches).solution
    psnr = 10 * torch.log10(4 / (fitted - patches).square().mean())
    assert psnr > 30


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint(vae: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(
        vae=vae, out=tmp_path, minutes=60.0, scenes=2, expressions=1, rate=2e-3, noisy=8,
        full_from=0.85,
    )  # fmt: skip
    torch.manual_seed(0)
    first = TrainingRun(args)
    batch = first.stream().batch(0)
    before = first.learn(batch)
    assert set(before) == {
        "edit", "cam", "ram", "mask", "kinds", "colours", "target", "named", "words",
    }  # fmt: skip
    for _ in range(4):
        after = first.learn(batch)
    assert after["words"] < before["words"]
    first.elapsed = 12.0
    first.save()
    again = TrainingRun(args)
    assert (again.step, again.elapsed) == (5, 12.0)
    for old, new in zip(first.learner.parameters(), again.learner.parameters(), strict=True):
        assert torch.equal(old, new)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_the_rate_rises_holds_and_falls() -> None:
    assert learning_rate(0, 0.0) == pytest.approx(0.01)
    assert learning_rate(500, 0.3) == 1.0
    assert learning_rate(5000, 0.8) == pytest.approx(0.5)
    assert learning_rate(9000, 1.0) == pytest.approx(0.01)
