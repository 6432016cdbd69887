"""All maps refitted by least squares, layer by layer, in the model as it is by then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.errors import GraspruneWarning
from optimum_grasprune.execution import Runner, WholeModel
from optimum_grasprune.families import family_of, linear_at
from optimum_grasprune.methods import get_method
from optimum_grasprune.recovery.least_squares import fitted_weight
from optimum_grasprune.recovery.reconstruction import Reconstruction, reconstruct
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.selection import choose
from optimum_grasprune.statistics import TOKEN_WEIGHTS
from optimum_grasprune.surgery import build_pruned_model, feature_indices
from optimum_grasprune.units import FFN, KV, Address
from tests.conftest import make_model
from tests.contracts.test_methods import choices, problem_of
from tests.contracts.test_runners import run
from tests.tiny_models import VARIANTS, some_plan, tiny_model

__all__ = ["run"]

TOKENS = torch.randint(258, (4, 24), generator=torch.Generator().manual_seed(0))


def reference_of(runner: Runner, samples: int = 4) -> Reference:
    return Reference.on(runner, TOKENS, samples, (TOKEN_WEIGHTS,))


def plan_without(model: PreTrainedModel, cut: dict[Address, tuple[int, ...]]) -> PruningPlan:
    """The whole model but for these units."""
    inventory = family_of(model.config).inventory(model)
    everything = PruningPlan.from_mask(UnitMask(inventory, torch.ones(inventory.num_units).bool()))
    groups = (
        replace(group, kept=tuple(unit for unit in group.kept if unit not in cut.get(group.address, ())))
        for group in everything.groups
    )
    return replace(everything, groups=tuple(groups))


def layer_outputs(model: PreTrainedModel) -> list[Tensor]:
    """What each decoder layer puts out, over all tokens."""
    seen: list[Tensor] = []
    layers = family_of(model.config).decoder_layers(model)
    handles = [
        layer.register_forward_hook(
            lambda *given: seen.append((given[2][0] if isinstance(given[2], tuple) else given[2]).detach())
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(TOKENS)
    for handle in handles:
        handle.remove()
    return seen


def test_by_hand() -> None:
    # Targets are three times the inputs, 2 and 4, of which the old weight makes once: G = 20, C = 60.
    old, gram, cross = torch.tensor([[1.0]]), torch.tensor([[20.0]]), torch.tensor([[60.0]])
    assert fitted_weight(old, gram, cross, 1e-9).item() == pytest.approx(3)
    assert fitted_weight(old, gram, cross, 1.0).item() == pytest.approx(1 + 40 / 40)


@pytest.mark.parametrize("damping", [1e-8, 0.3, 4.0])
def test_equals_a_weighted_ridge_by_brute_force(damping: float) -> None:
    """min Σ_t w_t ‖y_t − W* z_t‖² + δ ‖W* − W‖², in fp64."""
    generator = torch.Generator().manual_seed(0)
    z_TK = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    y_TO = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    w_T1 = torch.rand(50, 1, generator=generator, dtype=torch.float64) ** 4
    old_OK = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    gram_KK = (w_T1 * z_TK).T @ z_TK
    found = fitted_weight(old_OK, gram_KK, y_TO.T @ (w_T1 * z_TK), damping)
    ridge = damping * gram_KK.diagonal().median()
    design = torch.cat([w_T1.sqrt() * z_TK, ridge.sqrt() * torch.eye(3, dtype=torch.float64)])
    target = torch.cat([w_T1.sqrt() * y_TO, ridge.sqrt() * old_OK.T])
    torch.testing.assert_close(found, torch.linalg.lstsq(design, target).solution.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", VARIANTS)
def test_where_nothing_is_cut_nothing_changes(family: str) -> None:
    model = tiny_model(family)
    runner = WholeModel(model)
    plan = plan_without(model, {})
    pruned = build_pruned_model(model, plan, runner.family)
    Reconstruction(1e-3).rebuild(reference_of(runner), runner.beside(pruned), plan)
    for name, tensor in pruned.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", VARIANTS)
def test_later_layers_come_closer_to_the_dense_model(family: str) -> None:
    """All tokens alike; the last layer is fitted to what its own and all earlier layers leave."""
    model = tiny_model(family)
    runner, plan = WholeModel(model), some_plan(model, share=0.7)
    pruned = build_pruned_model(model, plan, runner.family)
    alike = {block.output: torch.ones(TOKENS.shape) for block in runner.blocks}
    dense, before = layer_outputs(model), layer_outputs(pruned)
    reconstruct(runner, runner.beside(pruned), plan, TOKENS, alike, 0.1)
    after = layer_outputs(pruned)
    errors = [
        ((cut - whole).norm() / (cut_before - whole).norm()).item()
        for whole, cut_before, cut in zip(dense, before, after, strict=True)
    ]
    assert max(errors[1:]) < 0.97, errors


def test_a_layer_makes_up_for_what_an_earlier_one_lost(model: LlamaForCausalLM) -> None:
    """Channels of the first layer alone are cut; the second, which loses none, gives back some of what is missing."""
    runner = WholeModel(model)
    plan = plan_without(model, {Address(0, FFN): tuple(range(0, 48, 2))})
    pruned = build_pruned_model(model, plan, runner.family)
    Reconstruction(0.1).rebuild(reference_of(runner), runner.beside(pruned), plan)
    path = "model.layers.1.mlp.down_proj.weight"
    assert not torch.allclose(pruned.get_parameter(path), model.get_parameter(path), rtol=1e-2)


def test_the_first_map_out_of_a_block_by_its_own_products(model: LlamaForCausalLM) -> None:
    """Before it nothing was cut, so that it is the weighted least squares of the dense inputs."""
    runner = WholeModel(model)
    plan = plan_without(model, {Address(0, KV): (0,)})
    reference = reference_of(runner, 3)
    pruned = build_pruned_model(model, plan, runner.family)
    Reconstruction(0.3).rebuild(reference, runner.beside(pruned), plan)
    path = "model.layers.0.self_attn.o_proj"
    seen: list[Tensor] = []
    handle = linear_at(model, path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        model(TOKENS[:3])
    handle.remove()
    x_TI, w_T1 = seen[0], reference.statistics[TOKEN_WEIGHTS][path].flatten()[:, None]
    columns_K = feature_indices((1,), x_TI.shape[1], 2)
    z_TK, old_OI = x_TI[:, columns_K], linear_at(model, path).weight.detach()
    cross_OK = (x_TI @ old_OI.T).T @ (w_T1 * z_TK)
    expected = fitted_weight(old_OI[:, columns_K], (w_T1 * z_TK).T @ z_TK, cross_OK, 0.3)
    torch.testing.assert_close(linear_at(pruned, path).weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_a_block_that_is_gone_is_made_up_for_by_the_next(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    plan = plan_without(model, {Address(1, KV): (0, 1), Address(2, FFN): tuple(range(48))})
    pruned = build_pruned_model(model, plan, runner.family)
    alike = {block.output: torch.ones(TOKENS.shape) for block in runner.blocks}
    dense, before = layer_outputs(model), layer_outputs(pruned)
    reconstruct(runner, runner.beside(pruned), plan, TOKENS, alike, 0.1)
    after = layer_outputs(pruned)
    assert (after[1] - dense[1]).norm() < 0.9 * (before[1] - dense[1]).norm()


def test_every_runner_comes_to_the_same(run: Callable[[PreTrainedModel], Runner], model: LlamaForCausalLM) -> None:
    plan = some_plan(model)
    states = []
    for runner in (run(make_model()), WholeModel(make_model())):
        reference = reference_of(runner)
        pruned = runner.built(runner.draft(plan))
        Reconstruction(2.0).rebuild(reference, runner.beside(pruned), plan)
        beside = runner.beside(pruned)
        states.append({name: beside.parameter(name).cpu().clone() for name, _ in pruned.named_parameters()})
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(
        states[0]["model.layers.2.mlp.gate_proj.weight"][:1],
        make_model().get_parameter("model.layers.2.mlp.gate_proj.weight")[:1],
    )


@pytest.mark.parametrize(
    ("compensation", "losses", "stages"),
    [
        ("reconstruction", [5.0, 4.9], ("reconstruction",)),
        ("reconstruction", [5.0, 5.1], ()),
        ("rebuild", [5.0, 4.9, 4.8], ("reconstruction", "diagonals")),
        ("rebuild", [5.0, 5.1, 4.8], ("reconstruction", "diagonals")),  # kept for the sake of what is trained on it
        ("rebuild", [5.0, 4.9, 4.95], ("reconstruction",)),
        ("rebuild", [5.0, 5.2, 5.1], ()),
    ],
)
def test_what_is_rebuilt_is_judged_with_what_is_trained_on_it(
    compensation: str,
    losses: list[float],
    stages: tuple[str, ...],
    model: LlamaForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = GRASPConfig(method="random", compensation=compensation, keep_ratio=0.6, diagonal_learning_rate=0.05)
    problem = replace(problem_of(model, config), declared=(TOKEN_WEIGHTS,))
    problem = replace(problem, held_out_NS=problem.tokens_NS)
    found = iter(losses)
    monkeypatch.setattr(WholeModel, "mean_loss", lambda self, windows_NS: next(found))
    outcome = choose(choices(problem), get_method("random").chain_for(config), problem)
    assert [judgement.loss for judgement in outcome.judgements] == losses and outcome.stages == stages
    assert outcome.plan is not None
    bare = build_pruned_model(model, outcome.plan, problem.family).state_dict()
    unchanged = all(torch.equal(tensor, bare[name]) for name, tensor in outcome.model.state_dict().items())
    assert unchanged == (not stages)


@pytest.mark.parametrize("losses", [[5.0, 5.1, 4.8], [5.0, 5.2, 5.1], [5.0, 4.9, 4.95]])
def test_in_the_dense_models_place_it_is_told_where_the_cut_alone_was_better(
    losses: list[float], model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GRASPConfig(method="random", compensation="rebuild", keep_ratio=0.6, diagonal_learning_rate=0.05)
    problem = replace(problem_of(model, config), declared=(TOKEN_WEIGHTS,), inplace=True)
    problem = replace(problem, held_out_NS=problem.tokens_NS)
    found = iter(losses)
    monkeypatch.setattr(WholeModel, "mean_loss", lambda self, windows_NS: next(found))
    told = pytest.warns(GraspruneWarning, match=r"loss of 5\.000, to what .* with 5\.100: --compensation none")
    with told if losses[1] == 5.2 else nullcontext():
        outcome = choose(choices(problem), get_method("random").chain_for(config), problem)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    assert outcome.stages == ("reconstruction", "diagonals")[: 1 if losses[2] == 4.95 else 2]


def test_multipliers_end_where_weights_are_fitted_anew(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    config = GRASPConfig(dataset=str(corpus_file), num_samples=6, seq_len=24, held_out=2, multipliers="joint")
    pruned = GRASPPruner(config).prune(model, tokenizer)
    assert pruned.plan is not None and pruned.record.compensation[:1] == ("reconstruction",)
    assert all(group.multipliers is None for group in pruned.plan.groups)


def test_the_default_recipe_rebuilds_and_replays(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    config = GRASPConfig(dataset=str(corpus_file), num_samples=6, seq_len=24, held_out=2, keep_ratio=0.6)
    pruned = GRASPPruner(config).prune(model, tokenizer)
    assert pruned.record.compensation == ("reconstruction", "diagonals") and pruned.plan is not None
    again = GRASPPruner().replay(make_model(), tokenizer, pruned.plan, pruned.record)
    states = [each.model.state_dict() for each in (pruned, again)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
