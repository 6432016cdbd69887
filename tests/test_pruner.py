from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune import pruner as pruner_module
from optimum_grasprune.calibration_data import calibration_for
from optimum_grasprune.errors import GraspruneError, OptionError, PlanError
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import calibration_length, count_parameters
from optimum_grasprune.methods import Problem, get_method
from optimum_grasprune.methods.fasp import FASP
from optimum_grasprune.recovery.least_squares import LeastSquares
from optimum_grasprune.recovery.reference import Settings
from optimum_grasprune.selection import choose
from tests.conftest import make_model


@pytest.fixture
def config(corpus_file: Path) -> GRASPConfig:
    return GRASPConfig(keep_ratio=0.5, dataset=str(corpus_file), num_samples=4, seq_len=24, epochs=2, learning_rate=0.2)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def saved(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, str]:
    pruner = GRASPPruner(config)
    pruner.prune_model(make_model(), tokenizer)
    pruner.save(folder, max_shard_size="20KB")
    return hashes(folder)


def test_same_seed_same_bytes(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first, second = (saved(config, tokenizer, tmp_path / name) for name in ("one", "two"))
    assert first == second
    other = saved(config.model_copy(update={"seed": 1}), tokenizer, tmp_path / "three")
    assert other["grasp_config.json"] != first["grasp_config.json"]


def test_replaying_the_saved_plan_gives_the_same_bytes(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = saved(config, tokenizer, tmp_path / "calibrated")
    again = GRASPPruner(config)
    again.replay(make_model(), tokenizer, *read_plan(tmp_path / "calibrated"))
    again.save(tmp_path / "replayed", max_shard_size="20KB")
    assert len(first) > 12  # several shards among them
    assert hashes(tmp_path / "replayed") == first


@pytest.mark.parametrize("method", ["fasp", "flap", "statistical"])
def test_replaying_refits_weights_to_the_recorded_data(
    method: str, config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = saved(config.model_copy(update={"method": method}), tokenizer, tmp_path / "calibrated")
    again = GRASPPruner(GRASPConfig())
    again.replay(make_model(), tokenizer, *read_plan(tmp_path / "calibrated"))
    again.save(tmp_path / "replayed", max_shard_size="20KB")
    assert hashes(tmp_path / "replayed") == first


def test_a_version_in_which_the_method_has_other_values_replays_the_same(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(config.model_copy(update={"method": "fasp"}), tokenizer, tmp_path / "calibrated")
    plan, record = read_plan(tmp_path / "calibrated")
    assert record is not None and (record.recipe["least_squares"], record.recipe["held_out"]) == ("plain", 0)
    # As records were before they said so.
    unsaid = dict.fromkeys(("compensation", "restoration", "least_squares"), "auto")
    old = replace(record, recipe={**record.recipe, **unsaid, "held_out": None})
    again = GRASPPruner(GRASPConfig()).replay(make_model(), tokenizer, plan, old)
    assert again.record.recipe == record.recipe
    for name, value in {"restoration": "dense", "least_squares": "weighted", "held_out": 8}.items():
        monkeypatch.setattr(FASP, name, value)
    later = GRASPPruner(GRASPConfig())
    later.replay(make_model(), tokenizer, plan, record)
    later.save(tmp_path / "later", max_shard_size="20KB")
    assert hashes(tmp_path / "later") == first
    later.replay(make_model(), tokenizer, plan, old)
    later.save(tmp_path / "other", max_shard_size="20KB")
    assert hashes(tmp_path / "other") != first


def test_replaying_with_a_changed_corpus_is_refused(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("A text that will be another one. " * 20)
    saved(config.model_copy(update={"method": "fasp", "dataset": str(corpus)}), tokenizer, tmp_path / "calibrated")
    corpus.write_text("Another text than the plan was made with. " * 20)
    with pytest.raises(PlanError, match="is not the one that the plan was calibrated on"):
        GRASPPruner(config).replay(make_model(), tokenizer, *read_plan(tmp_path / "calibrated"))


def test_replaying_without_scales_says_so(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    saved(config, tokenizer, tmp_path / "calibrated")
    again = GRASPPruner(config.model_copy(update={"compensation": "none"}))
    again.replay(make_model(), tokenizer, *read_plan(tmp_path / "calibrated"))
    assert again.plan is not None and again.plan.groups[0].scales is None
    assert again.record.recipe["compensation"] == "none" and again.record.compensation == ()


def test_a_plan_of_another_model_is_refused(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    saved(config, tokenizer, tmp_path / "calibrated")
    with pytest.raises(PlanError, match="48 FFN channels in layer 0; this model has 64"):
        GRASPPruner(config).replay(make_model(intermediate_size=64), tokenizer, *read_plan(tmp_path / "calibrated"))


def test_record_tells_how_it_was_made(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    saved(config, tokenizer, tmp_path / "pruned")
    record = json.loads((tmp_path / "pruned" / "grasp_config.json").read_text())
    assert GRASPConfig.from_dict(record["recipe"]) == get_method("grasprune").resolved(config).model_copy(
        update={"held_out": 32, "statistic_samples": 64, "diagonal_samples": 8}
    )
    assert (record["recipe"]["compensation"], record["recipe"]["least_squares"]) == ("rebuild", "weighted")
    assert record["calibration"]["sequences"] == [4, 24]
    assert len(record["calibration"]["sha256"]) == 64
    assert {"torch", "transformers", "optimum-grasprune", "python"} == set(record["versions"])
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert card.startswith("---\n") and "vllm serve" in card and "| layer | FFN channels | KV heads |" in card


def test_scales_can_be_left_out(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pruner = GRASPPruner(config.model_copy(update={"compensation": "none"}))
    pruner.prune_model(model, tokenizer)
    assert pruner.plan is not None and all(group.scales is None for group in pruner.plan.groups)


def test_keeping_everything_changes_nothing(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pruner = GRASPPruner(config.model_copy(update={"compensation": "none", "keep_ratio": 1.0}))
    pruned = pruner.prune_model(model, tokenizer)
    state = model.state_dict()
    assert all((tensor == state[name]).all() for name, tensor in pruned.state_dict().items())


def test_sequences_longer_than_the_model_reads(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(OptionError, match="seq_len=129: the model reads at most 128 tokens"):
        GRASPPruner(config.model_copy(update={"seq_len": 129})).prune_model(model, tokenizer)


@pytest.mark.parametrize(("reads", "length"), [(8192, 512), (1024, 512), (1023, 511), (512, 256), (128, 64)])
def test_sequences_are_as_long_as_suits_the_model(reads: int, length: int) -> None:
    assert calibration_length(LlamaConfig(max_position_embeddings=reads), None) == length


def test_number_and_length_of_the_sequences_are_recorded(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_grasprune.corpora.sequences.CALIBRATION_TOKENS", 4 * 64 + 1)
    pruner = GRASPPruner(config.model_copy(update={"num_samples": None, "seq_len": None, "method": "flap"}))
    pruner.prune_model(model, tokenizer)
    assert (pruner.record.recipe["num_samples"], pruner.record.recipe["seq_len"]) == (4, 64)
    assert pruner.record.calibration is not None and pruner.record.calibration.sequences == (4, 64)


def test_a_method_that_needs_no_calibration_reads_no_corpus(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    options = {"method": "random", "compensation": "none", "dataset": "/nowhere/corpus.txt"}
    pruner = GRASPPruner(config.model_copy(update=options))
    pruner.prune_model(model, tokenizer)
    assert pruner.record.calibration is None


def test_calibrating_on_strings(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pruner = GRASPPruner(config.model_copy(update={"dataset": "/nowhere/corpus.txt"}))
    pruner.prune_model(model, tokenizer, texts=["A text about pruning. " * 200, "Another one. " * 200])
    assert pruner.record.calibration is not None and pruner.record.calibration.source == "in memory"


def test_nothing_to_save_yet(config: GRASPConfig, tmp_path: Path) -> None:
    with pytest.raises(GraspruneError, match="call prune_model first"):
        GRASPPruner(config).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", [{}, {"attention_bias": True}, {"attention_bias": True, "mlp_bias": True}])
@pytest.mark.parametrize("method", ["flap", "random"])
def test_a_total_budget_pays_for_output_biases(
    method: str, variant: dict[str, bool], config: GRASPConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    options = {"method": method, "compensation": "bias", "budget": "total", "keep_ratio": 0.75}
    dense = make_model(**variant)
    pruned = GRASPPruner(config.model_copy(update=options)).prune_model(dense, tokenizer)
    asked = math.floor(Fraction("0.75") * count_parameters(dense))
    cheapest = min(group.cost for group in family_of(dense.config).inventory(dense).groups)
    assert asked - cheapest < count_parameters(pruned) <= asked


def test_fasp_is_run_as_published(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    def settings(**options: object) -> Settings:
        pruner = GRASPPruner(config.model_copy(update={"method": "fasp", **options}))
        pruner.prune_model(model, tokenizer)
        return pruner.record.settings

    assert settings()["damping"] == 0.01
    assert settings(damping=0.1)["damping"] == 0.1
    assert settings(least_squares="robust")["damping"] == 4.0
    (stage,) = get_method("fasp").chain_for(config).stages
    assert isinstance(stage, LeastSquares)
    assert stage.fit.outliers and stage.fit.diagonal == "mean" and stage.in_sequence
    stage, *_ = get_method("grasprune").chain_for(config.model_copy(update={"compensation": "refit"})).stages
    assert isinstance(stage, LeastSquares)
    assert stage.fit.weighted and stage.fit.diagonal == "median"
    (stage,) = get_method("flap").chain_for(config.model_copy(update={"compensation": "least_squares"})).stages
    assert isinstance(stage, LeastSquares)
    assert not stage.fit.outliers and stage.fit.diagonal == "median"


def test_sequences_start_with_the_tokenizers_first_token(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    seen: list[torch.Tensor] = []

    def see(_: object, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        tokens_BS = inputs[0] if inputs else named["input_ids"]
        if tokens_BS.shape[1] > 1:  # not where the head alone is run, on hidden states that are given
            seen.append(tokens_BS)

    model.model.register_forward_pre_hook(see, with_kwargs=True)
    pruner = GRASPPruner(config)
    pruner.prune_model(model, tokenizer)
    assert seen and all((tokens_BS[:, 0] == 0).all() and not (tokens_BS[:, 1:] == 0).any() for tokens_BS in seen)
    assert pruner.record.calibration is not None and pruner.record.calibration.first_tokens == (0,)
    seen.clear()
    pruner = GRASPPruner(config.model_copy(update={"bos": False}))
    pruner.prune_model(model, tokenizer)
    assert seen and not any((tokens_BS == 0).any() for tokens_BS in seen)
    assert pruner.record.calibration is not None and pruner.record.calibration.first_tokens == ()


def test_a_plan_on_a_mixture_of_version_0_1_is_refused_where_weights_were_refitted(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(corpus_file.read_text().replace("child", "adult"))
    options = {"method": "fasp", "dataset": f"{corpus_file},{other}"}
    saved(config.model_copy(update=options), tokenizer, tmp_path / "pruned")
    plan, record = read_plan(tmp_path / "pruned")
    GRASPPruner(GRASPConfig()).replay(make_model(), tokenizer, plan, record)
    with pytest.raises(PlanError, match="mixed as version 0.1 did it, which cannot be drawn again"):
        GRASPPruner(GRASPConfig()).replay(make_model(), tokenizer, plan, replace(record, format=1))


def test_training_and_choosing_have_sequences_of_their_own(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: list[Problem] = []

    def watched(candidates: Any, chain: Any, problem: Problem, *rest: Any) -> Any:
        problems.append(problem)
        return choose(candidates, chain, problem, *rest)

    monkeypatch.setattr(pruner_module, "choose", watched)
    config = GRASPConfig(method="wanda_sp", dataset=str(corpus_file), num_samples=4, seq_len=24, held_out=3)
    GRASPPruner(config).prune(model, tokenizer)
    calibration = calibration_for(model, tokenizer, None, config)
    assert calibration is not None and len(problems) == 1
    assert torch.equal(problems[0].tokens_NS, calibration.tokens_NS) and len(calibration.tokens_NS) == 4
    assert torch.equal(problems[0].held_out_NS, calibration.held_out_NS) and len(calibration.held_out_NS) == 3
    assert not any(torch.equal(kept, out) for kept in calibration.tokens_NS for out in calibration.held_out_NS)
