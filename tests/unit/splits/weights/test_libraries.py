"""Weights of one library in the model of another: the outputs are those of the one they are of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
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


def deit_timm() -> nn.Module:
    library("timm")
    from timm.models.deit import VisionTransformerDistilled as Timm

    return Timm(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2,
        num_classes=CLASSES,
    )  # fmt: skip


def deit_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.DeiTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=CLASSES, layer_norm_eps=1e-6,
    )  # fmt: skip
    return ByTransformers(hf.DeiTForImageClassificationWithTeacher(config))


def beit_timm() -> nn.Module:
    library("timm")
    from timm.models.beit import Beit as Timm

    return Timm(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2,
        init_values=0.3, num_classes=CLASSES, use_abs_pos_emb=False, use_rel_pos_bias=True,
    )  # fmt: skip


def beit_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.BeitConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=CLASSES, layer_norm_eps=1e-6,
        use_relative_position_bias=True, layer_scale_init_value=0.3,
    )  # fmt: skip
    return ByTransformers(hf.BeitForImageClassification(config))


def swin_v2_torchvision() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    return SwinTransformer(
        [4, 4], 8, [1, 2], [2, 4], [2, 2], num_classes=CLASSES, block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )  # fmt: skip


def swin_v2_timm() -> nn.Module:
    library("timm")
    from timm.models.swin_transformer_v2 import SwinTransformerV2 as Timm

    return Timm(
        img_size=16, patch_size=4, embed_dim=8, depths=(1, 2), num_heads=(2, 4), window_size=2,
        num_classes=CLASSES,
    )  # fmt: skip


def swin_v2_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.Swinv2Config(
        image_size=16, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[2, 4], window_size=2,
        num_labels=CLASSES,
    )  # fmt: skip
    return ByTransformers(hf.Swinv2ForImageClassification(config))


def regnet_torchvision() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    blocks = BlockParams([1, 2], [8, 16], [4, 4], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return RegNet(blocks, num_classes=CLASSES)


def regnet_transformers() -> nn.Module:
    hf = library("transformers")
    config = hf.RegNetConfig(
        embedding_size=32, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, layer_type="y",
        num_labels=CLASSES,
    )  # fmt: skip
    return ByTransformers(hf.RegNetForImageClassification(config))


def vgg_torchvision() -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    with torch.device("meta"):  # the layers of its head are large
        model = VGG(nn.Identity(), num_classes=CLASSES)
    model.features = make_layers([4, "M", 8, "M"], batch_norm=True)  # type: ignore[list-item]
    model.classifier[0] = nn.Linear(8 * 7 * 7, 12)
    model.classifier[3] = nn.Linear(12, 12)
    model.classifier[6] = nn.Linear(12, CLASSES)
    model.avgpool = nn.Identity()
    return model


def vgg_timm() -> nn.Module:
    library("timm")
    from timm.models.vgg import VGG as Timm

    with torch.device("meta"):
        model = Timm([4, "M", 8, "M"], num_classes=CLASSES, norm_layer=nn.BatchNorm2d)
    like = vgg_torchvision()
    model.features = like.features
    model.pre_logits.fc1 = nn.Conv2d(8, 12, 7)
    model.pre_logits.fc2 = nn.Conv2d(12, 12, 1)
    model.head.fc = nn.Linear(12, CLASSES)
    return model


def named(lib: str, name: str) -> Any:
    """A small model of a library, whole."""

    def make() -> nn.Module:
        if lib == "torchvision":
            model: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
        else:
            model = library("timm").create_model(name, num_classes=CLASSES)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5  # libraries have other ones
        return model

    make.__name__ = name
    return make


FAMILIES = [
    [vit_torchvision, vit_timm, vit_transformers],
    [deit_timm, deit_transformers],
    [beit_timm, beit_transformers],
    [convnext_torchvision, convnext_timm, convnext_transformers],
    [swin_torchvision, swin_timm, swin_transformers],
    [swin_v2_torchvision, swin_v2_timm, swin_v2_transformers],
    [regnet_torchvision, regnet_transformers],
    [vgg_torchvision, vgg_timm],
    [named("torchvision", "efficientnet_b0"), named("timm", "efficientnet_b0")],
    [named("torchvision", "mobilenet_v2"), named("timm", "mobilenetv2_100")],
    [named("torchvision", "mobilenet_v3_small"), named("timm", "mobilenetv3_small_100")],
    [named("torchvision", "mnasnet0_5"), named("timm", "mnasnet_050")],
    [named("torchvision", "regnet_y_400mf"), named("timm", "regnety_004")],
    [resnet_torchvision, resnet_transformers],
]
SIZES = {"vgg_torchvision": 28, "vgg_timm": 28}
WRITERS = [makers[-1] for makers in FAMILIES if makers[-1].__name__.endswith("transformers")]
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
    size = SIZES.get(one.__name__, 16)
    x = torch.randn(2, 3, size, size).double()
    with torch.no_grad():
        torch.testing.assert_close(target.double()(x), source.double()(x), rtol=1e-5, atol=1e-7)
    assert found.lines()[1].startswith("not loaded: nothing of the model")


@pytest.mark.parametrize("make", WRITERS)
def test_a_folder_that_transformers_has_written(make: Any, tmp_path: Path) -> None:
    """Names in its files are others than in memory for some models."""
    source, target = make().eval(), make().eval()
    source.model.save_pretrained(tmp_path)
    found = Initial(target.model, str(tmp_path), "it", num_outputs=CLASSES, new_head="off")
    found.load(target.model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x))


def test_files_of_transformers_4_in_another_library(tmp_path: Path) -> None:
    """It writes the names that it had then."""
    for one, other in ((deit_transformers, deit_timm), (beit_transformers, beit_timm)):
        source, target = one().eval(), other().eval()
        source.model.save_pretrained(tmp_path)
        found = Initial(target, str(tmp_path), "it", num_outputs=CLASSES, new_head="off")
        found.load(target)
        x = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(target(x), source(x), rtol=1e-4, atol=1e-5)
        assert "of files of transformers as timm has them" in found.lines()[0]


def test_files_of_a_densenet_that_torchvision_renames(tmp_path: Path) -> None:
    from torchvision.models.densenet import DenseNet

    source, target = (DenseNet(4, (1, 2), 8, num_classes=CLASSES) for _ in range(2))
    layer = re.compile(r"(denselayer\d\.(?:norm|conv))(\d)")
    old = {layer.sub(r"\1.\2", name): v for name, v in source.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, tmp_path / "densenet.safetensors")
    path = str(tmp_path / "densenet.safetensors")
    found = Initial(target, path, "it", num_outputs=CLASSES, new_head="off")
    found.load(target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_the_backbone_of_a_dinov2(tmp_path: Path) -> None:
    """Its heads differ: transformers has a classifier of twice the width."""
    hf, timm = library("transformers"), library("timm")
    config = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=16,
        patch_size=8, num_labels=CLASSES, layerscale_value=0.5,
    )  # fmt: skip
    source = hf.Dinov2ForImageClassification(config).eval()
    target = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2,
        num_classes=CLASSES, init_values=1.0,
    ).eval()  # fmt: skip
    source.save_pretrained(tmp_path)
    found = Initial(target, str(tmp_path), "it", num_outputs=CLASSES, new_head="head")
    found.load(target)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wanted = source.dinov2(x).last_hidden_state
        torch.testing.assert_close(target.forward_features(x), wanted, rtol=1e-4, atol=1e-5)
    assert "names of a DINOv2 of" in found.lines()[0]


def test_another_architecture_of_the_family_is_refused_with_the_nearest_rule(
    tmp_path: Path,
) -> None:
    source = named("torchvision", "mobilenet_v3_small")()
    save_file(source.state_dict(), tmp_path / "small.safetensors")
    path = str(tmp_path / "small.safetensors")
    target = named("timm", "mobilenetv3_large_100")()
    with pytest.raises(ConfigError, match="nearest rule, names of a MobileNetV3 of torchvision"):
        Initial(target, path, "it", num_outputs=CLASSES, new_head="auto")


@pytest.mark.parametrize("own", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_the_body_of_a_text_model_under_another_head(own: str, tmp_path: Path) -> None:
    hf = library("transformers")
    config = hf.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    source, target = hf.BertForMaskedLM(config), getattr(hf, own)(config)
    # As the oldest files call them, by themselves: no config.json is beside them.
    state = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in _state(source)}
    state = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in state.items()}
    save_file(state, tmp_path / "bert.safetensors")
    path = str(tmp_path / "bert.safetensors")
    found = Initial(target, path, "it", num_outputs=3, new_head="auto")
    found.load(target)
    for name, tensor in source.bert.state_dict().items():
        assert torch.equal(target.bert.state_dict()[name], tensor), name
    left = found.lines()[1]
    assert "classifier.weight" in left
    assert "begin anew" in left


def test_the_body_of_a_gpt_2_that_has_no_name_of_its_own(tmp_path: Path) -> None:
    hf = library("transformers")
    config = hf.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, num_labels=3,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    source, target = hf.GPT2Model(config), hf.GPT2ForSequenceClassification(config)
    save_file(dict(_state(source)), tmp_path / "gpt2.safetensors")
    path = str(tmp_path / "gpt2.safetensors")
    found = Initial(target, path, "it", num_outputs=3, new_head="auto")
    found.load(target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.transformer.state_dict()[name], tensor), name
    assert "score.weight begins anew" in found.lines()[1]


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    # What is tied is written apart: a file has no second name of a tensor.
    return [(name, tensor.clone()) for name, tensor in model.state_dict().items()]


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
