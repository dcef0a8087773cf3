"""The probe tells reconstructions with vessels from those without."""

from types import SimpleNamespace

import pytest
import torch

from vasomim_hf.engine.pretraining.probe import probe_reconstructions


SIDE = 64


class Reconstructs:
    """A model whose reconstruction is a given function of the frame; every second patch is hidden."""

    config = SimpleNamespace(patch_size=16, patch_grid=(4, 4))

    def __init__(self, change):
        self.change = change

    def eval(self):
        return self

    def __call__(self, pixel_values, vesselness):
        mask = torch.arange(16).remainder(2).float().repeat(len(pixel_values), 1)
        loss = pixel_values.mean()
        output = {"reconstruction_loss": loss, "consistency_loss": 2 * loss, "mask": mask}
        return SimpleNamespace(reconstruction=self.change(pixel_values), **output)


def frames_with_a_vessel():
    rows = torch.arange(SIDE).float()
    distance = (rows[:, None] - rows[None, :]).abs()
    frame = 0.7 - 0.4 * torch.exp(-(distance**2) / 8)
    return frame.expand(3, 1, SIDE, SIDE), (distance < 3).float().expand(3, 1, SIDE, SIDE)


def probe(change):
    frames, vessels = frames_with_a_vessel()
    batches = [
        {"pixel_values": frames[:2], "vesselness": vessels[:2]},
        {"pixel_values": frames[2:], "vesselness": vessels[2:]},
    ]
    return probe_reconstructions(Reconstructs(change), batches, lambda x: x.clamp(0, 1))


def test_vessels_in_the_reconstruction_are_seen():
    assert probe(lambda frames: frames)["probe_vessel_ap"] > 0.9


def test_a_flat_reconstruction_has_the_precision_of_chance():
    frames, vessels = frames_with_a_vessel()
    hidden = torch.arange(16).remainder(2).bool().view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    chance = vessels[0, 0][hidden].mean().item()
    assert probe(lambda frames: torch.full_like(frames, 0.5))["probe_vessel_ap"] == pytest.approx(chance)


def test_losses_are_means_over_frames():
    values = probe(lambda frames: frames)
    frames, _ = frames_with_a_vessel()
    assert values["probe_reconstruction_loss"] == pytest.approx(frames.mean().item())
    assert values["probe_consistency_loss"] == pytest.approx(2 * frames.mean().item())


def test_without_hidden_vessels_there_is_no_precision():
    frames, vessels = frames_with_a_vessel()
    batch = {"pixel_values": frames, "vesselness": torch.zeros_like(vessels)}
    assert "probe_vessel_ap" not in probe_reconstructions(Reconstructs(lambda frames: frames), [batch], lambda x: x)
