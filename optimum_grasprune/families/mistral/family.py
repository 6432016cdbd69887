"""Mistral: one sliding window in all layers, or none."""

from ..base import Family, Unsupported

MISTRAL = Family(
    name="Mistral",
    dense_types=("mistral",),
    pruned_type="grasp_mistral",
    code="optimum_grasprune.families.mistral.modeling_grasp",
    classes=("GRASPMistralConfig", "GRASPMistralModel", "GRASPMistralForCausalLM"),
    unsupported=(
        Unsupported(
            "several kinds of attention (layer_types): transformers has them as model type 'ministral'",
            lambda config: len(set(getattr(config, "layer_types", None) or ())) > 1,
        ),
    ),
    blocks_may_go=True,
)
