"""A model run from its files is the model run in memory, and holds one layer."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from optimum_grasprune import GRASPConfig
from optimum_grasprune.admission import check_model
from optimum_grasprune.errors import ModelError
from optimum_grasprune.execution import Runner, StreamedModel, WholeModel
from optimum_grasprune.execution import streamed as streaming
from optimum_grasprune.families import Block
from optimum_grasprune.gates import train_gates
from optimum_grasprune.layer_store import LayerStore
from optimum_grasprune.methods import get_method
from optimum_grasprune.methods.base import Problem
from optimum_grasprune.recovery.least_squares import FITS, restored_on_dense_inputs
from optimum_grasprune.statistics import MOMENTS, PER_SEQUENCE, PER_TOKEN, TOKEN_WEIGHTS, Collector, Statistic
from optimum_grasprune.streamed_loading import streamed_model
from optimum_grasprune.units import PruningPlan
from tests.conftest import make_model
from tests.tiny_models import some_mask, tiny_model

FAMILIES = ["LLaMA", "Gemma 3", "OPT", "Phi-3"]
VARIANT = {"Phi-3": "sliding-wide-heads", "Gemma 3": "mixed"}
TOKENS = torch.randint(2, 258, (5, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES, scope="module")
def runners(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WholeModel, StreamedModel]:
    """One model, in memory and from its files."""
    model = tiny_model(request.param, VARIANT.get(request.param))
    folder = tmp_path_factory.mktemp("streamed")
    model.save_pretrained(folder, max_shard_size="20KB")
    return WholeModel(model), StreamedModel(streamed_model(str(folder)))


@pytest.fixture
def streamed(tmp_path: Path) -> StreamedModel:
    make_model(num_hidden_layers=4).save_pretrained(tmp_path)
    return StreamedModel(streamed_model(str(tmp_path)))


def problem_of(runner: Runner, **options: object) -> Problem:
    config = GRASPConfig(keep_ratio=0.5, **options)
    method = get_method(config.method)
    budget = method.budget(config, runner.model, runner.family, runner.inventory, 0)
    return method.problem(runner, budget, TOKENS[:4], TOKENS[4:], config)


def test_losses_are_the_same(runners: tuple[WholeModel, StreamedModel]) -> None:
    whole, streamed = runners
    for batch_size in (1, 2):
        found, expected = (list(each.losses(TOKENS, batch_size)) for each in (streamed, whole))
        assert [each.shape for each in found] == [each.shape for each in expected]
        torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["fasp", "flap", "wanda_sp", "magnitude", "taylor", "fisher", "ddp", "block_influence"]
)
def test_scores_are_the_same(method: str, runners: tuple[WholeModel, StreamedModel]) -> None:
    whole, streamed = (problem_of(each, method=method) for each in runners)
    expected_U, found_U = (get_method(method).score(each) for each in (whole, streamed))
    torch.testing.assert_close(found_U, expected_U, rtol=1e-4, atol=1e-7)
    chosen = [list(get_method(method).candidates(whole, scores_U).values()) for scores_U in (expected_U, found_U)]
    for one, other in zip(*chosen, strict=True):
        assert torch.equal(one.kept_U, other.kept_U)


def test_single_weights_are_chosen_the_same(runners: tuple[WholeModel, StreamedModel]) -> None:
    method = get_method("statistical")
    expected, found = (
        method.select_elements(problem_of(each, method="statistical", pattern="unstructured")).kept for each in runners
    )
    assert expected.keys() == found.keys()
    differing = sum(int((expected[path] ^ found[path]).sum()) for path in expected)
    assert differing <= 2  # where two scores are within rounding


@pytest.mark.parametrize(("kl_weight", "batch_size"), [(0.0, 1), (0.5, 1), (0.0, 2), (0.5, 2)])
def test_gates_come_out_the_same(kl_weight: float, batch_size: int, runners: tuple[WholeModel, StreamedModel]) -> None:
    options = {"epochs": 2, "batch_size": batch_size, "learning_rate": 0.1, "kl_weight": kl_weight}
    whole = problem_of(runners[0], method="grasprune", **options)
    start_U = None
    if batch_size > 1:
        # A batch is not multiplied as its sequences are one by one, and from equal scores AdamW's first step leads to
        # all but equal ones, whose order is that of rounding.
        start_U = torch.rand(whole.inventory.num_units, generator=torch.Generator().manual_seed(0))
    expected_U, found_U = (train_gates(each, whole.budget, TOKENS, whole.config, start_U)[-1] for each in runners)
    torch.testing.assert_close(found_U, expected_U, rtol=1e-3, atol=1e-3)
    chosen = (get_method("grasprune").select(whole, scores_U).kept_U for scores_U in (expected_U, found_U))
    assert torch.equal(*chosen)


def test_least_squares_are_the_same(runners: tuple[WholeModel, StreamedModel]) -> None:
    plan = PruningPlan.from_mask(some_mask(runners[0].model))
    (expected,), (found,) = (restored_on_dense_inputs(each, [(plan, 0.1)], TOKENS, FITS["plain"]) for each in runners)
    assert expected.keys() == found.keys()
    for path, weight_OK in expected.items():
        torch.testing.assert_close(found[path], weight_OK, rtol=1e-3, atol=1e-4)


def test_statistics_of_a_cut_model_are_the_same(runners: tuple[WholeModel, StreamedModel]) -> None:
    kept_U = some_mask(runners[0].model).kept_U
    wanted = [MOMENTS, PER_TOKEN, PER_SEQUENCE, TOKEN_WEIGHTS]
    for together in (wanted, wanted[:1]):
        expected, found = (each.gather(together, TOKENS, kept_U=kept_U) for each in runners)
        for statistic in together[1:]:
            torch.testing.assert_close(found[statistic], expected[statistic], rtol=1e-4, atol=1e-9)
        for path, moments in expected[MOMENTS].items():
            assert found[MOMENTS][path].count == moments.count == TOKENS.numel()
            torch.testing.assert_close(found[MOMENTS][path].variance_I, moments.variance_I, rtol=1e-4, atol=1e-9)


def test_moments_do_not_count_what_is_run_again(model: LlamaForCausalLM) -> None:
    counts = WholeModel(model).gather([MOMENTS, PER_TOKEN], TOKENS, gradient_checkpointing=True)[MOMENTS]
    assert {moments.count for moments in counts.values()} == {TOKENS.numel()}


@dataclass(frozen=True)
class Seen(Statistic[list[tuple[str, int]]]):
    """In which order maps and sequences are shown, by the first token's place in the sequences."""

    from_gradients: ClassVar[bool] = True

    def collector(self, blocks: tuple[Block, ...], maps: Mapping[str, int]) -> Collector[list[tuple[str, Tensor]]]:
        return _Seen()


class _Seen(Collector[Any]):
    def __init__(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []

    def see_gradient(self, path: str, x_TI: Tensor, gradient_TI: Tensor) -> None:
        self.seen.append((path, gradient_TI))

    def result(self, tokens: int) -> list[tuple[str, Tensor]]:
        return self.seen


def test_gradients_are_shown_one_sequence_at_a_time_in_order(runners: tuple[WholeModel, StreamedModel]) -> None:
    expected, found = (each.gather([Seen()], TOKENS)[Seen()] for each in runners)
    paths = {path for path, _ in expected}
    for path in paths:
        of_whole, of_streamed = ([part for name, part in seen if name == path] for seen in (expected, found))
        for one, other in zip(of_whole, of_streamed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


class Watched:
    """Counts what a store reads, and how many layers' weights are alive whenever it has read one."""

    def __init__(self, store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched: list[int] = []
        self.most = 0
        self._alive: list[tuple[int, weakref.ref[nn.Parameter]]] = []
        fetch = store.fetch

        def watched(layer: int) -> None:
            held = store._held
            fetch(layer)
            if held == layer:
                return
            self.fetched.append(layer)
            self._alive += [(layer, weakref.ref(each.module._parameters[each.leaf])) for each in store._places[layer]]
            self.most = max(self.most, len(self.layers_alive()))

        monkeypatch.setattr(store, "fetch", watched)

    def layers_alive(self) -> set[int]:
        return {layer for layer, reference in self._alive if reference() is not None}


@pytest.fixture
def watched(streamed: StreamedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Without the collector of circles, which would hide them."""
    assert streamed.store is not None
    gc.disable()
    yield Watched(streamed.store, monkeypatch)
    gc.enable()


UP, DOWN = [0, 1, 2, 3], [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("run", "order"),
    [
        (lambda runner: runner.mean_loss(TOKENS), UP),
        (lambda runner: runner.teacher(TOKENS), UP),
        (lambda runner: runner.gather([MOMENTS], TOKENS), UP),
        (lambda runner: runner.gather([MOMENTS, PER_TOKEN], TOKENS), UP + DOWN[1:]),
    ],
)
def test_a_layer_is_read_once_for_all_sequences(
    run: Callable[[Runner], object], order: list[int], streamed: StreamedModel, watched: Watched
) -> None:
    run(streamed)
    assert watched.fetched == order
    assert watched.most == 1 and not watched.layers_alive()
    assert all(parameter.is_meta for name, parameter in streamed.model.named_parameters() if ".layers." in name)


def test_a_step_reads_each_layer_twice(streamed: StreamedModel, watched: Watched) -> None:
    config = GRASPConfig(keep_ratio=0.5, batch_size=3, epochs=1, learning_rate=0.1, kl_weight=0)
    budget = problem_of(streamed, method="grasprune").budget
    train_gates(streamed, budget, TOKENS, config)
    assert watched.fetched == UP + DOWN[1:] + UP[1:] + DOWN[1:]  # two steps, and what is in memory is not read again
    assert watched.most == 1 and not watched.layers_alive()


def test_layer_by_layer_reads_each_layer_once(streamed: StreamedModel, watched: Watched) -> None:
    with streamed.stream(TOKENS) as stream:
        assert watched.fetched == []
        for index in UP:
            stream.advance(index)
    assert watched.fetched == UP and watched.most == 1


@pytest.mark.parametrize("backward", [False, True])
def test_as_many_sequences_go_together_as_their_hidden_states_allow(
    backward: bool, streamed: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one = 20 * 32 * 4
    monkeypatch.setitem(streaming.HIDDEN_BYTES, "cpu", 3 * of_one + 1)
    monkeypatch.setitem(streaming.BORDER_BYTES, "cpu", 2 * 4 * of_one)
    assert streamed._at_once(20, backward=backward) == (2 if backward else 3)
    assert streamed._at_once(20, 2, backward=backward) == 2 and streamed._at_once(20, 7) == 7
    sizes = []
    streamed.model.model.embed_tokens.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    streamed.gather([PER_TOKEN if backward else MOMENTS], TOKENS)
    assert sizes == ([2, 2, 1] if backward else [3, 2])


def test_a_layer_sees_one_sequence_at_a_time(streamed: StreamedModel) -> None:
    sizes = set()
    streamed.model.model.layers[1].mlp.register_forward_hook(lambda _, given, __: sizes.add(given[0].shape))
    streamed.gather([PER_TOKEN], TOKENS)
    streamed.mean_loss(TOKENS, batch_size=3)
    assert sizes == {(1, 20, 32)}


def test_a_parameter_is_read_without_disturbing_what_is_in_memory(streamed: StreamedModel, watched: Watched) -> None:
    whole = make_model(num_hidden_layers=4)
    with streamed.stream(TOKENS) as stream:
        stream.advance(1)
        for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"):
            assert torch.equal(streamed.parameter(name), whole.get_parameter(name))
    assert watched.fetched == [1]


def shell_of(model: PreTrainedModel, path: str, weight: Tensor) -> PreTrainedModel:
    """A model that shares all modules with another but those above one linear map, which is its own."""
    shell = copy.copy(model)
    parent: nn.Module = shell
    *above, leaf = path.split(".")
    for name in above:
        child = copy.copy(parent.get_submodule(name))
        parent._modules = {**parent._modules, name: child}
        parent = child
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    parent._modules = {**parent._modules, leaf: linear}
    return shell


def test_a_model_that_shares_layers_is_run_beside_it(streamed: StreamedModel, watched: Watched) -> None:
    path = "model.layers.2.mlp.down_proj"
    whole = make_model(num_hidden_layers=4)
    weight = whole.get_submodule(path).weight.detach() / 2
    dense_loss = WholeModel(whole).mean_loss(TOKENS)
    beside = streamed.beside(shell_of(streamed.model, path, weight))
    whole.get_submodule(path).weight.data = weight
    for _ in range(2):
        assert beside.mean_loss(TOKENS) == pytest.approx(WholeModel(whole).mean_loss(TOKENS), rel=1e-6)
        assert streamed.mean_loss(TOKENS) == pytest.approx(dense_loss, rel=1e-6)
    assert torch.equal(beside.parameter(f"{path}.weight"), weight)
    with streamed.stream(TOKENS) as one, beside.stream(TOKENS) as other:
        for index in UP:
            one.advance(index)
            other.advance(index)
    assert watched.most == 1


def test_nothing_is_read_for_a_model_in_memory(streamed: StreamedModel, watched: Watched) -> None:
    model = make_model(1)
    assert streamed.beside(model).mean_loss(TOKENS) == pytest.approx(WholeModel(model).mean_loss(TOKENS), rel=1e-6)
    assert watched.fetched == []


def test_weights_that_are_nowhere() -> None:
    with torch.device("meta"):
        model = make_model()
    with pytest.raises(ValueError, match="model.embed_tokens.weight is nowhere to be read from"):
        StreamedModel(model)


def test_a_streamed_model_is_admitted(streamed: StreamedModel) -> None:
    check_model(streamed.model)
    vars(streamed.model)["layer_store"] = None
    with pytest.raises(ModelError, match="the model's weights are not in memory"):
        check_model(streamed.model)


def test_weights_that_are_not_finite_are_refused_when_they_are_read(tmp_path: Path) -> None:
    model = make_model()
    model.get_parameter(name := "model.layers.1.mlp.up_proj.weight").data[3, 4] = torch.inf
    model.save_pretrained(tmp_path)
    runner = StreamedModel(streamed_model(str(tmp_path)))
    for read in (lambda: runner.mean_loss(TOKENS), lambda: runner.parameter(name)):
        with pytest.raises(ModelError, match=f"{tmp_path} has weights that are not finite, in {name}"):
            read()
    assert all(parameter.is_meta for path, parameter in runner.model.named_parameters() if ".layers." in path)
