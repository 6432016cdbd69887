from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig, PruningPlan, UnitMask, project
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.execution import Training, WholeModel
from optimum_grasprune.execution.instrument import frozen
from optimum_grasprune.execution.training import Schedule, batches
from optimum_grasprune.families import family_of
from optimum_grasprune.gates import gate_kl_weight, gate_learning_rate, straight_through, train, train_gates
from optimum_grasprune.recovery.scales import bounded_scale
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, Address, budget_at, kept_units
from tests.conftest import logits_of
from tests.recovery.trained_scales import train_scales

TOKENS = torch.arange(60).view(2, 30)
SEQUENCES = torch.randint(258, (5, 12), generator=torch.Generator().manual_seed(0))


def half_mask(model: LlamaForCausalLM) -> UnitMask:
    inventory = family_of(model.config).inventory(model)
    scores = torch.rand(inventory.num_units, generator=torch.Generator().manual_seed(1))
    return project(scores, inventory, Budget.resolve(BudgetOptions(keep_ratio=0.5), inventory, 0))


def test_gates_at_one_change_nothing_and_at_zero_equal_the_sliced_model(model: LlamaForCausalLM) -> None:
    family, mask = family_of(model.config), half_mask(model)
    dense = logits_of(model, TOKENS)
    with WholeModel(model).gated() as gates:
        assert torch.equal(logits_of(model, TOKENS), dense)
        gates.values_U = mask.kept_U.float()
        masked = logits_of(model, TOKENS)
    assert torch.equal(logits_of(model, TOKENS), dense)
    sliced = build_pruned_model(model, PruningPlan.from_mask(mask), family)
    torch.testing.assert_close(logits_of(sliced, TOKENS), masked, rtol=1e-4, atol=1e-5)


def test_straight_through_has_the_mask_forward_and_the_sigmoid_backward() -> None:
    # z = m + p − sg(p) with p = σ(s/τ): dz/ds = p (1 − p) / τ, for kept and cut units alike.
    scores = torch.tensor([0.0, 3.0], requires_grad=True)
    values = straight_through(torch.tensor([True, False]), torch.sigmoid(scores / 1.5))
    assert values.tolist() == [1.0, 0.0]
    (gradient,) = torch.autograd.grad((values * torch.tensor([3.0, 2.0])).sum(), [scores])
    p = 0.8807970779778823  # σ(2)
    torch.testing.assert_close(gradient, torch.tensor([3 * 0.25 / 1.5, 2 * p * (1 - p) / 1.5]))


def test_gate_gradient_is_the_derivative_of_the_loss(model: LlamaForCausalLM) -> None:
    model = model.double()
    family = family_of(model.config)
    inventory = family.inventory(model)
    values = torch.rand(inventory.num_units, dtype=torch.float64, requires_grad=True)

    def loss(values_U: Tensor) -> Tensor:
        with WholeModel(model).gated() as gates:
            gates.values_U = values_U
            return model(TOKENS).logits.square().mean()

    with frozen(model):
        (gradient,) = torch.autograd.grad(loss(values), [values])
        for unit in (0, 3, inventory.num_units - 1):
            step = torch.zeros_like(values)
            step[unit] = 1e-2  # LLaMA's norms compute in fp32 whatever the dtype: a smaller step drowns in rounding
            numeric = (loss(values + step) - loss(values - step)) / 2e-2
            torch.testing.assert_close(gradient[unit], numeric, rtol=1e-2, atol=1e-5)


def settings(model: LlamaForCausalLM) -> list[object]:
    """All that decides how the model runs, module by module, and which hooks it has."""
    names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
    return [
        [parameter.requires_grad for parameter in model.parameters()],
        [{name: vars(module)[name] for name in names if name in vars(module)} for module in model.modules()],
        [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()],
        vars(model).get("_require_grads_hooks"),
        model.config.to_dict(),
    ]


def never_enabled(model: LlamaForCausalLM) -> None:
    pass


def enabled(model: LlamaForCausalLM) -> None:
    model.gradient_checkpointing_enable()


def enabled_as_it_was_long_ago(model: LlamaForCausalLM) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": True, "preserve_rng_state": False})


def enabled_on_some_layers(model: LlamaForCausalLM) -> None:
    model.gradient_checkpointing_enable(every_n_layers=2)


def enabled_and_disabled(model: LlamaForCausalLM) -> None:
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()


def ready_for_adapters(model: LlamaForCausalLM) -> None:
    model.enable_input_require_grads()


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [
        never_enabled,
        enabled,
        enabled_as_it_was_long_ago,
        enabled_on_some_layers,
        enabled_and_disabled,
        ready_for_adapters,
    ],
)
def test_frozen_puts_everything_back(
    theirs: Callable[[LlamaForCausalLM], None], ours: bool, model: LlamaForCausalLM
) -> None:
    model.train()
    model.model.norm.weight.requires_grad_(False)
    model.model.layers[1].mlp.eval()
    theirs(model)
    before = settings(model)
    with pytest.raises(KeyboardInterrupt), frozen(model, gradient_checkpointing=ours):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.model.layers[0].mlp.training
        assert model.is_gradient_checkpointing is ours and model.model.layers[0].training is ours
        raise KeyboardInterrupt
    assert settings(model) == before


def test_a_model_that_was_trained_with_gradient_checkpointing_goes_on_so_after_pruning(model: LlamaForCausalLM) -> None:
    enabled_as_it_was_long_ago(model)
    before = settings(model)
    scales = [
        train_scales(WholeModel(model), TOKENS, GRASPConfig(gradient_checkpointing=ours)) for ours in (False, True)
    ]
    assert settings(model) == before
    torch.testing.assert_close(*scales)
    model.train()
    calls: list[object] = []
    model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(None))
    model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    assert len(calls) == 2 and model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_training_leaves_the_model_as_it_was(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    config = GRASPConfig(keep_ratio=0.5, epochs=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    budget = Budget.resolve(config, inventory, 0)
    train_gates(WholeModel(model), budget, TOKENS, config)
    train_scales(WholeModel(model), TOKENS, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_every_step_runs_under_the_budget(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    config = GRASPConfig(keep_ratio=0.6, epochs=4, learning_rate=0.3, budget_warmup=0)
    budget = Budget.resolve(config, inventory, 0)
    costs: list[int] = []

    def recorded(*arguments: object) -> Tensor:
        kept_U = kept_units(*arguments)  # type: ignore[arg-type]
        costs.append(UnitMask(inventory, kept_U).kept_cost)
        return kept_U

    monkeypatch.setattr(train, "kept_units", recorded)
    monkeypatch.setattr(train, "project", lambda *given: UnitMask(inventory, recorded(*given)))
    train_gates(WholeModel(model), budget, TOKENS, config)
    smallest = min(group.cost for group in inventory.groups)
    assert len(costs) == 1 + 4 * 2
    assert all(budget.cost - smallest < cost <= budget.cost for cost in costs)


def test_gradient_checkpointing_recomputes_and_gives_the_same_scores(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    scores, forwards = [], []
    calls: list[object] = []
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *_: calls.append(None))
    for checkpointing in (False, True):
        calls.clear()
        config = GRASPConfig(keep_ratio=0.5, epochs=2, gradient_checkpointing=checkpointing, kl_weight=0)
        budget = Budget.resolve(config, inventory, 0)
        scores.append(train_gates(WholeModel(model), budget, TOKENS, config)[-1])
        forwards.append(len(calls))
    assert forwards == [4, 8]  # two epochs of two steps; every layer runs again in the backward pass
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_scales_stay_between_a_half_and_three_halves(model: LlamaForCausalLM) -> None:
    assert bounded_scale(torch.tensor([-100.0, 0, 100])).tolist() == [0.5, 1.0, 1.5]
    family = family_of(model.config)
    inventory = family.inventory(model)
    scales = train_scales(WholeModel(model), TOKENS, GRASPConfig(scale_epochs=3))
    assert scales.shape == (inventory.num_units,)
    assert 0.5 <= scales.min() < 1 < scales.max() <= 1.5


def test_snapshots_are_moments_of_one_training(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    config = GRASPConfig(keep_ratio=0.5, epochs=4, snapshots=4, start="zero")
    budget = Budget.resolve(config, inventory, 0)
    snapshots = train_gates(WholeModel(model), budget, TOKENS, config)
    once = train_gates(WholeModel(model), budget, TOKENS, config.model_copy(update={"snapshots": 1}))
    assert len(snapshots) == 4 and len(once) == 1
    assert torch.equal(snapshots[-1], once[0])
    moved = [float((later - earlier).abs().sum()) for earlier, later in itertools.pairwise(snapshots)]
    assert all(distance > 0 for distance in moved)


def test_training_starts_where_it_is_told(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    config = GRASPConfig(keep_ratio=0.5, epochs=1, learning_rate=1e-9)
    start = torch.randn(inventory.num_units, generator=torch.Generator().manual_seed(0))
    (scores,) = train_gates(
        WholeModel(model),
        Budget.resolve(config, inventory, 0),
        TOKENS,
        config.model_copy(update={"snapshots": 1}),
        start,
    )
    torch.testing.assert_close(scores, start)


def test_the_budget_shrinks_geometrically_to_what_was_asked() -> None:
    budget = Budget(cost=100, kv_width=7)
    costs = [budget_at(budget, 400, 0.5, progress).cost for progress in (0.0, 0.25, 0.5, 0.75)]
    assert costs == [400, 200, 100, 100]
    assert budget_at(budget, 400, 0.5, 0.0).kv_width == 7
    assert budget_at(budget, 400, 0.0, 0.0) is budget and budget_at(budget, 100, 0.5, 0.0) is budget


def test_the_learning_rate_grows_with_the_cut_unless_it_was_asked_for() -> None:
    assert [gate_learning_rate(None, cut) for cut in (0.2, 0.4, 0.5, 0.6)] == [1e-2, 1.7e-2, 2e-2, 2.3e-2]
    assert gate_learning_rate(None, 0.2000001) == 1e-2
    assert gate_learning_rate(None, 0.0) == 0.0
    assert gate_learning_rate(0.3, 0.2) == 0.3


def test_the_share_of_the_teacher_by_hand() -> None:
    assert [gate_kl_weight(cut) for cut in (0.1, 0.2, 0.2001, 0.32, 0.5, 0.8, 0.9)] == [0, 0, 0, 0.1, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("keep_ratio", "options", "share"),
    [
        (0.5, {}, 0.25),
        (0.8, {}, 0),
        (0.5, {"kl_weight": 0.1}, 0.1),
        (0.5, {"gate_kl_weight": 0.0}, 0),
        (0.8, {"kl_weight": 0.1, "gate_kl_weight": 0.3}, 0.3),
    ],
)
def test_gates_learn_from_the_dense_model_by_how_much_is_cut(
    model: LlamaForCausalLM, keep_ratio: float, options: dict[str, float], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[Training] = []
    learn = WholeModel.learn

    def watched(
        self: WholeModel, trained: Any, tokens_NS: torch.Tensor, training: Training, *rest: Any, **more: Any
    ) -> Any:
        trainings.append(training)
        return learn(self, trained, tokens_NS, training, *rest, **more)

    monkeypatch.setattr(WholeModel, "learn", watched)
    config, runner = GRASPConfig(keep_ratio=keep_ratio, **options), WholeModel(model)
    budget = Budget.resolve(config, runner.inventory, 10**6)
    train_gates(runner, budget, torch.randint(258, (2, 12), generator=torch.Generator().manual_seed(0)), config)
    assert trainings[0].kl_weight == pytest.approx(share, abs=0.011)  # budgets are met in whole units
    assert GRASPConfig.paper().kl_weight == 0


def test_schedules() -> None:
    assert [Schedule(4, "constant").factor(step) for step in range(4)] == [1, 1, 1, 1]
    assert [round(Schedule(4, "cosine").factor(step), 3) for step in range(5)] == [1, 0.854, 0.5, 0.146, 0]


def test_each_epoch_takes_every_sequence_once_in_a_new_order() -> None:
    drawn = torch.cat(list(batches(7, epochs=2, batch_size=3, seed=0))).tolist()
    assert sorted(drawn[:7]) == sorted(drawn[7:]) == list(range(7))
    assert drawn[:7] != drawn[7:]


def test_the_order_of_the_sequences_is_that_of_the_seed() -> None:
    first, again, other = (torch.cat(list(batches(7, 1, 3, seed))).tolist() for seed in (1, 1, 2))
    assert first == again != other


def trained(kind: str, model: LlamaForCausalLM, config: GRASPConfig, start_U: Tensor | None = None) -> Tensor:
    """Gate scores after the last step, or scales."""
    family = family_of(model.config)
    inventory = family.inventory(model)
    if kind == "scales":
        return train_scales(WholeModel(model), SEQUENCES, config)
    return train_gates(WholeModel(model), Budget.resolve(config, inventory, 0), SEQUENCES, config, start_U)[-1]


TRAININGS = pytest.mark.parametrize("kind", ["gates", "scales"])


@pytest.fixture
def steps() -> Iterator[list[dict[str, Any]]]:
    """The optimiser's settings at each step that the test takes, and the gradient by unit."""
    taken: list[dict[str, Any]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        (parameter_U,) = group["params"]
        taken.append({**group, "gradient_U": parameter_U.grad.clone()})

    handle = register_optimizer_step_pre_hook(look)
    yield taken
    handle.remove()


@TRAININGS
def test_a_training_sees_as_many_epochs_and_such_batches_as_it_is_told(kind: str, model: LlamaForCausalLM) -> None:
    config = GRASPConfig(keep_ratio=0.5, epochs=2, scale_epochs=3, batch_size=2, seed=7, kl_weight=0)
    seen: list[Tensor] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trained(kind, model, config)
    drawn = batches(len(SEQUENCES), {"gates": 2, "scales": 3}[kind], 2, seed=7)
    expected = [SEQUENCES[indices] for indices in drawn]
    assert len(seen) == len(expected) and all(map(torch.equal, seen, expected))


@TRAININGS
def test_a_training_keeps_no_keys_and_values(kind: str, model: LlamaForCausalLM) -> None:
    seen: list[object] = []
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.past_key_values))
    trained(kind, model, GRASPConfig(kl_weight=0))
    assert seen == [None] * 5


@TRAININGS
def test_a_loss_that_is_not_finite_names_the_training_and_the_step(kind: str, model: LlamaForCausalLM) -> None:
    steps = iter(range(1, 6))

    def break_the_third(_module: object, _inputs: object, output: Any) -> None:
        if next(steps) == 3:
            output.logits[0, 0, 0] = float("nan")

    model.register_forward_hook(break_the_third)
    with pytest.raises(GraspruneError, match=f"^{kind}: the loss is nan at step 3; "):
        trained(kind, model, GRASPConfig(kl_weight=0))


@TRAININGS
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_follows_the_schedule_at_every_step(
    kind: str, schedule: str, model: LlamaForCausalLM, steps: list[dict[str, Any]]
) -> None:
    trained(kind, model, GRASPConfig(learning_rate=0.25, scale_learning_rate=0.125, schedule=schedule))
    highest = {"gates": 0.25, "scales": 0.125}[kind]
    expected = [highest * Schedule(5, schedule).factor(step) for step in range(5)]
    assert [step["lr"] for step in steps] == pytest.approx(expected)


@TRAININGS
def test_adamw_has_the_published_betas(kind: str, model: LlamaForCausalLM, steps: list[dict[str, Any]]) -> None:
    trained(kind, model, GRASPConfig())
    assert {step["betas"] for step in steps} == {(0.9, 0.99)}


def test_gates_are_trained_at_the_rate_of_the_cut_where_none_was_asked_for(
    model: LlamaForCausalLM, steps: list[dict[str, Any]]
) -> None:
    trained("gates", model, GRASPConfig(keep_ratio=0.9, kv_keep_ratio=0.5))
    assert steps[0]["lr"] == pytest.approx(2e-2)


def test_the_temperature_flattens_the_gradient(model: LlamaForCausalLM, steps: list[dict[str, Any]]) -> None:
    units = family_of(model.config).inventory(model).num_units
    start_U = torch.randn(units, generator=torch.Generator().manual_seed(0))
    by_multiplier = []
    for temperature in (0.5, 4.0):
        steps.clear()
        trained("gates", model, GRASPConfig(budget_warmup=0, temperature=temperature), start_U)
        p_U = torch.sigmoid(start_U / temperature)
        # The first step has the same mask, whatever τ is, and so the same derivative by its multipliers.
        by_multiplier.append(steps[0]["gradient_U"] * temperature / (p_U * (1 - p_U)))
    assert by_multiplier[0].count_nonzero() > units / 2
    torch.testing.assert_close(*by_multiplier, rtol=1e-4, atol=1e-7)


def test_what_the_loss_does_not_see_stays_where_it_was(model: LlamaForCausalLM) -> None:
    """No weight decay: without a gradient a score does not move."""
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 3] = 0
    inventory = family_of(model.config).inventory(model)
    unseen = inventory.index(Address(0, FFN), 3)
    start_U = torch.ones(inventory.num_units)
    scores_U = trained("gates", model, GRASPConfig(learning_rate=0.3), start_U)
    assert scores_U[unseen] == 1 and (scores_U != 1).sum() == inventory.num_units - 1


def test_the_budget_of_a_step_is_that_of_its_moment(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[int] = []
    for name, given in (("project", project), ("kept_units", kept_units)):
        noting = partial(lambda work, *given: costs.append(given[2].cost) or work(*given), given)
        monkeypatch.setattr(train, name, noting)
    trained("gates", model, GRASPConfig(keep_ratio=0.5, budget_warmup=0.5))
    inventory = family_of(model.config).inventory(model)
    budget = Budget(inventory.total_cost // 2)
    moments = [budget_at(budget, inventory.total_cost, 0.5, step / 5).cost for step in range(5)]
    assert costs == [budget.cost, *moments]
    assert moments[0] == inventory.total_cost and moments[-1] == budget.cost


def test_snapshots_are_taken_in_even_parts_of_the_training(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    short, long = (GRASPConfig(schedule="constant", budget_warmup=0, epochs=n, snapshots=n) for n in (1, 3))
    budget = Budget.resolve(short, inventory, 0)
    (first,) = train_gates(WholeModel(model), budget, SEQUENCES, short)
    # One epoch is a third of the long training, which begins with the same steps.
    assert torch.equal(train_gates(WholeModel(model), budget, SEQUENCES, long)[0], first)
