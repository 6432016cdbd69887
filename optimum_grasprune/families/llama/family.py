"""LLaMA 1, 2 and 3, and every model that transformers loads as `llama` (SmolLM2, TinyLlama, Yi, …)."""

from ..base import Family, Projection

LLAMA = Family(
    name="LLaMA",
    dense_types=("llama",),
    pruned_type="grasp_llama",
    code="optimum_grasprune.families.llama.modeling_grasp",
    classes=("GRASPLlamaConfig", "GRASPLlamaModel", "GRASPLlamaForCausalLM"),
    layers="model.layers",
    attention_inputs=(
        Projection("self_attn.q_proj", ("query",)),
        Projection("self_attn.k_proj", ("key",)),
        Projection("self_attn.v_proj", ("value",)),
    ),
    attention_output="self_attn.o_proj",
    ffn_inputs=(Projection("mlp.gate_proj", ("gate",)), Projection("mlp.up_proj", ("up",))),
    ffn_output="mlp.down_proj",
)
