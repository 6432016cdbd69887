"""Ministral, as transformers has it: a Mistral whose layers see all, or a window, as `layer_types` says."""

from ..base import Family

MINISTRAL = Family(
    name="Ministral",
    dense_types=("ministral",),
    pruned_type="grasp_ministral",
    code="optimum_grasprune.families.ministral.modeling_grasp",
    classes=("GRASPMinistralConfig", "GRASPMinistralModel", "GRASPMinistralForCausalLM"),
    blocks_may_go=True,
)
