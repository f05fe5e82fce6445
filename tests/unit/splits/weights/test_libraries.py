"""Weights of one library in the model of another: the outputs are those of the one they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.weight_files import find_weights
from bundlerun.splits.weights.loading import Initial
from bundlerun.splits.weights.reading import open_weights

CLASSES = 5


class ByTransformers(nn.Module):
    """The logits of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def library(name: str) -> Any:
    extra = {"timm": "timm", "transformers": "hf"}[name]
    return pytest.importorskip(name, reason=f"the extra {extra} is not installed")


def vit_torchvision() -> nn.Module:
    model = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)  # zeros, of which any model has the same outputs
    return model


def vit_timm() -> nn.Module:
    library("timm")
    from timm.models.vision_transformer import VisionTransformer as Timm

    return Timm(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2,
        num_classes=CLASSES,
    )  # fmt: skip


def vit_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=CLASSES, layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ByTransformers(hf.ViTForImageClassification(config))


def convnext_torchvision() -> nn.Module:
    blocks = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, 16, 2), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, num_classes=CLASSES, layer_scale=0.5)


def convnext_timm() -> nn.Module:
    library("timm")
    from timm.models.convnext import ConvNeXt as Timm

    model = Timm(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20), num_classes=CLASSES)
    model.stages = nn.Sequential(*list(model.stages)[:3])
    model.head.norm = type(model.head.norm)(16)
    model.head.fc = nn.Linear(16, CLASSES)
    return model


def convnext_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.ConvNextConfig(
        hidden_sizes=[8, 12, 16], depths=[1, 2, 1], num_stages=3, num_labels=CLASSES
    )
    model = hf.ConvNextForImageClassification(config)
    model.convnext.layernorm.eps = 1e-6  # of torchvision and timm
    return ByTransformers(model)


def swin_torchvision() -> nn.Module:
    model = SwinTransformer([4, 4], 8, [1, 2], [2, 4], [2, 2], num_classes=CLASSES)
    for name, parameter in model.named_parameters():
        if "table" in name:
            nn.init.normal_(parameter)  # so small by itself that its order would not show
    return model


def swin_timm() -> nn.Module:
    library("timm")
    from timm.models.swin_transformer import SwinTransformer as Timm

    return Timm(
        img_size=16, patch_size=4, embed_dim=8, depths=(1, 2), num_heads=(2, 4), window_size=2,
        num_classes=CLASSES,
    )  # fmt: skip


def swin_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[2, 4], window_size=2,
        num_labels=CLASSES, layer_norm_eps=1e-5,
    )  # fmt: skip
    return ByTransformers(hf.SwinForImageClassification(config))


def resnet_torchvision() -> nn.Module:
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=CLASSES)


def resnet_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.ResNetConfig(
        embedding_size=64, hidden_sizes=[256, 512, 1024, 2048], depths=[1, 2, 1, 1],
        layer_type="bottleneck", num_labels=CLASSES,
    )  # fmt: skip
    return ByTransformers(hf.ResNetForImageClassification(config))


FAMILIES = [
    [vit_torchvision, vit_timm, vit_transformers],
    [convnext_torchvision, convnext_timm, convnext_transformers],
    [swin_torchvision, swin_timm, swin_transformers],
    [resnet_torchvision, resnet_transformers],
]
PAIRS = [(a, b) for makers in FAMILIES for a in makers for b in makers if a is not b]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_outputs_are_those_of_the_library_that_the_weights_are_of(
    one: Any, other: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source, target = one().eval(), other().eval()
    for name, buffer in source.named_buffers():
        if buffer.is_floating_point() and "running" in name:
            buffer.uniform_(0.5, 1.5)
    model = source.model if isinstance(source, ByTransformers) else source
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    found = Initial(target, str(tmp_path), "the model", num_outputs=CLASSES, new_head="off")
    found.load(target)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x), rtol=1e-4, atol=1e-5)
    assert found.lines()[1].startswith("not loaded: nothing of the model")


@pytest.mark.parametrize("make", [makers[-1] for makers in FAMILIES])
def test_a_folder_that_transformers_has_written(make: Any, tmp_path: Path) -> None:
    """Names in its files are others than in memory for some models."""
    source, target = make().eval(), make().eval()
    source.model.save_pretrained(tmp_path)
    found = Initial(target.model, str(tmp_path), "it", num_outputs=CLASSES, new_head="off")
    found.load(target.model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x))


def test_a_backbone_in_a_model_of_another_task(tmp_path: Path) -> None:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    resnet = ResNet(Bottleneck, [3, 4, 6, 3])
    save_file(resnet.state_dict(), tmp_path / "resnet50.safetensors")
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    path = str(tmp_path / "resnet50.safetensors")
    found = Initial(model, path, "it", num_outputs=CLASSES, new_head="auto")
    found.load(model)
    assert torch.equal(model.backbone.body.layer3[5].conv2.weight, resnet.layer3[5].conv2.weight)
    loaded, left = found.lines()
    assert "names with 'backbone.body.'" in loaded
    assert "begin anew, which the file does not have" in left


def test_the_tied_head_of_a_language_model_is_not_missing(tmp_path: Path) -> None:
    hf = library("transformers")
    config = hf.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    source, target = hf.GPT2LMHeadModel(config).eval(), hf.GPT2LMHeadModel(config).eval()
    source.save_pretrained(tmp_path)
    found = Initial(target, str(tmp_path), "it", num_outputs=0, new_head="off")
    found.load(target)
    assert torch.equal(target.lm_head.weight, source.transformer.wte.weight)
    assert found.lines()[1] == "not loaded: nothing of the model"


def test_what_transformers_calls_otherwise_in_files_it_reads_itself(tmp_path: Path) -> None:
    """Experts are apart in its files, and one tensor in memory."""
    hf = library("transformers")
    config = hf.Qwen3MoeConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, moe_intermediate_size=4,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=4,
        num_experts=3, num_experts_per_tok=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    source, target = hf.Qwen3MoeForCausalLM(config).eval(), hf.Qwen3MoeForCausalLM(config).eval()
    source.save_pretrained(tmp_path)
    names = set(open_weights(find_weights(str(tmp_path))).shapes)
    assert names != set(source.state_dict())
    found = Initial(target, str(tmp_path), "it", num_outputs=0, new_head="off")
    found.load(target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name
    assert found.lines()[0].endswith("; read by transformers itself")
    # A folder of another model is still one of another model.
    with pytest.raises(ConfigError, match="is of another model than it"):
        Initial(resnet_torchvision(), str(tmp_path), "it", num_outputs=0, new_head="off")
