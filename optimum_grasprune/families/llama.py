"""LLaMA 1, 2 and 3, and every model that transformers loads as `llama` (SmolLM2, TinyLlama, Yi, …)."""

from .base import Family

LLAMA = Family(
    name="LLaMA",
    model_types=("llama", "grasp_llama"),
    layers="model.layers",
    attention_inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    ffn_inputs=("mlp.gate_proj", "mlp.up_proj"),
    ffn_output="mlp.down_proj",
)
