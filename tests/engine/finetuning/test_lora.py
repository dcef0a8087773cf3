"""LoRA on the encoder: few weights are trained, the head whole, and the result loads and merges, with each head."""

from typing import Any

import pytest
import torch
from miniatures.finetuning import ENCODER, SIZE, frames, run_of, vessel_table
from miniatures.finetuning import HEADS as SIZES
from miniatures.overfitting import overfit

from vasomim_hf import VasoMIMConfig
from vasomim_hf.engine.finetuning.rows import load_task_data
from vasomim_hf.engine.finetuning.run import CLASSIFICATION, DETECTION, SEGMENTATION, SegmentationRun
from vasomim_hf.engine.finetuning.trainer import finetune_model, read_metrics
from vasomim_hf.engine.finetuning.weights import build_finetune_model
from vasomim_hf.engine.tasks.registry import find_task


peft = pytest.importorskip("peft", reason="needs the extra dev")
# peft 0.21 asks transformers by an old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

MODULES = {
    SEGMENTATION: ["decode_head"],
    DETECTION: ["pyramid", "detection_head"],
    CLASSIFICATION: ["classifier"],
}
LABELS = {0: "background", 1: "vessel"}


def plain_model(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {name: value for one in SIZES.values() for name, value in one.items()}
    names = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    return find_task(kind).model_class(VasoMIMConfig(**ENCODER, **sizes, **names, image_size=SIZE))


def batch_of(kind: str) -> dict[str, Any]:
    items = frames(4)
    pixels = torch.stack([torch.from_numpy(item.image).float() for item in items]).div(255).sub(0.5).div(0.25)
    box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.5, 0.3, 0.4]])}
    labels = {
        SEGMENTATION: torch.stack([torch.from_numpy(item.segment_mask > 0) for item in items]).long(),
        DETECTION: [box] * 4,
        CLASSIFICATION: torch.tensor([0, 1, 1, 0]),
    }
    return {"pixel_values": pixels[:, None].expand(-1, 3, -1, -1).contiguous(), "labels": labels[kind]}


def adapted(model: Any, kind: str) -> Any:
    options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=MODULES[kind])
    return peft.get_peft_model(model, options)


@pytest.mark.parametrize("kind", list(MODULES))
def test_lora_learns_with_few_weights_and_comes_back(kind, tmp_path):
    plain, batch = plain_model(kind), batch_of(kind)
    encoder = {name: value.clone() for name, value in plain.vasomim.state_dict().items()}
    model = adapted(plain, kind).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)
    assert sum("lora_A" in name for name in trained) == 2 * 2
    assert overfit(model, lambda: model(**batch).loss, steps=60, learning_rate=2e-2) < 0.5
    reached = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert all(float(parameter.detach().abs().max()) > 0 for parameter in reached), "the adapters were not reached"
    kept = {
        name.replace(".base_layer", ""): value for name, value in model.base_model.model.vasomim.state_dict().items()
    }
    assert all(torch.equal(kept[name], value) for name, value in encoder.items())

    model.eval().save_pretrained(tmp_path / "adapter")
    pixels = batch["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        assert expected != pytest.approx(plain_model(kind).eval()(pixels).logits, abs=1e-3)
        loaded = peft.PeftModel.from_pretrained(plain_model(kind), tmp_path / "adapter").eval()
        assert loaded(pixel_values=pixels).logits == pytest.approx(expected, abs=1e-5)
        merged = loaded.merge_and_unload()
        assert type(merged) is find_task(kind).model_class and isinstance(merged.config, VasoMIMConfig)
        assert merged(pixel_values=pixels).logits == pytest.approx(expected, abs=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        assert find_task(kind).model_class.from_pretrained(tmp_path / "merged")(pixels).logits == pytest.approx(
            expected, abs=1e-4
        )


def test_a_run_trains_a_model_with_adapters_and_leaves_the_best_ones(tmp_path):
    table = vessel_table(tmp_path / "table", train=4, val=2)
    run = run_of(SegmentationRun, table, tmp_path / "run", epochs=12, learning_rate=5e-3, layer_decay=0.9)
    data = load_task_data(run)
    model = adapted(build_finetune_model(run, data.id2label), SEGMENTATION)
    assert finetune_model(run, model, data).finished
    weights = sum(path.stat().st_size for path in (tmp_path / "run/final").glob("*.safetensors"))
    assert (tmp_path / "run/final/adapter_model.safetensors").is_file() and weights < 4 * sum(
        p.numel() for p in model.parameters() if p.requires_grad
    ) + 20_000
    fresh = build_finetune_model(run, data.id2label)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "run" / "final").eval()
    pixels = batch_of(SEGMENTATION)["pixel_values"]
    with torch.no_grad():
        expected = model.eval().cpu()(pixel_values=pixels).logits
        assert loaded(pixel_values=pixels).logits == pytest.approx(expected, abs=1e-5)
    assert read_metrics(run)["metrics"]["pooled_dice"] >= 0
