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
from optimum_grasprune.calibration_data import Calibration, calibration_for, rehearses
from optimum_grasprune.corpora import corpus_in_memory, load_corpus, tokenize
from optimum_grasprune.corpora.sources import rehearsal_text
from optimum_grasprune.errors import GraspruneError, OptionError
from optimum_grasprune.execution import Training, WholeModel
from optimum_grasprune.problem import RecoveryText, TrainingTexts
from optimum_grasprune.recovery.diagonals import KL_WEIGHT, KL_WEIGHT_REHEARSED, Diagonals, diagonal_learning_rate
from optimum_grasprune.recovery.fine_tuning import KL_WEIGHT as WEIGHTS_KL_WEIGHT
from optimum_grasprune.recovery.reference import Reference, spread_evenly
from optimum_grasprune.recovery.scales import Scales
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
        assert calibration.describe().rehearsed_sequences == len(calibration.training_texts.rehearsed_NS)
        assert ("rehearsed" in calibration.sequences) == bool(len(calibration.training_texts.rehearsed_NS))
        return calibration.training_texts.rehearsed_NS

    assert drawn(rehearsal=0.25).shape == (2, 16) and drawn(rehearsal=0.5).shape == (4, 16)
    assert drawn(rehearsal=0.25, num_samples=3, diagonal_samples=None).shape == (2, 16)
    assert [GRASPConfig().diagonal_sequences(there, 512) for there in (1000, 256, 96, 1)] == [512, 512, 192, 2]
    assert [GRASPConfig().rehearsed_sequences(there, 512) for there in (1000, 256, 96, 1)] == [128, 128, 48, 0]
    assert GRASPConfig().diagonal_sequences(9, 2**20) == 1 and GRASPConfig().diagonal_sequences(512, 256) == 1024
    assert GRASPConfig(diagonal_samples=3, rehearsal=0.9).rehearsed_sequences(96, 512) == 2
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
    reference = replace(Reference.of(problem), training_texts=TrainingTexts(rehearsed_NS=rehearsed_NS))
    tokens_NS, training = stage.course(reference, 0.5)
    own_NS = problem.tokens_NS
    assert torch.equal(tokens_NS, torch.stack([own_NS[0], rehearsed_NS[0], own_NS[1], rehearsed_NS[1], own_NS[2]]))
    assert training.rehearsed == (False, True, False, True, False) and training.learning_rate == 1e-2
    assert training.kl_weight == KL_WEIGHT_REHEARSED and training.taught
    weight = training.kl_weight_of(torch.tensor([3, 0]))
    assert isinstance(weight, torch.Tensor) and weight.tolist() == [1.0, KL_WEIGHT_REHEARSED]
    _, alone = stage.course(Reference.of(problem), 0.2)
    assert alone.rehearsed == () and alone.kl_weight == alone.kl_weight_of(torch.tensor([0])) == KL_WEIGHT
    assert alone.learning_rate == 5e-3
    _, untaught = Diagonals.from_config(config.model_copy(update={"kl_weight": 0.0})).course(reference, 0.5)
    assert untaught.taught and untaught.kl_weight_of(torch.tensor([0])).tolist() == [0.0]  # type: ignore[union-attr]


def test_what_comes_next_in_it_is_of_no_account(model: LlamaForCausalLM) -> None:
    """The dense model has nothing to learn from itself of what is rehearsed, however badly it predicts that."""
    config = GRASPConfig(method="random", compensation="diagonals", keep_ratio=0.6, diagonal_samples=5)
    rehearsed_NS = torch.randint(258, (2, 20), generator=torch.Generator().manual_seed(7))
    reference = replace(
        Reference.of(problem_of(model, config)), training_texts=TrainingTexts(rehearsed_NS=rehearsed_NS)
    )
    tokens_NS, training = Diagonals.from_config(config).course(reference, 0.5)
    runner = reference.runner
    assert isinstance(runner, WholeModel)
    teacher = runner.teacher(tokens_NS)

    def loss_of(*places: int) -> float:
        indices_B = torch.tensor(places)
        return runner._loss(tokens_NS[indices_B], indices_B, training, teacher).item()

    assert loss_of(1, 3) == pytest.approx(0, abs=1e-6) and loss_of(0) > 1
    assert loss_of(0, 1) == pytest.approx(loss_of(0) / 2)


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


RECOVERY: dict[str, Any] = {"method": "random", "recover": "distill", "recover_tokens": 160, "held_out": 2}


def recovery_text_of(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: object, **options: Any
) -> RecoveryText:
    calibration = calibration_for(model, tokenizer, None, config_of(corpus, **{**RECOVERY, **options}))
    assert calibration is not None and calibration.training_texts.recovery is not None
    assert torch.equal(calibration.sequences["trained on"], calibration.training_texts.recovery.tokens_NS)
    return calibration.training_texts.recovery


def test_a_recovery_has_a_share_of_it_among_its_tokens(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    assert [GRASPConfig(recover_tokens=tokens).recovery_sequences(512) for tokens in (2**17, 4096, 512, 1)] == [
        (192, 64),
        (6, 2),
        (1, 0),
        (1, 0),
    ]
    assert GRASPConfig(recover_rehearsal=0.9).recovery_sequences(2**16) == (1, 1)
    text, alone = (recovery_text_of(model, tokenizer, corpus_file, **given) for given in ({}, {"recover_rehearsal": 0}))
    assert text.rehearsed == (False,) * 8 + (True,) * 2 and alone.rehearsed == ()
    assert text.tokens_NS.shape == alone.tokens_NS.shape == (10, 16)
    assert torch.equal(text.tokens_NS[:6], alone.tokens_NS[:6])  # the calibration sequences come first in both
    pieces = tokenize(rehearsal_text(2, 256), tokenizer, 258).windows(16, 2)
    assert torch.equal(text.tokens_NS[8:], pieces)
    assert text.watched is not None and (text.watched.source, text.watched.split) == ("sampled", "[90%:]")
    other = recovery_text_of(model, tokenizer, f"{corpus_file},sampled")
    assert other.rehearsed == () and len(other.tokens_NS) == 10


def test_what_is_rehearsed_cannot_be_watched(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    for watched in ("sampled", "sampled[10%:40%]"):
        with pytest.raises(OptionError, match=r"is the text that is rehearsed; sampled\[90%:\] is the rest of it"):
            recovery_text_of(model, tokenizer, corpus_file, recover_watch=watched, recover_tokens=1600)
        recovery_text_of(model, tokenizer, corpus_file, recover_watch=watched, recover_rehearsal=0)
    recovery_text_of(model, tokenizer, corpus_file, recover_watch="sampled[90%:]")


def test_a_recovery_learns_the_teacher_alone_of_it_and_goes_over_all_as_often_as_asked(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Training] = []
    learn = WholeModel.learn

    def watched(
        runner: WholeModel, trained: Any, tokens_NS: torch.Tensor, training: Training, dense: Any, **given: Any
    ) -> Any:
        seen.append(training)
        return learn(runner, trained, tokens_NS, training, dense, **given)

    monkeypatch.setattr(WholeModel, "learn", watched)
    config = config_of(corpus_file, **RECOVERY, recover_epochs=3)
    pruned = GRASPPruner(config).prune(model, tokenizer)
    (training,) = seen
    assert training.rehearsed == (False,) * 8 + (True,) * 2 and training.epochs == 3
    assert training.kl_weight_of(torch.tensor([0, 9])).tolist() == [WEIGHTS_KL_WEIGHT, 1.0]  # type: ignore[union-attr]
    record = pruned.record.recovery
    assert record is not None and record.planned_steps == 30 and record.tokens == 16 * record.steps


def test_diagonals_are_trained_on_more_of_the_corpus_than_is_calibrated_on(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    """By default on half as much again, and on as much as those are a third of."""

    def drawn(**options: Any) -> Calibration:
        found = calibration_for(model, tokenizer, None, config_of(corpus_file, **options))
        assert found is not None
        return found

    by_default = drawn(diagonal_samples=None)
    own_NS, texts = by_default.tokens_NS, by_default.training_texts
    assert [len(part) for part in (own_NS, texts.further_NS, texts.rehearsed_NS)] == [6, 3, 3]
    assert torch.equal(by_default.sequences["trained on besides"], texts.further_NS)
    whole = drawn(num_samples=9)
    assert torch.equal(torch.cat([own_NS, texts.further_NS]), whole.tokens_NS)
    assert not len(whole.training_texts.further_NS) and "trained on besides" not in whole.sequences
    unrehearsed = drawn(diagonal_samples=10, rehearsal=0).training_texts
    assert (len(unrehearsed.further_NS), len(unrehearsed.rehearsed_NS)) == (4, 0)
    for untrained in ({"compensation": "scales"}, {"method": "flap"}):
        assert not len(drawn(**untrained).training_texts.further_NS)
    with pytest.raises(OptionError, match="diagonal_samples=100000: the calibration corpus .* which hold only"):
        drawn(diagonal_samples=10**5)


def test_they_come_after_the_calibration_sequences(model: LlamaForCausalLM) -> None:
    config = GRASPConfig(method="random", compensation="diagonals", keep_ratio=0.6, diagonal_samples=6)
    problem = problem_of(model, config)
    own_NS, further_NS, rehearsed_NS = problem.tokens_NS[:3].split(1)
    reference = replace(Reference.of(problem), tokens_NS=own_NS, training_texts=TrainingTexts(further_NS))
    both_NS, rehearsed = reference.trained_on_both(6)
    assert torch.equal(both_NS, torch.cat([own_NS, further_NS])) and rehearsed == ()
    both_NS, rehearsed = replace(reference, training_texts=TrainingTexts(further_NS, rehearsed_NS)).trained_on_both(6)
    kept = [place for place, flag in enumerate(rehearsed) if not flag]
    assert torch.equal(both_NS[kept], torch.cat([own_NS, further_NS])) and len(both_NS) == 3
    assert torch.equal(Scales.from_config(config).course(reference, 0.5)[0], own_NS)  # keep to what is calibrated on
