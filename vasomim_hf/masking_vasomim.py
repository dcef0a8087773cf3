"""Anatomy-guided masking: which patches to hide, drawn for the whole batch at once.

Shapes: B batch size, N number of patches.
"""

import torch
from torch import nn


def patch_scores(guidance_map: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Sum of a guidance map in each patch (the numerator of the paper's patch distribution).

    Args:
        guidance_map (`torch.Tensor` of shape `(batch_size, 1, height, width)`):
            Vessel evidence of each pixel, float in [0, 1]; height and width divisible by `patch_size`.
        patch_size (`int`):
            Side of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches)`: float in [0, patch_size**2], patches row by row.

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
    """Choose which patches to hide, drawing part of them where vessels are.

    Of the hidden patches, a share `guidance_ratio` is drawn without replacement with probability proportional
    to `patch_scores`; the rest uniformly over what is left. Every image hides the same number of patches, also one
    without vessels.

    Args:
        patch_scores (`torch.Tensor` of shape `(batch_size, num_patches)`):
            Sum of vesselness in each patch; float, >= 0, any scale. A row of zeros means "no vessel found".
        mask_ratio (`float`):
            Share of patches to hide, in (0, 1). Rounded as in MAE: `num_patches - int(num_patches * (1 - mask_ratio))`.
        guidance_ratio (`float` or scalar `torch.Tensor`):
            Share of the hidden patches drawn by score, in [0, 1]; rounded down to whole patches. 0 is plain MAE. A
            tensor on the device of `patch_scores` keeps a compiled graph valid while the share changes.
        noise (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
            Uniform in [0, 1), float32: the only source of randomness. With `guidance_ratio=0` the visible patches are
            those of smallest noise, as in transformers' ViTMAE.
        generator (`torch.Generator`, *optional*):
            Source of `noise` where none is given, on the device of `patch_scores`. `None` uses the global one.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches)`: `bool`, `True` where the patch is hidden.

    Raises:
        ValueError: If a ratio is out of range, a shape does not fit, or a score is negative or not a number. Scores on
            an accelerator are not looked at, since that would wait for it; there, negative ones count as zero.

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
    """Order the patches from the first that stays visible to the last that is hidden.

    Takes the arguments of [`guided_mask`], which is this order cut after `num_visible` patches.

    The draw is a race: patch i with probability p_i arrives at time E_i / p_i, with E_i = -log(noise_i) exponential.
    The first to arrive are a sample without replacement, proportional to p (Efraimidis and Spirakis, 2006). When the
    last guided patch has arrived, at time t, the others still have E_i - p_i * t to go, which is again exponential and
    independent of what was drawn, since waiting has no memory: so the same noise serves the uniform draw among them.
    As noise_i * exp(p_i * t), this is >= 1 for the guided patches, uniform in [0, 1) for the others, and the noise
    itself without guidance: the largest are hidden.

    Returns:
        `tuple[torch.Tensor, int]`: patch indices of shape `(batch_size, num_patches)`, int64, and the number of those
        that stay visible.

    Raises:
        ValueError: As [`guided_mask`].
    """
    _check_ratio("mask_ratio", mask_ratio, 0 < mask_ratio < 1, "in (0, 1)")
    _check_scores(patch_scores)
    num_patches = patch_scores.shape[1]
    num_visible = int(num_patches * (1 - mask_ratio))
    num_guided = _num_guided(num_patches - num_visible, guidance_ratio, patch_scores.device)
    noise = _prepare_noise(noise, generator, patch_scores)

    # 1e-30 (not 0) keeps rows of zeros finite, and the largest finite time lets patches of score 0 wait forever
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
            "Sum the vesselness map over each patch first, see `patch_scores()`."
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
            "One uniform number in [0, 1) for each patch."
        )
    # log(0) would make a patch wait forever
    return noise.to(device=device, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
