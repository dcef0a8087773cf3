"""Guided masking: counts, distribution against the original method, cost."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from vasomim_hf.masking_vasomim import guided_mask, guided_order, patch_scores


NUM_DRAWS = 20_000


def draw(
    scores: torch.Tensor, mask_ratio: float, guidance_ratio: float, num_draws: int, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = scores.expand(num_draws, -1)
    return guided_mask(rows, mask_ratio, guidance_ratio, generator=generator)


def same_frequencies(first: np.ndarray, second: np.ndarray, num_draws: int) -> float:
    """p-value that two vectors of counts, each of `num_draws` draws, come from the same frequencies."""
    pooled = (first + second) / (2 * num_draws)
    varying = (pooled > 0) & (pooled < 1)
    if not np.array_equal(first[~varying], second[~varying]):
        return 0.0
    pooled = pooled[varying]
    squares = (first[varying] - second[varying]) ** 2 / (2 * num_draws * pooled * (1 - pooled))
    return float(stats.chi2.sf(squares.sum(), df=max(1, len(pooled))))


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mask_ratio", [0.25, 0.5, 0.75])
def test_guided_mask_hides_the_same_number_of_patches_in_every_image(mask_ratio, guidance_ratio):
    scores = torch.rand(16, 196)
    scores[0] = 0
    scores[1, 5:] = 0
    expected = 196 - int(196 * (1 - mask_ratio))
    assert guided_mask(scores, mask_ratio, guidance_ratio).sum(dim=1).tolist() == [expected] * 16


def test_guided_mask_hides_patches_with_vessels_first_when_guidance_is_full():
    scores = torch.zeros(8, 100)
    scores[:, 10:30] = torch.rand(8, 20) + 0.01
    hidden = guided_mask(scores, mask_ratio=0.5, guidance_ratio=1.0)
    assert hidden[:, 10:30].all()


def test_guided_mask_draws_uniformly_when_a_frame_has_no_vessels():
    counts = draw(torch.zeros(50), 0.5, 1.0, NUM_DRAWS).sum(dim=0).numpy()
    squares = (counts - NUM_DRAWS / 2) ** 2 / (NUM_DRAWS / 4)
    assert stats.chi2.sf(squares.sum(), df=50) > 1e-4


def test_guided_mask_without_guidance_keeps_the_patches_of_smallest_noise_in_ascending_order():
    noise = torch.rand(4, 196)
    order, num_visible = guided_order(torch.rand(4, 196), 0.75, 0.0, noise=noise)
    assert num_visible == 49
    assert torch.equal(order, noise.argsort(dim=1))


def test_guided_mask_agrees_with_vit_mae_when_there_is_no_guidance():
    from transformers import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    noise = torch.rand(4, 196)
    embeddings = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=8, mask_ratio=0.75))
    _, mask, _ = embeddings.random_masking(torch.zeros(4, 196, 8), noise)
    assert torch.equal(guided_mask(torch.rand(4, 196), 0.75, 0.0, noise=noise), mask.bool())


def test_guided_mask_is_decided_by_its_noise():
    scores, noise = torch.rand(4, 196), torch.rand(4, 196)
    first = guided_mask(scores, 0.5, 0.4, noise=noise)
    torch.rand(1)
    assert torch.equal(first, guided_mask(scores, 0.5, 0.4, noise=noise))
    assert not torch.equal(first, guided_mask(scores, 0.5, 0.4, noise=torch.rand(4, 196)))


def test_guided_mask_does_not_depend_on_the_scale_of_the_scores():
    scores, noise = torch.rand(4, 196), torch.rand(4, 196)
    scaled = guided_mask(scores * 256, 0.5, 0.4, noise=noise)
    assert torch.equal(guided_mask(scores, 0.5, 0.4, noise=noise), scaled)


@pytest.mark.parametrize("guidance_ratio", [0.0, 0.125, 0.3, 1.0])
def test_guided_mask_takes_the_guidance_ratio_as_a_tensor_too(guidance_ratio):
    scores, noise = torch.rand(4, 196), torch.rand(4, 196)
    as_tensor = guided_mask(scores, 0.5, torch.tensor(guidance_ratio, dtype=torch.float64), noise=noise)
    assert torch.equal(as_tensor, guided_mask(scores, 0.5, guidance_ratio, noise=noise))


def test_patch_scores_sum_the_map_in_each_patch():
    guidance_map = torch.rand(2, 1, 8, 12)
    expected = guidance_map[:, 0].reshape(2, 2, 4, 3, 4).sum(dim=(2, 4)).flatten(1)
    torch.testing.assert_close(patch_scores(guidance_map, 4), expected)


# --- distribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_guided", [1, 3, 6])
def test_guided_mask_draws_the_guided_patches_as_torch_multinomial_does(num_guided):
    scores = torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.05, 0.2])
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(scores.expand(NUM_DRAWS, -1), num_guided, generator=generator)
    expected = torch.zeros(NUM_DRAWS, 8).scatter(1, drawn, 1).sum(dim=0).numpy()
    counts = draw(scores, num_guided / 8, 1.0, NUM_DRAWS).sum(dim=0).numpy()
    assert same_frequencies(counts, expected, NUM_DRAWS) > 1e-4


def test_guided_mask_draws_the_rest_uniformly_over_what_is_left():
    # one patch is always guided; among the others the large score must not matter
    scores = torch.tensor([1.0] + [0.0] * 9)
    hidden = draw(scores, 0.5, 0.2, NUM_DRAWS)
    assert hidden[:, 0].all()
    counts = hidden[:, 1:].sum(dim=0).numpy()
    expected = 4 / 9 * NUM_DRAWS
    assert stats.chi2.sf(((counts - expected) ** 2 / (expected * 5 / 9)).sum(), df=9) > 1e-4


def test_guided_mask_has_the_frequencies_of_the_original_method_in_every_reference_case(shared_reference):
    cases = json.loads((shared_reference / "masking_stats.json").read_text())["cases"]
    reference = np.load(shared_reference / "masking_stats.npz")
    p_values = {}
    for seed, case in enumerate(cases):
        scores = torch.from_numpy(reference[f"patch_weight_{case['map']}"])[None].float()
        hidden = draw(scores, case["mask_ratio"], case["alpha_t"], NUM_DRAWS, seed)
        counts = hidden.sum(dim=0).numpy().astype(float)
        p_values[case["key"]] = same_frequencies(counts, reference[f"count_{case['key']}"].astype(float), NUM_DRAWS)
    assert len(p_values) == 30
    # 30 comparisons: the smallest of 30 honest p-values falls below 1e-4 in 0.3 % of runs
    assert min(p_values.values()) > 1e-4, p_values


def test_guided_mask_has_the_co_masking_counts_of_the_original_method(shared_reference):
    cases = json.loads((shared_reference / "masking_stats.json").read_text())["cases"]
    reference = np.load(shared_reference / "masking_stats.npz")
    cases = [case for case in cases if f"joint_{case['key']}" in reference]
    assert len(cases) == 12
    for seed, case in enumerate(cases):
        scores = torch.from_numpy(reference[f"patch_weight_{case['map']}"])[None].float()
        hidden = draw(scores, case["mask_ratio"], case["alpha_t"], NUM_DRAWS, 100 + seed).float()
        joint = (hidden.T @ hidden).numpy()[np.triu_indices(196, 1)]
        expected = reference[f"joint_{case['key']}"][np.triu_indices(196, 1)].astype(float)
        pooled = (joint + expected) / (2 * NUM_DRAWS)
        z = (joint - expected) / np.sqrt(2 * NUM_DRAWS * np.maximum(pooled * (1 - pooled), 1e-9))
        # pairs are correlated, so the largest deviation and the spread are bounded instead of a chi-square
        assert np.abs(z).max() < 6, case["key"]
        assert 0.7 < np.square(z).mean() < 1.3, case["key"]


# --- cost ------------------------------------------------------------------------------------------------------------


def test_guided_mask_takes_at_most_30_operations_and_none_that_waits_for_the_device(counted_operations):
    scores = torch.rand(256, 196)
    with counted_operations:
        guided_mask(scores, 0.5, 0.3)
    assert 0 < len(counted_operations.names) <= 30, counted_operations.names
    assert not counted_operations.waiting


def test_the_counter_of_operations_sees_one_that_waits_for_the_device(counted_operations):
    with counted_operations:
        torch.rand(3).sum().item()
    assert counted_operations.waiting


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_ratio", [-0.5, 0.0, 1.0, 1.5, float("nan")])
def test_guided_mask_refuses_a_mask_ratio_that_is_not_inside_0_and_1(mask_ratio):
    with pytest.raises(ValueError, match=r"`mask_ratio` must be in \(0, 1\)"):
        guided_mask(torch.rand(2, 16), mask_ratio, 0.5)


@pytest.mark.parametrize("guidance_ratio", [-0.1, 1.1, float("nan")])
def test_guided_mask_refuses_a_guidance_ratio_outside_0_and_1(guidance_ratio):
    with pytest.raises(ValueError, match=r"`guidance_ratio` must be in \[0, 1\]"):
        guided_mask(torch.rand(2, 16), 0.5, guidance_ratio)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_guided_mask_refuses_scores_that_are_negative_or_not_numbers(value):
    scores = torch.rand(64, 196)
    scores[3, 7] = value
    with pytest.raises(ValueError, match=rf"`patch_scores` must be >= 0, got a minimum of {value:.2f} in shape"):
        guided_mask(scores, 0.5, 0.5)


def test_guided_mask_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"`noise` must have the shape of `patch_scores`, \(2, 16\), got \(2, 15\)"):
        guided_mask(torch.rand(2, 16), 0.5, 0.5, noise=torch.rand(2, 15))


def test_guided_mask_refuses_a_map_in_place_of_scores():
    with pytest.raises(ValueError, match="must have shape"):
        guided_mask(torch.rand(2, 1, 224, 224), 0.5, 0.5)
