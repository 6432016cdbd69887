"""What every family must do, in each of its variants: prune, save, load, generate, and be pruned again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GPT2Config, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.admission import check_model
from optimum_grasprune.config import DeploymentOptions
from optimum_grasprune.errors import UnsupportedFamilyError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import FAMILIES, family_of
from optimum_grasprune.families.shape import model_shape
from optimum_grasprune.loading import empty_model
from optimum_grasprune.methods import get_method, method_names
from optimum_grasprune.recovery import stage_names
from optimum_grasprune.serving.inspection import fit_of, inspection
from optimum_grasprune.statistics import MOMENTS, TOKEN_WEIGHTS
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, KV, Address, PruningPlan, UnitMask
from tests.conftest import logits_of, make_record, make_tokenizer
from tests.contracts.test_methods import choices, problem_of
from tests.contracts.test_recovery import chain_of, reference_of
from tests.tiny_models import CASES, VARIANTS, some_mask, some_plan, tiny_model

TOKENS = torch.arange(2, 62).view(2, 30)


@pytest.fixture(params=CASES, ids=" ".join, scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A dense model. Nothing may change it."""
    return tiny_model(*request.param)


@pytest.fixture(scope="module")
def pruner(model: PreTrainedModel, corpus_file: Path) -> GRASPPruner:
    """It was pruned in every step that the command takes."""
    pruner = GRASPPruner(
        GRASPConfig(method="taylor", keep_ratio=0.6, dataset=str(corpus_file), num_samples=4, seq_len=24)
    )
    pruner.prune_model(model, make_tokenizer())
    return pruner


@pytest.fixture(scope="module")
def folder(pruner: GRASPPruner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family") / "pruned"
    pruner.save(folder)
    return folder


def pruned_model(pruner: GRASPPruner) -> PreTrainedModel:
    assert pruner.model is not None
    return pruner.model


def built(model: PreTrainedModel, plan: PruningPlan, *, output_bias: bool = False) -> PreTrainedModel:
    return build_pruned_model(model, plan, family_of(model.config), output_bias=output_bias)


def parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: PreTrainedModel) -> list[torch.nn.Linear]:
    return list(family_of(model.config).output_projections(model).values())


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


class TestFamily:
    def test_costs_count_every_parameter_of_a_unit(self, model: PreTrainedModel) -> None:
        inventory = family_of(model.config).inventory(model)
        unprunable = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if "layers" not in name
            or "norm" in name
            or name.endswith(("o_proj.bias", "out_proj.bias", "down_proj.bias", "fc2.bias"))
        )
        assert inventory.total_cost + unprunable == parameters(model)
        config, family = model.config, family_of(model.config)
        heads, head_dim = family.kv_heads(config), family.head_dimension(config)
        assert inventory.total_kv_width == 2 * config.num_hidden_layers * heads * head_dim

    def test_shape_tells_the_same(self, model: PreTrainedModel) -> None:
        shape, inventory = model_shape(model, family_of(model.config)), family_of(model.config).inventory(model)
        assert shape.parameters == parameters(model)
        assert sum(map(shape.layer_parameters, shape.layers)) == inventory.total_cost
        assert shape.kv_width == inventory.total_kv_width

    def test_what_is_cut_is_what_the_units_cost_and_computes_as_gated(self, model: PreTrainedModel) -> None:
        for times in (1, 2):
            runner, mask = WholeModel(model), some_mask(model, seed=times)
            with torch.no_grad(), runner.gated() as gates:
                gates.values_U = mask.kept_U.float()
                expected = logits_of(model, TOKENS)
            pruned = built(model, PruningPlan.from_mask(mask))
            assert difference(logits_of(pruned, TOKENS), expected) <= 1e-5, f"pruned {times} times"
            assert parameters(model) - parameters(pruned) == runner.inventory.total_cost - mask.kept_cost
            model = pruned

    def test_checkpoint_loads_as_it_was(self, pruner: GRASPPruner, folder: Path) -> None:
        expected = logits_of(pruned_model(pruner), TOKENS)
        for loaded in (load_pruned_model(folder), AutoModelForCausalLM.from_pretrained(folder)):
            assert torch.equal(logits_of(loaded, TOKENS), expected)
            check_model(loaded)

    def test_budget_is_met(self, pruner: GRASPPruner) -> None:
        budget = pruner.record.budget
        assert budget.asked is not None and budget.pruned.prunable <= budget.asked.cost
        assert budget.kept.prunable <= 0.6

    def test_generation_with_and_without_cache_agree(self, pruner: GRASPPruner) -> None:
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
        prompt = {"input_ids": TOKENS[:, :5], "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
        model = pruned_model(pruner)
        cached = model.generate(**prompt, **options, use_cache=True)  # type: ignore[operator]
        assert torch.equal(cached, model.generate(**prompt, **options, use_cache=False))  # type: ignore[operator]

    def test_attention_implementation_can_be_changed_after_loading(self, folder: Path) -> None:
        model = load_pruned_model(folder)
        expected = logits_of(model, TOKENS)
        model.set_attn_implementation("eager")
        layers = family_of(model.config).decoder_layers(model)
        assert {layer.self_attn.config._attn_implementation for layer in layers} == {"eager"}
        torch.testing.assert_close(logits_of(model, TOKENS), expected, rtol=1e-4, atol=1e-4)

    def test_config_holds_the_widths(self, model: PreTrainedModel, pruner: GRASPPruner, folder: Path) -> None:
        config, family = AutoConfig.from_pretrained(folder), family_of(model.config)
        assert config.model_type == family.pruned_type
        assert config.architectures == [family.pruned.causal_lm.__name__]
        assert pruner.plan is not None
        for layer in range(config.num_hidden_layers):
            own = config.per_layer_config[layer]
            for field, kind in ((family.sizes.ffn_channels, FFN), (family.sizes.kv_heads, KV)):
                assert getattr(own, field) == len(pruner.plan.group(Address(layer, kind)).kept)


class TestOutputBias:
    @staticmethod
    def fill(model: PreTrainedModel) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for linear in outputs(model):
                linear.bias.add_(0.3 * torch.randn(linear.bias.shape, generator=generator))

    def test_zeros_change_nothing_and_other_values_do(self, model: PreTrainedModel) -> None:
        plan = some_plan(model)
        plain, biased = built(model, plan), built(model, plan, output_bias=True)
        expected = logits_of(plain, TOKENS)
        assert torch.equal(logits_of(biased, TOKENS), expected)
        self.fill(biased)
        assert (logits_of(biased, TOKENS) - expected).norm() > 0.1 * expected.norm()
        assert torch.equal(logits_of(plain, TOKENS), expected), "the two models share a bias"

    def test_only_what_was_asked_for_is_added(self, model: PreTrainedModel) -> None:
        plan = some_plan(model)
        plain, biased = built(model, plan).state_dict(), built(model, plan, output_bias=True).state_dict()
        added = set(family_of(model.config).output_biases(model))
        assert set(plain) == set(model.state_dict())
        assert set(biased) == set(model.state_dict()) | added
        assert all(biased[name].shape == (model.config.hidden_size,) for name in added)

    def test_saved_and_loaded_it_computes_the_same(self, model: PreTrainedModel, tmp_path: Path) -> None:
        pruned = built(model, some_plan(model), output_bias=True)
        self.fill(pruned)
        expected = logits_of(pruned, TOKENS)
        save_checkpoint(pruned, None, make_record(), tmp_path / "pruned")
        loaded = load_pruned_model(tmp_path / "pruned")
        assert loaded.config.output_bias is True
        assert torch.equal(logits_of(loaded, TOKENS), expected)
        half = load_pruned_model(tmp_path / "pruned", dtype="bfloat16")
        assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}

    def test_pruned_again_it_keeps_its_biases(self, model: PreTrainedModel) -> None:
        once = built(model, some_plan(model), output_bias=True)
        self.fill(once)
        before = [linear.bias.clone() for linear in outputs(once)]
        twice = built(once, some_plan(once))
        assert twice.config.output_bias is True
        for linear, bias in zip(outputs(twice), before, strict=True):
            assert torch.equal(linear.bias, bias)

    def test_a_new_model_starts_with_zeros_and_an_empty_one_takes_no_memory(self, model: PreTrainedModel) -> None:
        config = built(model, some_plan(model), output_bias=True).config
        for linear in outputs(AutoModelForCausalLM.from_config(config)):
            assert not linear.bias.any() and linear.bias.requires_grad
        assert {parameter.device.type for parameter in empty_model(config).parameters()} == {"meta"}


@pytest.fixture(params=VARIANTS, scope="module")
def plain(request: pytest.FixtureRequest) -> PreTrainedModel:
    """The plain variant of a family."""
    return tiny_model(request.param)


@pytest.mark.parametrize("name", method_names())
def test_every_method_cuts_it(plain: PreTrainedModel, name: str) -> None:
    problem = problem_of(plain, GRASPConfig(method=name, keep_ratio=0.5, epochs=1))
    for mask in choices(problem).values():
        assert 0 < mask.kept_cost <= problem.budget.cost


@pytest.mark.parametrize("name", stage_names())
def test_every_stage_makes_up_for_a_cut(plain: PreTrainedModel, name: str) -> None:
    config = GRASPConfig(method="random", scale_samples=2, scale_learning_rate=0.1)
    problem = replace(problem_of(plain, config), declared=(MOMENTS, TOKEN_WEIGHTS))
    plan = PruningPlan.from_mask(choices(problem)["random"])
    chain = chain_of((name,), problem)
    model = next(chain.refitted(reference_of(problem), chain.trials(plan))).build()
    for rebuilding in chain.rebuilding_stages:
        rebuilding.rebuild(reference_of(problem), problem.runner.beside(model), plan)
    for stage in chain.trained_stages:
        stage.train(reference_of(problem), model, plan).fold()
    bare, logits = logits_of(built(plain, plan), TOKENS), logits_of(model, TOKENS)
    assert logits.isfinite().all() and not torch.equal(logits, bare)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_single_weights_are_cut_in_the_same_share_of_every_map(
    plain: PreTrainedModel, pattern: str, corpus_file: Path
) -> None:
    data = {"dataset": str(corpus_file), "num_samples": 2, "seq_len": 16}
    config = GRASPConfig(method="statistical", pattern=pattern, keep_ratio=0.5, compensation="none", **data)
    pruned = GRASPPruner(config).prune_model(plain, make_tokenizer())
    maps = [path for block in family_of(plain.config).blocks(plain) for path in block.maps]
    for path in maps:
        kept_OI = pruned.get_parameter(f"{path}.weight") != 0
        assert kept_OI.double().mean().item() == pytest.approx(0.5, abs=0.02), path


def test_every_family_is_here() -> None:
    assert set(VARIANTS) == set(FAMILIES)
    assert all(get_method(name) for name in method_names())


def test_unsupported_family_names_those_that_are() -> None:
    with pytest.raises(
        UnsupportedFamilyError, match=r"model type 'gpt2' is not supported; supported are: LLaMA \(llama"
    ):
        family_of(GPT2Config())


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("qwen2_moe", "a mixture of experts"),
        ("mixtral", "a mixture of experts"),
        ("qwen3_moe", "a mixture of experts"),
        ("phimoe", "a mixture of experts"),
        ("deepseek_v3", "a mixture of experts"),
        ("minicpm3", "a model with multi-head latent attention"),
        ("mamba", "a model with recurrent layers"),
        ("mamba2", "a model with recurrent layers"),
        ("falcon_h1", "a model with recurrent layers"),
        ("rwkv", "a model with recurrent layers"),
        ("recurrent_gemma", "a model with recurrent layers"),
        ("gemma3", "a model of more than text (vision_config)"),
        ("mistral3", "a model of more than text (vision_config)"),
        ("qwen2_audio", "a model of more than text (audio_config)"),
    ],
)
def test_what_cannot_be_pruned_is_named(model_type: str, kind: str) -> None:
    with pytest.raises(
        UnsupportedFamilyError,
        match=re.escape(f"model type {model_type!r}, {kind}, is not supported; supported are: LLaMA"),
    ):
        family_of(CONFIG_MAPPING[model_type]())


def test_unsupported_variants_of_a_family_are_named() -> None:
    both_ways = tiny_model("Gemma 3", use_bidirectional_attention=True).config
    with pytest.raises(UnsupportedFamilyError, match="is a Gemma 3 with attention in both directions"):
        family_of(both_ways)
    mixed = CONFIG_MAPPING["mistral"](num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(UnsupportedFamilyError, match="is a Mistral with several kinds of attention .* 'ministral'"):
        family_of(mixed)
    without = tiny_model("Ministral", sliding_window=None, layer_types=None).config
    with pytest.raises(
        UnsupportedFamilyError, match="is a Ministral with no sliding_window, .* model_type to 'mistral'"
    ):
        family_of(without)


def test_no_model_type_belongs_to_two_families() -> None:
    types = [model_type for family in FAMILIES.values() for model_type in family.model_types]
    assert len(types) == len(set(types))


@pytest.fixture(scope="module")
def holes(model: PreTrainedModel) -> UnitMask:
    """A layer without attention, one without an FFN (layers 1 and 2)."""
    mask = some_mask(model)
    for layer, kind in ((0, KV), (1, FFN), (2, FFN)):
        mask.kept_U[mask.inventory.slice_of(Address(layer, kind))] = False
    return mask


@pytest.fixture(scope="module")
def with_holes(model: PreTrainedModel, holes: UnitMask) -> PreTrainedModel:
    """The model cut so. The layer whose cache tells positions is the one without attention."""
    return built(model, PruningPlan.from_mask(holes))


class TestWholeBlocks:
    def test_it_computes_as_gated_and_all_that_goes_is_counted(
        self, model: PreTrainedModel, holes: UnitMask, with_holes: PreTrainedModel
    ) -> None:
        runner = WholeModel(model)
        with torch.no_grad(), runner.gated() as gates:
            gates.values_U = holes.kept_U.float()
            expected = logits_of(model, TOKENS)
        assert difference(logits_of(with_holes, TOKENS), expected) <= 1e-5
        norms = sum(model.get_parameter(name).numel() for name in runner.blocks[0].shared)
        assert parameters(model) - parameters(with_holes) == runner.inventory.total_cost - holes.kept_cost + norms
        inventory = family_of(with_holes.config).inventory(with_holes)
        assert [group.address for group in inventory.groups] == [
            Address(0, FFN),
            Address(1, KV),
            Address(2, KV),
        ]
        assert inventory.total_cost == holes.kept_cost and inventory.total_kv_width == holes.kept_kv_width

    def test_shape_and_configuration_know_of_it(self, with_holes: PreTrainedModel) -> None:
        shape = model_shape(empty_model(with_holes.config), family_of(with_holes.config))
        assert shape.parameters == parameters(with_holes)
        assert [layer.kv_heads > 0 for layer in shape.layers] == [False, True, True]
        assert [layer.ffn_channels > 0 for layer in shape.layers] == [True, False, False]
        assert fit_of(with_holes.config, DeploymentOptions(gpu_memory="2GiB", context=32), "it").kv_tokens > 0
        assert inspection("it", with_holes.config).parameters == parameters(with_holes)

    @pytest.mark.parametrize("cache", [None, "static"])
    def test_generation_with_and_without_cache_agree(self, with_holes: PreTrainedModel, cache: str | None) -> None:
        options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
        padding = torch.ones(2, 5, dtype=torch.int64)
        padding[1, :2] = 0
        prompt = {"input_ids": TOKENS[:, :5], "attention_mask": padding}
        expected = with_holes.generate(**prompt, **options, use_cache=False)  # type: ignore[operator]
        cached = with_holes.generate(  # type: ignore[operator]
            **prompt, **options, cache_implementation=cache, disable_compile=True
        )
        assert torch.equal(cached, expected)

    @pytest.mark.parametrize("with_config", [True, False])
    def test_a_prompt_may_come_in_parts(self, with_holes: PreTrainedModel, with_config: bool) -> None:
        tokens = TOKENS[:, :22]  # long RoPE begins behind 24
        cache = DynamicCache(config=with_holes.config) if with_config else DynamicCache()
        with torch.no_grad():
            with_holes(tokens[:, :14], past_key_values=cache)
            assert cache.get_seq_length() == 14 and cache.layers[0].keys.numel() == 0
            rest = with_holes(tokens[:, 14:], past_key_values=cache).logits
        torch.testing.assert_close(rest, logits_of(with_holes, tokens)[:, 14:], rtol=1e-3, atol=1e-4)

    def test_beams(self, with_holes: PreTrainedModel) -> None:
        options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
        beams = [with_holes.generate(TOKENS[:, :5], **options, use_cache=use) for use in (True, False)]  # type: ignore[operator]
        assert torch.equal(*beams)

    def test_checkpoint_loads_as_it_was(self, with_holes: PreTrainedModel, tmp_path: Path) -> None:
        save_checkpoint(with_holes, None, make_record(), tmp_path / "pruned")
        loaded = load_pruned_model(tmp_path / "pruned")
        assert torch.equal(logits_of(loaded, TOKENS), logits_of(with_holes, TOKENS))
        check_model(loaded)

    def test_pruned_again_with_biases_where_nothing_was(self, with_holes: PreTrainedModel) -> None:
        again = some_plan(with_holes)
        twice = built(with_holes, again, output_bias=True)
        assert difference(logits_of(twice, TOKENS), logits_of(built(with_holes, again), TOKENS)) == 0
        biases = family_of(twice.config).output_biases(twice)
        assert len(biases) == 6 and all(bias is not None for bias in biases.values())
