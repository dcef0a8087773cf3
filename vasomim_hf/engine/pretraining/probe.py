"""What a model reconstructs of the same frames under the same masks, measured after every epoch."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ...data.vesselness import sato_response
from ...evaluation.classification_metrics import auprc
from ...modeling_vasomim_pretraining import VasoMIMForPreTraining, VasoMIMForPreTrainingOutput


def probe_reconstructions(
    model: VasoMIMForPreTraining,
    batches: Iterable[dict[str, Any]],
    to_grey: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, float]:
    """Losses of the probe, and whether the hidden vessels are in its reconstructions.

    A low consistency loss does not show that vessels were reconstructed: a fine texture can satisfy the segmentor.
    `probe_vessel_ap` therefore ranks the hidden pixels by the response of the vesselness filter to the reconstruction.

    Args:
        model (`VasoMIMForPreTraining`): Set to evaluation mode.
        batches (`Iterable[dict]`): Arguments of its `forward`, with `vesselness` of shape `(batch_size, 1, height, width)`.
        to_grey (`Callable`): Maps a reconstruction to grey frames of shape `(batch_size, 1, height, width)` in [0, 1].

    Returns:
        `dict[str, float]`: `probe_reconstruction_loss` and `probe_consistency_loss`, means over the frames, and
        `probe_vessel_ap`, average precision over the hidden pixels in [0, 1]; left out if no vessel is hidden. A random
        ranking reaches the fraction of hidden pixels that are vessels.
    """
    losses, counts, responses, vessels = [], [], [], []
    model.eval()
    for inputs in batches:
        with torch.no_grad():
            output = model(**inputs)
        losses.append(torch.stack([output.reconstruction_loss, output.consistency_loss]).float().cpu())
        counts.append(len(inputs["pixel_values"]))
        hidden = _hidden_pixels(model, output)
        responses.append(_filter_response(to_grey(output.reconstruction.float()))[hidden])
        vessels.append(inputs["vesselness"][:, 0].cpu().numpy()[hidden] > 0)
    reconstruction_loss, consistency_loss = np.average(torch.stack(losses).numpy(), axis=0, weights=counts).tolist()
    values = {"probe_reconstruction_loss": reconstruction_loss, "probe_consistency_loss": consistency_loss}
    targets = np.concatenate(vessels)
    if targets.any() and not targets.all():
        values["probe_vessel_ap"] = float(auprc(np.concatenate(responses), targets))
    return values


def _hidden_pixels(model: VasoMIMForPreTraining, output: VasoMIMForPreTrainingOutput) -> np.ndarray:
    side, mask = model.config.patch_size, torch.as_tensor(output.mask).cpu().bool()
    return mask.view(-1, *model.config.patch_grid).repeat_interleave(side, 1).repeat_interleave(side, 2).numpy()


def _filter_response(grey: torch.Tensor) -> np.ndarray:
    frames = (255 * grey[:, 0]).round().to(torch.uint8).cpu().numpy()
    return np.stack([sato_response(frame) for frame in frames])
