"""vLLM plugin: pruned checkpoints are served as they are, `vllm serve ./pruned-llama`.

vLLM calls `register` in the API server, the engine core, every worker and the process that inspects models, so it must
be cheap and may run more than once. The model classes are named by strings and imported only where a model is built.
"""

MODELS = {
    "GRASPLlamaForCausalLM": "vllm_integration.llama:GRASPLlamaForCausalLM",
    "GRASPMistralForCausalLM": "vllm_integration.mistral:GRASPMistralForCausalLM",
    "GRASPMinistralForCausalLM": "vllm_integration.mistral:GRASPMistralForCausalLM",
    "GRASPQwen2ForCausalLM": "vllm_integration.qwen2:GRASPQwen2ForCausalLM",
    "GRASPQwen3ForCausalLM": "vllm_integration.qwen3:GRASPQwen3ForCausalLM",
    "GRASPPhi3ForCausalLM": "vllm_integration.phi3:GRASPPhi3ForCausalLM",
    "GRASPOPTForCausalLM": "vllm_integration.opt:GRASPOPTForCausalLM",
    "GRASPGemma3ForCausalLM": "vllm_integration.gemma3:GRASPGemma3ForCausalLM",
}
"""Architecture in a checkpoint's config.json -> the class that vLLM serves it with."""


def register() -> None:
    """Entry point of the group `vllm.general_plugins`."""
    from vllm import ModelRegistry

    import optimum_grasprune.families  # noqa: F401  registers the configurations with transformers

    supported = ModelRegistry.get_supported_archs()
    for architecture, model in MODELS.items():
        if architecture not in supported:
            ModelRegistry.register_model(architecture, model)
