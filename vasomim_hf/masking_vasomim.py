"""Anatomy-guided masking: samples the patches to mask for a whole batch at once.

Shapes: B batch size, N number of patches.
"""

import torch
from torch import nn


def patch_scores(guidance_map: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Sum a guidance map over each patch (the numerator of the paper's patch distribution).

    Args:
        guidance_map (`torch.Tensor` of shape `(batch_size, 1, height, width)`):
            Vessel evidence per pixel, float in [0, 1]; height and width divisible by `patch_size`.
        patch_size (`int`):
            Side length of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches)`: float in [0, patch_size**2], patches in row-major order.

    Example:
        >>> patch_scores(torch.ones(1, 1, 4, 8), patch_size=4)
        tensor([[16., 16.]])
    """
    mean = nn.functional.avg_pool2d(guidance_map, patch_size)
    return mean.flatten(1) * patch_size**2


def guided_mask(
    patch_scores: torch.Tensor,
    mask_ratio: float,
    guidance_ratio: float | torch.Tensor,
    noise: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose the patches to mask, sampling some of them where vessels are.

    A fraction `guidance_ratio` of the masked patches is sampled without replacement with probability proportional to
    `patch_scores`, the others uniformly from the remaining patches. Every image has the same number of masked patches,
    even if it has no vessels.

    Args:
        patch_scores (`torch.Tensor` of shape `(batch_size, num_patches)`):
            Sum of vesselness over each patch; float, >= 0, any scale. A row of zeros means "no vessel found".
        mask_ratio (`float`):
            Fraction of patches to mask, in (0, 1). Rounded as in MAE: `num_patches - int(num_patches * (1 -
            mask_ratio))`.
        guidance_ratio (`float` or scalar `torch.Tensor`):
            Fraction of the masked patches sampled by score, in [0, 1]; rounded down to whole patches. 0 is plain MAE.
            Pass a tensor on the device of `patch_scores` to change the value without recompiling.
        noise (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
            Uniform in [0, 1), float32, the only source of randomness. With `guidance_ratio=0` the patches with the
            smallest noise stay visible, as in transformers' ViTMAE.
        generator (`torch.Generator`, *optional*):
            Source of `noise` where none is given, on the device of `patch_scores`. `None` uses the global one.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches)`: `bool`, `True` for masked patches.

    Raises:
        ValueError: If a ratio is out of range, a shape does not match, or a score is negative or NaN. Scores on an
        accelerator are not checked, because that would force a synchronisation; negative ones count as zero.

    Example:
        >>> scores = torch.tensor([[0.0, 0.9, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
        >>> guided_mask(scores, mask_ratio=0.5, guidance_ratio=1.0).sum(dim=1)
        tensor([2, 2])
    """
    order, num_visible = guided_order(patch_scores, mask_ratio, guidance_ratio, noise, generator)
    hidden = torch.ones_like(order, dtype=torch.bool)
    return hidden.scatter(1, order[:, :num_visible], False)


def guided_order(
    patch_scores: torch.Tensor,
    mask_ratio: float,
    guidance_ratio: float | torch.Tensor,
    noise: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, int]:
    """Order the patches so that the visible ones come first.

    Takes the arguments of [`guided_mask`], which splits this order after `num_visible` patches.

    The sampling is an exponential race: patch i with probability p_i arrives at time E_i / p_i, where
    E_i = -log(noise_i). The first arrivals are a sample without replacement with probabilities proportional to p
    (Efraimidis and Spirakis, 2006). When the last guided patch arrives, at time t, the remaining times E_i - p_i * t
    of the other patches are again exponential and independent of the sample (the exponential distribution is
    memoryless), so the same noise serves the uniform draw among them. The key noise_i * exp(p_i * t) is >= 1 for
    guided patches, uniform in [0, 1) for the others, and equal to the noise without guidance. Patches with the
    largest keys are masked.

    Returns:
        `tuple[torch.Tensor, int]`: patch indices of shape `(batch_size, num_patches)`, int64, and the number of
        visible patches.

    Raises:
        ValueError: As for [`guided_mask`].
    """
    _check_ratio("mask_ratio", mask_ratio, 0 < mask_ratio < 1, "in (0, 1)")
    _check_scores(patch_scores)
    num_patches = patch_scores.shape[1]
    num_visible = int(num_patches * (1 - mask_ratio))
    num_guided = _num_guided(num_patches - num_visible, guidance_ratio, patch_scores.device)
    noise = _prepare_noise(noise, generator, patch_scores)

    # 1e-30 instead of 0 keeps rows of zeros finite; patches with score 0 get the largest finite arrival time
    scores = patch_scores.to(noise.dtype).clamp(min=0)
    probability = scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-30)
    arrival = (-noise.log() / probability).clamp(max=1e30).sort(dim=1).values
    last_guided = arrival.gather(1, (num_guided - 1).clamp(min=0).expand(len(arrival), 1))
    priority = noise * torch.exp(probability * last_guided * (num_guided > 0))
    return priority.argsort(dim=1), num_visible


def _check_ratio(name: str, value: float, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"`{name}` must be {expected}, got {value}.")


def _check_scores(patch_scores: torch.Tensor) -> None:
    if patch_scores.ndim != 2:
        raise ValueError(
            f"`patch_scores` must have shape (batch_size, num_patches), got {tuple(patch_scores.shape)}. "
            "Sum the vesselness map over each patch first, with `patch_scores()`."
        )
    if patch_scores.device.type != "cpu" or torch.compiler.is_compiling() or patch_scores.numel() == 0:
        return
    minimum = float(patch_scores.detach().to(torch.float32).numpy().min())
    if not minimum >= 0:
        raise ValueError(
            f"`patch_scores` must be >= 0, got a minimum of {minimum:.2f} in shape {tuple(patch_scores.shape)}. "
            "Pass the vesselness map in [0, 1], before mean/std normalisation."
        )


def _num_guided(num_hidden: int, guidance_ratio: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    if isinstance(guidance_ratio, torch.Tensor):
        return (guidance_ratio * num_hidden).long().clamp(0, num_hidden)
    _check_ratio("guidance_ratio", guidance_ratio, 0 <= guidance_ratio <= 1, "in [0, 1]")
    return torch.full((), int(num_hidden * guidance_ratio), dtype=torch.long, device=device)


def _prepare_noise(
    noise: torch.Tensor | None, generator: torch.Generator | None, patch_scores: torch.Tensor
) -> torch.Tensor:
    shape, device = patch_scores.shape, patch_scores.device
    if noise is None:
        noise = torch.rand(shape, device=device, generator=generator)
    elif noise.shape != shape:
        raise ValueError(
            f"`noise` must have the shape of `patch_scores`, {tuple(shape)}, got {tuple(noise.shape)}. "
            "Pass one uniform number in [0, 1) per patch."
        )
    # log(0) would give an infinite arrival time
    return noise.to(device=device, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
