"""The linear shortcuts against a literal float64 transcription of the paper's equations."""

import numpy as np
import pytest

from rism.runtime.image.geometry import Plan
from rism.runtime.method import equations
from rism.runtime.method.upsampling import upsample
from tests.runtime.image.test_geometry import pixelwise

N_P, N_H, N_W, D, L, HEADS = 7, 4, 6, 24, 3, 2
N_V = N_H * N_W
PLAN = Plan((31, 22), (N_W * 8, N_H * 8), (0, 0, N_W * 8, N_H * 8), (N_H, N_W))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@pytest.fixture(params=range(2))
def blocks(request: pytest.FixtureRequest) -> list[np.ndarray]:
    """L full attention matrices over [prompt; noisy; clean], float64, mean over heads."""
    rng = np.random.default_rng(request.param)
    n = N_P + 2 * N_V
    qk = rng.standard_normal((L, HEADS, 2, n, 8))
    return [softmax(q @ k.transpose(0, 2, 1) / np.sqrt(8)).mean(0) for q, k in qk.swapaxes(1, 2)]


@pytest.fixture
def features() -> np.ndarray:
    rng = np.random.default_rng(9)
    direction = rng.standard_normal(D)
    return rng.standard_normal((N_V, D)) + np.linspace(-2, 2, N_V)[:, None] * direction


def minmax(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.min()) / (x.max() - x.min()))


def literal_maps(blocks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Equations 3 and 4: sums of A_vp 1 and of D(A_vv 1)^-1 A_vv (A_vp 1)."""
    clean = slice(N_P + N_V, N_P + 2 * N_V)
    coarse, refined = np.zeros(N_V), np.zeros(N_V)
    for a in blocks:
        a_vp, a_vv = a[clean, :N_P], a[clean, clean]
        transition = np.linalg.inv(np.diag(a_vv @ np.ones(N_V))) @ a_vv
        coarse += a_vp @ np.ones(N_P)
        refined += transition @ (a_vp @ np.ones(N_P))
    return minmax(coarse), minmax(refined)


def literal_mask(features: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equations 5 and 6 with the D x H x W feature map they are written for."""
    f = features / np.linalg.norm(features, axis=1, keepdims=True)
    p_fg, p_bg = f[region].mean(0), f[~region].mean(0)
    channels = f.reshape(N_H, N_W, D).transpose(2, 0, 1)
    f_up = np.stack([pixelwise(each, PLAN) for each in channels], axis=-1)
    scores = np.stack([f_up @ p_bg, f_up @ p_fg])
    return scores.argmax(0) == 1, scores[1] - scores[0]


def vectors(blocks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What a graph returns: a_l and, by the c_l shortcut, T_l a_l, in float32."""
    clean = slice(N_P + N_V, N_P + 2 * N_V)
    a = np.stack([b[clean, :N_P].sum(1) for b in blocks]).astype(np.float32)
    c = np.stack([b[clean, clean].sum(1) for b in blocks]).astype(np.float32)
    n = np.stack([b[clean, clean].astype(np.float32) @ x for b, x in zip(blocks, a, strict=True)])
    return a, n / c


def test_shortcut_equals_the_equations(blocks: list[np.ndarray], features: np.ndarray) -> None:
    coarse, refined = literal_maps(blocks)
    a, ta = vectors(blocks)
    np.testing.assert_allclose(equations.coarse_map(a), coarse, atol=2e-5)
    np.testing.assert_allclose(equations.refined_map(ta), refined, atol=2e-4)
    mask, scores = literal_mask(features, refined > 0.8)
    found = equations.segment_tokens(a, ta, features.astype(np.float32), tau=0.8)
    scores_hw = upsample(found.scores.reshape(N_H, N_W), PLAN)
    np.testing.assert_allclose(scores_hw, scores, atol=2e-6)
    np.testing.assert_array_equal(scores_hw > 0, mask)
    assert found.reason is None
    assert 0 < mask.mean() < 1


def test_stored_matrices_give_the_same(blocks: list[np.ndarray]) -> None:
    clean = slice(N_P + N_V, N_P + 2 * N_V)
    a, ta = vectors(blocks)
    a_vv = np.stack([b[clean, clean] for b in blocks]).astype(np.float32)
    transitions = a_vv / a_vv.sum(-1, keepdims=True)
    np.testing.assert_allclose(equations.propagate(transitions, a), ta, rtol=1e-5)


def test_features_are_normalised_and_scale_does_not_matter(features: np.ndarray) -> None:
    region = np.arange(N_V) > 18
    once, _ = equations.localise(features.astype(np.float32), region)
    scaled = features * np.exp(np.random.default_rng(3).uniform(-5, 5, (N_V, 1)))
    again, _ = equations.localise(scaled.astype(np.float32), region)
    np.testing.assert_allclose(once, again, atol=2e-6)


def test_many_row_blocks_equal_one(monkeypatch: pytest.MonkeyPatch, features: np.ndarray) -> None:
    region = np.arange(N_V) % 3 == 0
    scores, fisher = equations.localise(features.astype(np.float32), region)
    monkeypatch.setattr(equations, "_BLOCK_VALUES", 5 * D)
    again, same = equations.localise(features.astype(np.float32), region)
    np.testing.assert_allclose(again, scores, atol=1e-6)
    assert same == pytest.approx(fisher, rel=1e-5)


def test_prototypes_and_separability(features: np.ndarray) -> None:
    f = features / np.linalg.norm(features, axis=1, keepdims=True)
    region, f32 = np.arange(N_V) > 15, features.astype(np.float32)
    means = np.stack([f[region].mean(0), f[~region].mean(0)])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    for rule, prototypes in (("equation", means), ("cosine", unit)):
        scores, fisher = equations.localise(f32, region, rule=rule)
        np.testing.assert_allclose(scores, f @ (prototypes[0] - prototypes[1]), atol=1e-5)
        classes = f[scores > 0], f[scores <= 0]
        within = sum(((each - each.mean(0)) ** 2).sum(1).mean() for each in classes)
        between = ((classes[0].mean(0) - classes[1].mean(0)) ** 2).sum()
        assert fisher == pytest.approx(between / within, 1e-5)
    with pytest.raises(ValueError, match="prototype rule is 'other', expected 'equation'"):
        equations.localise(f32, region, rule="other")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.0, "the attention map is constant"),
        (0.37, "the attention map is constant"),
        (np.nan, "the attention map is not finite"),
        (np.inf, "the attention map is not finite"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_maps_have_an_answer(features: np.ndarray, value: float, reason: str) -> None:
    ta = np.full((L, N_V), value, np.float32)
    found = equations.segment_tokens(ta, ta, features.astype(np.float32), tau=0.8)
    assert found.reason == reason
    assert not (found.scores > 0).any()
    assert found.separability == 0.0
    assert np.isfinite(found.coarse).all()
    assert np.isfinite(found.refined).all()


def test_features_that_are_not_finite(blocks: list[np.ndarray], features: np.ndarray) -> None:
    a, ta = vectors(blocks)
    broken = features.astype(np.float32)
    broken[3, 5] = np.nan
    found = equations.segment_tokens(a, ta, broken, tau=0.8)
    assert found.reason == "the features are not finite"
    assert not found.scores.any()
