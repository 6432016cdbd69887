"""Models whose weights accelerate keeps elsewhere: no result shows it, and few weights are there at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.admission import check_model
from optimum_grasprune.dispatched import first_device, is_dispatched, is_offloaded, tensors_of
from optimum_grasprune.errors import OptionError
from optimum_grasprune.execution import OffloadedModel, Training, UnitMultipliers, WholeModel, runner_for
from optimum_grasprune.execution.resumable import contents_of
from optimum_grasprune.families import family_of
from optimum_grasprune.statistics import MOMENTS, PER_TOKEN
from optimum_grasprune.surgery import build_pruned_model
from tests.conftest import logits_of, make_model, make_tokenizer
from tests.tiny_models import OF_FAMILY, some_plan, tiny_model

accelerate = pytest.importorskip("accelerate")
TOKENS = torch.randint(258, (3, 20), generator=torch.Generator().manual_seed(0))
TRAINING = Training(2, 1, 0, 0.05, "constant", gradient_checkpointing=False, label="scales", kl_weight=0.5)
CPU = torch.device("cpu")


def in_files(folder: Path, model: PreTrainedModel, *, everything: bool = False) -> PreTrainedModel:
    """The model, saved and loaded again so that its layers, or everything, are read from the files when they run."""
    model.save_pretrained(folder)
    parts = [f"model.{name}" for name, _ in model.model.named_children() if name != "layers"]
    mixed: dict[str, Any] = {"model.layers": "disk", "lm_head": "cpu", **dict.fromkeys(parts, "cpu")}
    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": "disk"} if everything else mixed)


def learnt(runner: WholeModel, training: Training = TRAINING) -> Tensor:
    trained = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
    return runner.learn(trained, TOKENS, training)[0]


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_whole_model_bit_by_bit(tmp_path: Path, tied: bool, everything: bool) -> None:
    model = make_model(tie_word_embeddings=tied)
    offloaded = in_files(tmp_path, model, everything=everything)
    whole, runner = WholeModel(model), runner_for(offloaded)
    assert type(runner) is OffloadedModel and runner.device == CPU
    for name, tensor in model.state_dict().items():
        assert torch.equal(runner.parameter(name), tensor)
    assert runner.mean_loss(TOKENS) == whole.mean_loss(TOKENS)
    found, expected = (each.gather([MOMENTS, PER_TOKEN], TOKENS) for each in (runner, whole))
    assert torch.equal(found[PER_TOKEN], expected[PER_TOKEN])
    for path, moments in expected[MOMENTS].items():
        assert found[MOMENTS][path].count == moments.count  # though layers run twice
        assert torch.equal(found[MOMENTS][path].spread_I, moments.spread_I)
    forwards = [vars(module).get("forward") for module in offloaded.modules()]
    assert torch.equal(learnt(runner), learnt(whole))
    assert [vars(module).get("forward") for module in offloaded.modules()] == forwards  # of accelerate's
    assert torch.equal(logits_of(offloaded, TOKENS), logits_of(model, TOKENS))


@pytest.mark.parametrize("family", OF_FAMILY)
def test_families(family: str) -> None:
    model, offloaded = tiny_model(family), tiny_model(family)
    accelerate.cpu_offload(offloaded, execution_device=CPU)
    assert all(part.is_meta for part in offloaded.parameters())
    check_model(offloaded)
    assert OffloadedModel(offloaded).mean_loss(TOKENS) == WholeModel(model).mean_loss(TOKENS)
    plan = some_plan(model)
    pruned, expected = (build_pruned_model(each, plan, family_of(each.config)) for each in (offloaded, model))
    assert list(pruned.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in pruned.state_dict().items())
    assert not is_dispatched(pruned)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "fasp"},
        {"search_trials": 0, "diagonal_samples": 2},
        {"method": "block_influence", "compensation": "none"},
    ],
    ids=["fasp", "default", "layers"],
)
def test_pruned_models_are_the_same(corpus_file: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    samples = dict.fromkeys(("num_samples", "statistic_samples", "scale_samples", "diagonal_samples"), 4)
    few = {**samples, "epochs": 1, "snapshots": 1, "held_out": 2, "seq_len": 32}
    pruner = GRASPPruner(GRASPConfig(dataset=str(corpus_file), **{**few, **options}))
    model = make_model(num_hidden_layers=4)
    offloaded = in_files(tmp_path, model)
    pruned, expected = (pruner.prune(each, make_tokenizer()) for each in (offloaded, model))
    assert pruned.plan is not None and expected.plan is not None
    assert pruned.plan.to_dict() == expected.plan.to_dict()
    assert all(torch.equal(t, expected.model.state_dict()[name]) for name, t in pruned.model.state_dict().items())
    again = pruner.replay(offloaded, make_tokenizer(), pruned.plan, pruned.record)
    assert all(torch.equal(t, expected.model.state_dict()[name]) for name, t in again.model.state_dict().items())
    assert is_offloaded(offloaded) and all(part.requires_grad for part in offloaded.parameters())


@pytest.mark.parametrize("compensation", ["auto", "rebuild"])
def test_several_ratios_are_the_same(corpus_file: Path, tmp_path: Path, compensation: str) -> None:
    """What was rebuilt, for a training of all of them, is built again where weights are kept elsewhere too."""
    few = {"num_samples": 4, "statistic_samples": 4, "diagonal_samples": 4, "epochs": 1, "held_out": 0, "seq_len": 32}
    pruner = GRASPPruner(GRASPConfig(dataset=str(corpus_file), compensation=compensation, **few))
    model = make_model(num_hidden_layers=4)
    runs = [pruner.prune_many(each, make_tokenizer(), [0.8, 0.5]) for each in (in_files(tmp_path, model), model)]
    for pruned, expected in zip(*runs, strict=True):
        assert "diagonals" in pruned.record.compensation and pruned.plan == expected.plan
        assert all(torch.equal(t, expected.model.state_dict()[name]) for name, t in pruned.model.state_dict().items())


class Fetched:
    """Bytes of weights that were read, as far as they are still in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[tuple[StorageWeakRef, int]] = []
        self.most, self.reads = 0, 0
        read = accelerate.utils.OffloadedWeightsLoader.__getitem__

        def noted(loader: Any, key: str) -> Tensor:
            tensor: Tensor = read(loader, key)
            self.kept.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
            self.reads += 1
            self.most = max(self.most, self.now)
            return tensor

        monkeypatch.setattr(accelerate.utils.OffloadedWeightsLoader, "__getitem__", noted)

    @property
    def now(self) -> int:
        return sum(size for storage, size in self.kept if not storage.expired())


def train(runner: WholeModel) -> None:
    learnt(runner, replace(TRAINING, epochs=1, kl_weight=0.0))


@pytest.mark.parametrize("work", [train, lambda runner: runner.gather([PER_TOKEN], TOKENS)], ids=["learn", "gather"])
def test_one_layer_is_there_at_once(
    work: Callable[[WholeModel], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded = in_files(tmp_path, make_model(num_hidden_layers=6))
    layer = sum(part.nbytes for part in offloaded.model.layers[0].parameters())
    fetched = Fetched(monkeypatch)
    work(OffloadedModel(offloaded))
    per_step = 2 * sum(1 for _ in offloaded.model.layers.parameters())
    assert fetched.reads == per_step * len(TOKENS)  # forward, and again backward
    assert fetched.most <= layer
    assert fetched.now == 0 and all(part.is_meta for part in offloaded.model.layers.parameters())


def test_spread_models_are_recomputed_only_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert is_dispatched(model) and not is_offloaded(model) and first_device(model) == CPU
    asked: list[bool] = []
    monkeypatch.setattr(
        "optimum_grasprune.execution.instrument._checkpoint_layers", lambda _, wanted: asked.append(wanted)
    )
    train(OffloadedModel(model))
    learnt(OffloadedModel(model), replace(TRAINING, epochs=1, kl_weight=0.0, gradient_checkpointing=True))
    assert asked == [False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_with_cpu_memory(tmp_path: Path) -> None:
    model = make_model(num_hidden_layers=4)
    model.save_pretrained(tmp_path)
    outside = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), 0)
    rest: dict[str, Any] = {"model.layers.1": "cpu", "model.layers.2": "cpu", "model.layers.3": "disk"}
    runner = runner_for(AutoModelForCausalLM.from_pretrained(tmp_path, device_map={**outside, **rest}))
    whole = WholeModel(model.to("cuda:0"))
    assert isinstance(runner, OffloadedModel) and runner.device == torch.device("cuda:0")
    assert runner.mean_loss(TOKENS) == pytest.approx(whole.mean_loss(TOKENS), rel=1e-6)
    torch.testing.assert_close(learnt(runner), learnt(whole))
    for name, tensor in model.state_dict().items():
        assert torch.equal(runner.parameter(name), tensor)


def test_a_run_that_goes_on_knows_the_model(tmp_path: Path) -> None:
    model = make_model()
    texts = {"calibration": TOKENS}
    offloaded = in_files(tmp_path, model)
    assert contents_of(OffloadedModel(offloaded), texts)["model"] == contents_of(WholeModel(model), texts)["model"]


def test_buffers_and_weights_are_had_by_their_names(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True)
    found = dict(tensors_of(in_files(tmp_path, model, everything=True)))
    assert found.keys() == model.state_dict().keys()
    with pytest.raises(KeyError, match="model.embed_tokens.weight"):
        dict(tensors_of(model.to("meta")))


def test_single_weights_are_cut_of_whole_models_only(tmp_path: Path) -> None:
    pruner = GRASPPruner(GRASPConfig(method="statistical", pattern="2:4", compensation="none"))
    with pytest.raises(OptionError, match="cuts single weights, and the model has to be in memory"):
        pruner.prune(in_files(tmp_path, make_model()), make_tokenizer())
