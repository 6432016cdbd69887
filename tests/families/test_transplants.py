"""A LLaMA in the clothes of other families is pruned as the LLaMA is: `benchmarks/transplant.py` on the trained one."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from optimum_grasprune import GRASPConfig, PruningPlan
from optimum_grasprune.evaluation import perplexity
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.surgery import build_pruned_model
from tests.conftest import TINY_LLAMA, logits_of, make_model, script

TOKENS_NS = torch.arange(5, 133).view(2, 64)
FAMILIES = ["Mistral", "Qwen2", "Phi-3"]


@pytest.fixture(scope="module")
def transplant() -> ModuleType:
    return script("benchmarks/transplant.py")


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return load_model(str(TINY_LLAMA), dtype="float32")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(TINY_LLAMA))


@pytest.fixture(scope="module")
def config() -> GRASPConfig:
    return GRASPConfig(
        method="fisher", keep_ratio=0.7, dataset="sampled", num_samples=6, seq_len=64, compensation="none"
    )


@pytest.fixture(scope="module")
def pruned(
    transplant: ModuleType, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, config: GRASPConfig
) -> tuple[LlamaForCausalLM, PruningPlan]:
    return transplant.pruned(llama, tokenizer, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_the_llama_computes(transplant: ModuleType, llama: LlamaForCausalLM, family: str) -> None:
    expected = logits_of(llama, TOKENS_NS)
    torch.testing.assert_close(logits_of(transplant.transplanted(llama, family), TOKENS_NS), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_pruned_as_the_llama_is(
    transplant: ModuleType,
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    config: GRASPConfig,
    pruned: tuple[LlamaForCausalLM, PruningPlan],
    family: str,
) -> None:
    smaller, plan = pruned
    dense = transplant.transplanted(llama, family)
    found, other = transplant.pruned(dense, tokenizer, transplant.room_for(plan, dense, config))
    assert transplant.differing_units(plan, other) == 0
    windows_WS = torch.randint(2, 200, (4, 64), generator=torch.Generator().manual_seed(0))
    expected = perplexity(smaller, windows_WS).perplexity
    assert perplexity(found, windows_WS).perplexity == pytest.approx(expected, rel=1e-5)


def test_pruned_first_or_dressed_first_is_the_same(
    transplant: ModuleType, llama: LlamaForCausalLM, pruned: tuple[LlamaForCausalLM, PruningPlan]
) -> None:
    smaller, plan = pruned
    for family in FAMILIES:
        dense = transplant.transplanted(llama, family)
        built = build_pruned_model(dense, plan, family_of(dense.config))
        torch.testing.assert_close(logits_of(built, TOKENS_NS), logits_of(smaller, TOKENS_NS))


def test_a_llama_with_biases_has_no_counterpart(transplant: ModuleType) -> None:
    with pytest.raises(ValueError, match="a LLaMA with biases"):
        transplant.transplanted(make_model(attention_bias=True), "Qwen2")
