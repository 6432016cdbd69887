"""What every supported model must do: prune, save, load, generate — whatever its heads, biases, ties and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask, load_pruned_model
from optimum_grasprune.errors import UnsupportedFamilyError
from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import FAMILIES, family_of
from optimum_grasprune.loading import empty_model
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, KV, Address
from tests.conftest import logits_of, make_model, make_record

ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "all-biases": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 16},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "dynamic-rope": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    "llama3-rope": {"rope_parameters": ROPE_LLAMA3},
}
TOKENS = torch.arange(2, 62).view(2, 30)


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    return make_model(**VARIANTS[request.param])


class TestLlama:
    @pytest.fixture
    def pruner(self, variant: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path) -> GRASPPruner:
        options = {"dataset": str(corpus_file), "num_samples": 4, "seq_len": 24, "epochs": 1, "learning_rate": 0.3}
        pruner = GRASPPruner(GRASPConfig(keep_ratio=0.6, **options))
        pruner.prune_model(variant, tokenizer)
        return pruner

    def test_costs_count_every_parameter_of_a_unit(self, variant: LlamaForCausalLM) -> None:
        config = variant.config
        inventory = family_of(config).inventory(variant)
        unprunable = sum(
            parameter.numel()
            for name, parameter in variant.named_parameters()
            if "layers" not in name or "norm" in name or name.endswith(("o_proj.bias", "down_proj.bias"))
        )
        assert inventory.total_cost + unprunable == sum(parameter.numel() for parameter in variant.parameters())
        assert inventory.total_kv_width == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim

    def test_checkpoint_computes_what_was_calibrated(self, pruner: GRASPPruner, tmp_path: Path) -> None:
        assert pruner.model is not None
        expected = logits_of(pruner.model, TOKENS)
        pruner.save(tmp_path / "pruned")
        for loaded in (
            load_pruned_model(tmp_path / "pruned"),
            AutoModelForCausalLM.from_pretrained(tmp_path / "pruned"),
        ):
            difference = logits_of(loaded, TOKENS) - expected
            assert (difference.norm() / expected.norm()).item() <= 1e-4

    def test_budget_is_met(self, pruner: GRASPPruner) -> None:
        budget = pruner.record.budget
        assert budget.asked is not None and budget.pruned.prunable <= budget.asked.cost
        assert budget.kept.prunable <= 0.6

    def test_generation_with_and_without_cache_agree(self, pruner: GRASPPruner) -> None:
        assert pruner.model is not None
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}
        prompt = {"input_ids": TOKENS[:, :5], "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
        cached = pruner.model.generate(**prompt, **options, use_cache=True)
        assert torch.equal(cached, pruner.model.generate(**prompt, **options, use_cache=False))

    def test_attention_implementation_can_be_changed_after_loading(self, pruner: GRASPPruner) -> None:
        assert pruner.model is not None
        expected = logits_of(pruner.model, TOKENS)
        pruner.model.set_attn_implementation("eager")
        assert pruner.model.model.layers[0].self_attn.config._attn_implementation == "eager"
        torch.testing.assert_close(logits_of(pruner.model, TOKENS), expected, rtol=1e-4, atol=1e-4)

    def test_config_holds_the_widths(self, pruner: GRASPPruner, tmp_path: Path) -> None:
        pruner.save(tmp_path / "pruned")
        config = AutoConfig.from_pretrained(tmp_path / "pruned")
        assert config.model_type == "grasp_llama" and config.architectures == ["GRASPLlamaForCausalLM"]
        assert pruner.plan is not None
        for layer in range(config.num_hidden_layers):
            own = config.per_layer_config[layer]
            assert own.intermediate_size == len(pruner.plan.group(Address(layer, FFN)).kept)
            assert own.num_key_value_heads == len(pruner.plan.group(Address(layer, KV)).kept)


class TestOutputBias:
    @staticmethod
    def build(variant: LlamaForCausalLM, output_bias: bool) -> PreTrainedModel:
        family = family_of(variant.config)
        inventory = family.inventory(variant)
        kept = torch.arange(inventory.num_units) % 3 != 2
        for start, _ in inventory.spans():
            kept[start] = True
        return build_pruned_model(
            variant, PruningPlan.from_mask(UnitMask(inventory, kept)), family, output_bias=output_bias
        )

    @staticmethod
    def fill(model: PreTrainedModel) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for linear in output_projections(model):
                linear.bias.add_(0.3 * torch.randn(linear.bias.shape, generator=generator))

    def test_zeros_change_nothing_and_other_values_do(self, variant: LlamaForCausalLM) -> None:
        plain, biased = self.build(variant, False), self.build(variant, True)
        expected = logits_of(plain, TOKENS)
        assert torch.equal(logits_of(biased, TOKENS), expected)
        self.fill(biased)
        assert (logits_of(biased, TOKENS) - expected).norm() > 0.1 * expected.norm()
        assert torch.equal(logits_of(plain, TOKENS), expected), "the two models share a bias"

    def test_only_what_was_asked_for_is_added(self, variant: LlamaForCausalLM) -> None:
        plain, biased = self.build(variant, False).state_dict(), self.build(variant, True).state_dict()
        layers = range(variant.config.num_hidden_layers)
        outputs = {f"model.layers.{i}.{name}.bias" for i in layers for name in ("self_attn.o_proj", "mlp.down_proj")}
        assert set(plain) == set(variant.state_dict())
        assert set(biased) == set(variant.state_dict()) | outputs
        assert all(biased[name].shape == (variant.config.hidden_size,) for name in outputs)

    def test_saved_and_loaded_it_computes_the_same(self, variant: LlamaForCausalLM, tmp_path: Path) -> None:
        model = self.build(variant, True)
        self.fill(model)
        expected = logits_of(model, TOKENS)
        save_checkpoint(model, None, make_record(), tmp_path / "pruned")
        loaded = load_pruned_model(tmp_path / "pruned")
        assert loaded.config.output_bias is True
        assert torch.equal(logits_of(loaded, TOKENS), expected)
        half = load_pruned_model(tmp_path / "pruned", dtype="bfloat16")
        assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}

    def test_pruned_again_it_keeps_its_biases(self, variant: LlamaForCausalLM) -> None:
        once = self.build(variant, True)
        self.fill(once)
        before = [linear.bias.clone() for linear in output_projections(once)]
        twice = self.build(once, False)  # type: ignore[arg-type]
        assert twice.config.output_bias is True
        for linear, bias in zip(output_projections(twice), before, strict=True):
            assert torch.equal(linear.bias, bias)

    def test_a_new_model_starts_with_zeros_and_an_empty_one_takes_no_memory(self, variant: LlamaForCausalLM) -> None:
        config = self.build(variant, True).config
        for linear in output_projections(AutoModelForCausalLM.from_config(config)):
            assert not linear.bias.any() and linear.bias.requires_grad
        assert {parameter.device.type for parameter in empty_model(config).parameters()} == {"meta"}


def output_projections(model: PreTrainedModel) -> list[torch.nn.Linear]:
    return list(family_of(model.config).output_projections(model).values())


def test_unsupported_family_names_those_that_are() -> None:
    with pytest.raises(
        UnsupportedFamilyError, match=r"model type 'gpt2' is not supported; supported are: LLaMA \(llama"
    ):
        family_of(GPT2Config())


def test_no_model_type_belongs_to_two_families() -> None:
    types = [model_type for family in FAMILIES.values() for model_type in family.model_types]
    assert len(types) == len(set(types))
