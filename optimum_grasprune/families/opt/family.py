"""OPT: an FFN of two matrices, biases everywhere, learned positions, as many KV heads as query heads."""

from ..base import Family, Projection, SizeFields

OPT = Family(
    name="OPT",
    dense_types=("opt",),
    pruned_type="grasp_opt",
    code="optimum_grasprune.families.opt.modeling_grasp",
    classes=("GRASPOPTConfig", "GRASPOPTModel", "GRASPOPTForCausalLM"),
    layers="model.decoder.layers",
    attention_output="self_attn.out_proj",
    ffn_inputs=(Projection("fc1", ("up",)),),
    ffn_output="fc2",
    sizes=SizeFields(kv_heads="num_attention_heads", ffn_channels="ffn_dim"),
    blocks_may_go=True,
    norms_after_blocks=lambda config: not config.do_layer_norm_before,
)
