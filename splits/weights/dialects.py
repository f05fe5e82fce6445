"""How libraries call the same tensors: pairs of names by rule, for families that several have.

    timm            blocks.3.attn.qkv.weight
    torchvision     encoder.layers.encoder_layer_3.self_attention.in_proj_weight
    transformers    layers.3.attention.q_proj.weight  .k_proj.weight  .v_proj.weight

A table has a column for each library. `{i}`, `{j}` and `{k}` stand for numbers, `{i+1}` and `{2i}`
for numbers that are counted otherwise there, `{x}` for a word such as weight. Cells joined by "+"
are one tensor of several along its first dimension. A row is read from above: the first that fits
counts.

Source: the modules of torchvision 0.29, timm 1.0 and transformers 5.23, and for the second column
of the latter the files that it writes, whose names are those of transformers 4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

_NUMBER = re.compile(r"\{(\d*)([ijk])(\+\d+)?\}")

# Names of our own in the first column.
_VIT = """
cls                     class_token                 cls_token               embeddings.cls_token                              =
pos                     encoder.pos_embedding       pos_embed               embeddings.position_embeddings                    =
patch.{x}               conv_proj.{x}               patch_embed.proj.{x}    embeddings.patch_embeddings.projection.{x}        =
{i}.q.{x}               -                           -                       layers.{i}.attention.q_proj.{x}                   encoder.layer.{i}.attention.attention.query.{x}
{i}.k.{x}               -                           -                       layers.{i}.attention.k_proj.{x}                   encoder.layer.{i}.attention.attention.key.{x}
{i}.v.{x}               -                           -                       layers.{i}.attention.v_proj.{x}                   encoder.layer.{i}.attention.attention.value.{x}
{i}.q.{x}+{i}.k.{x}+{i}.v.{x}  encoder.layers.encoder_layer_{i}.self_attention.in_proj_{x}  blocks.{i}.attn.qkv.{x}  -  -
{i}.out.{x}  encoder.layers.encoder_layer_{i}.self_attention.out_proj.{x}  blocks.{i}.attn.proj.{x}  layers.{i}.attention.o_proj.{x}  encoder.layer.{i}.attention.output.dense.{x}
{i}.norm1.{x}  encoder.layers.encoder_layer_{i}.ln_1.{x}   blocks.{i}.norm1.{x}    layers.{i}.layernorm_before.{x}  encoder.layer.{i}.layernorm_before.{x}
{i}.norm2.{x}  encoder.layers.encoder_layer_{i}.ln_2.{x}   blocks.{i}.norm2.{x}    layers.{i}.layernorm_after.{x}   encoder.layer.{i}.layernorm_after.{x}
{i}.fc1.{x}    encoder.layers.encoder_layer_{i}.mlp.0.{x}  blocks.{i}.mlp.fc1.{x}  layers.{i}.mlp.fc1.{x}           encoder.layer.{i}.intermediate.dense.{x}
{i}.fc2.{x}    encoder.layers.encoder_layer_{i}.mlp.3.{x}  blocks.{i}.mlp.fc2.{x}  layers.{i}.mlp.fc2.{x}           encoder.layer.{i}.output.dense.{x}
norm.{x}                encoder.ln.{x}              norm.{x}                layernorm.{x}                                     =
head.{x}                heads.head.{x}              head.{x}                classifier.{x}                                    =
"""  # noqa: E501 - a table

_CONVNEXT = """
stem.0.{x}              features.0.0.{x}            stem.0.{x}                          embeddings.patch_embeddings.{x}
stem.1.{x}              features.0.1.{x}            stem.1.{x}                          embeddings.layernorm.{x}
{i}.down.0.{x}          features.{2i}.0.{x}         stages.{i}.downsample.0.{x}         encoder.stages.{i}.downsampling_layer.0.{x}
{i}.down.1.{x}          features.{2i}.1.{x}         stages.{i}.downsample.1.{x}         encoder.stages.{i}.downsampling_layer.1.{x}
{i}.{j}.scale           features.{2i+1}.{j}.layer_scale  stages.{i}.blocks.{j}.gamma    encoder.stages.{i}.layers.{j}.layer_scale_parameter
{i}.{j}.conv.{x}        features.{2i+1}.{j}.block.0.{x}  stages.{i}.blocks.{j}.conv_dw.{x}  encoder.stages.{i}.layers.{j}.dwconv.{x}
{i}.{j}.norm.{x}        features.{2i+1}.{j}.block.2.{x}  stages.{i}.blocks.{j}.norm.{x}     encoder.stages.{i}.layers.{j}.layernorm.{x}
{i}.{j}.fc1.{x}         features.{2i+1}.{j}.block.3.{x}  stages.{i}.blocks.{j}.mlp.fc1.{x}  encoder.stages.{i}.layers.{j}.pwconv1.{x}
{i}.{j}.fc2.{x}         features.{2i+1}.{j}.block.5.{x}  stages.{i}.blocks.{j}.mlp.fc2.{x}  encoder.stages.{i}.layers.{j}.pwconv2.{x}
norm.{x}                classifier.0.{x}            head.norm.{x}                       layernorm.{x}
head.{x}                classifier.2.{x}            head.fc.{x}                         classifier.{x}
"""  # noqa: E501

_SWIN = """
stem.{x}              features.0.0.{x}                   patch_embed.proj.{x}               embeddings.patch_embeddings.projection.{x}              =
stem_norm.{x}         features.0.2.{x}                   patch_embed.norm.{x}               embeddings.norm.{x}                                     =
{i}.down_red.{x}      features.{2i+2}.reduction.{x}      layers.{i+1}.downsample.reduction.{x}  encoder.layers.{i}.downsample.reduction.{x}         =
{i}.down_norm.{x}     features.{2i+2}.norm.{x}           layers.{i+1}.downsample.norm.{x}   encoder.layers.{i}.downsample.norm.{x}                  =
{i}.{j}.norm1.{x}     features.{2i+1}.{j}.norm1.{x}      layers.{i}.blocks.{j}.norm1.{x}    encoder.layers.{i}.blocks.{j}.layernorm_before.{x}      =
{i}.{j}.norm2.{x}     features.{2i+1}.{j}.norm2.{x}      layers.{i}.blocks.{j}.norm2.{x}    encoder.layers.{i}.blocks.{j}.layernorm_after.{x}       =
{i}.{j}.table         features.{2i+1}.{j}.attn.relative_position_bias_table  layers.{i}.blocks.{j}.attn.relative_position_bias_table  encoder.layers.{i}.blocks.{j}.attention.relative_position_bias.relative_position_bias_table  encoder.layers.{i}.blocks.{j}.attention.self.relative_position_bias_table
{i}.{j}.q.{x}         -                                  -                                  encoder.layers.{i}.blocks.{j}.attention.q_proj.{x}      encoder.layers.{i}.blocks.{j}.attention.self.query.{x}
{i}.{j}.k.{x}         -                                  -                                  encoder.layers.{i}.blocks.{j}.attention.k_proj.{x}      encoder.layers.{i}.blocks.{j}.attention.self.key.{x}
{i}.{j}.v.{x}         -                                  -                                  encoder.layers.{i}.blocks.{j}.attention.v_proj.{x}      encoder.layers.{i}.blocks.{j}.attention.self.value.{x}
{i}.{j}.q.{x}+{i}.{j}.k.{x}+{i}.{j}.v.{x}  features.{2i+1}.{j}.attn.qkv.{x}  layers.{i}.blocks.{j}.attn.qkv.{x}  -  -
{i}.{j}.out.{x}       features.{2i+1}.{j}.attn.proj.{x}  layers.{i}.blocks.{j}.attn.proj.{x}  encoder.layers.{i}.blocks.{j}.attention.o_proj.{x}    encoder.layers.{i}.blocks.{j}.attention.output.dense.{x}
{i}.{j}.fc1.{x}       features.{2i+1}.{j}.mlp.0.{x}      layers.{i}.blocks.{j}.mlp.fc1.{x}  encoder.layers.{i}.blocks.{j}.mlp.fc1.{x}               encoder.layers.{i}.blocks.{j}.intermediate.dense.{x}
{i}.{j}.fc2.{x}       features.{2i+1}.{j}.mlp.3.{x}      layers.{i}.blocks.{j}.mlp.fc2.{x}  encoder.layers.{i}.blocks.{j}.mlp.fc2.{x}               encoder.layers.{i}.blocks.{j}.output.dense.{x}
norm.{x}              norm.{x}                           =                                  layernorm.{x}                                           =
head.{x}              head.{x}                           head.fc.{x}                        classifier.{x}                                          =
"""  # noqa: E501

_RESNET = """
conv1.{x}               conv1.{x}                   =       embedder.embedder.convolution.{x}
bn1.{x}                 bn1.{x}                     =       embedder.embedder.normalization.{x}
{i}.{j}.conv{k}.{x}     layer{i+1}.{j}.conv{k+1}.{x}  =     encoder.stages.{i}.layers.{j}.layer.{k}.convolution.{x}
{i}.{j}.bn{k}.{x}       layer{i+1}.{j}.bn{k+1}.{x}    =     encoder.stages.{i}.layers.{j}.layer.{k}.normalization.{x}
{i}.{j}.down.0.{x}      layer{i+1}.{j}.downsample.0.{x}  =  encoder.stages.{i}.layers.{j}.shortcut.convolution.{x}
{i}.{j}.down.1.{x}      layer{i+1}.{j}.downsample.1.{x}  =  encoder.stages.{i}.layers.{j}.shortcut.normalization.{x}
fc.{x}                  fc.{x}                      =       classifier.1.{x}
"""  # noqa: E501

_TABLES = {"ViT": _VIT, "ConvNeXt": _CONVNEXT, "Swin": _SWIN, "ResNet": _RESNET}
_COLUMNS = ("torchvision", "timm", "transformers", "files of transformers")


@dataclass(frozen=True)
class Dialect:
    """How one library calls the tensors of a family of models.

    Args:
        family: of models.
        library: whose names they are.
        rows: our names, and the library's.
    """

    family: str
    library: str
    rows: Sequence[tuple[str, str]] = field(repr=False)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str, str]]:
        return [(_pattern(theirs), theirs, ours) for ours, theirs in self.rows]

    def read(self, name: str) -> tuple[str, ...]:
        """What we call a tensor, or the parts of it; nothing where it is not in the table."""
        for pattern, theirs, ours in self._patterns:
            match = pattern.fullmatch(name)
            values = _values(theirs, match) if match else None
            if values is not None:
                return tuple(_filled(ours, values).split("+"))
        return ()


def _pattern(template: str) -> re.Pattern[str]:
    # Only dots in a template mean something else to a pattern, once its fields are taken out.
    text = _NUMBER.sub(lambda m: rf"(?P<{m[2]}>\d+)", template.replace(".", r"\."))
    return re.compile(text.replace("{x}", r"(?P<x>\w+)"))


def _values(template: str, match: re.Match[str]) -> dict[str, str] | None:
    """What the fields stand for, as we count; None where a number is none of that count."""
    values = dict(match.groupdict())
    for factor, letter, offset in _NUMBER.findall(template):
        number, rest = divmod(int(match[letter]) - int(offset or 0), int(factor or 1))
        if rest or number < 0:
            return None
        values[letter] = str(number)
    return values


def _filled(template: str, values: dict[str, str]) -> str:
    for letter, value in values.items():
        template = template.replace(f"{{{letter}}}", value)
    return template


def _dialects(family: str, table: str) -> list[Dialect]:
    rows = [line.split() for line in table.splitlines() if line.strip()]
    found = []
    for column in range(1, len(rows[0])):
        named = []
        for row in rows:
            at = column
            while row[at] == "=":  # as the column before it
                at -= 1
            if row[at] != "-":
                named.append((row[0], row[at]))
        found.append(Dialect(family, _COLUMNS[column - 1], tuple(named)))
    # Columns that are equal throughout need no second try.
    return [d for n, d in enumerate(found) if d.rows not in [e.rows for e in found[:n]]]


DIALECTS: tuple[Dialect, ...] = tuple(
    dialect for family, table in _TABLES.items() for dialect in _dialects(family, table)
)
