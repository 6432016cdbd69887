"""One LLaMA in the clothes of other families: the same mathematics, so that pruning must come to the same.

    python benchmarks/transplant.py MODEL --dataset TEXT [--method fisher] [--keep-ratio 0.8] [--num-samples 4]

A Mistral has LLaMA's tensors, a Qwen2 biases as well, which are zero here, a Phi-3 fuses matrices. Prints, for each,
how many units it keeps otherwise than the LLaMA, and the perplexity of the pruned model.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan
from optimum_grasprune.corpora import load_corpus, tokenize
from optimum_grasprune.evaluation import perplexity
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import load_model, load_tokenizer

CLOTHES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "Mistral": (MistralConfig, MistralForCausalLM),
    "Qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "Phi-3": (Phi3Config, Phi3ForCausalLM),
}
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def transplanted(model: LlamaForCausalLM, family: str) -> PreTrainedModel:
    """A model of another family that computes exactly what a LLaMA computes; its weights are copies.

    Raises ValueError for a LLaMA with biases, for which these families have no place.
    """
    if model.config.attention_bias or model.config.mlp_bias:
        raise ValueError("a LLaMA with biases has no counterpart in other families")
    config_class, model_class = CLOTHES[family]
    config = config_class(**{name: getattr(model.config, name) for name in _SAME}, sliding_window=None)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new: Any = model_class(config).to(model.dtype)
    new.load_state_dict(fused(state) if family == "Phi-3" else {**zero_biases(new), **state})
    return new.eval()


def zero_biases(model: PreTrainedModel) -> dict[str, Tensor]:
    """Zeros for every bias that a model has, by name."""
    return {name: torch.zeros_like(part) for name, part in model.named_parameters() if name.endswith(".bias")}


def fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LLaMA's tensors with one matrix for queries, keys and values, and one for gate and up projections."""
    together = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
    for layer in range(len([name for name in state if name.endswith("mlp.down_proj.weight")])):
        for path, parts in together.items():
            block = f"model.layers.{layer}.{path.partition('.')[0]}"
            rows = [state.pop(f"{block}.{part}.weight") for part in parts]
            state[f"model.layers.{layer}.{path}.weight"] = torch.cat(rows)
    return state


def pruned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GRASPConfig
) -> tuple[PreTrainedModel, PruningPlan]:
    """The pruned model and what it keeps."""
    pruner = GRASPPruner(config)
    smaller = pruner.prune_model(model, tokenizer)
    if pruner.plan is None:
        raise ValueError("the method cuts single weights, and keeps all units")
    return smaller, pruner.plan


def room_for(plan: PruningPlan, model: PreTrainedModel, config: GRASPConfig) -> GRASPConfig:
    """The configuration with a budget that is just what a plan's units cost in a model: biases count as well."""
    inventory = family_of(model.config).inventory(model)
    cost = sum(len(plan.group(group.address).kept) * group.cost for group in inventory.groups)
    return config.model_copy(update={"keep_ratio": (cost + 0.5) / inventory.total_cost})


def differing_units(plan: PruningPlan, other: PruningPlan) -> int:
    """Units that one of two plans keeps and the other does not."""
    pairs = zip(plan.groups, other.groups, strict=True)
    return sum(len(set(one.kept) ^ set(another.kept)) for one, another in pairs)


def main() -> None:
    """Prune a LLaMA in each of its clothes and print what came of it, one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--method", default="fisher")
    parser.add_argument("--keep-ratio", type=float, default=0.8)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    args = parser.parse_args()

    model, tokenizer = load_model(args.model, dtype="float32"), load_tokenizer(args.model)
    config = GRASPConfig(**{name: value for name, value in vars(args).items() if name != "model"}, dtype="float32")
    windows_WS = tokenize(load_corpus(args.dataset), tokenizer).windows(args.seq_len)[: args.num_samples]
    own, plan = pruned(model, tokenizer, config)
    print(json.dumps({"family": "LLaMA", "perplexity": perplexity(own, windows_WS).perplexity}), flush=True)
    for family in CLOTHES:
        dense = transplanted(model, family)
        smaller, other = pruned(dense, tokenizer, room_for(plan, dense, config))
        found = perplexity(smaller, windows_WS).perplexity
        print(
            json.dumps({"family": family, "differing": differing_units(plan, other), "perplexity": found}), flush=True
        )


if __name__ == "__main__":
    main()
