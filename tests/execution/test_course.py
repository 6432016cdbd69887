from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune import GRASPConfig
from optimum_grasprune.execution import CheckUp, Course, Training, digest
from optimum_grasprune.execution.course import CHECK_UPS, PATIENCE, best_of, is_over
from optimum_grasprune.execution.whole import WholeModel
from optimum_grasprune.recovery.distill import Distill
from tests.conftest import make_model

TOKENS = torch.randint(258, (40, 8), generator=torch.Generator().manual_seed(0))


def looks(*pairs: tuple[float, float]) -> list[CheckUp]:
    return [CheckUp(step=step, losses={"held_out": a, "watched": b}) for step, (a, b) in enumerate(pairs)]


def test_best_by_hand() -> None:
    assert best_of(looks((5, 5))) == 0
    assert best_of(looks((5, 5), (4, 4.8), (4.5, 4.2), (3, 5.1))) == 2
    assert best_of(looks((5, 5), (5, 5), (5.1, 2))) == 0
    assert best_of(looks((5, 5), (5, 4), (4, 5))) == 1


def test_a_training_is_over_where_nothing_gets_lower_any_more() -> None:
    assert not is_over(looks((5, 5), *[(4, 4)] * PATIENCE)) and is_over(looks((5, 5), *[(4, 4)] * (PATIENCE + 1)))
    # What is worse than at first, but gets better, is given time; so is what takes the mean down with one text up.
    assert not is_over(looks((5, 5), *[(9 - step / 3, 9) for step in range(2 * PATIENCE)]))
    assert not is_over(looks((5, 5), (4, 4), *[(3 - step / 9, 4.9) for step in range(2 * PATIENCE)]))
    # One lower mean among the last few is enough.
    assert not is_over(looks((5, 5), (4, 4), (4, 5), (3, 4), *[(4, 5)] * (PATIENCE - 1)))


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=12))
def test_the_best_is_never_worse_than_the_first(pairs: list[tuple[float, float]]) -> None:
    held_out, watched = pairs[best_of(looks(*pairs))]
    assert held_out <= pairs[0][0] and watched <= pairs[0][1]


def learn(course: Course) -> list[torch.Tensor]:
    model = make_model()
    training = Training(1, 1, 0, 1e-3, "cosine", False, "weights", clip=1.0)
    return WholeModel(model).learn(Distill(GRASPConfig()).trainable(WholeModel(model)), TOKENS, training, course=course)


def test_it_looks_in_even_steps_and_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([5.0, 4.0, 3.0, *[3.5] * 20])
    monkeypatch.setattr(WholeModel, "mean_loss", lambda *_: next(values))
    course = Course({"watched": TOKENS[:1]})
    learn(course)
    assert [entry.step for entry in course.check_ups] == [0, *range(4, 4 * (2 + PATIENCE) + 1, 4)]
    assert course.step == 4 * (2 + PATIENCE) < len(TOKENS) and course.best_step == 8
    assert course.status() == ["watched 3.500"] and 40 // CHECK_UPS == 4


def test_without_texts_the_last_state_is_taken() -> None:
    course = Course({})
    learn(course)
    assert course.best == [] and course.best_step == course.step == 40 and not course.status()


def test_no_step_is_longer_than_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW) -> object:
        gradients = [each.grad for group in self.param_groups for each in group["params"]]
        norms.append(float(torch.cat([each.flatten() for each in gradients]).norm()))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    learn(Course({}))
    assert len(norms) == 40 and max(norms) <= 1 + 1e-4 and norms[0] > 0.9


def test_a_digest_tells_names_shapes_and_bits() -> None:
    one = torch.tensor([1.0, 2.0])
    others = [("a", one.view(2, 1)), ("b", one), ("a", one.bfloat16()), ("a", torch.tensor([1.0, 2.0000002]))]
    assert digest([("a", one)]) == digest([("a", one.clone())])
    assert len({digest([("a", one)]), *(digest([other]) for other in others)}) == 5
