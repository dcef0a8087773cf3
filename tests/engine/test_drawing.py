"""Pictures of pre-training: patches in their places, grey levels undone, cells where they belong."""

import numpy as np
import torch

from vasomim_hf.data.crops import normalize_frames
from vasomim_hf.engine.drawing import CAPTION_HEIGHT, GAP, hide_patches, picture_grid, to_grey


def test_hidden_patches_are_greyed_row_by_row():
    mask = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 1.0]])
    out = hide_patches(torch.zeros(1, 1, 8, 12), mask, grid=(2, 3))
    expected = torch.zeros(8, 12)
    expected[0:4, 4:8] = 0.5
    expected[4:8, 8:12] = 0.5
    torch.testing.assert_close(out[0, 0], expected)


def test_grey_levels_come_back_from_normalisation():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    grey = to_grey(normalize_frames(pixels, mean, std), mean, std)
    torch.testing.assert_close(grey, pixels / 255, rtol=0, atol=1e-6)


def test_values_beyond_black_and_white_are_cut():
    assert to_grey(torch.tensor([[[[-9.0, 9.0]]]]), [0.5], [0.5]).flatten().tolist() == [0.0, 1.0]


def test_cells_stand_in_their_rows_and_columns():
    columns = [torch.full((2, 1, 20, 30), value) for value in (0.0, 0.5, 1.0)]
    columns[1][1] = float("nan")
    image = np.asarray(picture_grid(columns, ("a", "b", "c")))
    assert image.shape == (CAPTION_HEIGHT + 2 * (20 + GAP), 3 * (30 + GAP) - GAP)
    middle = CAPTION_HEIGHT + 10
    assert [int(image[middle, 15 + i * (30 + GAP)]) for i in range(3)] == [0, 128, 255]
    assert image[middle + 20 + GAP, 15 + 30 + GAP] == 255
    assert image[:CAPTION_HEIGHT].min() < 60
