"""Transformers for images: columns as in `dialects`."""

# ruff: noqa: E501 - tables

from __future__ import annotations

VIT = """
cls                     class_token                 cls_token               embeddings.cls_token                              =
dist  -  dist_token  embeddings.distillation_token  =
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
head_dist.{x}  -  head_dist.{x}  distillation_classifier.{x}  =
head.{x}  -  -  cls_classifier.{x}  =
head.{x}                heads.head.{x}              head.{x}                classifier.{x}                                    =
"""

DINOV2 = """
cls  -  cls_token  embeddings.cls_token  =
pos  -  pos_embed  embeddings.position_embeddings  =
patch.{x}  -  patch_embed.proj.{x}  embeddings.patch_embeddings.projection.{x}  =
{i}.q.{x}  -  -  encoder.layer.{i}.attention.q_proj.{x}  encoder.layer.{i}.attention.attention.query.{x}
{i}.k.{x}  -  -  encoder.layer.{i}.attention.k_proj.{x}  encoder.layer.{i}.attention.attention.key.{x}
{i}.v.{x}  -  -  encoder.layer.{i}.attention.v_proj.{x}  encoder.layer.{i}.attention.attention.value.{x}
{i}.q.{x}+{i}.k.{x}+{i}.v.{x}  -  blocks.{i}.attn.qkv.{x}  -  -
{i}.out.{x}  -  blocks.{i}.attn.proj.{x}  encoder.layer.{i}.attention.o_proj.{x}  encoder.layer.{i}.attention.output.dense.{x}
{i}.scale1  -  blocks.{i}.ls1.gamma  encoder.layer.{i}.layer_scale1.lambda1  =
{i}.scale2  -  blocks.{i}.ls2.gamma  encoder.layer.{i}.layer_scale2.lambda1  =
{i}.norm{k}.{x}  -  blocks.{i}.norm{k}.{x}  encoder.layer.{i}.norm{k}.{x}  =
{i}.fc{k}.{x}  -  blocks.{i}.mlp.fc{k}.{x}  encoder.layer.{i}.mlp.fc{k}.{x}  =
norm.{x}  -  norm.{x}  layernorm.{x}  =
"""

BEIT = """
cls  -  cls_token  embeddings.cls_token  =
patch.{x}  -  patch_embed.proj.{x}  embeddings.patch_embeddings.projection.{x}  =
{i}.scale1  -  blocks.{i}.gamma_1  layers.{i}.lambda_1  encoder.layer.{i}.lambda_1
{i}.scale2  -  blocks.{i}.gamma_2  layers.{i}.lambda_2  encoder.layer.{i}.lambda_2
{i}.table  -  blocks.{i}.attn.relative_position_bias_table  layers.{i}.relative_position_bias.relative_position_bias_table  encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table
{i}.q.bias  -  blocks.{i}.attn.q_bias  layers.{i}.attention.q_proj.bias  encoder.layer.{i}.attention.attention.query.bias
{i}.v.bias  -  blocks.{i}.attn.v_bias  layers.{i}.attention.v_proj.bias  encoder.layer.{i}.attention.attention.value.bias
{i}.q.weight  -  -  layers.{i}.attention.q_proj.weight  encoder.layer.{i}.attention.attention.query.weight
{i}.k.weight  -  -  layers.{i}.attention.k_proj.weight  encoder.layer.{i}.attention.attention.key.weight
{i}.v.weight  -  -  layers.{i}.attention.v_proj.weight  encoder.layer.{i}.attention.attention.value.weight
{i}.q.weight+{i}.k.weight+{i}.v.weight  -  blocks.{i}.attn.qkv.weight  -  -
{i}.out.{x}  -  blocks.{i}.attn.proj.{x}  layers.{i}.attention.o_proj.{x}  encoder.layer.{i}.attention.output.dense.{x}
{i}.norm1.{x}  -  blocks.{i}.norm1.{x}  layers.{i}.layernorm_before.{x}  encoder.layer.{i}.layernorm_before.{x}
{i}.norm2.{x}  -  blocks.{i}.norm2.{x}  layers.{i}.layernorm_after.{x}  encoder.layer.{i}.layernorm_after.{x}
{i}.fc1.{x}  -  blocks.{i}.mlp.fc1.{x}  layers.{i}.mlp.fc1.{x}  encoder.layer.{i}.intermediate.dense.{x}
{i}.fc2.{x}  -  blocks.{i}.mlp.fc2.{x}  layers.{i}.mlp.fc2.{x}  encoder.layer.{i}.output.dense.{x}
norm.{x}  -  fc_norm.{x}  pooler.layernorm.{x}  =
head.{x}  -  head.{x}  classifier.{x}  =
"""

SWIN = """
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
"""

SWIN_V2 = """
stem.{x}  features.0.0.{x}  patch_embed.proj.{x}  embeddings.patch_embeddings.projection.{x}  =
stem_norm.{x}  features.0.2.{x}  patch_embed.norm.{x}  embeddings.norm.{x}  =
{i}.down_red.{x}  features.{2i+2}.reduction.{x}  layers.{i+1}.downsample.reduction.{x}  encoder.layers.{i}.downsample.reduction.{x}  =
{i}.down_norm.{x}  features.{2i+2}.norm.{x}  layers.{i+1}.downsample.norm.{x}  encoder.layers.{i}.downsample.norm.{x}  =
{i}.{j}.norm1.{x}  features.{2i+1}.{j}.norm1.{x}  layers.{i}.blocks.{j}.norm1.{x}  encoder.layers.{i}.blocks.{j}.layernorm_before.{x}  =
{i}.{j}.norm2.{x}  features.{2i+1}.{j}.norm2.{x}  layers.{i}.blocks.{j}.norm2.{x}  encoder.layers.{i}.blocks.{j}.layernorm_after.{x}  =
{i}.{j}.scale  features.{2i+1}.{j}.attn.logit_scale  layers.{i}.blocks.{j}.attn.logit_scale  encoder.layers.{i}.blocks.{j}.attention.self.logit_scale  =
{i}.{j}.place{k}.{x}  features.{2i+1}.{j}.attn.cpb_mlp.{k}.{x}  layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.{x}  encoder.layers.{i}.blocks.{j}.attention.self.continuous_position_bias_mlp.{k}.{x}  =
{i}.{j}.q.bias  -  layers.{i}.blocks.{j}.attn.q_bias  encoder.layers.{i}.blocks.{j}.attention.self.query.bias  =
{i}.{j}.k.bias  -  0:layers.{i}.blocks.{j}.attn.q_bias  0:encoder.layers.{i}.blocks.{j}.attention.self.query.bias  =
{i}.{j}.v.bias  -  layers.{i}.blocks.{j}.attn.v_bias  encoder.layers.{i}.blocks.{j}.attention.self.value.bias  =
{i}.{j}.q.weight  -  -  encoder.layers.{i}.blocks.{j}.attention.self.query.weight  =
{i}.{j}.k.weight  -  -  encoder.layers.{i}.blocks.{j}.attention.self.key.weight  =
{i}.{j}.v.weight  -  -  encoder.layers.{i}.blocks.{j}.attention.self.value.weight  =
{i}.{j}.q.weight+{i}.{j}.k.weight+{i}.{j}.v.weight  features.{2i+1}.{j}.attn.qkv.weight  layers.{i}.blocks.{j}.attn.qkv.weight  -  -
{i}.{j}.q.bias+{i}.{j}.k.bias+{i}.{j}.v.bias  features.{2i+1}.{j}.attn.qkv.bias  -  -  -
{i}.{j}.out.{x}  features.{2i+1}.{j}.attn.proj.{x}  layers.{i}.blocks.{j}.attn.proj.{x}  encoder.layers.{i}.blocks.{j}.attention.output.dense.{x}  =
{i}.{j}.fc1.{x}  features.{2i+1}.{j}.mlp.0.{x}  layers.{i}.blocks.{j}.mlp.fc1.{x}  encoder.layers.{i}.blocks.{j}.intermediate.dense.{x}  =
{i}.{j}.fc2.{x}  features.{2i+1}.{j}.mlp.3.{x}  layers.{i}.blocks.{j}.mlp.fc2.{x}  encoder.layers.{i}.blocks.{j}.output.dense.{x}  =
norm.{x}  norm.{x}  =  layernorm.{x}  =
head.{x}  head.{x}  head.fc.{x}  classifier.{x}  =
"""

TABLES = {
    "ViT": VIT,
    "DINOv2": DINOV2,
    "BEiT": BEIT,
    "Swin": SWIN,
    "Swin v2": SWIN_V2,
}
