"""Pre-training step and encoder at size ViT-B/16, in bf16 and fp32, compared with transformers' ViTMAE.

    python benchmarks/benchmark_model.py [--preset base] [--batch-size 8] [--rounds 5] [--device cpu]

Variants alternate within each round and the fastest round of each counts, so other load affects all of them equally.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from vasomim_hf import VasoMIMForPreTraining, VasoMIMModel
from vasomim_hf.presets import load_preset, preset_names


VIT_MAE_FIELDS = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "mask_ratio",
    "norm_pix_loss",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "layer_norm_eps",
]


def training_step(model: nn.Module, batch: dict[str, torch.Tensor], bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    device = batch["pixel_values"].device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def encoding(model: nn.Module, batch: dict[str, torch.Tensor], bf16: bool) -> Callable[[], None]:
    device = batch["pixel_values"].device.type

    @torch.no_grad()
    def encode() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            model(batch["pixel_values"])

    return encode


def attention(size: tuple[int, int, int, int], plain: bool) -> Callable[[], None]:
    states = [torch.randn(size, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def forward_and_backward() -> None:
        query, key, value = states
        if plain:
            weights = torch.matmul(query * size[-1] ** -0.5, key.transpose(2, 3)).softmax(dim=-1)
            output = torch.matmul(weights, value)
        else:
            output = nn.functional.scaled_dot_product_attention(query, key, value)
        output.backward(torch.ones_like(output))

    return forward_and_backward


def fastest(variants: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of the fastest round of each variant; the first round is a warm-up."""
    times = {name: float("inf") for name in variants}
    for count in range(rounds + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if device != "cpu":
                torch.cuda.synchronize()
            if count:
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def report(title: str, times: dict[str, float], baseline: str, images: int | None = None) -> None:
    print(title)
    for name, seconds in times.items():
        amount = f"{images / seconds:8.1f} images/s" if images else f"{1e3 * seconds:8.2f} ms"
        print(f"  {name:36s}{amount}   {times[baseline] / seconds:5.2f} × {baseline}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=preset_names(), default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = load_preset(arguments.preset)
    size, device = arguments.batch_size, arguments.device
    model = VasoMIMForPreTraining(config).to(device).train()
    vit_mae = ViTMAEForPreTraining(ViTMAEConfig(**{name: getattr(config, name) for name in VIT_MAE_FIELDS})).to(device)
    frames = {"pixel_values": torch.randn(size, 3, 224, 224, device=device)}
    guided = {**frames, "vesselness": (torch.rand(size, 1, 224, 224, device=device) > 0.9).float()}
    steps = {
        "VasoMIM, bf16": training_step(model, guided, bf16=True),
        "VasoMIM, fp32": training_step(model, guided, bf16=False),
        "transformers ViTMAE, fp32": training_step(vit_mae.train(), frames, bf16=False),
        "transformers ViTMAE, bf16": training_step(vit_mae, frames, bf16=True),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    times = fastest(steps, arguments.rounds, device)
    report(f"pre-training step, {arguments.preset}, batch {size}", times, "transformers ViTMAE, fp32", size)
    encoder = VasoMIMModel(config).to(device).eval()
    encodings = {f"encoder, {name}": encoding(encoder, frames, name == "bf16") for name in ("bf16", "fp32")}
    times = fastest(encodings, arguments.rounds, device)
    report(f"encoder, {arguments.preset}, batch {size}", times, "encoder, fp32", size)
    if device == "cpu":
        for shape in ((size, 12, 99, 64), (size, 16, 197, 32)):
            variants = {name: attention(shape, name == "plain products") for name in ("plain products", "sdpa")}
            times = fastest(variants, 4 * arguments.rounds, device)
            report(f"attention forward and backward in bf16, {shape}", times, "sdpa")


if __name__ == "__main__":
    main()
