"""Fine-tuning with LoRA on the encoder: few weights are trained, the head whole, and the result loads and merges."""

import pytest
import torch

from vasomim_hf import VasoMIMConfig
from vasomim_hf.engine.finetune_config import SEGMENTATION, SegmentationRun
from vasomim_hf.engine.finetune_data import Collator, DecodeOptions, FinetuneDataset, decode
from vasomim_hf.engine.finetune_model import HEADS, build_finetune_model
from vasomim_hf.engine.finetune_rows import load_task_data

from .finetune_miniatures import run_of, vessel_table


peft = pytest.importorskip("peft", reason="needs the extra dev")


@pytest.fixture
def batch(tmp_path) -> dict:
    run = run_of(SegmentationRun, vessel_table(tmp_path / "table", train=4, val=1), tmp_path / "run")
    samples = decode(load_task_data(run).training, DecodeOptions(SEGMENTATION, 2, run.image_size), tmp_path / "planes")
    dataset = FinetuneDataset(samples, run.image_size)
    collated = Collator((0.5,) * 3, (0.25,) * 3)([dataset[index] for index in range(4)])
    return {"run": run, **{name: collated[name] for name in ("pixel_values", "labels")}}


# peft 0.21 asks transformers by an old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_learns_with_few_weights_and_comes_back(batch, tmp_path):
    run = batch.pop("run")
    plain = build_finetune_model(run, {0: "background", 1: "vessel"})
    encoder = {name: value.clone() for name, value in plain.vasomim.state_dict().items()}
    options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["decode_head"])
    model = peft.get_peft_model(plain, options)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name or "decode_head.modules_to_save" in name for name in trained)
    assert sum("lora_A" in name for name in trained) == 2 * 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    losses = []
    for _ in range(30):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
    adapted = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert all(float(parameter.detach().abs().max()) > 0 for parameter in adapted), "the adapters were not reached"
    kept = {
        name.replace(".base_layer", ""): value for name, value in model.base_model.model.vasomim.state_dict().items()
    }
    assert all(torch.equal(kept[name], value) for name, value in encoder.items())

    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(pixel_values=batch["pixel_values"]).logits
        fresh = build_finetune_model(run, {0: "background", 1: "vessel"})
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        assert loaded(pixel_values=batch["pixel_values"]).logits == pytest.approx(expected, abs=1e-5)
        merged = loaded.merge_and_unload()
        assert type(merged) is HEADS[SEGMENTATION] and isinstance(merged.config, VasoMIMConfig)
        assert merged(pixel_values=batch["pixel_values"]).logits == pytest.approx(expected, abs=1e-4)
