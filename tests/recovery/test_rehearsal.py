"""Text that diagonals rehearse, so that what the calibration corpus does not show is not unlearnt."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.calibration_data import calibration_for, rehearses
from optimum_grasprune.corpora import corpus_in_memory, load_corpus, tokenize
from optimum_grasprune.corpora.sources import rehearsal_text
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.recovery.diagonals import KL_WEIGHT, KL_WEIGHT_REHEARSED, Diagonals, diagonal_learning_rate
from optimum_grasprune.recovery.reference import Reference, spread_evenly
from optimum_grasprune.sharing import Leg
from tests.contracts.test_methods import problem_of

OPTIONS: dict[str, Any] = {"num_samples": 6, "seq_len": 16, "held_out": 0, "diagonal_samples": 8, "dtype": "float32"}


def config_of(corpus: object, **options: Any) -> GRASPConfig:
    return GRASPConfig(dataset=str(corpus), **{**OPTIONS, **options})


def test_both_kinds_are_evenly_spread() -> None:
    assert spread_evenly(4, 2) == [0, 4, 1, 2, 5, 3]
    assert spread_evenly(2, 0) == [0, 1] and spread_evenly(0, 2) == [0, 1]


@given(st.integers(0, 40), st.integers(0, 40))
def test_of_any_beginning_each_kind_has_its_share(own: int, others: int) -> None:
    order = spread_evenly(own, others)
    assert sorted(order) == list(range(own + others))
    assert [place for place in order if place < own] == list(range(own))
    for taken in range(1, len(order) + 1):
        mine = sum(place < own for place in order[:taken])
        assert abs(mine - taken * own / len(order)) <= 1


def test_pieces_begin_at_words_all_over_the_text() -> None:
    whole = load_corpus("sampled", "[:90%]").text
    pieces = [part.content for part in rehearsal_text(5, 300).parts.values()]
    begins = [whole.index(piece) for piece in pieces]
    assert all(len(piece) == 300 for piece in pieces) and all(whole[begin - 1] == " " for begin in begins)
    gaps = [later - earlier for earlier, later in pairwise(begins)]
    assert min(gaps) > 0.9 * len(whole) / 5 and begins[-1] > 0.7 * len(whole)


def test_as_many_as_their_share_and_none_where_nothing_is_rehearsed(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    def drawn(corpus: object = corpus_file, **options: Any) -> torch.Tensor:
        calibration = calibration_for(model, tokenizer, None, config_of(corpus, **options))
        assert calibration is not None
        assert calibration.describe().rehearsed_sequences == len(calibration.rehearsed_NS)
        assert ("rehearsed" in calibration.sequences) == bool(len(calibration.rehearsed_NS))
        return calibration.rehearsed_NS

    assert drawn(rehearsal=0.25).shape == (2, 16) and drawn(rehearsal=0.5).shape == (4, 16)
    assert drawn(rehearsal=0.25, num_samples=3).shape == (1, 16)  # a share of what is there
    assert [GRASPConfig().rehearsed_sequences(there, 512) for there in (256, 192, 96, 1)] == [128, 128, 64, 1]
    assert GRASPConfig().diagonal_sequences(512) == 320 and GRASPConfig().rehearsed_sequences(512, 256) == 256
    assert torch.equal(drawn(seed=1), drawn())  # of the package's text, whatever the calibration draws
    assert not len(drawn(rehearsal=0.0)) and not len(drawn(compensation="both"))
    assert not len(drawn("sampled")) and not len(drawn(f"{corpus_file},sampled")) and len(drawn("builtin"))
    assert not rehearses(config_of(corpus_file, method="magnitude")) and rehearses(config_of(corpus_file))


def test_without_a_tokenizer_it_is_said_what_is_missing(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    text = tokenize(corpus_in_memory([corpus_file.read_text()]), tokenizer, 258)
    with pytest.raises(GraspruneError, match="a tokenizer is needed for the text that is rehearsed; rehearsal=0"):
        calibration_for(model, None, text, config_of(corpus_file))
    assert calibration_for(model, None, text, config_of(corpus_file, rehearsal=0)) is not None


def test_the_teacher_alone_is_learnt_from_what_is_rehearsed(model: LlamaForCausalLM) -> None:
    config = GRASPConfig(method="random", compensation="diagonals", keep_ratio=0.6, diagonal_samples=5)
    problem = problem_of(model, config)
    rehearsed_NS = torch.randint(258, (2, 20), generator=torch.Generator().manual_seed(7))
    stage = Diagonals.from_config(config)
    tokens_NS, training = stage._course(replace(Reference.of(problem), rehearsed_NS=rehearsed_NS), 0.5)
    own_NS = problem.tokens_NS
    assert torch.equal(tokens_NS, torch.stack([own_NS[0], rehearsed_NS[0], own_NS[1], rehearsed_NS[1], own_NS[2]]))
    assert training.rehearsed == (False, True, False, True, False) and training.learning_rate == 1e-2
    assert training.kl_weight == KL_WEIGHT_REHEARSED and training.taught
    weight = training.kl_weight_of(torch.tensor([3, 0]))
    assert isinstance(weight, torch.Tensor) and weight.tolist() == [1.0, KL_WEIGHT_REHEARSED]
    _, alone = stage._course(Reference.of(problem), 0.2)
    assert alone.rehearsed == () and alone.kl_weight == alone.kl_weight_of(torch.tensor([0])) == KL_WEIGHT
    assert alone.learning_rate == 5e-3
    _, untaught = Diagonals.from_config(config.model_copy(update={"kl_weight": 0.0}))._course(
        replace(Reference.of(problem), rehearsed_NS=rehearsed_NS), 0.5
    )
    assert untaught.taught and untaught.kl_weight_of(torch.tensor([0])).tolist() == [0.0]  # type: ignore[union-attr]


def test_what_comes_next_in_it_is_of_no_account(model: LlamaForCausalLM) -> None:
    """The dense model has nothing to learn from itself of what is rehearsed, however badly it predicts that."""
    config = GRASPConfig(method="random", compensation="diagonals", keep_ratio=0.6, diagonal_samples=5)
    rehearsed_NS = torch.randint(258, (2, 20), generator=torch.Generator().manual_seed(7))
    reference = replace(Reference.of(problem_of(model, config)), rehearsed_NS=rehearsed_NS)
    tokens_NS, training = Diagonals.from_config(config)._course(reference, 0.5)
    runner = reference.runner
    assert isinstance(runner, WholeModel)
    teacher = runner.teacher(tokens_NS)

    def loss_of(*places: int) -> float:
        indices_B = torch.tensor(places)
        return runner._loss(tokens_NS[indices_B], indices_B, training, teacher).item()

    assert loss_of(1, 3) == pytest.approx(0, abs=1e-6) and loss_of(0) > 1
    assert loss_of(0, 1) == pytest.approx(loss_of(0) / 2)


def test_legs_of_several_ratios_take_both_in_turns(model: LlamaForCausalLM) -> None:
    config = GRASPConfig(method="random", compensation="diagonals", keep_ratio=0.6, diagonal_samples=5)
    problem = problem_of(model, config)
    rehearsed_NS = torch.randint(258, (2, 20), generator=torch.Generator().manual_seed(7))
    reference = replace(Reference.of(problem), rehearsed_NS=rehearsed_NS, leg=Leg(0.0, 7 / 15))
    tokens_NS, rehearsed, epochs = reference.trained_on_both(5, 1)
    assert epochs == 1 and rehearsed == (False, True, False, True, False, False, True)
    assert torch.equal(tokens_NS[5:], tokens_NS[:2]) and torch.equal(tokens_NS[1], rehearsed_NS[0])


def test_every_sequence_is_read_once_by_the_teacher_of_gates_and_diagonals(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []
    teacher = WholeModel.teacher

    def watched(self: WholeModel, tokens_NS: torch.Tensor, **options: Any) -> Any:
        read.extend(tokens_NS)
        return teacher(self, tokens_NS, **options)

    monkeypatch.setattr(WholeModel, "teacher", watched)
    pruned = GRASPPruner(config_of(corpus_file, keep_ratio=0.5, rehearsal=0.25)).prune(model, tokenizer)
    assert len(read) == 6 + 2 == len(torch.stack(read).unique(dim=0))
    assert pruned.record.calibration is not None and pruned.record.calibration.rehearsed_sequences == 2


def test_the_rate_grows_with_the_cut_unless_it_is_given() -> None:
    assert [diagonal_learning_rate(None, cut) for cut in (0.0, 0.2, 0.5)] == [0.0, 5e-3, 1e-2]
    assert diagonal_learning_rate(3e-2, 0.2) == 3e-2
