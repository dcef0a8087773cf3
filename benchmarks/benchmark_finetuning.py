"""Fine-tuning step (encoder and head) in bf16 and fp32, compared with MONAI's U-Net for segmentation.

    python benchmarks/benchmark_finetuning.py [--preset tiny] [--image-size 256] [--batch-size 8] [--rounds 3] [--threads 1]

Variants alternate within each round and the fastest round of each counts, so other load affects all of them equally.
"""

import argparse
from typing import Any

import torch
from benchmark_model import fastest, report, training_step

from vasomim_hf import VasoMIMForImageClassification, VasoMIMForObjectDetection, VasoMIMForSemanticSegmentation
from vasomim_hf.engine.evaluating.reference_models import ReferenceUNet
from vasomim_hf.presets import load_preset, preset_names


def labels_of(kind: str, size: int, side: int, device: str) -> Any:
    if kind == "segmentation":
        return (torch.rand(size, side, side, device=device) > 0.95).long()
    if kind == "classification":
        return torch.arange(size, device=device) % 2
    box = torch.tensor([[0.4, 0.5, 0.1, 0.1]], device=device)
    return [{"boxes": box, "class_labels": torch.zeros(1, dtype=torch.long, device=device)} for _ in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=preset_names(), default="tiny")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size, side, device = arguments.batch_size, arguments.image_size, arguments.device
    heads = {
        "segmentation": VasoMIMForSemanticSegmentation,
        "detection": VasoMIMForObjectDetection,
        "classification": VasoMIMForImageClassification,
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    pixel_values = torch.randn(size, 3, side, side, device=device)
    for kind, head in heads.items():
        model = head(load_preset(arguments.preset, num_labels=2 if kind != "detection" else 1)).to(device).train()
        batch = {"pixel_values": pixel_values, "labels": labels_of(kind, size, side, device)}
        variants = {f"{kind}, {name}": training_step(model, batch, name == "bf16") for name in ("bf16", "fp32")}
        if kind == "segmentation":
            unet = ReferenceUNet(2).to(device).train()
            variants |= {
                f"MONAI U-Net, {name}": training_step(unet, batch, name == "bf16") for name in ("bf16", "fp32")
            }
        times = fastest(variants, arguments.rounds, device)
        report(f"{kind} step, {arguments.preset}, {side} pixels, batch {size}", times, f"{kind}, fp32", size)


if __name__ == "__main__":
    main()
