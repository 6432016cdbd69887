"""LLaMA 1, 2 and 3, and every model that transformers loads as `llama` (SmolLM2, TinyLlama, Yi, …)."""

from ..base import Family

LLAMA = Family(
    name="LLaMA",
    dense_types=("llama",),
    pruned_type="grasp_llama",
    code="optimum_grasprune.families.llama.modeling_grasp",
    classes=("GRASPLlamaConfig", "GRASPLlamaModel", "GRASPLlamaForCausalLM"),
    blocks_may_go=True,
)
