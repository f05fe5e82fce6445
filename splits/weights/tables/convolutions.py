"""Convolutional models of images: columns as in `dialects`."""

# ruff: noqa: E501 - tables

from __future__ import annotations

RESNET = """
conv1.{x}               conv1.{x}                   =       embedder.embedder.convolution.{x}
bn1.{x}                 bn1.{x}                     =       embedder.embedder.normalization.{x}
{i}.{j}.conv{k}.{x}     layer{i+1}.{j}.conv{k+1}.{x}  =     encoder.stages.{i}.layers.{j}.layer.{k}.convolution.{x}
{i}.{j}.bn{k}.{x}       layer{i+1}.{j}.bn{k+1}.{x}    =     encoder.stages.{i}.layers.{j}.layer.{k}.normalization.{x}
{i}.{j}.down.0.{x}      layer{i+1}.{j}.downsample.0.{x}  =  encoder.stages.{i}.layers.{j}.shortcut.convolution.{x}
{i}.{j}.down.1.{x}      layer{i+1}.{j}.downsample.1.{x}  =  encoder.stages.{i}.layers.{j}.shortcut.normalization.{x}
fc.{x}                  fc.{x}                      =       classifier.1.{x}
"""

CONVNEXT = """
stem.0.{x}              features.0.0.{x}            stem.0.{x}                          embeddings.patch_embeddings.{x}
stem.1.{x}              features.0.1.{x}            stem.1.{x}                          embeddings.layernorm.{x}
{i}.down.0.{x}          features.{2i}.0.{x}         stages.{i}.downsample.0.{x}         encoder.stages.{i}.downsampling_layer.0.{x}
{i}.down.1.{x}          features.{2i}.1.{x}         stages.{i}.downsample.1.{x}         encoder.stages.{i}.downsampling_layer.1.{x}
{i}.{j}.scale           features.{2i+1}.{j}.layer_scale  stages.{i}.blocks.{j}.gamma    encoder.stages.{i}.layers.{j}.layer_scale_parameter
{i}.{j}.grn.{x}  -  stages.{i}.blocks.{j}.mlp.grn.{x}  encoder.stages.{i}.layers.{j}.grn.{x}
{i}.{j}.conv.{x}        features.{2i+1}.{j}.block.0.{x}  stages.{i}.blocks.{j}.conv_dw.{x}  encoder.stages.{i}.layers.{j}.dwconv.{x}
{i}.{j}.norm.{x}        features.{2i+1}.{j}.block.2.{x}  stages.{i}.blocks.{j}.norm.{x}     encoder.stages.{i}.layers.{j}.layernorm.{x}
{i}.{j}.fc1.{x}         features.{2i+1}.{j}.block.3.{x}  stages.{i}.blocks.{j}.mlp.fc1.{x}  encoder.stages.{i}.layers.{j}.pwconv1.{x}
{i}.{j}.fc2.{x}         features.{2i+1}.{j}.block.5.{x}  stages.{i}.blocks.{j}.mlp.fc2.{x}  encoder.stages.{i}.layers.{j}.pwconv2.{x}
norm.{x}                classifier.0.{x}            head.norm.{x}                       layernorm.{x}
head.{x}                classifier.2.{x}            head.fc.{x}                         classifier.{x}
"""

REGNET = """
stem.0.{x}  stem.0.{x}  stem.conv.{x}  embedder.embedder.convolution.{x}
stem.1.{x}  stem.1.{x}  stem.bn.{x}  embedder.embedder.normalization.{x}
{i}.{j}.a.0.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.a.0.{x}  s{i+1}.b{j+1}.conv1.conv.{x}  encoder.stages.{i}.layers.{j}.layer.0.convolution.{x}
{i}.{j}.a.1.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.a.1.{x}  s{i+1}.b{j+1}.conv1.bn.{x}  encoder.stages.{i}.layers.{j}.layer.0.normalization.{x}
{i}.{j}.b.0.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.b.0.{x}  s{i+1}.b{j+1}.conv2.conv.{x}  encoder.stages.{i}.layers.{j}.layer.1.convolution.{x}
{i}.{j}.b.1.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.b.1.{x}  s{i+1}.b{j+1}.conv2.bn.{x}  encoder.stages.{i}.layers.{j}.layer.1.normalization.{x}
{i}.{j}.fc1.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.se.fc1.{x}  s{i+1}.b{j+1}.se.fc1.{x}  encoder.stages.{i}.layers.{j}.layer.2.attention.0.{x}
{i}.{j}.fc2.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.se.fc2.{x}  s{i+1}.b{j+1}.se.fc2.{x}  encoder.stages.{i}.layers.{j}.layer.2.attention.2.{x}
{i}.{j}.c.0.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.c.0.{x}  s{i+1}.b{j+1}.conv3.conv.{x}  encoder.stages.{i}.layers.{j}.layer.3.convolution.{x}
{i}.{j}.c.1.{x}  trunk_output.block{i+1}.block{i+1}-{j}.f.c.1.{x}  s{i+1}.b{j+1}.conv3.bn.{x}  encoder.stages.{i}.layers.{j}.layer.3.normalization.{x}
{i}.{j}.c.0.{x}  -  -  encoder.stages.{i}.layers.{j}.layer.2.convolution.{x}
{i}.{j}.c.1.{x}  -  -  encoder.stages.{i}.layers.{j}.layer.2.normalization.{x}
{i}.{j}.down.0.{x}  trunk_output.block{i+1}.block{i+1}-{j}.proj.0.{x}  s{i+1}.b{j+1}.downsample.conv.{x}  encoder.stages.{i}.layers.{j}.shortcut.convolution.{x}
{i}.{j}.down.1.{x}  trunk_output.block{i+1}.block{i+1}-{j}.proj.1.{x}  s{i+1}.b{j+1}.downsample.bn.{x}  encoder.stages.{i}.layers.{j}.shortcut.normalization.{x}
head.{x}  fc.{x}  head.fc.{x}  classifier.1.{x}
"""

VGG = """
{i}.{x}  features.{i}.{x}  =
fc1.{x}  classifier.0.{x}  pre_logits.fc1.{x}
fc2.{x}  classifier.3.{x}  pre_logits.fc2.{x}
head.{x}  classifier.6.{x}  head.fc.{x}
"""

DENSENET = """
conv0.{x}  features.conv0.{x}  =  =  =  =
norm{k}.{x}  features.norm{k}.{x}  =  =  =  =
{i}.{j}.norm{k}.{x}  features.denseblock{i}.denselayer{j}.norm{k}.{x}  =  =  =  features.denseblock{i}.denselayer{j}.norm.{k}.{x}
{i}.{j}.conv{k}.{x}  features.denseblock{i}.denselayer{j}.conv{k}.{x}  =  =  =  features.denseblock{i}.denselayer{j}.conv.{k}.{x}
{i}.norm.{x}  features.transition{i}.norm.{x}  =  =  =  =
{i}.conv.{x}  features.transition{i}.conv.{x}  =  =  =  =
head.{x}  classifier.{x}  =  =  =  =
"""

TABLES = {
    "ResNet": RESNET,
    "ConvNeXt": CONVNEXT,
    "RegNet": REGNET,
    "VGG": VGG,
    "DenseNet": DENSENET,
}
