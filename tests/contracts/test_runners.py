"""What every way of running a model must do: compute what the model computes, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from optimum_grasprune import GRASPConfig, PruningPlan, UnitMask
from optimum_grasprune.dispatched import is_dispatched
from optimum_grasprune.execution import (
    Gathered,
    OffloadedModel,
    OfUnits,
    Pace,
    Peers,
    Resumable,
    Runner,
    RunState,
    SeveralProcesses,
    StreamedModel,
    Training,
    UnitMultipliers,
    WholeModel,
)
from optimum_grasprune.execution.training import batches, training_steps
from optimum_grasprune.families import family_of, linear_at, linears
from optimum_grasprune.families.llama import LLAMA
from optimum_grasprune.methods import get_method
from optimum_grasprune.progress import Bar
from optimum_grasprune.selection import choose
from optimum_grasprune.statistics import MOMENTS, PER_SEQUENCE, PER_TOKEN, Moments
from optimum_grasprune.streamed_loading import streamed_model
from optimum_grasprune.surgery import build_pruned_model
from tests.conftest import logits_of, make_model
from tests.contracts.test_methods import choices, problem_of


def offloaded(model: PreTrainedModel) -> Runner:
    """With all weights in CPU memory, from where hooks of accelerate's bring them to the CPU."""
    accelerate = pytest.importorskip("accelerate")
    if not is_dispatched(model):
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return OffloadedModel(model)


RUNNERS: dict[str, Callable[[PreTrainedModel], Runner]] = {
    "whole": WholeModel,
    "offloaded": offloaded,
    "one of several processes": lambda model: SeveralProcesses(WholeModel(model), Peers()),
    "resumable": lambda model: Resumable(WholeModel(model), RunState("never written")),
}
TOKENS = torch.randint(258, (3, 20), generator=torch.Generator().manual_seed(0))


def streamed(folder: Path, model: PreTrainedModel) -> StreamedModel:
    """The model, written below the folder and run from there."""
    own = folder / f"model-{len(list(folder.iterdir()))}"
    model.save_pretrained(own)
    return StreamedModel(streamed_model(str(own)))


@pytest.fixture(params=[*RUNNERS, "streamed"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[PreTrainedModel], Runner]:
    return partial(streamed, tmp_path) if request.param == "streamed" else RUNNERS[request.param]


def traces(model: PreTrainedModel) -> list[Any]:
    hooks = [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    return [hooks, flags, [(each.requires_grad, each.grad) for each in model.parameters()]]


def half(model: PreTrainedModel) -> UnitMask:
    inventory = family_of(model.config).inventory(model)
    return UnitMask(inventory, inventory.place_U % 2 == 0)


def test_the_loss_is_that_of_each_sequence_by_itself(model: LlamaForCausalLM, run: Callable[..., Runner]) -> None:
    expected = [functional.cross_entropy(logits_of(model, each[None])[0, :-1], each[1:]) for each in TOKENS]
    for batch_size in (1, 2):
        assert run(model).mean_loss(TOKENS, batch_size) == pytest.approx(float(sum(expected)) / 3, rel=1e-6)


def test_gates_at_zero_compute_what_the_sliced_model_does(model: LlamaForCausalLM, run: Callable[..., Runner]) -> None:
    runner, mask = run(model), half(model)
    sliced = build_pruned_model(model, PruningPlan.from_mask(mask), family_of(model.config))
    whole = runner.mean_loss(TOKENS)
    with runner.gated() as gates:
        assert runner.mean_loss(TOKENS) == whole
        gates.values_U = mask.kept_U
        assert runner.mean_loss(TOKENS) == pytest.approx(runner.beside(sliced).mean_loss(TOKENS), rel=1e-5)
    assert runner.mean_loss(TOKENS) == whole


def seen_by_hooks(model: PreTrainedModel, paths: list[str]) -> dict[str, Tensor]:
    """The inputs of maps over all sequences, tokens in rows."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    handles = [
        linear_at(model, path).register_forward_pre_hook(
            lambda _, inputs, path=path: seen[path].append(inputs[0].flatten(0, -2))
        )
        for path in paths
    ]
    with torch.no_grad():
        model(TOKENS)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts) for path, parts in seen.items()}


@pytest.mark.parametrize("every", [False, True])
def test_moments_are_those_of_what_enters(model: LlamaForCausalLM, run: Callable[..., Runner], every: bool) -> None:
    runner = run(model)
    paths = list(linears(model, runner.blocks)) if every else [block.output for block in runner.blocks]
    moments = runner.gather([MOMENTS], TOKENS, paths if every else None)[MOMENTS]
    assert list(moments) == paths
    for path, x_TI in seen_by_hooks(model, paths).items():
        torch.testing.assert_close(moments[path].mean_I, x_TI.double().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moments[path].variance_I, x_TI.double().var(0), rtol=1e-4, atol=1e-8)


def test_all_statistics_come_from_one_pass(model: LlamaForCausalLM, run: Callable[..., Runner]) -> None:
    runner, passes = run(model), []
    handle = runner.model.get_output_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))
    together = runner.gather([MOMENTS, PER_TOKEN, PER_SEQUENCE], TOKENS)
    handle.remove()
    assert len(passes) == len(TOKENS)
    for statistic in (PER_TOKEN, PER_SEQUENCE):
        assert torch.equal(together[statistic], runner.gather([statistic], TOKENS)[statistic])
    alone: dict[str, Moments] = runner.gather([MOMENTS], TOKENS)[MOMENTS]
    for path, moments in together[MOMENTS].items():
        torch.testing.assert_close(moments.mean_I, alone[path].mean_I)


@pytest.mark.parametrize(("method", "chain"), [("flap", "bias"), ("taylor", "energy"), ("wanda_sp", "energy")])
def test_what_a_method_and_a_stage_look_at_is_gathered_together(
    method: str, chain: str, model: LlamaForCausalLM, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[set[Any]] = []
    gather = WholeModel.gather

    def counted(self: WholeModel, statistics: Any, *given: Any, **options: Any) -> Any:
        passes.append(set(statistics))
        return gather(self, statistics, *given, **options)

    monkeypatch.setattr(WholeModel, "gather", counted)
    problem = problem_of(model, GRASPConfig(method=method, compensation=chain, keep_ratio=0.5))
    problem = replace(problem, held_out_NS=TOKENS[:0])
    choose(choices(problem), get_method(method).chain_for(problem.config), problem)
    assert passes == [set(problem.declared)] and problem.declared


def test_what_was_not_declared_is_not_gathered(model: LlamaForCausalLM, run: Callable[..., Runner]) -> None:
    with pytest.raises(KeyError, match="was not declared"):
        Gathered(run(model), [PER_TOKEN], TOKENS)[MOMENTS]


def test_learning_goes_downhill_and_leaves_no_trace(model: LlamaForCausalLM, run: Callable[..., Runner]) -> None:
    runner = run(model)
    before = traces(runner.model)
    weights = {name: runner.parameter(name).clone() for name, _ in model.named_parameters()}
    training = Training(4, 1, 0, 0.05, "constant", gradient_checkpointing=False, label="scales")
    trained = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
    learnt = [runner.learn(trained, TOKENS, training)[0] for _ in range(2)]
    assert torch.equal(*learnt) and learnt[0].device.type == "cpu" and not learnt[0].requires_grad
    with runner.gated() as gates:
        start = runner.mean_loss(TOKENS)
        gates.values_U = learnt[0]
        assert runner.mean_loss(TOKENS) < start - 0.05
    runner.gather([PER_TOKEN, MOMENTS], TOKENS)
    assert traces(runner.model) == before
    assert all(torch.equal(runner.parameter(name), weight) for name, weight in weights.items())


def test_tensors_are_trained_at_their_own_pace_downhill_or_uphill(
    model: LlamaForCausalLM, run: Callable[..., Runner]
) -> None:
    """The slope of the second is always one, so AdamW takes it one learning rate further at each step."""
    runner, moments = run(model), list[float]()

    class Climbing(OfUnits):
        def start(self) -> list[Tensor]:
            return [torch.ones(runner.inventory.num_units), torch.zeros(())]

        def paces(self) -> list[Pace]:
            return [Pace(), Pace(10, ascends=True)]

        def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
            return numbers[0]

        def penalty(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
            moments.append(progress)
            return numbers[1]

    training = Training(2, 1, 0, 0.01, "constant", gradient_checkpointing=False, label="scales")
    values_U, height = runner.learn(Climbing(), TOKENS, training)
    assert height.item() == pytest.approx(6 * 0.1, rel=1e-4)
    assert moments == pytest.approx([step / 6 for step in range(6)])
    alone = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
    assert torch.equal(values_U, runner.learn(alone, TOKENS, training)[0])


def test_layer_by_layer_is_what_the_model_computes(model: LlamaForCausalLM, run: Callable[..., Runner]) -> None:
    runner = run(model)
    before = traces(runner.model)
    with runner.stream(TOKENS) as stream:
        for index in range(len(stream.layers)):
            stream.advance(index)
        logits = model.lm_head(model.model.norm(torch.cat(stream.hidden)))
    torch.testing.assert_close(logits, logits_of(model, TOKENS), rtol=1e-4, atol=1e-5)
    assert traces(runner.model) == before


def test_layers_with_masks_of_their_own(run: Callable[..., Runner]) -> None:
    """A sliding window in every other layer, shorter than the sequences."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention"] * 2,
        initializer_range=0.2,
    )
    model = Qwen2ForCausalLM(config).eval()
    runner = run(model)
    runner.__dict__["family"] = LLAMA  # the same names of modules; whether Qwen2 is supported is not the question
    with runner.stream(TOKENS) as stream:
        for index in range(len(stream.layers)):
            stream.advance(index)
        logits = model.lm_head(model.model.norm(torch.cat(stream.hidden)))
    torch.testing.assert_close(logits, logits_of(model, TOKENS), rtol=1e-4, atol=1e-5)


def test_another_model_is_run_in_the_same_way(run: Callable[..., Runner]) -> None:
    first, second = make_model(0), make_model(1)
    runner = run(first).beside(second)
    assert type(runner) is type(run(first)) and runner.model is second


def test_the_bar_shows_a_running_mean_of_the_loss(
    model: LlamaForCausalLM, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(Bar, "status", lambda _, text: shown.append(text))
    runner = run(model)
    trained = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
    training = Training(2, 1, 0, 1e-9, "constant", gradient_checkpointing=False, label="scales")
    runner.learn(trained, TOKENS, training, status=lambda: ["kv 50%"])
    losses = [runner.mean_loss(TOKENS[indices]) for indices in batches(len(TOKENS), 2, 1, 0)]
    smooth, expected = losses[0], [losses[0]]
    for loss in losses[1:]:
        smooth = 0.95 * smooth + 0.05 * loss
        expected.append(smooth)
    assert shown == [f"loss {loss:.3f}, kv 50%" for loss in expected]


def test_steps_are_whole() -> None:
    assert training_steps(5, 2, 2) == 6 and isinstance(training_steps(5, 2, 2), int)
