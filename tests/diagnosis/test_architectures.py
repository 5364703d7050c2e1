"""Architectures that people use, as their library makes them: no layer is accused, and one with large weights is."""

from __future__ import annotations

from pathlib import Path

import pytest

import gradscope
from gradscope.diagnosis.model import LayerRisk

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SPEC = """
import torch
import transformers as t

torch.manual_seed(0)
SMALL = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
STAGES = dict(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1])
model = t.{model}
with torch.no_grad():
    model.get_parameter({parameter!r}).mul_({factor}) if {parameter!r} else None


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, i):
        if {images}:
            return dict(pixel_values=torch.randn(3, 32, 32), labels=torch.tensor(i % 2))
        ids = torch.randint(2, 120, (24,))
        return dict(input_ids=ids, labels=ids)


train_loader = torch.utils.data.DataLoader(Data(), batch_size=8)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
"""
MODELS = {
    "gpt2": "GPT2LMHeadModel(t.GPT2Config(vocab_size=120, n_embd=48, n_layer=6, n_head=4))",
    "distilbert": "DistilBertForMaskedLM(t.DistilBertConfig(vocab_size=120, dim=48, n_layers=4, n_heads=4, hidden_dim=96))",
    "t5": "T5ForConditionalGeneration(t.T5Config(vocab_size=120, d_model=48, d_kv=12, d_ff=96, num_layers=3, num_heads=4, "
    "decoder_start_token_id=0))",
    "xlnet": "XLNetLMHeadModel(t.XLNetConfig(vocab_size=120, d_model=48, n_layer=3, n_head=4, d_inner=96))",
    "vit": "ViTForImageClassification(t.ViTConfig(**SMALL, image_size=32, patch_size=8))",
    "convnext": "ConvNextForImageClassification(t.ConvNextConfig(**STAGES))",
    "segformer": "SegformerForImageClassification(t.SegformerConfig(hidden_sizes=[16, 32, 48, 64], depths=[1] * 4))",
}
IMAGES = ("vit", "convnext", "segformer")
PLANTED = {
    "gpt2": "transformer.h.3.mlp.c_fc.weight",
    "distilbert": "distilbert.transformer.layer.1.ffn.lin1.weight",
    "vit": "vit.layers.2.attention.k_proj.weight",
}


def ranked(name: str, folder: Path, parameter: str = "", factor: float = 1.0) -> tuple[LayerRisk, ...]:
    spec = folder / f"{name}_spec.py"
    spec.write_text(SPEC.format(model=MODELS[name], images=name in IMAGES, parameter=parameter, factor=factor))
    return gradscope.analyze(str(spec), steps=12, rehearse=False, verify=False).diagnosis.layers


@pytest.mark.parametrize("name", MODELS)
def test_no_layer_is_accused_as_its_library_makes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [layer.message for layer in ranked(name, tmp_path) if layer.level != "low"] == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_layer_with_large_weights_is_accused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = ranked(name, tmp_path, PLANTED[name], 20.0)[0]
    assert (f"{first.name}.weight", first.level, first.component) == (PLANTED[name], "high", "initialisation")
