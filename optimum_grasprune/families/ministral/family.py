"""Ministral, as transformers has it: a Mistral whose layers see all, or a window, as `layer_types` says."""

from ..base import Family, Unsupported

MINISTRAL = Family(
    name="Ministral",
    dense_types=("ministral",),
    pruned_type="grasp_ministral",
    code="optimum_grasprune.families.ministral.modeling_grasp",
    classes=("GRASPMinistralConfig", "GRASPMinistralModel", "GRASPMinistralForCausalLM"),
    unsupported=(
        Unsupported(
            "no sliding_window, without which transformers computes none: change its model_type to 'mistral'",
            lambda config: getattr(config, "sliding_window", None) is None,
        ),
    ),
    blocks_may_go=True,
)
