"""Qwen2 and Qwen2.5: biases on queries, keys and values, and layers that may see a window only."""

from ..base import Family

QWEN2 = Family(
    name="Qwen2",
    dense_types=("qwen2",),
    pruned_type="grasp_qwen2",
    code="optimum_grasprune.families.qwen2.modeling_grasp",
    classes=("GRASPQwen2Config", "GRASPQwen2Model", "GRASPQwen2ForCausalLM"),
    blocks_may_go=True,
)
