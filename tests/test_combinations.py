"""What was built apart, together: each combination is written, loads, and its plan replays to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.export.checkpoint import load_pruned_model, read_plan
from tests.conftest import make_model

WITHOUT_MINIMUM = {"min_ffn_channels": 0, "min_kv_groups": 0}
RECOVERED = {"recover_tokens": 96, "recover_watch": f"{__file__}[:90%]", "recover_rank": 2}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "ddp, whole blocks, bias": {"method": "ddp", "compensation": "bias", "budget": "total", **WITHOUT_MINIMUM},
    "joint multipliers, search, LoRA": {
        "multipliers": "joint",
        "search_trials": 6,
        "compensation": "scales",
        "kl_weight": 0.3,
        "recover": "lora",
        **RECOVERED,
    },
    "whole blocks, default, distillation": {"recover": "distill", "batch_size": 2, **WITHOUT_MINIMUM, **RECOVERED},
    "FLAP, weighted, nothing held out": {
        "method": "flap",
        "compensation": "refit",
        "least_squares": "weighted",
        "held_out": 0,
    },
}


@pytest.mark.parametrize("options", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_several_nested_ratios_of_a_model_in_bf16_with_tied_embeddings(
    options: dict[str, Any], tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model = make_model(tie_word_embeddings=True).bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = GRASPConfig(
        **{"dataset": str(corpus_file), "num_samples": 4, "seq_len": 24, "start_rounds": 2, "held_out": 2, **options}
    )
    for pruned in GRASPPruner(config).prune_many(model, tokenizer, [0.8, 0.65], nested=True):
        folder = tmp_path / str(pruned.record.recipe["keep_ratio"])
        pruned.save(folder)
        replayed = GRASPPruner().replay(model, tokenizer, *read_plan(folder)).model.state_dict()
        loaded = load_pruned_model(folder).state_dict()
        for name, tensor in pruned.model.state_dict().items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, replayed[name]) and torch.equal(tensor, loaded[name]), name
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_lost_blocks_is_pruned_again_and_trained(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    data = {"dataset": str(corpus_file), "num_samples": 4, "seq_len": 24, "held_out": 0}
    first = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.3, allocation="global", **WITHOUT_MINIMUM))
    pruned = first.prune(make_model(), tokenizer)
    assert pruned.plan is not None and any(not group.kept for group in pruned.plan.groups)
    once = pruned.model
    config = GRASPConfig(keep_ratio=0.7, recover="lora", **WITHOUT_MINIMUM, **RECOVERED, **data)
    twice = GRASPPruner(config).prune(once, tokenizer)
    assert twice.record.compensation[:2] == ("reconstruction", "diagonals")
    twice.save(tmp_path / "twice")
    replayed = GRASPPruner().replay(once, tokenizer, *read_plan(tmp_path / "twice")).model.state_dict()
    assert all(torch.equal(tensor, replayed[name]) for name, tensor in twice.model.state_dict().items())
