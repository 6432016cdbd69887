from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig, PruningPlan, UnitMask
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import family_of
from optimum_grasprune.recovery import least_squares
from optimum_grasprune.recovery.chain import Chain
from optimum_grasprune.recovery.least_squares import FITS, LeastSquares
from optimum_grasprune.recovery.reference import Reference, Trial
from optimum_grasprune.statistics import MOMENTS
from optimum_grasprune.surgery import build_pruned_model, feature_indices
from optimum_grasprune.units import KV, Address
from tests.conftest import logits_of, make_model

TOKENS = torch.randint(258, (6, 24), generator=torch.Generator().manual_seed(0))


def half(model: LlamaForCausalLM) -> PruningPlan:
    """Every other channel and the first KV group of each layer."""
    inventory = family_of(model.config).inventory(model)
    kept = inventory.place_U % 2 == 0
    return PruningPlan.from_mask(UnitMask(inventory, kept))


def refitted(model: LlamaForCausalLM, step: str, **options: Any) -> LlamaForCausalLM:
    values = {"damping": 0.1, "in_sequence": False, "fit": "robust", "plan": half(model), **options}
    config = GRASPConfig(
        restoration="sequential" if values["in_sequence"] else "dense",
        least_squares=values["fit"],
        damping=values["damping"],
    )
    chain = Chain.of([step], config)
    (trial,) = chain.trials(values["plan"])
    (draft,) = chain.refitted(Reference.on(WholeModel(model), TOKENS, len(TOKENS), chain.statistics), [trial])
    return draft.build()  # type: ignore[return-value]


def distance(model: LlamaForCausalLM, pruned: LlamaForCausalLM) -> float:
    return float((logits_of(model, TOKENS) - logits_of(pruned, TOKENS)).square().mean())


def test_layers_one_by_one_give_what_the_model_gives(model: LlamaForCausalLM) -> None:
    with WholeModel(model).stream(TOKENS) as stream:
        for index in range(len(stream.layers)):
            stream.advance(index)
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(torch.cat(stream.hidden)))
    torch.testing.assert_close(logits, logits_of(model, TOKENS), rtol=1e-4, atol=1e-5)


def test_input_of_a_module_is_what_a_hook_sees(model: LlamaForCausalLM) -> None:
    layer = model.model.layers[0]
    seen: list[torch.Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    logits_of(model, TOKENS[2:3])
    handle.remove()
    with WholeModel(model).stream(TOKENS) as stream:
        torch.testing.assert_close(stream.input_of(layer.mlp.down_proj, 0, 2), seen[0])
    assert not layer.mlp.down_proj._forward_pre_hooks


@pytest.mark.parametrize("in_sequence", [False, True])
def test_least_squares_come_closer_to_the_dense_model(model: LlamaForCausalLM, in_sequence: bool) -> None:
    plain = build_pruned_model(model, half(model), family_of(model.config))
    restored = refitted(model, "least_squares", in_sequence=in_sequence)
    assert distance(model, restored) < 0.9 * distance(model, plain)  # type: ignore[arg-type]


def test_duplicated_channels_are_made_up_for_exactly() -> None:
    # Channel 2k + 1 computes what channel 2k does, so that half the FFN can carry all of it. Attention stays whole.
    model = make_model(num_hidden_layers=2)
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[1::2] = linear.weight[::2]
    family = family_of(model.config)
    inventory = family.inventory(model)
    kept = inventory.is_kind_U[KV] | (inventory.place_U % 2 == 0)
    plan = PruningPlan.from_mask(UnitMask(inventory, kept))
    for in_sequence in (False, True):
        pruned = build_pruned_model(model, plan, family)
        assert distance(model, pruned) > 1e-3  # type: ignore[arg-type]
        restored = refitted(model, "least_squares", plan=plan, in_sequence=in_sequence, damping=1e-7)
        assert distance(model, restored) < 1e-8


def test_bias_is_the_mean_of_what_is_missing(model: LlamaForCausalLM) -> None:
    pruned = refitted(model, "bias")
    family = family_of(model.config)
    dense, plan = family.output_projections(model), half(model)
    moments = WholeModel(model).gather([MOMENTS], TOKENS)[MOMENTS]
    for block, linear in zip(family.blocks(pruned), family.output_projections(pruned).values(), strict=True):
        group = plan.group(block.address)
        mean = moments[block.output].mean_I.clone()
        mean[feature_indices(group.kept, len(mean), group.count)] = 0
        torch.testing.assert_close(linear.bias.detach(), (dense[block.address].weight.double() @ mean).float())


def test_energy_scales_rows_only(model: LlamaForCausalLM) -> None:
    plain = build_pruned_model(model, half(model), family_of(model.config))
    scaled = refitted(model, "energy")
    for name, tensor in plain.state_dict().items():
        ratio = scaled.state_dict()[name] / tensor
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
            assert ratio.min() >= 0.5 and ratio.max() <= 2
        else:
            torch.testing.assert_close(scaled.state_dict()[name], tensor)


@pytest.mark.parametrize(("step", "in_sequence"), [("least_squares", False), ("least_squares", True), ("bias", False)])
def test_activations_that_are_not_finite_name_the_layer(model: LlamaForCausalLM, step: str, in_sequence: bool) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(GraspruneError, match=r"the input of model.layers.1.mlp.down_proj is not finite"):
        refitted(model, step, in_sequence=in_sequence)


def test_a_dead_channel_changes_nothing_else(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[4] = 0
    pruned = refitted(model, "least_squares", damping=1e-6)
    assert all(torch.isfinite(tensor).all() for tensor in pruned.state_dict().values())
    dense_column = model.model.layers[0].mlp.down_proj.weight[:, 4]
    torch.testing.assert_close(pruned.model.layers[0].mlp.down_proj.weight[:, 2], dense_column)


@pytest.mark.parametrize("in_sequence", [False, True])
def test_products_of_inputs_are_summed_in_fp32_whatever_the_model_computes_in(
    in_sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model().to(torch.bfloat16)
    family, plan = family_of(model.config), half(model)
    pruned = build_pruned_model(model, plan, family)
    products: list[tuple[torch.Tensor, torch.Tensor]] = []
    restored = least_squares.restored_weight

    def watched(*given: Any) -> torch.Tensor:
        products.append(given[2:4])
        return restored(*given)

    monkeypatch.setattr(least_squares, "restored_weight", watched)
    # Each model's inputs of the output projection that is refitted first, a tensor for each sequence.
    inputs: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for after, run in ((False, model), (True, pruned)):
        projection = family.output_projections(run)[Address(0, KV)]
        projection.register_forward_pre_hook(lambda _, given, seen=inputs[after]: seen.append(given[0].flatten(0, -2)))
    stage = LeastSquares(in_sequence, FITS["plain"], (0.1,))
    stage.refit(Reference.on(WholeModel(model), TOKENS, len(TOKENS)), Trial(plan, {"damping": 0.1}), pruned)
    # One sequence more goes through the model first, to see what each layer is given beside its input.
    x_TI = torch.cat(inputs[False][1 : 1 + len(TOKENS)]).double()
    kept_K = feature_indices(plan.group(Address(0, KV)).kept, x_TI.shape[1], plan.group(Address(0, KV)).count)
    z_TK = torch.cat(inputs[True][1 : 1 + len(TOKENS)]).double() if in_sequence else x_TI[:, kept_K]
    gram_KK, cross_IK = products[0]
    torch.testing.assert_close(gram_KK, (z_TK.T @ z_TK).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross_IK, (x_TI.T @ z_TK).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_sequence", [False, True])
def test_plain_least_squares_count_every_token_and_robust_ones_do_not(
    model: LlamaForCausalLM, in_sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[int, str]] = []
    restored = least_squares.restored_weight

    def watched(weight_OI: torch.Tensor, kept_K: torch.Tensor, gram_KK: torch.Tensor, *others: Any) -> torch.Tensor:
        counted.append((int(others[0].abs().max() > 1e4), others[-1]))
        return restored(weight_OI, kept_K, gram_KK, *others)

    monkeypatch.setattr(least_squares, "restored_weight", watched)
    # The first token of each sequence carries a massive activation in the first channel of each output projection.
    for linear in family_of(model.config).output_projections(model).values():
        linear.register_forward_pre_hook(lambda _, inputs: (_with_outlier(inputs[0]),))
    refitted(model, "least_squares", in_sequence=in_sequence, fit="robust")
    assert set(counted) == {(0, "median")}
    counted.clear()
    refitted(model, "least_squares", in_sequence=in_sequence, fit="plain")
    assert (1, "mean") in counted and {diagonal for _, diagonal in counted} == {"mean"}


def _with_outlier(x_BSI: torch.Tensor) -> torch.Tensor:
    x_BSI = x_BSI.clone()
    x_BSI[:, 0, 0] = 1e5
    return x_BSI
