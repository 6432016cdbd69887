"""Several processes, each a thread here with a model of its own; what they exchange goes through memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.errors import GraspruneError, GraspruneWarning
from optimum_grasprune.execution import (
    Course,
    OfUnits,
    Pace,
    Processes,
    Resumable,
    Runner,
    RunState,
    SeveralProcesses,
    SharedState,
    Teacher,
    Training,
    UnitMultipliers,
    WholeModel,
    runner_for,
    several_processes,
    streamed,
)
from optimum_grasprune.execution.shares import Share, shared_out
from optimum_grasprune.execution.watch import Watch
from optimum_grasprune.families import Block
from optimum_grasprune.numerics import even_shares
from optimum_grasprune.statistics import (
    MOMENTS,
    PER_SEQUENCE,
    PER_TOKEN,
    TOKEN_WEIGHTS,
    Collector,
    Statistic,
)
from optimum_grasprune.stored_tensors import stored_tensors
from optimum_grasprune.streamed_loading import streamed_model
from tests.conftest import make_model, make_tokenizer

TOKENS = torch.randint(258, (5, 20), generator=torch.Generator().manual_seed(0))
Result = TypeVar("Result")


class Threaded(Processes):
    """A process whose peers are other threads."""

    def __init__(self, rank: int, count: int, given: list[Tensor], barrier: threading.Barrier) -> None:
        super().__init__(rank, count, Watch(rank, count, {}), on_gpu=False)
        self.given, self.barrier = given, barrier

    def _exchanged(self, exchange: Callable[..., Any], *given: Any) -> None:
        own = given[1] if exchange is dist.all_gather else given[0]
        self.given[self.rank] = own.clone()
        self.barrier.wait(60)
        if exchange is dist.all_reduce:
            own.copy_(torch.stack(self.given).sum(0))
        elif exchange is dist.broadcast:
            own.copy_(self.given[given[1]])
        else:
            assert exchange is dist.all_gather
            for place, each in zip(given[0], self.given, strict=True):
                place.copy_(each)
        self.barrier.wait(60)


def by_all(count: int, work: Callable[[Threaded], Result]) -> list[Result]:
    """What the work comes to in each of several processes, which do it at the same time."""
    given, barrier = [torch.zeros(0)] * count, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [Threaded(rank, count, given, barrier) for rank in range(count)]))


_DRAWING = threading.Lock()


def alone(seed: int = 0) -> WholeModel:
    """The runner of one process; random numbers are those of all threads."""
    with _DRAWING:
        return WholeModel(make_model(seed))


def whole(peers: Threaded) -> SeveralProcesses:
    return SeveralProcesses(alone(), peers)


RunnerOf = Callable[[Threaded], SeveralProcesses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    alone().model.save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(folder: Path) -> RunnerOf:
    """Gives each process its runner of a model that they hold together: no layer is in memory between the passes."""

    def runner(peers: Threaded) -> SeveralProcesses:
        with _DRAWING:  # to build an empty model changes what all threads build
            model = streamed_model(str(folder), held=shared_out(peers))
        assert all(part.is_meta == name.startswith("model.layers.") for name, part in model.named_parameters())
        return SeveralProcesses(runner_for(model), peers)

    return runner


@pytest.fixture(params=["whole", "sharded"])
def runner_of(request: pytest.FixtureRequest, sharded: RunnerOf) -> RunnerOf:
    return whole if request.param == "whole" else sharded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "count"), [(5, 2), (6, 3), (2, 3), (1, 3)])
def test_a_tensor_is_put_together_from_its_rows(rows: int, count: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(rows, 2, 3).to(dtype)
    shares = even_shares(rows, count)
    assert sum(shares) == rows and max(shares) - min(shares) <= 1
    parts = tensor.split(shares)
    for found in by_all(count, lambda peers: peers.whole(parts[peers.rank], shares)):
        assert torch.equal(found, tensor) and found.dtype == dtype


def test_each_process_reads_and_holds_its_share(folder: Path) -> None:
    """The rest of the file is not looked at: elsewhere it may say what it will."""
    stored = stored_tensors(str(folder))
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = {name: stored[name], "norm": stored["model.norm.weight"]}

    def hold(peers: Threaded) -> tuple[int, Tensor]:
        held = shared_out(peers)(wanted, dict.fromkeys(wanted, torch.float64), torch.device("cpu"))
        own = held[name]
        assert isinstance(own, Share) and held["norm"].read(torch.device("cpu"), torch.float32).shape == (32,)
        return len(own.part), own.read(torch.device("cpu"), torch.float32)

    weight = alone().parameter(name)
    assert [(rows, torch.equal(found, weight)) for rows, found in by_all(3, hold)] == [(16, True)] * 3


@pytest.mark.parametrize("at_once", ["one", "all"])
def test_all_processes_go_through_the_layers_together(
    at_once: str, sharded: RunnerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of them has nothing to do: 5 sequences and 1 for 3 processes, a smaller model, single tensors."""
    if at_once == "one":
        monkeypatch.setitem(streamed.HIDDEN_BYTES, "cpu", 1)

    def run(peers: Threaded) -> list[Tensor]:
        runner = sharded(peers)
        assert runner.in_step and not runner.in_memory
        weight = runner.parameter("model.layers.2.mlp.down_proj.weight")
        plan = PruningPlan.from_mask(UnitMask(runner.inventory, runner.inventory.place_U % 2 == 0))
        smaller = runner.beside(runner.built(runner.draft(plan)))
        assert smaller.in_step
        losses = [*runner.losses(TOKENS), *smaller.losses(TOKENS[:1])]
        taught = runner.teacher(TOKENS)
        assert isinstance(taught, Teacher)
        return [weight, *losses, taught.hidden_NSD, smaller.gather([PER_TOKEN], TOKENS)[PER_TOKEN]]

    with_all = alone()
    plan = PruningPlan.from_mask(UnitMask(with_all.inventory, with_all.inventory.place_U % 2 == 0))
    smaller = with_all.beside(with_all.built(with_all.draft(plan)))
    taught = with_all.teacher(TOKENS)
    assert isinstance(taught, Teacher)
    expected = [
        with_all.parameter("model.layers.2.mlp.down_proj.weight"),
        *with_all.losses(TOKENS),
        *smaller.losses(TOKENS[:1]),
        taught.hidden_NSD,
        smaller.gather([PER_TOKEN], TOKENS)[PER_TOKEN],
    ]
    for found in by_all(3, run):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_a_checkpoint_is_read_by_all_and_written_by_one(sharded: RunnerOf, tmp_path: Path) -> None:
    config = GRASPConfig(method="magnitude", keep_ratio=0.5)
    GRASPPruner(config).prune(alone().model, make_tokenizer()).save(tmp_path / "one")

    def run(peers: Threaded) -> None:
        model = sharded(peers).model
        pruned = GRASPPruner(config, peers).prune(model, make_tokenizer(), inplace=True)
        assert pruned.in_step
        if peers.is_first:
            pruned.save(tmp_path / "several", max_shard_size="20KB")
        else:
            pruned.read_along(max_shard_size="20KB")

    by_all(2, run)
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    tensors = [stored_tensors(str(tmp_path / name)) for name in ("one", "several")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor.read(), tensors[1][name].read()) for name, tensor in tensors[0].items())


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_losses_are_those_of_one_process_to_the_last_bit(runner_of: RunnerOf, count: int, batch_size: int) -> None:
    expected = list(alone().losses(TOKENS, batch_size))
    for losses in by_all(count, lambda peers: list(runner_of(peers).losses(TOKENS, batch_size))):
        assert len(losses) == len(expected) and all(map(torch.equal, losses, expected))
    mean = alone().mean_loss(TOKENS, batch_size)
    assert by_all(count, lambda peers: runner_of(peers).mean_loss(TOKENS, batch_size)) == [mean] * count


def test_every_process_says_which_window_is_not_finite(runner_of: RunnerOf) -> None:
    windows_NS = TOKENS.clone().clamp_(max=256)
    windows_NS[3, 4] = 257

    def measure(peers: Threaded) -> str:
        runner = runner_of(peers)
        with torch.no_grad():
            runner.model.get_input_embeddings().weight[257] = torch.inf
        with pytest.raises(GraspruneError) as caught:
            runner.mean_loss(windows_NS)
        return str(caught.value)

    assert by_all(2, measure) == ["the loss is not finite in the batch from window 4 of 5"] * 2


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("sequences", [1, 5])
def test_statistics_are_those_of_one_process(runner_of: RunnerOf, count: int, sequences: int) -> None:
    tokens_NS, wanted = TOKENS[:sequences], [MOMENTS, PER_TOKEN, PER_SEQUENCE, TOKEN_WEIGHTS]
    expected = alone().gather(wanted, tokens_NS)
    of_all = by_all(count, lambda peers: runner_of(peers).gather(wanted, tokens_NS))
    for found in of_all:
        for statistic in (PER_TOKEN, PER_SEQUENCE):
            torch.testing.assert_close(found[statistic], expected[statistic], rtol=1e-5, atol=1e-9)
            assert torch.equal(found[statistic], of_all[0][statistic])
        for path, weights_NS in expected[TOKEN_WEIGHTS].items():
            assert torch.equal(found[TOKEN_WEIGHTS][path], weights_NS)
        for path, moments in expected[MOMENTS].items():
            assert found[MOMENTS][path].count == moments.count == tokens_NS.numel()
            torch.testing.assert_close(found[MOMENTS][path].mean_I, moments.mean_I, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found[MOMENTS][path].spread_I, moments.spread_I, rtol=1e-9, atol=1e-12)


class _Count(Collector[int]):
    seen = 0

    def see(self, path: str, x_TI: Tensor) -> None:
        self.seen += len(x_TI)

    def result(self, tokens: int) -> int:
        return self.seen


@dataclass(frozen=True)
class TokensSeen(Statistic[int]):
    def collector(self, blocks: tuple[Block, ...], maps: Mapping[str, int]) -> Collector[int]:
        return _Count()


def test_what_cannot_be_put_together_each_process_gathers_by_itself(runner_of: RunnerOf) -> None:
    seen = alone().gather([TokensSeen()], TOKENS)[TokensSeen()]
    assert (
        seen and by_all(2, lambda peers: runner_of(peers).gather([TokensSeen()], TOKENS)) == [{TokensSeen(): seen}] * 2
    )


class Constrained(OfUnits):
    """Multipliers whose deviation from one is paid for by a number that climbs."""

    def __init__(self, units: int) -> None:
        self.units, self.penalties = units, 0

    def start(self) -> list[Tensor]:
        return [torch.ones(self.units), torch.ones(())]

    def paces(self) -> list[Pace]:
        return [Pace(), Pace(5, ascends=True)]

    def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        return numbers[0]

    def penalty(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        self.penalties += 1
        return numbers[1] * (numbers[0] - 0.9).square().mean()


def learnt(runner: Runner, batch_size: int, clip: float | None) -> tuple[list[Tensor], Tensor]:
    training = Training(
        2, batch_size, 0, 0.05, "cosine", gradient_checkpointing=False, label="x", kl_weight=0.5, clip=clip
    )
    trained, course = Constrained(runner.inventory.num_units), Course({"held_out": TOKENS[:2]})
    numbers = runner.learn(trained, TOKENS, training, alone(1), course=course)
    assert trained.penalties == course.step and len(course.check_ups) == 1 + min(course.step, 10)
    return numbers, runner.trainings[0].values["loss"]


@pytest.mark.parametrize(("count", "batch_size", "clip"), [(2, 2, None), (2, 3, 0.01), (3, 4, None)])
def test_a_training_is_that_of_one_process(
    runner_of: RunnerOf, count: int, batch_size: int, clip: float | None
) -> None:
    """The last batch of an epoch is a single sequence, or two."""
    expected, losses = learnt(alone(), batch_size, clip)
    of_all = by_all(count, lambda peers: learnt(runner_of(peers), batch_size, clip))
    for numbers, of_steps in of_all:
        torch.testing.assert_close(numbers, expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(of_steps, losses, rtol=1e-4, atol=1e-5)
        assert all(map(torch.equal, numbers, of_all[0][0])) and torch.equal(of_steps, of_all[0][1])


def test_the_texts_of_a_training_are_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    losses = WholeModel.losses
    monkeypatch.setattr(
        WholeModel, "losses", lambda self, tokens_NS, *given: measured.append(len(tokens_NS)) or losses(self, tokens_NS)
    )
    by_all(2, lambda peers: learnt(whole(peers), 2, None))
    assert measured and set(measured) == {1}  # of the two


def test_a_step_for_fewer_sequences_than_processes_has_the_bits_of_one(runner_of: RunnerOf) -> None:
    def train(runner: Runner) -> Tensor:
        trained = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
        training = Training(1, 1, 0, 0.05, "constant", gradient_checkpointing=False, label="gates")
        return runner.learn(trained, TOKENS, training)[0]

    expected = train(alone())
    with pytest.warns(
        GraspruneWarning,
        match="--batch-size 1: no more than as many of the 2 processes have work at a step of gates; give 2",
    ):
        of_all = by_all(2, lambda peers: train(runner_of(peers)))
    assert all(torch.equal(values_U, expected) for values_U in of_all)


@pytest.mark.parametrize(("sequences", "at_once"), [(1, 8), (5, 8), (5, 2)])
def test_a_teacher_reads_every_sequence_once(sequences: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several_processes, "_AT_ONCE", at_once)
    read: list[int] = []
    hidden = WholeModel._hidden
    monkeypatch.setattr(WholeModel, "_hidden", lambda self, tokens_BS: read.append(1) or hidden(self, tokens_BS))
    expected = alone().teacher(TOKENS[:sequences])
    read.clear()
    for teacher in by_all(2, lambda peers: whole(peers).teacher(TOKENS[:sequences])):
        assert isinstance(teacher, Teacher) and isinstance(expected, Teacher)
        assert torch.equal(teacher.hidden_NSD, expected.hidden_NSD)
        assert torch.equal(teacher.logits(torch.tensor([0])), expected.logits(torch.tensor([0])))
    assert len(read) == (2 if sequences == 1 else sequences)


def test_time_is_that_of_the_first_process() -> None:
    assert len(set(by_all(2, lambda peers: whole(peers).clock()))) == 1


def test_what_the_first_process_has_kept_all_of_them_go_on_from(tmp_path: Path) -> None:
    """Of the others' folders nothing is read, and nothing is written into them."""

    def run(peers: Threaded) -> tuple[float, float, Tensor, Tensor]:
        state = SharedState(tmp_path / str(peers.rank), peers, every=0.0)
        runner = Resumable.begun(whole(peers), state, {"seed": 0}, {"tokens": TOKENS})
        loss, clock = runner.mean_loss(TOKENS), runner.clock()
        per_token_U = runner.gather([PER_TOKEN], TOKENS)[PER_TOKEN]
        trained = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
        training = Training(1, 2, 0, 0.05, "constant", gradient_checkpointing=False, label="gates")
        return loss, clock, per_token_U, runner.learn(trained, TOKENS, training)[0]

    first, again = by_all(2, run), by_all(2, run)
    assert [each.name for each in tmp_path.iterdir()] == ["0"]
    for one, *others in (first, again):
        for other in others:
            assert one[:2] == other[:2] and all(map(torch.equal, one[2:], other[2:]))
    assert first[0][:2] == again[0][:2] and all(map(torch.equal, first[0][2:], again[0][2:]))


def test_what_is_kept_of_a_run_is_not_worked_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(peers: Threaded) -> float:
        state = SharedState(tmp_path / "state", peers, every=0.0)
        return Resumable.begun(whole(peers), state, {}, {}).mean_loss(TOKENS)

    found = by_all(2, run)
    monkeypatch.setattr(SeveralProcesses, "mean_loss", lambda *_: pytest.fail("it was measured again"))
    assert by_all(2, run) == found


def test_a_state_that_each_process_would_keep_for_itself_is_refused(tmp_path: Path) -> None:
    def run(peers: Threaded) -> None:
        with pytest.raises(GraspruneError, match="keeps its state in a SharedState"):
            Resumable.begun(whole(peers), RunState(tmp_path / "state"), {}, {})

    by_all(2, run)
    assert not list(tmp_path.iterdir())
