"""Least squares in which a token counts by what an error at its output would do to the loss."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig, PruningPlan
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.execution.loss import next_token_loss
from optimum_grasprune.recovery.chain import Chain
from optimum_grasprune.recovery.least_squares import restored_weight
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.statistics import TOKEN_WEIGHTS
from optimum_grasprune.surgery import feature_indices
from optimum_grasprune.units import KV, Address, UnitMask

TOKENS = torch.randint(258, (4, 24), generator=torch.Generator().manual_seed(0))


def test_weights_are_squared_gradients_of_the_outputs(model: LlamaForCausalLM) -> None:
    found = WholeModel(model).gather([TOKEN_WEIGHTS], TOKENS)[TOKEN_WEIGHTS]
    path = "model.layers.1.mlp.down_proj"
    for position, tokens_S in enumerate(TOKENS):
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(path).register_forward_hook(lambda *given, seen=seen: seen.append(given[2]))
        loss = next_token_loss(model(tokens_S[None]).logits, tokens_S[None], reduction="none").sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, seen)
        torch.testing.assert_close(found[path][position], gradient[0].square().sum(1), rtol=1e-4, atol=1e-9)
    assert set(found) == {block.output for block in WholeModel(model).blocks}
    assert all(weights.shape == TOKENS.shape for weights in found.values())


@pytest.mark.parametrize("damping", [1e-8, 0.3, 4.0])
def test_equals_a_weighted_ridge_by_brute_force(damping: float) -> None:
    """min Σ_t w_t ‖W x_t − W* z_t‖² + δ ‖W* − W_K‖², in fp64."""
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    w_T = torch.rand(50, generator=generator, dtype=torch.float64) ** 4
    weight_OI, kept_K = torch.randn(3, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 5])
    z_TK = x_TI[:, kept_K] + 0.1 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    gram_KK, cross_IK = (w_T[:, None] * z_TK).T @ z_TK, x_TI.T @ (w_T[:, None] * z_TK)
    found = restored_weight(weight_OI, kept_K, gram_KK, cross_IK, damping)
    ridge = damping * gram_KK.diagonal().median()
    root_T1 = w_T.sqrt()[:, None]
    design = torch.cat([root_T1 * z_TK, ridge.sqrt() * torch.eye(3, dtype=torch.float64)])
    target = torch.cat([root_T1 * (x_TI @ weight_OI.T), ridge.sqrt() * weight_OI[:, kept_K].T])
    expected = torch.linalg.lstsq(design, target).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("in_sequence", [False, True])
def test_the_stage_weighs_its_products(
    model: LlamaForCausalLM, in_sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum_grasprune.recovery import least_squares

    products: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(*given: object) -> torch.Tensor:
        products.append((given[2], given[3]))  # type: ignore[arg-type]
        return restored_weight(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(least_squares, "restored_weight", watched)
    runner = WholeModel(model)
    mask = UnitMask(runner.inventory, runner.inventory.place_U % 2 == 0)
    plan = PruningPlan.from_mask(mask)
    restoration = "sequential" if in_sequence else "dense"
    config = GRASPConfig(restoration=restoration, least_squares="weighted", damping=0.1)
    chain = Chain.of(["least_squares"], config)
    reference = Reference.on(runner, TOKENS, 3, chain.statistics)
    list(chain.refitted(reference, chain.trials(plan)))
    linear = model.model.layers[0].self_attn.o_proj
    seen: list[torch.Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        for tokens_S in TOKENS[:3]:
            model(tokens_S[None])
    handle.remove()
    x_TI = torch.cat(seen)
    w_T1 = reference.statistics[TOKEN_WEIGHTS]["model.layers.0.self_attn.o_proj"].flatten()[:, None]
    group = plan.group(Address(0, KV))
    z_TK = x_TI[:, feature_indices(group.kept, x_TI.shape[1], group.count)]  # nothing before the first map was cut
    gram_KK, cross_IK = products[0]
    torch.testing.assert_close(gram_KK, (w_T1 * z_TK).T @ z_TK, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cross_IK, x_TI.T @ (w_T1 * z_TK), rtol=1e-4, atol=1e-5)
