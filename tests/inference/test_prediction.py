"""Sliding windows against MONAI's, views and the way back, and what is predicted from both."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from vasomim_hf import VasoMIMImageProcessor
from vasomim_hf.inference.prediction import InferenceOptions, predict_boxes, predict_classes, predict_masks
from vasomim_hf.inference.sliding_window import SlidingWindow, sliding_window_logits, window_starts
from vasomim_hf.inference.views import VIEWS, View, undo_on_boxes, undo_on_maps, view_frames


class Blur(nn.Module):
    """A segmentation whose answer hangs on the surroundings, so that windows differ where they end."""

    def __init__(self, num_labels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(1, num_labels, 9, padding=4)

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        return SemanticSegmenterOutput(logits=self.conv(pixel_values))


@pytest.mark.parametrize("size, window, overlap", [((96, 80), 64, 0.5), ((100, 133), 48, 0.25), ((64, 200), 64, 0.6)])
def test_blended_windows_are_those_of_monai(size, window, overlap):
    inferers = pytest.importorskip("monai.inferers")
    model, frames = Blur(), torch.rand(2, 1, *size)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(
            frames,
            roi_size=(window, window),
            sw_batch_size=3,
            predictor=lambda part: model(part).logits,
            overlap=overlap,
            mode="gaussian",
        )
        found = sliding_window_logits(lambda part: model(part).logits, frames, SlidingWindow(window, overlap, 3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_windows_cover_a_side_and_end_with_it():
    for side, window, overlap in ((100, 64, 0.5), (64, 64, 0.5), (513, 100, 0.0), (200, 33, 0.9)):
        starts = window_starts(side, window, overlap)
        assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] + window == side
        assert all(later - start <= window for start, later in zip(starts, starts[1:], strict=False))


def test_a_frame_smaller_than_the_window_is_seen_whole():
    frames = torch.rand(1, 1, 40, 50)
    model = Blur()
    with torch.no_grad():
        found = sliding_window_logits(lambda part: model(part).logits, frames, SlidingWindow(64))
        torch.testing.assert_close(found, model(frames).logits)


def test_numbers_of_windows_that_cannot_be_are_refused():
    for keys in ({"size": 0}, {"size": 8, "overlap": 1.0}, {"size": 8, "batch_size": 0}):
        with pytest.raises(ValueError, match="must be"):
            SlidingWindow(**keys)
    with pytest.raises(ValueError, match="size of the window"):
        sliding_window_logits(lambda part: part[..., ::2, ::2], torch.rand(1, 1, 32, 32), SlidingWindow(16))


@pytest.mark.parametrize("view", VIEWS["flips"])
def test_a_view_of_maps_is_turned_back(view):
    frames = torch.rand(2, 3, 20, 30)
    assert torch.equal(undo_on_maps(view_frames(frames, view), view), frames)


def test_a_box_goes_back_to_where_it_was():
    frame = torch.zeros(1, 1, 40, 80)
    frame[..., 4:12, 50:70] = 1
    for view in VIEWS["flips"]:
        rows, columns = np.nonzero(view_frames(frame, view)[0, 0].numpy())
        box = [(columns.min() + columns.max() + 1) / 160, (rows.min() + rows.max() + 1) / 80, 20 / 80, 8 / 40]
        found = undo_on_boxes(torch.tensor([[box]], dtype=torch.float32), view)
        torch.testing.assert_close(found, torch.tensor([[[60 / 80, 8 / 40, 20 / 80, 8 / 40]]]))


def test_another_scale_has_sides_of_whole_patches():
    assert view_frames(torch.rand(1, 1, 256, 200), View(scale=0.875)).shape[-2:] == (224, 176)


def test_one_view_decides_as_the_image_processor_does():
    model, frames, sizes = Blur(), torch.rand(3, 1, 32, 32), [(64, 48), (32, 32), (20, 90)]
    found = predict_masks(model, frames, sizes)
    expected = VasoMIMImageProcessor().post_process_semantic_segmentation(model(frames), target_sizes=sizes)
    for probabilities, ids, size in zip(found, expected, sizes, strict=True):
        assert probabilities.shape == (3, *size) and torch.equal(probabilities.argmax(dim=0), ids)
        torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(size))


def test_views_are_averaged_where_they_belong():
    model, frames = Blur(), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        plain = predict_masks(model, frames, [(32, 32)])[0]
        flipped = predict_masks(model, frames.flip(-1), [(32, 32)])[0].flip(-1)
        both = predict_masks(model, frames, [(32, 32)], InferenceOptions((View(), View(flip_horizontal=True))))[0]
    torch.testing.assert_close(both, (plain + flipped) / 2)
    assert not torch.allclose(plain, flipped, atol=1e-3)


def test_one_logit_is_the_foreground():
    model, frames = Blur(num_labels=1), torch.rand(1, 1, 16, 16)
    found = predict_masks(model, frames, [(16, 16)])[0]
    torch.testing.assert_close(found[1], model(frames).logits[0, 0].sigmoid())
    torch.testing.assert_close(found.sum(dim=0), torch.ones(16, 16))


def test_a_window_of_the_whole_frame_changes_nothing():
    model, frames = Blur(), torch.rand(2, 1, 32, 32)
    whole = predict_masks(model, frames, [(32, 32)] * 2)
    windowed = predict_masks(model, frames, [(32, 32)] * 2, InferenceOptions(window=SlidingWindow(32)))
    torch.testing.assert_close(torch.stack(whole), torch.stack(windowed))


def test_logits_of_windows_may_be_smaller_than_the_windows():
    class Quarter(nn.Module):
        """Gives logits at a quarter of its input, as SegFormer does."""

        def forward(self, pixel_values):
            return SemanticSegmenterOutput(logits=nn.functional.avg_pool2d(pixel_values, 4))

    frames = torch.rand(1, 2, 32, 48)
    whole = predict_masks(Quarter(), frames, [(32, 48)])[0]
    found = predict_masks(Quarter(), frames, [(32, 48)], InferenceOptions(window=SlidingWindow(48)))[0]
    torch.testing.assert_close(found, whole)


def test_a_model_that_gives_no_numbers_is_refused():
    model = Blur()
    nn.init.constant_(model.conv.bias, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        predict_masks(model, torch.rand(1, 1, 16, 16), [(16, 16)])


def test_boxes_of_all_views_come_together():
    class Finder(nn.Module):
        def forward(self, pixel_values):
            place = pixel_values.flatten(1).argmax(dim=1)
            x, y = place % 32 + 0.5, place // 32 + 0.5
            boxes = torch.stack([x / 32, y / 32, torch.full_like(x, 0.1), torch.full_like(x, 0.1)], dim=-1)
            return ModelOutput(logits=torch.ones(len(pixel_values), 1, 1), pred_boxes=boxes[:, None])

    frames = torch.zeros(1, 1, 32, 32)
    frames[0, 0, 5, 20] = 1
    output = predict_boxes(Finder(), frames, InferenceOptions(VIEWS["flips"]))
    assert output.logits.shape == (1, 4, 1)
    torch.testing.assert_close(output.pred_boxes[0], torch.tensor([[20.5 / 32, 5.5 / 32, 0.1, 0.1]]).expand(4, 4))


def test_class_probabilities_are_averaged():
    class Corner(nn.Module):
        def forward(self, pixel_values):
            return ImageClassifierOutput(logits=pixel_values[:, 0, 0, :2] * 10)

    frames = torch.rand(2, 1, 4, 4)
    found = predict_classes(Corner(), frames, InferenceOptions((View(), View(flip_horizontal=True))))
    expected = ((frames[:, 0, 0, :2] * 10).softmax(1) + (frames[:, 0, 0, [3, 2]] * 10).softmax(1)) / 2
    torch.testing.assert_close(found, expected)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one view"):
        InferenceOptions(views=())
    with pytest.raises(ValueError, match="mixed_precision"):
        InferenceOptions(mixed_precision="int8")
