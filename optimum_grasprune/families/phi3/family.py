"""Phi-3 and Phi-4: one matrix for queries, keys and values, and one for both ways into the FFN."""

from ..base import Family, Projection

PHI3 = Family(
    name="Phi-3",
    dense_types=("phi3",),
    pruned_type="grasp_phi3",
    code="optimum_grasprune.families.phi3.modeling_grasp",
    classes=("GRASPPhi3Config", "GRASPPhi3Model", "GRASPPhi3ForCausalLM"),
    attention_inputs=(Projection("self_attn.qkv_proj", ("query", "key", "value")),),
    ffn_inputs=(Projection("mlp.gate_up_proj", ("gate", "up")),),
    blocks_may_go=True,
)
