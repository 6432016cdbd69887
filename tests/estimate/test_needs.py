"""Sizes, needs and work against numbers that were worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig
from optimum_grasprune.dummy import shape_config
from optimum_grasprune.errors import OptionError
from optimum_grasprune.estimate import Job, Needs, needs_of, runners_for, works_of
from optimum_grasprune.estimate.activations import Trained, logits, saved_in_layer
from optimum_grasprune.estimate.sizes import LayerSizes, Sizes
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import count_parameters
from tests.conftest import make_model
from tests.tiny_models import OF_FAMILY, tiny_model

LAYER = LayerSizes(
    parameters=1000,
    prunable=900,
    query=8,
    kv=4,
    channels=10,
    ffn_parts=2,
    norms=2,
    head_norms=0,
    inputs=50,
    outputs=60,
    leading_out=144,
)


def job(shape: str = "llama-2-7b", device: str = "cuda", runner: str = "whole", **options: Any) -> Job:
    return Job.of(GRASPConfig(**options), shape_config(shape), device=device, runner=runner)  # type: ignore[arg-type]


def parts(needs: Needs, stage: str) -> dict[str, int]:
    (found,) = (each for each in needs.stages if each.what == stage)
    return {part.what: part.size for part in found.parts}


def test_sizes_of_a_model() -> None:
    model = make_model()
    sizes = Sizes.of(model, family_of(model.config))
    layer = sizes.layers[1]
    # 32 wide; 4 query heads of 8, 2 KV heads; 48 channels; two norms.
    attention, ffn = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48
    assert (layer.prunable, layer.parameters) == (attention + ffn, attention + ffn + 2 * 32)
    assert (layer.query, layer.kv, layer.channels, layer.ffn_parts) == (32, 16, 48, 2)
    assert (layer.norms, layer.head_norms, layer.leading_out) == (2, 0, 32 * 32 + 32 * 48)
    assert (layer.inputs, layer.outputs) == (6 * 32 + 48, 32 + 16 + 16 + 32 + 48 + 48 + 32)
    assert (sizes.outside, sizes.units, sizes.tied) == (2 * 258 * 32 + 32, 3 * (48 + 2), False)
    assert sizes.kept(0.5).layers[0].parameters == (attention + ffn) // 2 + 2 * 32


@pytest.mark.parametrize("family", OF_FAMILY)
def test_all_parameters_are_counted_in_every_family(family: str) -> None:
    model = tiny_model(family)
    sizes = Sizes.of(model, family_of(model.config))
    assert sizes.parameters == count_parameters(model)
    assert all(layer.norms in (2, 4) for layer in sizes.layers)


def test_what_a_layer_saves() -> None:
    # Per token: q, k, v, attention's output; gate, up, activation, product; and both norms' inputs in fp32.
    assert saved_in_layer(LAYER, 6, 1, 2, Trained.UNITS) == 2 * (2 * 8 + 2 * 4 + 4 * 10) + 4 * 2 * 6
    assert saved_in_layer(LAYER, 6, 3, 2, Trained.MAPS) == 3 * (2 * (3 * 8 + 4 * 4 + 6 * 10 + 4 * 6) + 4 * 2 * 6)
    assert saved_in_layer(LAYER, 6, 1, 4, Trained.ADAPTERS) == 4 * (2 * 8 + 2 * 4 + 4 * 10 + 2 * 6) + 4 * 2 * 6
    assert saved_in_layer(LAYER, 6, 1, 2, Trained.ADAPTERS) == 2 * (2 * 8 + 2 * 4 + 4 * 10 + 2 * 6) + 4 * (2 * 6 + 50)


def test_logits() -> None:
    assert logits(10, 100, 2) == 10 * 100 * (2 + 4 + 4)
    assert logits(10, 100, 4) == 10 * 100 * (4 + 4)
    assert logits(10, 100, 2, backward=True) == 10 * 100 * (2 + 3 * 4)
    assert logits(10, 100, 2, backward=True, teacher=True) == 10 * 100 * (2 * 2 + 5 * 4)


def test_weights_lie_where_the_runner_has_them() -> None:
    whole, offloaded, streamed = (parts(needs_of(job(runner=runner)), "gates") for runner in runners_for(1))
    weights, outside, layer = 2 * 6_738_415_616, 2 * (2 * 32000 * 4096 + 4096), 2 * 202_383_360
    assert whole["weights"] == offloaded["weights"] == weights
    assert offloaded["weights outside of the layers"] == streamed["weights outside of the layers"] == outside
    assert offloaded["weights of two layers"] == 2 * layer and streamed["weights of one layer"] == layer
    assert "weights" not in streamed
    by_runner = [needs_of(job(runner=runner)).size("device") for runner in runners_for(1)]
    assert by_runner == sorted(by_runner, reverse=True)


def test_of_a_model_that_is_shared_each_process_has_its_part() -> None:
    shared = parts(needs_of(replace(job(batch_size=8), runner="sharded", processes=4)), "gates")
    layer, layers = 2 * 202_383_360, 32 * 2 * 202_383_360
    assert shared["weights in shares"] == layers // 4
    assert shared["weights of one layer"] == shared["a layer that is read"] == layer
    by_two = needs_of(replace(job(batch_size=8), runner="sharded", processes=2))
    assert by_two.size("device") > layers // 2 and by_two.hard("host") < layers // 4
    streamed = parts(needs_of(job(batch_size=2, runner="streamed")), "gates")
    waiting = "hidden states at the borders of layers"
    assert shared[waiting] == streamed[waiting]  # of two sequences each


def test_on_a_cpu_all_is_the_hosts() -> None:
    needs = needs_of(job(device="cpu"))
    assert needs.size("device") == 0 and needs.size("host") > 2 * 6_738_415_616
    assert needs.hard("host") < needs.size("host")


def test_gates_of_a_7b_in_seventeen_gigabytes() -> None:
    """As it was measured on a GPU."""
    needs = needs_of(job(compensation="none", held_out=0))
    assert needs.peak("device").what == "gates" and 15e9 < needs.size("device") < 18e9
    assert parts(needs, "gates")["optimiser"] == 16 * job().sizes.units


def test_what_options_do() -> None:
    plain = needs_of(job(compensation="none"))
    assert needs_of(job(compensation="none", gradient_checkpointing=True)).size("device") < plain.size("device")
    assert needs_of(job(compensation="none", batch_size=4)).size("device") > plain.size("device")
    assert needs_of(job(compensation="none", seq_len=64)).size("device") < plain.size("device")
    doubled = needs_of(job(compensation="none", dtype="float32"))
    assert parts(doubled, "gates")["weights"] == 2 * parts(plain, "gates")["weights"]
    fasp = needs_of(job(method="fasp"))
    assert "gates" not in {stage.what for stage in fasp.stages}
    assert parts(fasp, "least squares")["hidden states"] == 2 * 128 * 512 * 4096 * 2
    flap = needs_of(job(method="flap"))
    assert flap.size("temporary") == 0 < fasp.size("temporary")
    magnitude = needs_of(job(method="magnitude"))
    assert [stage.what for stage in magnitude.stages] == ["loading", "scores", "writing"]


def test_weights_that_are_trained_need_their_optimiser() -> None:
    trained = parts(needs_of(job(recover="distill", method="magnitude")), "distill")
    cut = job(recover="distill", method="magnitude").cut.in_layers
    assert trained["optimiser"] == cut * (16 + 4)
    # The dense model is gone, and has left what it made of 131,072 tokens.
    assert trained["weights"] == 2 * (cut + 2 * 32000 * 4096 + 4096)
    assert trained["the teacher's hidden states"] == 2**17 * 4096 * 2
    live = parts(needs_of(job(recover="distill", method="magnitude", recover_tokens=2**18 + 512)), "distill")
    assert live["weights"] == 2 * 6_738_415_616 and live["the pruned model's layers"] == 2 * cut
    assert "the teacher's hidden states" not in live
    before = parts(needs_of(job(recover="lora", recover_tokens=2**19)), "diagonals")
    assert before["weights"] == live["weights"] and before["the teacher's hidden states"] > 0
    adapters = parts(needs_of(job(recover="lora", method="magnitude")), "lora")
    assert adapters["optimiser"] < trained["optimiser"] / 20


def test_disks() -> None:
    needs = needs_of(job(keep_ratio=0.5))
    checkpoint = 2 * (6_738_415_616 - 6_476_005_376 // 2)
    assert parts(needs, "writing")["checkpoint"] == checkpoint
    several = Job.of(GRASPConfig(), shape_config("llama-2-7b"), device="cuda", ratios=(0.75, 0.5))
    assert parts(needs_of(several), "writing")["checkpoints"] == checkpoint + 2 * (6_738_415_616 - 6_476_005_376 // 4)
    assert needs.size("temporary") == 2 * 6_476_005_376 // 2 + 2 * 32 * 2 * 4096  # half of the layers, and their norms
    # Two finalists with two dampings each, of both maps of every layer that lead out, half of their columns.
    refitted = needs_of(job(keep_ratio=0.5, compensation="refit"))
    assert refitted.size("temporary") == 4 * 32 * 2 * (4096 * 4096 + 4096 * 11008) // 2


def test_a_total_budget_leaves_less_of_the_units() -> None:
    assert job(keep_ratio=0.5).share == 0.5
    prunable, everything = 6_476_005_376, 6_738_415_616
    assert job(keep_ratio=0.5, budget="total").share == pytest.approx(1 - 0.5 * everything / prunable)
    assert job(method="statistical", pattern="2:4").share == 1.0


def test_a_replay_chooses_nothing() -> None:
    replay = Job.of(GRASPConfig(), shape_config("tiny"), device="cpu", replays=True)
    assert [stage.what for stage in needs_of(replay).stages] == ["loading", "writing"] and works_of(replay) == ()


def test_a_sequence_that_is_too_long() -> None:
    with pytest.raises(OptionError, match="seq_len=5000: the model reads at most 4096 tokens"):
        job(seq_len=5000)


def test_work_is_counted_in_passes() -> None:
    options = {"num_samples": 100, "seq_len": 512, "epochs": 2, "batch_size": 4}
    works = {work.label: work for work in works_of(job(**options, dataset="text.txt"))}
    assert [*works] == ["sensitivity", "gates", "candidates", "reconstruction", "rebuilt", "diagonals"]
    refitted = {work.label: work for work in works_of(job(**options, dataset="text.txt", compensation="refit"))}
    assert [*refitted][3:] == ["least squares", "refitted", "diagonals"] and refitted["refitted"].units == 4
    in_layers, head = 32 * 202_383_360, 32000 * 4096
    through_layers = in_layers / (in_layers + head)
    assert works["sensitivity"].passes == 64 * 2
    # Back and forth, the teacher's head at every step, and its layers in the first of two epochs.
    assert works["gates"].units == 50
    assert works["gates"].each == pytest.approx(4 * (2 + 1 - through_layers + through_layers / 2))
    half = (in_layers - 6_476_005_376 // 2 + head) / (in_layers + head)
    assert works["candidates"].units == 5 and works["candidates"].each == pytest.approx(32 * half, rel=1e-6)
    assert works["rebuilt"].units == 1 and works["reconstruction"].units == 32
    # The dense model's pass and three of the half, and products and solutions on top.
    assert 64 * (1 + 3 * half) * through_layers < works["reconstruction"].passes < 64 * 1.5 * (1 + 3 * half)
    # Back and forth through the half, the teacher's head, and its layers once for what gates have not seen: 100 of 200.
    assert works["diagonals"].units == 50
    read = 1 - through_layers + through_layers * 100 / 200
    assert works["diagonals"].each == pytest.approx(4 * (2 * half + read), rel=1e-6)
    assert {label for label, work in works.items() if work.trains} == {"gates", "diagonals"}
    assert refitted["least squares"].units == 32
    recomputed = {work.label: work for work in works_of(job(num_samples=100, gradient_checkpointing=True))}
    assert recomputed["gates"].each == 4 and recomputed["sensitivity"].each == 3
    of_sampled = {work.label: work for work in works_of(job(**options))}["diagonals"]  # nothing is rehearsed
    assert of_sampled.units == 50 and of_sampled.each == pytest.approx(4 * (2 * half + read), rel=1e-6)
    assert {work.label: work for work in works_of(job(keep_ratio=0.8))}["gates"].each == 2  # without a teacher


def test_work_of_several_ratios() -> None:
    alone = job(num_samples=101, batch_size=2, dataset="text.txt", compensation="refit", diagonal_samples=40)
    one, ten = (
        {work.label: work.units for work in works_of(replace(alone, ratios=ratios))}
        for ratios in ((0.5,), tuple(ratio / 20 for ratio in range(19, 9, -1)))
    )
    # All that the smallest takes by itself, and three quarters of the diagonals' sequences for all others.
    assert (one["diagonals"], ten["diagonals"]) == (20, 35)
    assert all(one[label] == ten[label] for label in ("sensitivity", "gates", "candidates", "refitted"))


def test_of_several_ratios_the_smallest_is_rebuilt() -> None:
    ratios = (0.8, 0.7, 0.5)
    alone = replace(job(), ratios=ratios)
    works = {work.label: work for work in works_of(alone)}
    one = {work.label: work for work in works_of(replace(alone, ratios=(0.5,)))}
    assert works["reconstruction"].passes == pytest.approx(one["reconstruction"].passes) and works["rebuilt"].units == 1
    # The candidate that won is refitted with both dampings at 0.7.
    assert works["refitted"].units == 2 and works["candidates"].units == one["candidates"].units == 5
    of_all = {work.label: work for work in works_of(replace(job(compensation="rebuild"), ratios=ratios))}
    assert "refitted" not in of_all and of_all["rebuilt"].units == 2  # the smallest, and the largest
    assert 3 < of_all["reconstruction"].passes / one["reconstruction"].passes < 6
    # On the disk it has all of its maps, beside those of the refitted ones that lead out of blocks.
    out = 2 * 32 * (4096 * 4096 + 4096 * 11008)
    half = 2 * 6_476_005_376 // 2 + 2 * 32 * 2 * 4096
    diagonals = parts(needs_of(alone), "diagonals")["maps of all ratios"]
    assert diagonals == pytest.approx((0.8 + 0.7 + 0.5) * out + half, rel=1e-6)
    assert parts(needs_of(alone), "reconstruction")["maps of what was rebuilt"] == half


def test_weights_are_trained_by_steps_of_their_own() -> None:
    both = [job(recover="distill", recover_batch_size=size) for size in (None, 2)]
    small, large = (parts(needs_of(each), "distill")["activations"] for each in both)
    assert 1.9 * small < large
    assert parts(needs_of(both[0]), "gates") == parts(needs_of(both[1]), "gates")
    alone, by_two = ({work.label: work for work in works_of(each)} for each in both)
    assert (alone["distill"].units, by_two["distill"].units) == (256, 128)
    assert by_two["distill"].passes == pytest.approx(alone["distill"].passes)
    assert alone["gates"] == by_two["gates"]


def test_ddp_trains_at_every_ratio() -> None:
    options: dict[str, Any] = {"method": "ddp", "num_samples": 101, "batch_size": 2, "dataset": "text.txt"}
    alone = job(**options)
    (one,), (two,) = (works_of(replace(alone, ratios=ratios)) for ratios in ((0.5,), (0.8, 0.5)))
    assert (one.label, one.units, two.units, one.trains) == ("ddp", 51, 102, True)
    # Forwards and backwards, and what the dense model predicts, which reads every sequence once.
    assert one.each == pytest.approx(2 * 3) and two.each == pytest.approx(2 * (2 + 0.5), rel=0.02)
    assert works_of(job(**options, kl_weight=0))[0].each == 4
    assert parts(needs_of(alone), "ddp") == parts(needs_of(job(num_samples=101, batch_size=2)), "gates")


def test_work_without_a_training() -> None:
    (statistics,) = works_of(job(method="flap", num_samples=8))
    assert (statistics.label, statistics.units) == ("statistics", 8) and 0.9 < statistics.each < 1
    assert works_of(job(method="magnitude")) == ()
