from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, numerics
from optimum_grasprune.errors import GraspruneError, GraspruneWarning, ModelError, OptionError
from optimum_grasprune.evaluation import perplexity
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import family_of
from optimum_grasprune.numerics import CUBLAS_VARIABLE, deterministic_algorithms, precision_advice
from optimum_grasprune.units import Budget, project
from tests.conftest import make_model, make_tokenizer

TEXTS = [f"Number {n} is followed by number {n + 1}, as every child knows." for n in range(400)]
OPTIONS: dict[str, Any] = {"num_samples": 4, "seq_len": 24, "epochs": 1}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"search_trials": 2, "search_samples": 2, "start_rounds": 2},
    "fasp": {"method": "fasp"},
    "elements": {"method": "statistical", "pattern": "2:4"},
}


def pruned(
    kind: str, *, model: LlamaForCausalLM | None = None, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[GRASPPruner, dict[str, torch.Tensor]]:
    pruner = GRASPPruner(GRASPConfig(**OPTIONS, **KINDS.get(kind, {"method": kind})))
    result = pruner.prune_model(model or make_model(), tokenizer or make_tokenizer(), texts=TEXTS)
    return pruner, result.state_dict()


@pytest.fixture(scope="module")
def usual() -> dict[str, tuple[GRASPPruner, dict[str, torch.Tensor]]]:
    return {kind: pruned(kind) for kind in KINDS}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "on meta": lambda: torch.device("meta"),
    "by default on meta": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: deterministic_algorithms(True),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_whatever_torch_is_set_to(
    kind: str, surroundings: str, usual: dict[str, tuple[GRASPPruner, dict[str, torch.Tensor]]]
) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    with SURROUNDINGS[surroundings]():
        before = state_of_torch()
        pruner, state = pruned(kind, model=model, tokenizer=tokenizer)
        assert state_of_torch() == before
    expected, tensors = usual[kind]
    assert pruner.record.choice == expected.record.choice
    assert pruner.record.plan == expected.record.plan
    assert state.keys() == tensors.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype, name
        assert not tensor.is_inference()
    assert all(parameter.requires_grad for parameter in pruner.model.parameters())


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_replaying_in_them(surroundings: str, usual: dict[str, tuple[GRASPPruner, dict[str, torch.Tensor]]]) -> None:
    expected, tensors = usual["default"]
    model = make_model()
    with SURROUNDINGS[surroundings]():
        again = GRASPPruner(GRASPConfig(compensation="scales"))
        state = again.replay(model, None, expected.plan).model.state_dict()
    scaled = GRASPPruner(GRASPConfig(compensation="scales")).replay(make_model(), None, expected.plan)
    reference = scaled.model.state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in state.items())
    assert state.keys() == tensors.keys()


@pytest.mark.parametrize("surroundings", ["float64", "bfloat16", "on meta", "by default on meta", "inference_mode"])
def test_measuring_and_projecting_in_them(surroundings: str) -> None:
    model = make_model()
    inventory, tokens = family_of(model.config).inventory(model), torch.arange(60).view(3, 20)
    scores = torch.rand(inventory.num_units, generator=torch.Generator().manual_seed(0))
    budget = Budget.resolve(GRASPConfig(ffn_multiple_of=4), inventory, 0)
    expected = perplexity(model, tokens), project(scores, inventory, budget).kept_U
    with SURROUNDINGS[surroundings]():
        fresh = family_of(model.config).inventory(model)  # it keeps what it has computed
        assert perplexity(model, tokens) == expected[0]
        assert torch.equal(project(scores, fresh, budget).kept_U, expected[1])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["default", "elements"])
def test_a_model_made_for_inference_alone(kind: str) -> None:
    with torch.inference_mode():
        model = make_model()
    for surroundings in (nullcontext, torch.inference_mode):
        with (
            surroundings(),
            pytest.raises(ModelError, match="made under torch.inference_mode.*model.embed_tokens.weight"),
        ):
            pruned(kind, model=model)
        with surroundings():
            assert perplexity(model, torch.arange(60).view(3, 20)).perplexity > 1


def test_the_random_state_of_others_is_neither_used_nor_moved(
    usual: dict[str, tuple[GRASPPruner, dict[str, torch.Tensor]]],
) -> None:
    model = make_model()
    torch.manual_seed(1234)
    random.seed(5)
    np.random.seed(6)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    pruner, _ = pruned("default", model=model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert pruner.record.plan == usual["default"][0].record.plan


def test_a_failing_run_puts_everything_back_too() -> None:
    model = make_model()
    model.model.norm.weight.data.fill_(float("nan"))
    before = state_of_torch()
    with deterministic_algorithms(True), default_dtype(torch.float64), torch.no_grad():
        inside = state_of_torch()
        with pytest.raises(GraspruneError):
            pruned("default", model=model)
        assert state_of_torch() == inside
    assert state_of_torch() == before


def state_of_torch() -> list[object]:
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get(CUBLAS_VARIABLE),
    ]


@pytest.mark.parametrize("workspace", [None, ":16:8", ":0:0"])
def test_deterministic_algorithms_are_on_inside_and_as_they_were_outside(
    workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if workspace is None:
        monkeypatch.delenv(CUBLAS_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(CUBLAS_VARIABLE, workspace)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = state_of_torch()
        with deterministic_algorithms(False):
            assert state_of_torch() == before
        with pytest.raises(KeyboardInterrupt), deterministic_algorithms(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
            assert os.environ[CUBLAS_VARIABLE] == (":16:8" if workspace == ":16:8" else ":4096:8")
            raise KeyboardInterrupt
        assert state_of_torch() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_such_an_algorithm_is_one_line() -> None:
    reason = "put_ does not have a deterministic implementation, but you set"
    with pytest.raises(OptionError, match=f"^deterministic=True: {reason}$"), deterministic_algorithms(True):
        raise RuntimeError(f"{reason}\nYou can turn off determinism just for this operation")
    with pytest.raises(RuntimeError, match="^out of memory$"), deterministic_algorithms(True):
        raise RuntimeError("out of memory")
    assert not torch.are_deterministic_algorithms_enabled()


def test_pruning_and_replaying_follow_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Runner.draft` is called by both."""
    seen: list[bool] = []

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return built(*arguments, **options)

    built = WholeModel.draft
    monkeypatch.setattr(WholeModel, "draft", spied)
    for deterministic in (False, True):
        seen.clear()
        pruner = GRASPPruner(GRASPConfig(**OPTIONS, method="fasp", dataset="sampled", deterministic=deterministic))
        model = make_model()
        pruner.prune_model(model, make_tokenizer())
        assert set(seen) == {deterministic}
        assert pruner.record.recipe["deterministic"] is deterministic
        seen.clear()
        GRASPPruner(GRASPConfig()).replay(model, make_tokenizer(), pruner.plan, pruner.record)
        assert set(seen) == {deterministic}  # as the plan was made
        assert not torch.are_deterministic_algorithms_enabled()


def test_recipes_of_version_0_1_do_not_have_the_option() -> None:
    old = {name: value for name, value in GRASPConfig().to_dict().items() if name != "deterministic"}
    assert GRASPConfig.from_dict(old).deterministic is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nobody_is_sent_to_the_precision_that_he_has(dtype: torch.dtype) -> None:
    assert ("try --dtype float32" in precision_advice(dtype)) is (dtype != torch.float32)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this CPU one of that capability, for which `little` is little."""

    def become(capability: str, little: float = 1e6) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(numerics, "_LITTLE", little)
        numerics._tell_once.cache_clear()

    return become


def warnings_of(kind: str, dtype: torch.dtype, times: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            pruned(kind, model=make_model().to(dtype))
    return [str(warning.message) for warning in caught if warning.category is GraspruneWarning]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("taylor", torch.bfloat16), ("wanda_sp", torch.float16), ("elements", torch.bfloat16)]
)
def test_half_precision_in_software_is_told_once(kind: str, dtype: torch.dtype, cpu: Callable[..., None]) -> None:
    cpu("AVX2")
    hooks = dict(torch.nn.modules.module._global_forward_pre_hooks)
    (line,) = (line for line in warnings_of(kind, dtype, times=2) if "this CPU" in line)
    assert f"computes {str(dtype)[6:]} in software" in line and "--dtype float32" in line
    assert hooks == torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize(
    ("capability", "kind", "dtype", "little"),
    [
        ("AVX512", "fasp", torch.bfloat16, 1e6),
        ("AVX2", "fasp", torch.float32, 1e6),
        ("AVX2", "magnitude", torch.bfloat16, 1e6),  # computes nothing with the model
        ("AVX2", "fasp", torch.bfloat16, 1e9),
    ],
)
def test_nobody_else_is_told(
    capability: str, kind: str, dtype: torch.dtype, little: float, cpu: Callable[..., None]
) -> None:
    cpu(capability, little)
    assert not any("this CPU" in line for line in warnings_of(kind, dtype))
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_replay_is_told_where_it_refits_alone(cpu: Callable[..., None], corpus_file: Path) -> None:
    cpu("AVX2")
    model = make_model().to(torch.bfloat16)
    with pytest.warns(GraspruneWarning, match="this CPU"):
        pruner = GRASPPruner(GRASPConfig(**OPTIONS, method="fasp", dataset=str(corpus_file)))
        pruner.prune_model(model, make_tokenizer())
    numerics._tell_once.cache_clear()
    GRASPPruner(GRASPConfig(compensation="none")).replay(model, make_tokenizer(), pruner.plan, pruner.record)
    with pytest.warns(GraspruneWarning, match="this CPU"):
        GRASPPruner(GRASPConfig()).replay(model, make_tokenizer(), pruner.plan, pruner.record)
