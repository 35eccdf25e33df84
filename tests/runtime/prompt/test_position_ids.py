"""Positions of prompts with an image, against the model's own and against plain matrices."""

from types import SimpleNamespace

import numpy as np
import pytest

from rism.runtime.errors import BundleError
from rism.runtime.prompt.position_ids import position_ids, prompt_positions

IMAGE, PAD, UNSEEN = 7, 3, 0


def row(before: int, rows: int, columns: int, after: int, width: int) -> list[int]:
    ids = [10 + i for i in range(before)] + [IMAGE] * (rows * columns) + [90] * after
    return ids + [PAD] * (width - len(ids))


def from_the_model(ids: np.ndarray, mask: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    module = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    torch = pytest.importorskip("torch")
    config = SimpleNamespace(spatial_merge_size=2, tokens_per_second=4)
    own = SimpleNamespace(config=SimpleNamespace(vision_config=config))
    own.get_vision_position_ids = lambda *args, **options: (
        module.Qwen2_5_VLModel.get_vision_position_ids(own, *args, **options)
    )
    found, _ = module.Qwen2_5_VLModel.get_rope_index(
        own,
        torch.from_numpy(ids),
        torch.from_numpy((ids == IMAGE).astype(np.int64)),
        image_grid_thw=torch.tensor([[1, *grid_hw]] * len(ids)),
        attention_mask=torch.from_numpy(mask),
    )
    return np.asarray(found)


@pytest.mark.parametrize("grid_hw", [(4, 6), (8, 2), (2, 2), (30, 42)])
def test_positions_are_the_models(grid_hw: tuple[int, int]) -> None:
    rows, columns = grid_hw[0] // 2, grid_hw[1] // 2
    width = rows * columns + 20
    ids = np.array([row(3, rows, columns, 5, width), row(0, rows, columns, 0, width),
                    row(12, rows, columns, 8, width)])  # fmt: skip
    there = (ids != PAD).astype(np.int64)
    unseen = ids.copy()
    unseen[0, 1] = unseen[0, -16] = unseen[2, 3] = unseen[2, 4] = unseen[2, -1] = UNSEEN
    for given, mask in ((ids, there), (unseen, there * (unseen != UNSEEN))):
        found = position_ids(given, mask, image_token_id=IMAGE, grid_hw=grid_hw, merge=2)
        assert found.dtype == np.int64
        wanted = from_the_model(given, mask, grid_hw)
        np.testing.assert_array_equal(found, wanted)
        # transformers before 5 leaves ones where it now leaves zeros.
        found = position_ids(
            given, mask, image_token_id=IMAGE, grid_hw=grid_hw, merge=2, unseen_position=1
        )
        np.testing.assert_array_equal(found, np.where(mask, wanted, 1))


def test_positions_by_hand() -> None:
    ids = np.array([[11, UNSEEN, 12, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 13, 14, PAD]])
    mask = ((ids != PAD) & (ids != UNSEEN)).astype(np.int64)
    found = position_ids(ids, mask, image_token_id=IMAGE, grid_hw=(4, 6), merge=2)
    assert found[0, 0].tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 0]
    assert found[1, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 0]
    assert found[2, 0].tolist() == [0, 0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 0]


def test_another_number_of_tokens_than_the_grid() -> None:
    ids = np.array([[1, IMAGE, IMAGE, 2]])
    with pytest.raises(BundleError, match="has 2 of the image's tokens, expected 2 x 3 of"):
        position_ids(ids, np.ones_like(ids), image_token_id=IMAGE, grid_hw=(4, 6), merge=2)


@pytest.mark.parametrize(
    ("view_wh", "model_wh"), [((588, 420), (592, 432)), ((28, 56), (16, 32)), ((560, 560),) * 2]
)
def test_the_images_tokens_against_matrices(
    view_wh: tuple[int, int], model_wh: tuple[int, int]
) -> None:
    """The published chain: cell to view pixel, to image pixel, to clean token; homogeneous."""
    columns, rows = view_wh[0] // 28, view_wh[1] // 28
    to_cell = np.array([[1 / 28, 0, -13.5 / 28], [0, 1 / 28, -13.5 / 28], [0, 0, 1]])
    to_view = np.diag(
        [(view_wh[0] - 1) / (model_wh[0] - 1), (view_wh[1] - 1) / (model_wh[1] - 1), 1.0]
    )
    to_token = np.array([[1 / 16, 0, -11 / 16], [0, 1 / 16, -11 / 16], [0, 0, 1]])
    chain = to_token @ np.linalg.inv(to_cell @ to_view)
    time = np.array([0, 1, *[2] * (rows * columns), 9, 10])
    mask = time == 2
    sizes = {"view_wh": view_wh, "model_wh": model_wh, "grid_hw": (rows, columns)}
    found = prompt_positions(time, mask, **sizes, offset_px=11.0, token_px=16)
    assert found.shape == (len(time), 3) and found.dtype == np.float32
    assert found[:, 0].tolist() == (time - 11).tolist()
    assert not found[~mask, 1:].any()
    wanted = [(chain @ [x, y, 1])[[1, 0]] for y in range(rows) for x in range(columns)]
    np.testing.assert_allclose(found[mask, 1:], wanted, atol=1e-5)


def test_an_image_that_was_partly_dropped() -> None:
    mask = np.array([True, True, False])
    sizes = {"view_wh": (56, 56), "model_wh": (64, 64), "grid_hw": (2, 2)}
    with pytest.raises(BundleError, match=r"gets 2 of the image's tokens, expected 2 x 2 for 'p"):
        prompt_positions(np.arange(3), mask, **sizes, offset_px=11.0, token_px=16)
