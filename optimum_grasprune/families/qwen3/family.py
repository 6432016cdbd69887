"""Qwen3: norms on the queries and keys of each head, which all heads share, so that none of it is a unit's."""

from ..base import Family

QWEN3 = Family(
    name="Qwen3",
    dense_types=("qwen3",),
    pruned_type="grasp_qwen3",
    code="optimum_grasprune.families.qwen3.modeling_grasp",
    classes=("GRASPQwen3Config", "GRASPQwen3Model", "GRASPQwen3ForCausalLM"),
    blocks_may_go=True,
)
