"""Training the weights of a pruned model, by LoRA or all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan
from optimum_grasprune.calibration_data import watched_corpus
from optimum_grasprune.corpora import load_corpus, sources, standard_library
from optimum_grasprune.errors import CheckpointError, OptionError, PlanError
from optimum_grasprune.execution import Course, Resumable, RunState, WholeModel
from optimum_grasprune.execution.state_file import INDEX_NAME
from optimum_grasprune.export.card import model_card
from optimum_grasprune.export.checkpoint import load_pruned_model, read_plan
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import count_parameters
from optimum_grasprune.problem import Problem, RecoveryText, TrainingTexts
from optimum_grasprune.pruned import PrunedModel
from optimum_grasprune.recovery.chain import sentence
from optimum_grasprune.recovery.distill import Distill
from optimum_grasprune.recovery.fine_tuning import FineTuning, LearntWeights
from optimum_grasprune.recovery.lora import Adapters, Lora, merged
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.registry import RECOVERIES, stages_in
from optimum_grasprune.surgery import build_pruned_model
from tests.conftest import logits_of, make_model
from tests.contracts.test_methods import choices, problem_of

TOKENS = torch.randint(258, (4, 20), generator=torch.Generator().manual_seed(0))
TEXT = RecoveryText(TOKENS, TOKENS[:2], TOKENS[2:], None)
"""Judged on what is trained on, so that every step is better than the one before."""

STAGES: dict[str, type[FineTuning]] = {"lora": Lora, "distill": Distill}


@pytest.fixture(params=RECOVERIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def given(model: LlamaForCausalLM, name: str, **options: object) -> tuple[Problem, PruningPlan, PreTrainedModel]:
    """A problem, a plan for it, and the model that the plan leaves."""
    config = GRASPConfig(**{"method": "random", "recover": name, "keep_ratio": 0.6, "recover_rank": 4, **options})
    problem = problem_of(model, config)
    plan = PruningPlan.from_mask(choices(problem)["random"])
    return problem, plan, build_pruned_model(model, plan, problem.family)


def trained(
    model: LlamaForCausalLM,
    name: str,
    text: RecoveryText | None = None,
    state: RunState | None = None,
    **options: object,
) -> LearntWeights:
    problem, plan, pruned = given(model, name, **options)
    if state is not None:
        state.begin({}, dict)
        problem = replace(problem, runner=Resumable(problem.runner, state))
    reference = Reference.of(replace(problem, training_texts=TrainingTexts(recovery=text)))
    return STAGES[name].from_config(problem.config).train(reference, pruned, plan)


def test_the_update_is_the_product_of_both() -> None:
    weight, first, second = torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
    assert torch.equal(merged(weight, first, second), torch.tensor([[4.0, 6.0], [-1.0, -1.0]]))


def test_an_update_is_rounded_once() -> None:
    weight, first, second = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([[2**-9]]), torch.tensor([[3.0]])
    assert merged(weight, first, second) == torch.tensor(1 + 3 * 2**-9).bfloat16() != 1


def test_a_share_of_the_change_is_kept() -> None:
    weight, first, second = torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0], [0.0]])
    assert torch.equal(merged(weight, first, second, 0.25), torch.tensor([[2.0, 2.0], [0.0, 1.0]]))
    model = make_model().bfloat16()
    for share, bits in ((0.25, 2.0**-6), (1.0, 2.0**-4)):
        masters = Distill(GRASPConfig(recover_interpolation=share)).trainable(WholeModel(model))
        (name,) = (each for each in masters.names if each.endswith("layers.0.input_layernorm.weight"))
        assert (model.get_parameter(name) == 1).all()
        weights = masters.weights([start + 2.0**-4 for start in masters.start()])
        assert (weights[name] == 1 + bits).all()


def test_what_is_judged_is_what_comes_out(name: str, model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    stage = STAGES[name](GRASPConfig(recover=name, recover_rank=4, recover_interpolation=0.6))
    trainable, generator = stage.trainable(runner), torch.Generator().manual_seed(1)
    numbers = [start + torch.randn(start.shape, generator=generator) / 9 for start in trainable.start()]
    with trainable.attached(runner, numbers) as prepare:
        seen = [(prepare(0.5, judged), logits_of(model, TOKENS))[1] for judged in (False, True, False)]
    LearntWeights(model, trainable.weights(numbers), None, None).fold()  # type: ignore[arg-type]
    difference = logits_of(model, TOKENS) - seen[1]
    assert (difference.norm() / seen[1].norm()).item() <= 1e-5
    assert torch.equal(seen[0], seen[2]) and not torch.allclose(seen[0], seen[1])


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 1}])
def test_merged_adapters_compute_what_attached_ones_do(options: dict[str, object]) -> None:
    model = make_model(**options)
    runner, before = WholeModel(model), state_of(model)
    adapters = Lora(GRASPConfig(recover_rank=3, recover_interpolation=1)).trainable(runner)
    numbers = [torch.randn(start.shape, generator=torch.Generator().manual_seed(1)) for start in adapters.start()]
    with adapters.attached(runner, numbers):
        attached = logits_of(model, TOKENS)
    assert same(state_of(model), before)
    LearntWeights(model, adapters.weights(numbers), None, None).fold()  # type: ignore[arg-type]
    difference = logits_of(model, TOKENS) - attached
    assert (difference.norm() / attached.norm()).item() <= 1e-5
    assert not same(state_of(model), before) and state_of(model).keys() == before.keys()


def test_adapters_are_on_all_maps_of_the_layers_and_change_nothing_at_first(model: LlamaForCausalLM) -> None:
    runner, drawn = WholeModel(model), torch.get_rng_state()
    plain = logits_of(model, TOKENS)
    adapters = Lora(GRASPConfig(recover_rank=3)).trainable(runner)
    with adapters.attached(runner, adapters.start()):
        assert torch.equal(logits_of(model, TOKENS), plain)
    assert len(adapters.paths) == 7 * model.config.num_hidden_layers
    assert {tuple(start.shape) for start in adapters.start()[:2]} == {(3, 32), (32, 3)}
    assert not hasattr(model, "peft_config") and torch.equal(torch.get_rng_state(), drawn)
    other = Adapters(model, adapters.paths, 3, seed=1, kept_share=1)
    assert not torch.equal(other.start()[0], adapters.start()[0])


def test_masters_are_all_parameters_of_the_layers(model: LlamaForCausalLM) -> None:
    masters = Distill(GRASPConfig()).trainable(WholeModel(model))
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(masters.names) == {name for name, _ in model.named_parameters()} - outside


def test_weights_in_bf16_feel_steps_that_they_cannot_hold() -> None:
    model = make_model().bfloat16()
    runner = WholeModel(model)
    masters = Distill(GRASPConfig()).trainable(runner)
    step = 2.0**-12
    numbers = [start.clone() + step for start in masters.start()]
    assert all(number.dtype == torch.float32 for number in numbers)
    before = list(model.parameters())
    with masters.attached(runner, numbers) as prepare:
        prepare(0.0)
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert [id(each) for each in model.parameters()] == [id(each) for each in before]
    rounded = masters.weights([number + 8 * step for number in numbers])
    assert all(weight.dtype == torch.bfloat16 for weight in rounded.values())
    assert any(not torch.equal(weight, model.get_parameter(name)) for name, weight in rounded.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pruned_model_gets_better_and_the_dense_one_stays(
    name: str, dtype: torch.dtype, model: LlamaForCausalLM
) -> None:
    model = model.to(dtype)
    before, size = state_of(model), count_parameters(given(model, name)[2])
    learnt = trained(model, name, recover_learning_rate=1e-2)
    runner = WholeModel(learnt.pruned)
    losses = [runner.mean_loss(TOKENS[:3])]
    bare = state_of(learnt.pruned)
    with learnt.in_force():
        losses.append(runner.mean_loss(TOKENS[:3]))
    assert losses[1] < losses[0] - 0.02 and same(state_of(learnt.pruned), bare)
    learnt.fold()
    assert runner.mean_loss(TOKENS[:3]) == losses[1] and same(state_of(model), before)
    assert count_parameters(learnt.pruned) == size
    assert not [key for key in learnt.pruned.state_dict() if "lora" in key]
    frozen = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert all(torch.equal(learnt.pruned.state_dict()[key], before[key]) for key in frozen)


def test_a_whole_model_is_what_its_teacher_is_and_stays_so(name: str, model: LlamaForCausalLM) -> None:
    learnt = trained(model, name, keep_ratio=1.0, kl_weight=1.0)
    assert all(torch.equal(weight, model.get_parameter(key)) for key, weight in learnt.weights.items())


def test_gradient_checkpointing_comes_to_the_same(name: str, model: LlamaForCausalLM) -> None:
    plain, recomputed = (trained(model, name, gradient_checkpointing=flag).weights for flag in (False, True))
    for key, weight in plain.items():
        torch.testing.assert_close(weight, recomputed[key])


def test_sequences_in_a_step(name: str, model: LlamaForCausalLM) -> None:
    alone, by_two = (trained(model, name, TEXT, recover_batch_size=size) for size in (None, 2))
    assert [each.training.planned_steps for each in (alone, by_two)] == [4, 2]
    assert alone.training.tokens == by_two.training.tokens == TOKENS.numel()
    assert not same(alone.weights, by_two.weights)  # type: ignore[arg-type]
    others_by_two = trained(model, name, TEXT, batch_size=2)  # which goes for all that is trained
    assert same(by_two.weights, others_by_two.weights)  # type: ignore[arg-type]
    of_its_own = trained(model, name, TEXT, batch_size=2, recover_batch_size=1)
    assert same(alone.weights, of_its_own.weights)  # type: ignore[arg-type]


def test_what_has_too_few_sequences_in_a_step_is_named(name: str, model: LlamaForCausalLM) -> None:
    def named(**options: int) -> tuple[int, str]:
        problem, *_ = given(model, name, **options)
        training = STAGES[name].from_config(problem.config)._training(Reference.of(problem))
        return training.batch_size, training.batch_option

    assert named(batch_size=3) == (3, "--batch-size")
    assert named(batch_size=3, recover_batch_size=2) == (2, "--recover-batch-size")


def test_the_seed_draws_the_order(name: str, model: LlamaForCausalLM) -> None:
    first, again = (trained(model, name).weights for _ in range(2))
    assert same(first, again)  # type: ignore[arg-type]


# What is kept.


def losses_in_turn(monkeypatch: pytest.MonkeyPatch, values: list[tuple[float, float]]) -> None:
    """Have the looks at held-out and watched text find these, one after another."""
    found = iter([loss for pair in values for loss in pair])
    monkeypatch.setattr(WholeModel, "mean_loss", lambda *_: next(found))


def test_the_best_state_is_kept_and_not_the_last(
    name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []
    look = Course._look

    def watched(course: Course, runner: WholeModel, numbers: list[Tensor], step: int) -> None:
        look(course, runner, numbers, step)
        states.append([number.detach().clone() for number in numbers])  # type: ignore[arg-type]

    monkeypatch.setattr(Course, "_look", watched)
    # Four steps. The second is best; the third has the lowest mean, at the cost of the watched text.
    losses_in_turn(monkeypatch, [(5, 5), (4.5, 4.9), (4.2, 4.8), (2, 5.1), (4.4, 4.8)])
    learnt = trained(model, name, TEXT, recover_learning_rate=1e-2)
    record = learnt.record
    assert learnt.verdict and (record.kept_step, record.steps, record.planned_steps) == (2, 4, 4)
    assert (record.before.held_out, record.before.watched) == (5, 5)  # type: ignore[union-attr]
    assert (record.after.held_out, record.after.watched) == (4.2, 4.8)  # type: ignore[union-attr]
    assert record.tokens == 80
    _, _, pruned = given(model, name)
    config = GRASPConfig(recover_rank=4)
    expected = STAGES[name](config).trainable(WholeModel(pruned)).weights(states[2])  # type: ignore[arg-type]
    assert same(dict(learnt.weights), expected) and len(states) == 5


def test_what_makes_other_text_worse_is_not_kept(
    name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_in_turn(monkeypatch, [(5, 5), *[(1, 5.01)] * 4])
    learnt = trained(model, name, TEXT, recover_learning_rate=1e-2)
    assert learnt.verdict is False and learnt.record.kept_step == 0
    assert learnt.record.after == learnt.record.before
    _, _, pruned = given(model, name)
    assert all(torch.equal(weight, pruned.get_parameter(key)) for key, weight in learnt.weights.items())


# From the corpus to the checkpoint, and from there again.


def pruner_of(name: str, corpus_file: Path, **options: object) -> GRASPPruner:
    values = {
        "method": "wanda_sp",
        "dataset": str(corpus_file),
        "num_samples": 4,
        "seq_len": 24,
        "held_out": 4,
        "recover": name,
        "recover_tokens": 480,
        "recover_watch": f"{__file__}[:50%]",
        "recover_learning_rate": 2e-3,
    }
    return GRASPPruner(GRASPConfig(**{**values, **options}))


def test_a_checkpoint_says_that_it_was_trained_and_can_be_made_again(
    name: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model = make_model()
    pruned = pruner_of(name, corpus_file).prune(model, tokenizer)
    recovery = pruned.record.recovery
    assert recovery is not None and pruned.record.compensation == (name,)
    assert (recovery.stage, recovery.tokens, recovery.steps) == (name, 480, 20) and recovery.kept_step
    assert recovery.before.held_out > recovery.after.held_out  # type: ignore[union-attr]
    assert recovery.before.watched >= recovery.after.watched  # type: ignore[union-attr]
    assert recovery.watched.source == __file__ and recovery.watched.split == "[:50%]"  # type: ignore[union-attr]
    assert pruned.record.choice[-1].compensation == name
    card = model_card(pruned.record)
    assert "No weight" not in card and str(tmp_path.parent) not in card
    assert " then trained" in card and "The weights were trained on 480 tokens of the same text; the loss fell" in card
    assert f"of `{Path(__file__).name}`" in card
    pruned.save(tmp_path / "out")
    loaded = load_pruned_model(tmp_path / "out")
    assert same(state_of(loaded), state_of(pruned.model))
    again = GRASPPruner(GRASPConfig()).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert same(state_of(again.model), state_of(pruned.model)) and again.record.recovery == recovery
    bare = GRASPPruner(GRASPConfig(compensation="none")).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert bare.record.recovery is None and bare.record.recipe["recover"] == "none" and not bare.record.compensation
    assert same(state_of(bare.model), state_of(pruner_of("none", corpus_file).prune(model, tokenizer).model))


def test_a_plan_can_be_recovered_later(
    name: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model = make_model()
    at_once = pruner_of(name, corpus_file).prune(model, tokenizer)
    pruner_of("none", corpus_file).prune(model, tokenizer).save(tmp_path / "bare")
    config = pruner_of(name, corpus_file).config
    later = GRASPPruner(config).replay(model, tokenizer, *read_plan(tmp_path / "bare"))
    assert same(state_of(later.model), state_of(at_once.model))
    assert later.record.compensation == (name,) and later.record.recovery is not None
    assert later.record.recipe["recover"] == name and later.record.recipe["recover_tokens"] == 480
    later.save(tmp_path / "later")
    again = GRASPPruner(GRASPConfig()).replay(model, tokenizer, *read_plan(tmp_path / "later"))
    assert same(state_of(again.model), state_of(at_once.model))


def test_a_plan_of_a_method_without_text_is_recovered_on_the_text_given(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model = make_model()
    GRASPPruner(GRASPConfig(method="magnitude")).prune(model, tokenizer).save(tmp_path / "bare")
    saved = read_plan(tmp_path / "bare")
    assert saved[1] is not None and saved[1].calibration is None
    given = pruner_of("distill", corpus_file, method="grasprune", recover_learning_rate=1e-4)
    later = given.replay(model, tokenizer, *saved)
    calibration = later.record.calibration
    assert calibration is not None and calibration.sequences == (4, 24) and later.record.recovery is not None
    assert later.record.compensation == ("distill",) and later.record.recipe["method"] == "magnitude"
    assert later.record.recipe["dataset"] == str(corpus_file)
    later.save(tmp_path / "later")
    again = GRASPPruner().replay(model, tokenizer, *read_plan(tmp_path / "later"))
    assert same(state_of(again.model), state_of(later.model))
    assert replace(again.record, versions={}) == replace(later.record, versions={})
    corpus_file.write_text(corpus_file.read_text() + "More of it. ")
    with pytest.raises(PlanError, match="is not the one that the plan was calibrated on"):
        GRASPPruner().replay(model, tokenizer, *read_plan(tmp_path / "later"))


def test_a_shallower_model_is_trained_like_any_other(
    name: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model = make_model(tie_word_embeddings=True)
    before = state_of(model)
    options = {"method": "block_influence", "keep_ratio": 0.5, "recover_rank": 2}
    pruned = pruner_of(name, corpus_file, **options).prune(model, tokenizer)
    assert type(pruned.model) is LlamaForCausalLM and pruned.record.compensation == (name,)
    assert same(state_of(model), before)
    card = model_card(pruned.record)
    assert "as they were" not in card and "went (counted from 0). " in card and " layers were then trained" in card
    pruned.save(tmp_path / "out")
    again = GRASPPruner().replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert same(state_of(again.model), state_of(pruned.model))
    assert same(state_of(LlamaForCausalLM.from_pretrained(tmp_path / "out")), state_of(pruned.model))


@pytest.mark.parametrize("asked", [True, False])
def test_a_replay_saves_memory_where_that_is_asked_for(
    asked: bool, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default's statistics have a backward pass of their own."""
    model = make_model()
    options = {"method": "grasprune", "num_samples": 2, "recover_tokens": 48, "held_out": 0}
    pruned = pruner_of("lora", corpus_file, **options).prune(model, tokenizer)
    seen: list[bool] = []
    gather, learn = WholeModel.gather, WholeModel.learn

    def watched_gather(*args: object, **given: object) -> object:
        seen.append(bool(given["gradient_checkpointing"]))
        return gather(*args, **given)  # type: ignore[arg-type]

    def watched_learn(*args: object, **given: object) -> object:
        seen.append(args[3].gradient_checkpointing)  # type: ignore[attr-defined]
        return learn(*args, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(WholeModel, "gather", watched_gather)
    monkeypatch.setattr(WholeModel, "learn", watched_learn)
    assert pruned.plan is not None
    again = GRASPPruner(GRASPConfig(gradient_checkpointing=asked)).replay(model, tokenizer, pruned.plan, pruned.record)
    assert seen == [asked] * 3  # the weights of tokens, diagonals, adapters
    for key, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, pruned.model.state_dict()[key])


@pytest.mark.parametrize("compensation", ["scales", "refit"])
def test_it_comes_after_what_makes_up_for_the_cut(
    compensation: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model = make_model()
    options = {"method": "random", "compensation": compensation, "held_out": 0, "recover_learning_rate": 1e-4}
    pruned = pruner_of("lora", corpus_file, **options).prune(model, tokenizer)
    assert pruned.record.compensation == (*stages_in(compensation), "lora")
    assert sentence(pruned.record.compensation).count("fine-tuned") == 0
    pruned.save(tmp_path / "out")
    again = GRASPPruner(GRASPConfig()).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert same(state_of(again.model), state_of(pruned.model)) and again.plan == pruned.plan


def test_where_nothing_is_trained_the_record_says_nothing_of_it(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    record = pruner_of("none", corpus_file).prune(make_model(), tokenizer).record
    assert "recovery" not in record.to_dict() and not [name for name in record.recipe if name.startswith("recover")]
    assert record.config.recover == "none"


def test_a_replay_watches_the_same_text(tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path) -> None:
    model, watched = make_model(), tmp_path / "watched.txt"
    watched.write_text(Path(__file__).read_text())
    pruner_of("lora", corpus_file, recover_watch=str(watched)).prune(model, tokenizer).save(tmp_path / "out")
    watched.write_text(Path(__file__).read_text() + " ")
    with pytest.raises(PlanError, match=r"watched.txt is not the one that the plan's recovery was judged on"):
        GRASPPruner().replay(model, tokenizer, *read_plan(tmp_path / "out"))


def test_a_replay_elsewhere_is_told_where_the_texts_lie(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    model, corpus, watched = make_model(), tmp_path / "corpus.txt", tmp_path / "watched.txt"
    corpus.write_text(corpus_file.read_text())
    watched.write_text(Path(__file__).read_text())
    options = {"recover_watch": f"{watched}[:50%]", "recover_tokens": 144}
    pruned = pruner_of("distill", corpus, **options).prune(model, tokenizer)
    assert pruned.plan is not None

    def again(**given: object) -> PrunedModel:
        return GRASPPruner(GRASPConfig(**given)).replay(model, tokenizer, pruned.plan, pruned.record)  # type: ignore[arg-type]

    for here in (again(), again(dataset=f"{__file__}")):  # what is recorded, as long as it is there
        assert same(state_of(here.model), state_of(pruned.model))
        with pytest.raises(CheckpointError, match="is the text that is watched"):
            here.save(watched)
    moved = watched.rename(tmp_path / "moved.txt")
    with pytest.raises(OptionError, match=r"recover_watch='.*watched.txt\[:50%\]': is what the plan's recovery"):
        again()
    elsewhere = again(recover_watch=f"{moved}[:50%]")
    assert same(state_of(elsewhere.model), state_of(pruned.model))
    assert replace(elsewhere.record, versions={}) == replace(pruned.record, versions={})
    with pytest.raises(CheckpointError, match="is the text that is watched"):
        elsewhere.save(moved)
    with pytest.raises(PlanError, match=r"moved.txt is not the one that the plan's recovery was judged on"):
        again(recover_watch=f"{moved}[:40%]")
    assert again(compensation="none").record.recovery is None
    corpus_moved = corpus.rename(tmp_path / "text.txt")
    with pytest.raises(
        OptionError, match=r"dataset='.*corpus.txt': is what the plan was calibrated on.* none or scales"
    ):
        again(recover_watch=f"{moved}[:50%]")
    elsewhere = again(dataset=str(corpus_moved), recover_watch=f"{moved}[:50%]")
    assert same(state_of(elsewhere.model), state_of(pruned.model))
    corpus_moved.write_text(corpus_moved.read_text() + "More of it. ")
    with pytest.raises(PlanError, match="text.txt is not the one that the plan was calibrated on"):
        again(dataset=str(corpus_moved), recover_watch=f"{moved}[:50%]")


def interrupted(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], step: int) -> None:
    """Run until a step is done, and no further."""
    goes_on = Course.goes_on

    def stop(course: Course, *arguments: object) -> bool:
        if arguments[-2] == step + 1:
            raise KeyboardInterrupt
        return goes_on(course, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Course, "goes_on", stop)
        run()


@pytest.mark.parametrize("watched", [True, False])
def test_a_run_that_was_stopped_goes_on_and_comes_to_the_same(
    name: str, watched: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, model, folder = (TEXT if watched else None), make_model(), tmp_path / "state"
    options = {"epochs": 1, "recover_learning_rate": 1e-2}
    whole = trained(model, name, text, **options)

    def kept() -> LearntWeights:
        return trained(model, name, text, RunState(folder, every=0.0), **options)

    interrupted(monkeypatch, kept, 2)
    kept_files = [f"0000-{name}.safetensors", "0001-teacher.safetensors", INDEX_NAME]
    assert sorted(entry.name for entry in folder.iterdir()) == kept_files
    with safe_open(folder / f"0000-{name}.safetensors", framework="pt") as file:
        assert "number.0" in file.keys() and '"step": 2' in file.metadata()["standing"]  # noqa: SIM118
    steps: list[int] = []
    goes_on = Course.goes_on
    monkeypatch.setattr(Course, "goes_on", lambda *all: steps.append(all[-2]) or goes_on(*all))
    resumed = kept()
    assert steps[0] == 3 and same(dict(resumed.weights), dict(whole.weights))
    assert replace(resumed.record, minutes=0) == replace(whole.record, minutes=0) and whole.record.kept_step > 2
    steps.clear()
    finished = kept()
    assert not steps and same(dict(finished.weights), dict(whole.weights)) and finished.record == resumed.record


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come without download, with little in them: a few modules, a few documents."""
    modules = tuple((f"module{n}", f"The module number {n} does {'what it does, ' * 9}and no more.") for n in range(60))
    monkeypatch.setattr(standard_library, "_documents", lambda: modules)
    monkeypatch.setattr(sources, "_sampled_text", lambda: "Once there was a number. " * 200)


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize(
    ("dataset", "split", "source", "watched"),
    [
        ("builtin", None, "sampled", "[90%:]"),  # the rest is rehearsed
        ("sampled", "[:90%]", "builtin", None),
        ("sampled,builtin", None, "builtin", "test"),
        ("builtin,sampled", "train[:90%]", "builtin", "test"),
        ("sampled,builtin", "test", "builtin", "train"),
    ],
)
def test_of_the_texts_that_come_along_one_is_watched_that_is_not_trained_on(
    dataset: str, split: str | None, source: str, watched: str | None
) -> None:
    trained_on = load_corpus(dataset, split)
    found = watched_corpus(trained_on, GRASPConfig(dataset=dataset, dataset_split=split))
    assert (found.source, found.split) == (source, watched)
    documents = found.text.split("\n\n")
    assert documents[0] and not any(document in trained_on.text for document in documents)


@pytest.mark.usefixtures("short_texts")
def test_the_default_corpus_is_trained_on_and_a_text_is_watched(tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"method": "random", "num_samples": 4, "seq_len": 24, "recover": "distill", "recover_tokens": 96}
    pruned = GRASPPruner(GRASPConfig(**options)).prune(make_model(), tokenizer)
    assert pruned.record.calibration is not None and pruned.record.calibration.source == "sampled,builtin"
    assert pruned.record.recovery is not None and pruned.record.recovery.watched is not None
    assert (pruned.record.recovery.watched.source, pruned.record.recovery.watched.split) == ("builtin", "test")


def test_the_layers_are_found_in_every_family(name: str, model: LlamaForCausalLM) -> None:
    runner = WholeModel(given(model, name)[2])
    weights = (
        STAGES[name](GRASPConfig()).trainable(runner).weights(STAGES[name](GRASPConfig()).trainable(runner).start())
    )
    assert weights.keys() <= dict(runner.model.named_parameters()).keys()
    assert family_of(runner.model.config).pruned_type == runner.model.config.model_type
