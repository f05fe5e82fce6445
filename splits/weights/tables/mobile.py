"""Models of inverted residual blocks: columns as in `dialects`."""

# ruff: noqa: E501 - tables

from __future__ import annotations

EFFICIENTNET = """
stem.0.{x}  features.0.0.{x}  conv_stem.{x}  embeddings.convolution.{x}
stem.1.{x}  features.0.1.{x}  bn1.{x}  embeddings.batchnorm.{x}
[0.{j}].dw.0.{x}  features.1.{j}.block.0.0.{x}  blocks.0.{j}.conv_dw.{x}  -
[0.{j}].dw.1.{x}  features.1.{j}.block.0.1.{x}  blocks.0.{j}.bn1.{x}  -
[0.{j}].fc{k}.{x}  features.1.{j}.block.1.fc{k}.{x}  -  -
[0.{j}].out.0.{x}  features.1.{j}.block.2.0.{x}  blocks.0.{j}.conv_pw.{x}  -
[0.{j}].out.1.{x}  features.1.{j}.block.2.1.{x}  blocks.0.{j}.bn2.{x}  -
[{i}.{j}].in.0.{x}  features.{i+1}.{j}.block.0.0.{x}  blocks.{i}.{j}.conv_pw.{x}  encoder.blocks.{i}.expansion.expand_conv.{x}
[{i}.{j}].in.1.{x}  features.{i+1}.{j}.block.0.1.{x}  blocks.{i}.{j}.bn1.{x}  encoder.blocks.{i}.expansion.expand_bn.{x}
[{i}.{j}].dw.0.{x}  features.{i+1}.{j}.block.1.0.{x}  blocks.{i}.{j}.conv_dw.{x}  encoder.blocks.{i}.depthwise_conv.depthwise_conv.{x}
[{i}.{j}].dw.1.{x}  features.{i+1}.{j}.block.1.1.{x}  blocks.{i}.{j}.bn2.{x}  encoder.blocks.{i}.depthwise_conv.depthwise_norm.{x}
[{i}.{j}].fc1.{x}  features.{i+1}.{j}.block.2.fc1.{x}  blocks.{i}.{j}.se.conv_reduce.{x}  encoder.blocks.{i}.squeeze_excite.reduce.{x}
[{i}.{j}].fc2.{x}  features.{i+1}.{j}.block.2.fc2.{x}  blocks.{i}.{j}.se.conv_expand.{x}  encoder.blocks.{i}.squeeze_excite.expand.{x}
[{i}.{j}].out.0.{x}  features.{i+1}.{j}.block.3.0.{x}  blocks.{i}.{j}.conv_pwl.{x}  encoder.blocks.{i}.projection.project_conv.{x}
[{i}.{j}].out.1.{x}  features.{i+1}.{j}.block.3.1.{x}  blocks.{i}.{j}.bn3.{x}  encoder.blocks.{i}.projection.project_bn.{x}
last.0.{x}  features.{i}.0.{x}  conv_head.{x}  encoder.top_conv.{x}
last.1.{x}  features.{i}.1.{x}  bn2.{x}  encoder.top_bn.{x}
head.{x}  classifier.1.{x}  classifier.{x}  =
"""

EFFICIENTNET_V2 = """
stem.0.{x}  features.0.0.{x}  conv_stem.{x}
stem.1.{x}  features.0.1.{x}  bn1.{x}
0.{j}.out.0.{x}  features.1.{j}.block.0.0.{x}  blocks.0.{j}.conv.{x}
0.{j}.out.1.{x}  features.1.{j}.block.0.1.{x}  blocks.0.{j}.bn1.{x}
1.{j}.in.0.{x}  features.2.{j}.block.0.0.{x}  blocks.1.{j}.conv_exp.{x}
1.{j}.in.1.{x}  features.2.{j}.block.0.1.{x}  blocks.1.{j}.bn1.{x}
1.{j}.out.0.{x}  features.2.{j}.block.1.0.{x}  blocks.1.{j}.conv_pwl.{x}
1.{j}.out.1.{x}  features.2.{j}.block.1.1.{x}  blocks.1.{j}.bn2.{x}
2.{j}.in.0.{x}  features.3.{j}.block.0.0.{x}  blocks.2.{j}.conv_exp.{x}
2.{j}.in.1.{x}  features.3.{j}.block.0.1.{x}  blocks.2.{j}.bn1.{x}
2.{j}.out.0.{x}  features.3.{j}.block.1.0.{x}  blocks.2.{j}.conv_pwl.{x}
2.{j}.out.1.{x}  features.3.{j}.block.1.1.{x}  blocks.2.{j}.bn2.{x}
{i}.{j}.in.0.{x}  features.{i+1}.{j}.block.0.0.{x}  blocks.{i}.{j}.conv_pw.{x}
{i}.{j}.in.1.{x}  features.{i+1}.{j}.block.0.1.{x}  blocks.{i}.{j}.bn1.{x}
{i}.{j}.dw.0.{x}  features.{i+1}.{j}.block.1.0.{x}  blocks.{i}.{j}.conv_dw.{x}
{i}.{j}.dw.1.{x}  features.{i+1}.{j}.block.1.1.{x}  blocks.{i}.{j}.bn2.{x}
{i}.{j}.fc1.{x}  features.{i+1}.{j}.block.2.fc1.{x}  blocks.{i}.{j}.se.conv_reduce.{x}
{i}.{j}.fc2.{x}  features.{i+1}.{j}.block.2.fc2.{x}  blocks.{i}.{j}.se.conv_expand.{x}
{i}.{j}.out.0.{x}  features.{i+1}.{j}.block.3.0.{x}  blocks.{i}.{j}.conv_pwl.{x}
{i}.{j}.out.1.{x}  features.{i+1}.{j}.block.3.1.{x}  blocks.{i}.{j}.bn3.{x}
last.0.{x}  features.{i}.0.{x}  conv_head.{x}
last.1.{x}  features.{i}.1.{x}  bn2.{x}
head.{x}  classifier.1.{x}  classifier.{x}
"""

MOBILENET_V2 = """
stem.0.{x}  features.0.0.{x}  conv_stem.{x}
stem.1.{x}  features.0.1.{x}  bn1.{x}
[0].dw.0.{x}  features.1.conv.0.0.{x}  blocks.0.0.conv_dw.{x}
[0].dw.1.{x}  features.1.conv.0.1.{x}  blocks.0.0.bn1.{x}
[0].out.0.{x}  features.1.conv.1.{x}  blocks.0.0.conv_pw.{x}
[0].out.1.{x}  features.1.conv.2.{x}  blocks.0.0.bn2.{x}
[{i}.{j}].in.0.{x}  features.{i+1}.conv.0.0.{x}  blocks.{i}.{j}.conv_pw.{x}
[{i}.{j}].in.1.{x}  features.{i+1}.conv.0.1.{x}  blocks.{i}.{j}.bn1.{x}
[{i}.{j}].dw.0.{x}  features.{i+1}.conv.1.0.{x}  blocks.{i}.{j}.conv_dw.{x}
[{i}.{j}].dw.1.{x}  features.{i+1}.conv.1.1.{x}  blocks.{i}.{j}.bn2.{x}
[{i}.{j}].out.0.{x}  features.{i+1}.conv.2.{x}  blocks.{i}.{j}.conv_pwl.{x}
[{i}.{j}].out.1.{x}  features.{i+1}.conv.3.{x}  blocks.{i}.{j}.bn3.{x}
last.0.{x}  features.{i}.0.{x}  conv_head.{x}
last.1.{x}  features.{i}.1.{x}  bn2.{x}
head.{x}  classifier.1.{x}  classifier.{x}
"""

MOBILENET_V3 = """
stem.0.{x}  features.0.0.{x}  conv_stem.{x}
stem.1.{x}  features.0.1.{x}  bn1.{x}
[0].dw.0.{x}  features.1.block.0.0.{x}  blocks.0.0.conv_dw.{x}
[0].dw.1.{x}  features.1.block.0.1.{x}  blocks.0.0.bn1.{x}
[0].fc1.{x}  features.1.block.1.fc1.{x}  blocks.0.0.se.conv_reduce.{x}
[0].fc2.{x}  features.1.block.1.fc2.{x}  blocks.0.0.se.conv_expand.{x}
[0].out.0.{x}  features.1.block.1.0.{x}  blocks.0.0.conv_pw.{x}
[0].out.1.{x}  features.1.block.1.1.{x}  blocks.0.0.bn2.{x}
[0].out.{k}.{x}  features.1.block.2.{k}.{x}  -
[{i}.{j}].in.0.{x}  features.{i+1}.block.0.0.{x}  blocks.{i}.{j}.conv_pw.{x}
[{i}.{j}].in.1.{x}  features.{i+1}.block.0.1.{x}  blocks.{i}.{j}.bn1.{x}
[{i}.{j}].dw.0.{x}  features.{i+1}.block.1.0.{x}  blocks.{i}.{j}.conv_dw.{x}
[{i}.{j}].dw.1.{x}  features.{i+1}.block.1.1.{x}  blocks.{i}.{j}.bn2.{x}
[{i}.{j}].fc1.{x}  features.{i+1}.block.2.fc1.{x}  blocks.{i}.{j}.se.conv_reduce.{x}
[{i}.{j}].fc2.{x}  features.{i+1}.block.2.fc2.{x}  blocks.{i}.{j}.se.conv_expand.{x}
[{i}.{j}].out.0.{x}  features.{i+1}.block.2.0.{x}  blocks.{i}.{j}.conv_pwl.{x}
[{i}.{j}].out.1.{x}  features.{i+1}.block.2.1.{x}  blocks.{i}.{j}.bn3.{x}
[{i}.{j}].out.{k}.{x}  features.{i+1}.block.3.{k}.{x}  -
[{i}.{j}].in.0.{x}  features.{i+1}.0.{x}  blocks.{i}.{j}.conv.{x}
[{i}.{j}].in.1.{x}  features.{i+1}.1.{x}  -
fc.{x}  classifier.0.{x}  conv_head.{x}
head.{x}  classifier.3.{x}  classifier.{x}
"""

MNASNET = """
stem.0.{x}  layers.0.{x}  conv_stem.{x}
stem.1.{x}  layers.1.{x}  bn1.{x}
0.dw.0.{x}  layers.3.{x}  blocks.0.0.conv_dw.{x}
0.dw.1.{x}  layers.4.{x}  blocks.0.0.bn1.{x}
0.out.0.{x}  layers.6.{x}  blocks.0.0.conv_pw.{x}
0.out.1.{x}  layers.7.{x}  blocks.0.0.bn2.{x}
{i}.{j}.in.0.{x}  layers.{i+8}.{j}.layers.0.{x}  blocks.{i+1}.{j}.conv_pw.{x}
{i}.{j}.in.1.{x}  layers.{i+8}.{j}.layers.1.{x}  blocks.{i+1}.{j}.bn1.{x}
{i}.{j}.dw.0.{x}  layers.{i+8}.{j}.layers.3.{x}  blocks.{i+1}.{j}.conv_dw.{x}
{i}.{j}.dw.1.{x}  layers.{i+8}.{j}.layers.4.{x}  blocks.{i+1}.{j}.bn2.{x}
{i}.{j}.out.0.{x}  layers.{i+8}.{j}.layers.6.{x}  blocks.{i+1}.{j}.conv_pwl.{x}
{i}.{j}.out.1.{x}  layers.{i+8}.{j}.layers.7.{x}  blocks.{i+1}.{j}.bn3.{x}
last.0.{x}  layers.14.{x}  conv_head.{x}
last.1.{x}  layers.15.{x}  bn2.{x}
head.{x}  classifier.1.{x}  classifier.{x}
"""

TABLES = {
    "EfficientNet": EFFICIENTNET,
    "EfficientNetV2": EFFICIENTNET_V2,
    "MobileNetV2": MOBILENET_V2,
    "MobileNetV3": MOBILENET_V3,
    "MNASNet": MNASNET,
}
