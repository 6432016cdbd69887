"""Gemma 3, its text models: norms on both sides of each block, which no unit runs through."""

from ..base import Family, Unsupported

GEMMA3 = Family(
    name="Gemma 3",
    dense_types=("gemma3_text",),
    pruned_type="grasp_gemma3_text",
    code="optimum_grasprune.families.gemma3.modeling_grasp",
    classes=("GRASPGemma3TextConfig", "GRASPGemma3TextModel", "GRASPGemma3ForCausalLM"),
    unsupported=(
        Unsupported(
            "attention in both directions (use_bidirectional_attention), so no causal language model",
            lambda config: bool(getattr(config, "use_bidirectional_attention", False)),
        ),
    ),
    blocks_may_go=True,
    norms_after_blocks=lambda _: True,
)
