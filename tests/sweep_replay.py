"""Compares models of transformers and torchvision's tasks, cut by replay, with the unsplit model.

    python -m tests.sweep_replay [--library transformers|torchvision] [NAME ...] [--parts 2 3]
    make sweep-replay

Each model is cut in two and in three and trained for some steps, in float64 (in float32 where the
model makes float32 itself): outputs, loss and all gradients of each step, dropout drawn alike,
against the model itself. Tiny configurations, random weights. Prints a line per model and cut; ends
with 1 where a model is another one without being refused. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.trial import Result, Subject, run, staged_pass, whole_pass

TOLERANCE = 1e-10
"""Of the largest number in a tensor."""
SINGLE_TOLERANCE = 1e-6
"""The same in float32."""
IN_SINGLE = ("RAFT",)
"""Models whose own forward does not run in float64."""
NUM_STEPS = {"transformers": 5, "torchvision": 3}
VOCABULARY, LENGTH, WIDTH = 97, 16, 32
Case = tuple[nn.Module, tuple[Any, ...]]


class First(nn.Module):
    """What a user writes around a model of transformers: tensors in, a tensor out."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)))[0]


class Detector(nn.Module):
    """Images in one tensor; the losses where there are targets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Any = None) -> Any:
        return self.model(list(images), targets if self.training else None)


def library() -> Any:
    try:
        import transformers
    except ImportError as exc:
        raise SystemExit(
            "transformers is not installed; make sweep-replay installs it, or pip install -e "
            "'.[sweep]'"
        ) from exc
    return transformers


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def images(size: int = 32, *shape: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    made: Tensor = torch.rand(count, 3, *shape, size, size, generator=generator)
    return made


def decoder(name: str, **more: Any) -> Callable[[], Case]:
    """A language model of decoders."""
    sizes = dict(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        use_cache=False,
        **more,
    )

    def build() -> Case:
        config = getattr(library(), f"{name}Config")(**sizes)
        # The default for experts knows no float64.
        config._experts_implementation = "batched_mm"
        return First(getattr(library(), f"{name}ForCausalLM")(config), "input_ids"), (tokens(),)

    return build


def classifier(name: str, *, of_images: bool, head: str = "", **sizes: Any) -> Callable[[], Case]:
    """A model with a head."""
    head = head or ("ForImageClassification" if of_images else "ForSequenceClassification")

    def build() -> Case:
        config = getattr(library(), f"{name}Config")(**sizes)
        model = getattr(library(), f"{name}{head}")(config)
        if of_images:
            return First(model, "pixel_values"), (images(),)
        return First(model, "input_ids"), (tokens(),)

    return build


def translator(name: str, first: str, inputs: Callable[[], Tensor], **sizes: Any) -> Any:
    """A model of an encoder and a decoder."""

    def build() -> Case:
        config = getattr(library(), f"{name}Config")(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            use_cache=False,
            decoder_start_token_id=0,
            pad_token_id=0,
            **sizes,
        )
        model = getattr(library(), f"{name}ForConditionalGeneration")(config)
        return First(model, first, "decoder_input_ids"), (inputs(), tokens())

    return build


def mel() -> Tensor:
    return torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(3))


_ENCODER = dict(
    hidden_size=WIDTH,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=2 * WIDTH,
    num_labels=3,
)
TRANSFORMERS: dict[str, Callable[[], Case]] = {
    "GPT-2": classifier(
        "GPT2",
        of_images=False,
        head="LMHeadModel",
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        use_cache=False,
    ),
    "BERT": classifier(
        "Bert",
        of_images=False,
        head="ForMaskedLM",
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        **_ENCODER,
    ),
    "Llama": decoder("Llama"),
    "Qwen3": decoder("Qwen3", head_dim=8, tie_word_embeddings=True),
    "Qwen3-MoE": decoder(
        "Qwen3Moe", head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
    "T5": translator("T5", "input_ids", tokens, d_kv=8, d_ff=2 * WIDTH, num_layers=3, num_heads=4),
    "Whisper": translator(
        "Whisper",
        "input_features",
        mel,
        num_mel_bins=8,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        max_source_positions=16,
        max_target_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "ViT": classifier("ViT", of_images=True, image_size=32, patch_size=8, **_ENCODER),
    "Swin": classifier(
        "Swin",
        of_images=True,
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=3,
    ),
    "ConvNext": classifier(
        "ConvNext",
        of_images=True,
        num_stages=4,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_labels=3,
    ),
    "Mistral": decoder("Mistral"),
    "Gemma": decoder("Gemma", head_dim=8),
}


def detector(name: str, size: int = 96, **more: Any) -> Callable[[], Case]:
    """Two images with two boxes each."""

    def build() -> Case:
        made = getattr(torchvision.models.detection, name)(
            weights=None, weights_backbone=None, num_classes=3, **more
        )
        boxes = [[5.0, 5.0, 40.0, 40.0], [10.0, 20.0, 60.0, 70.0]]
        target: dict[str, Tensor] = {
            "boxes": torch.tensor(boxes, dtype=torch.float64),
            "labels": torch.tensor([1, 2]),
        }
        if "mask" in name:
            target["masks"] = torch.ones(2, size, size, dtype=torch.uint8)
        if "keypoint" in name:
            generator = torch.Generator().manual_seed(5)
            points = torch.rand(2, 17, 3, generator=generator)
            target["keypoints"] = points * 50
        return Detector(made), (images(size), [target, dict(target)])

    return build


def of_task(task: str, name: str, inputs: Callable[[], tuple[Tensor, ...]], **more: Any) -> Any:
    """A model of torchvision for another task."""

    def build() -> Case:
        return getattr(getattr(torchvision.models, task), name)(weights=None, **more), inputs()

    return build


def mvit() -> Case:
    """MViT v2, with four narrow blocks: the builders make it for 224 pixels only."""
    # Heads, channels in and out, strides of the queries and of keys and values.
    sizes = [(1, 24, 24, 1, 8), (2, 24, 48, 2, 4), (2, 48, 48, 1, 4), (4, 48, 96, 2, 2)]
    blocks = [
        MSBlockConfig(heads, given, made, [3] * 3, [3] * 3, [1, q, q], [1, kv, kv])
        for heads, given, made, q, kv in sizes
    ]
    model = MViT(
        spatial_size=(64, 64),
        temporal_size=4,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=0.2,
        num_classes=3,
    )
    return model, (images(64, 4),)


_SMALL = {"min_size": 96, "max_size": 96}
_FEW = {**_SMALL, "rpn_post_nms_top_n_train": 60, "box_batch_size_per_image": 16}
_SEGMENTS = {"weights_backbone": None, "num_classes": 3}
TORCHVISION: dict[str, Callable[[], Case]] = {
    "Faster R-CNN": detector("fasterrcnn_mobilenet_v3_large_320_fpn", **_FEW),
    "Mask R-CNN": detector("maskrcnn_resnet50_fpn", **_FEW),
    "Keypoint R-CNN": detector("keypointrcnn_resnet50_fpn", **_FEW),
    "RetinaNet": detector("retinanet_resnet50_fpn", **_SMALL),
    "FCOS": detector("fcos_resnet50_fpn", **_SMALL),
    "SSD": detector("ssd300_vgg16"),
    "SSDlite": detector("ssdlite320_mobilenet_v3_large"),
    "FCN": of_task("segmentation", "fcn_resnet50", lambda: (images(64),), **_SEGMENTS),
    "DeepLabV3": of_task(
        "segmentation", "deeplabv3_mobilenet_v3_large", lambda: (images(64),), **_SEGMENTS
    ),
    "LR-ASPP": of_task(
        "segmentation", "lraspp_mobilenet_v3_large", lambda: (images(64),), **_SEGMENTS
    ),
    "R3D": of_task("video", "r3d_18", lambda: (images(32, 4),), num_classes=3),
    "MC3": of_task("video", "mc3_18", lambda: (images(32, 4),), num_classes=3),
    "R(2+1)D": of_task("video", "r2plus1d_18", lambda: (images(32, 4),), num_classes=3),
    # The smallest that its last pooling takes.
    "S3D": of_task("video", "s3d", lambda: (images(209, 13, count=1),), num_classes=3),
    "MViT": mvit,
    "Swin3D": of_task("video", "swin3d_t", lambda: (images(64, 4),), num_classes=3),
    "RAFT": of_task("optical_flow", "raft_small", lambda: (images(128), images(128))),
}
LIBRARIES = {"transformers": TRANSFORMERS, "torchvision": TORCHVISION}


def worst_difference(own: Result, other: Result) -> float:
    """The largest difference of two results, relative to the largest number of its tensor."""
    pairs = [(a.value, b.value) for a, b in zip(own.outputs, other.outputs, strict=True)]
    pairs += [(own.gradients[key], other.gradients[key]) for key in own.gradients]
    worst = 0.0
    for one, two in pairs:
        if isinstance(one, Tensor) and isinstance(two, Tensor) and one.numel():
            scale = max(float(one.detach().abs().max()), 1e-30)
            worst = max(worst, float((one - two).abs().max()) / scale)
        elif one is not two and one != two:
            return float("inf")
    return worst


def train(subject: Subject, inputs: tuple[Any, ...], num_steps: int) -> float:
    """The largest difference in some steps of plain gradient descent."""
    worst = 0.0
    for _ in range(num_steps):
        own, other = (run(subject, how, inputs, True) for how in (whole_pass, staged_pass))
        worst = max(worst, worst_difference(own, other))
        with torch.no_grad():
            for parameter in subject.whole.parameters():
                gradient = own.gradients[id(parameter)]
                if gradient is not None:
                    parameter -= 1e-3 * gradient / (gradient.abs().max() + 1e-30)
    return worst


def double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, (list, tuple)):
        return type(value)(map(double, value))
    if isinstance(value, dict):
        # Torchvision takes key points in float32 only, whatever the rest is.
        return {k: v if k == "keypoints" else double(v) for k, v in value.items()}
    return value


def check(build: Callable[[], Case], num_parts: int, num_steps: int, *, is_single: bool) -> str:
    torch.manual_seed(0)
    model, inputs = build()
    if not is_single:
        model, inputs = model.double(), double(inputs)
    try:
        found = ReplayedModel(model, inputs)
        cuts = found.equal_cuts(num_parts)
        stages = found.cut(cuts)
        subject = Subject(whole=model, stages=stages)
        check_fidelity(subject, lambda: inputs, 1e9)
        worst = train(subject, inputs, num_steps)
    except ConfigError as exc:
        return f"refused: {str(exc)[:200]}"
    place = f"at {', '.join(cuts)}"
    if worst > (SINGLE_TOLERANCE if is_single else TOLERANCE):
        return f"DIFFERS by {worst:.1e} {place}"
    return f"equal {place} ({worst:.1e}{' in float32' if is_single else ''})"


def lines(name: str, names: Sequence[str], parts: Sequence[int]) -> Iterator[tuple[str, str]]:
    for case in names or LIBRARIES[name]:
        for num_parts in parts:
            start = time.perf_counter()
            try:
                build, num_steps = LIBRARIES[name][case], NUM_STEPS[name]
                found = check(build, num_parts, num_steps, is_single=case in IN_SINGLE)
            except Exception as exc:
                found = (
                    f"DIFFERS: raises {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
                )
            took = time.perf_counter() - start
            yield found, f"{case:16} in {num_parts}  {took:5.1f} s   {found}"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=LIBRARIES, action="append")
    parser.add_argument("--parts", type=int, nargs="+", default=(2, 3))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    verdicts: list[str] = []
    for library_name in args.library or LIBRARIES:
        for found, line in lines(library_name, args.names, args.parts):
            print(line, flush=True)
            verdicts.append(found.split(":")[0].split(" ")[0])
    print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
    return 1 if any(verdict.startswith("DIFFERS") for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
