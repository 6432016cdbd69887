"""The whole model on one device.

Shape suffixes: N sequences, S sequence, B batch, T tokens, I features, U units, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import GraspruneError
from ..families import linear_at
from ..numerics import in_fp64, precision_advice, tell_when_slow
from ..progress import bar
from ..statistics import Statistic
from .chunks import Predictions, chunked_loss, chunked_losses, in_one
from .course import Course
from .distillation import LiveTeacher, Teacher, Teaches
from .gathering import GatheringCourse
from .instrument import Gates, frozen, gated, gradients_at, hidden_given, inputs_of
from .loss import distillation_loss, next_token_loss
from .run_state import Piece
from .runner import Runner, Training, loss_not_finite
from .stream import LayerStream
from .trainable import Pace, Step, Trainable
from .training import BETAS, Schedule, batches, training_steps
from .turns import InTurns, Member


class _Acting(NamedTuple):
    """What a step of a training is run on. prepare: see `Step`."""

    runner: WholeModel
    prepare: Step


class WholeModel(Runner):
    """Runs a model as it stands, all of it on one device."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._parameters, self._tokens = sum(each.numel() for each in model.parameters()), 0

    def parameter(self, name: str) -> Tensor:
        """See `Runner.parameter`."""
        return self.model.get_parameter(name).detach()

    @torch.no_grad()
    def losses(self, windows_NS: Tensor, batch_size: int = 1) -> Iterator[Tensor]:
        """See `Runner.losses`."""
        at_once, done = self._at_once(windows_NS.shape[1], batch_size), 0
        with self._frozen(), bar(len(windows_NS), "loss", "window") as stage:
            for tokens_BS in windows_NS.split(at_once):
                for losses_BS in in_fp64(self._losses(tokens_BS)).split(batch_size):
                    if not math.isfinite(losses_BS.sum().item()):
                        raise loss_not_finite(done, len(windows_NS))
                    yield losses_BS
                    done += len(losses_BS)
                    stage.update(len(losses_BS))

    def _losses(self, tokens_BS: Tensor) -> Tensor:
        """The losses of all predictions, shape (B, S - 1), whose logits may not all be there at once."""
        if self._in_chunks(tokens_BS):
            return chunked_losses(self._predictions(tokens_BS), tokens_BS, self._vocabulary)
        tokens_BS, logits_BSV = self._logits(tokens_BS)
        return next_token_loss(logits_BSV, tokens_BS, reduction="none")

    @torch.no_grad()
    def after(self, context_S: Tensor, continuations: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits in fp32 at each token of every continuation of one context, which is read once.

        context_S: shape (S,), int64.  continuations: shape (T,) each, int64. Yields shape (T, V) for each: what stands
        at a token predicts the one after it.
        """
        with self._frozen():
            read = self.model(self._placed(context_S[None]), use_cache=True, logits_to_keep=1).past_key_values
            for tokens_T in continuations:
                cache = copy.deepcopy(read)  # not every kind of cache can be shortened again
                yield self.model(self._placed(tokens_T[None]), past_key_values=cache, use_cache=True).logits[0].float()

    def gated(self) -> AbstractContextManager[Gates]:
        """See `Runner.gated`."""
        return gated(self.model, self.blocks, self.inventory, self.device)

    def gather(
        self,
        statistics: Iterable[Statistic[Any]],
        tokens_NS: Tensor,
        maps: Sequence[str] | None = None,
        *,
        kept_U: Tensor | None = None,
        gradient_checkpointing: bool = False,
        piece: Piece | None = None,
    ) -> dict[Statistic[Any], Any]:
        """See `Runner.gather`."""
        outputs = {block.output: linear_at(self.model, block.output) for block in self.blocks}
        watched = outputs if maps is None else {path: linear_at(self.model, path) for path in maps}
        features = {path: linear.in_features for path, linear in watched.items()}
        collectors = {statistic: statistic.collector(self.blocks, features) for statistic in statistics}
        label = "sensitivity" if any(each.from_gradients for each in collectors) else "statistics"
        course = GatheringCourse(list(collectors.values()), piece, self.device, self.peers, in_step=self.in_step)
        of_inputs = [collector for each, collector in collectors.items() if not each.from_gradients]
        of_gradients = [collector for each, collector in collectors.items() if each.from_gradients]

        def see(path: str, x_TI: Tensor) -> None:
            for collector in course.taking_in(of_inputs):
                collector.see(path, x_TI.detach().to(self.device))  # layers may be on several

        def see_gradient(path: str, x_TI: Tensor, gradient_TI: Tensor) -> None:
            for collector in course.taking_in(of_gradients):
                collector.see_gradient(path, x_TI, gradient_TI)

        def see_output_gradient(path: str, gradient_TO: Tensor) -> None:
            for collector in course.taking_in(of_gradients):
                collector.see_output_gradient(path, gradient_TO)

        with ExitStack() as stack:
            backward = bool(of_gradients)
            stack.enter_context(torch.set_grad_enabled(backward))
            stack.enter_context(self._frozen(gradient_checkpointing=gradient_checkpointing and backward))
            if kept_U is not None:
                stack.enter_context(self.gated()).values_U = kept_U
            if backward:
                source = stack.enter_context(gradients_at(outputs, see_gradient, see_output_gradient, self.device))
            at_once = self._at_once(tokens_NS.shape[1], backward=backward)
            for tokens_BS in course.sequences(tokens_NS, label, at_once):
                # Closed before the backward pass, where checkpointing runs layers a second time.
                with inputs_of(watched, see) if of_inputs else nullcontext():
                    loss = self._summed_loss(tokens_BS) if backward else self._hidden(tokens_BS)
                if backward:
                    torch.autograd.grad(loss, [source], allow_unused=True)
                del loss
        return {statistic: collector.result(tokens_NS.numel()) for statistic, collector in collectors.items()}

    def learn(
        self,
        trained: Trainable,
        tokens_NS: Tensor,
        training: Training,
        dense: Teaches | None = None,
        status: Callable[[], Sequence[str]] = tuple,
        course: Course | None = None,
    ) -> list[Tensor]:
        """See `Runner.learn`."""
        course = course or Course({})
        teacher = (dense or self).teacher(tokens_NS, live=training.live_teacher) if training.taught else None
        # Parameters, so that a module can take them as its own.
        numbers = [nn.Parameter(start.to(self.device, torch.float32).clone()) for start in trained.start()]
        steps = training_steps(len(tokens_NS), training.epochs, training.batch_size)
        optimizer = _adamw(numbers, trained.paces(), training.learning_rate)
        schedule = Schedule(steps, training.schedule, training.warmup)
        drawn = batches(len(tokens_NS), training.epochs, training.batch_size, training.seed)
        smooth = math.nan
        with (
            torch.enable_grad(),
            self._acting(trained, numbers, training) as acting_at,
            bar(steps, training.label) as stage,
        ):
            if course.texts:
                acting_at(1).prepare(0.0, True)
            done = course.begin(self, trained, numbers, optimizer, steps)
            stage.update(done)
            for step, indices_B in islice(enumerate(drawn, start=1), done, None):
                runner, prepare = acting_at(step)
                prepare(progress := (step - 1) / steps)
                penalty = trained.penalty(numbers, progress)
                work = partial(runner._gradients, numbers, penalty, tokens_NS, training, teacher)
                loss, gradients = self.peers.mean(indices_B, work, numbers, in_step=self.in_step)
                course.trace.note(loss, trained.readings())
                _descend(numbers, gradients, optimizer, training.clip, schedule.factor(step - 1))
                # Asked for when all of the step is on its way: this waits for the device, and the device for nobody.
                value = self._finite(loss.item(), training.label, step)
                smooth = value if math.isnan(smooth) else 0.95 * smooth + 0.05 * value
                if stage.status_is_old or step == steps:
                    stage.status(", ".join([f"loss {smooth:.3f}", *status()]))
                stage.update()
                if course.looks_after(step, steps):
                    prepare(step / steps, True)
                if not course.goes_on(self, trained, numbers, optimizer, step, steps):
                    break
                del runner, prepare, work  # one of several models is gone before the next is made
        self.trainings.append(course.traced(training.label))
        return [number.detach().cpu() for number in numbers]

    @contextmanager
    def _acting(
        self, trained: Trainable, numbers: Sequence[nn.Parameter], training: Training
    ) -> Iterator[Callable[[int], _Acting]]:
        """Inside the block the numbers act on this model, or, in turns, on one of several. Yields what says where."""
        checkpointing = training.gradient_checkpointing
        if not isinstance(trained, InTurns):
            with self._frozen(gradient_checkpointing=checkpointing), trained.attached(self, numbers) as prepare:
                yield lambda _: _Acting(self, prepare)
            return
        with ExitStack() as current:
            now: tuple[Member, _Acting] | None = None

            def acting_at(step: int) -> _Acting:
                nonlocal now
                member = trained.turn(step)
                if now is None or now[0] is not member:
                    now = None  # so that a model that nobody else holds is gone before the next one is made
                    current.close()
                    runner = self.beside(member.model())
                    runner.peers = self.peers
                    current.enter_context(runner._frozen(gradient_checkpointing=checkpointing))
                    now = member, _Acting(runner, current.enter_context(member.attached(runner, numbers)))
                return now[1]

            yield acting_at

    def _finite(self, loss: float, label: str, step: int) -> float:
        if not math.isfinite(loss):
            advice = precision_advice(self.model.dtype)
            raise GraspruneError(f"{label}: the loss is {loss} at step {step}; {advice}")
        return loss

    def _gradients(
        self,
        numbers: Sequence[nn.Parameter],
        penalty: Tensor | None,
        tokens_NS: Tensor,
        training: Training,
        teacher: Teacher | LiveTeacher | None,
        indices_B: Tensor,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The mean loss of some sequences, and the gradients of it, the penalty added, by what is trained."""
        loss = self._loss(tokens_NS[indices_B], indices_B, training, teacher)
        return loss, torch.autograd.grad(loss if penalty is None else loss + penalty, numbers)

    def _loss(
        self, tokens_BS: Tensor, indices_B: Tensor, training: Training, teacher: Teacher | LiveTeacher | None
    ) -> Tensor:
        if self._in_chunks(tokens_BS):
            taught = None if teacher is None else teacher.predictions(indices_B)
            predicted = self._predictions(tokens_BS)
            weight = training.kl_weight_of(indices_B)
            return chunked_loss(predicted, tokens_BS, self._vocabulary, teacher=taught, kl_weight=weight)
        tokens_BS, logits_BSV = self._logits(tokens_BS)
        if teacher is None:
            return next_token_loss(logits_BSV, tokens_BS)
        taught_BSV = teacher.logits(indices_B).to(logits_BSV.device)
        return distillation_loss(logits_BSV, tokens_BS, taught_BSV, training.kl_weight_of(indices_B))

    @torch.no_grad()
    def teacher(
        self, tokens_NS: Tensor, *, live: bool = False, hidden_NSD: Tensor | None = None
    ) -> Teacher | LiveTeacher:
        """See `Runner.teacher`."""
        head = torch.no_grad()(self._head)
        if live:
            return LiveTeacher(tokens_NS, self._read, head)
        if hidden_NSD is None:
            states = []
            with self._frozen(), bar(len(tokens_NS), "teacher", "sequence") as stage:
                for tokens_BS in tokens_NS.split(self._at_once(tokens_NS.shape[1])):
                    states.append(self._hidden(tokens_BS).cpu())
                    stage.update(len(tokens_BS))
            hidden_NSD = torch.cat(states)
        return Teacher(hidden_NSD.unbind(), head)

    @contextmanager
    def stream(self, tokens_NS: Tensor) -> Iterator[LayerStream]:
        """See `Runner.stream`."""
        with self._frozen():
            layers = self.family.decoder_layers(self.model)
            yield LayerStream.start(layers, self._hidden, tokens_NS, self.device)

    def _frozen(self, *, gradient_checkpointing: bool = False) -> AbstractContextManager[None]:
        """The model as it is run, inside of which every pass goes; see `frozen`."""
        return frozen(self.model, gradient_checkpointing=gradient_checkpointing)

    def _at_once(self, length: int, least: int = 1, *, backward: bool = False) -> int:
        """Sequences of this length that go through the model together, a multiple of what is asked for at least.

        backward: whether a backward pass follows.
        """
        return least

    def _summed_loss(self, tokens_BS: Tensor) -> Tensor:
        """The sum of next-token losses, to be taken back through the layers."""
        if self._in_chunks(tokens_BS):
            return chunked_loss(self._predictions(tokens_BS), tokens_BS, self._vocabulary, total=True)
        tokens_BS, logits_BSV = self._logits(tokens_BS)
        return next_token_loss(logits_BSV, tokens_BS, reduction="none").sum()

    def _logits(self, tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens where the model is, and its logits, shape (B, S, V)."""
        tokens_BS = self._placed(tokens_BS)
        return tokens_BS, self.model(tokens_BS, use_cache=False).logits

    @property
    def _vocabulary(self) -> int:
        return self.model.config.vocab_size

    def _in_chunks(self, tokens_BS: Tensor) -> bool:
        """Whether the loss is made of the logits of a few tokens at a time."""
        # Which leaves out the gradients of a head that is trained itself, as no stage of ours does.
        head = self.model.get_output_embeddings().weight
        return not in_one(tokens_BS.numel(), self._vocabulary) and not head.requires_grad

    def _predictions(self, tokens_BS: Tensor) -> Predictions:
        return Predictions(self._hidden(tokens_BS), self._head)

    def _head(self, hidden_BSD: Tensor) -> Tensor:
        """What the model makes of last hidden states, shape (B, S, V)."""
        with hidden_given(self.model, hidden_BSD.to(self.device)):
            return self.model(torch.zeros(1, 1, dtype=torch.int64, device=self.device), use_cache=False).logits

    @torch.no_grad()
    def _read(self, tokens_BS: Tensor) -> Tensor:
        """Its last hidden states, whatever it is in the midst of."""
        with self._frozen():
            return self._hidden(tokens_BS)

    def _hidden(self, tokens_BS: Tensor) -> Tensor:
        """The last hidden states, from the layers alone: logits of a large vocabulary are dear."""
        return self.model.base_model(self._placed(tokens_BS), use_cache=False).last_hidden_state

    def _placed(self, tokens_BS: Tensor) -> Tensor:
        self._tokens += tokens_BS.numel()
        tell_when_slow(self.model.dtype, self.device, self._tokens * self._parameters)
        # A copy from the host that nobody waits for: its memory is read before the call returns.
        return tokens_BS.to(self.device, non_blocking=self.device.type == "cuda")


_RATE = "rate at the start"
"""The key of a parameter group of the optimiser under which the learning rate stands that the schedule scales."""


def _adamw(numbers: Sequence[nn.Parameter], paces: Sequence[Pace], learning_rate: float) -> torch.optim.AdamW:
    rates = [learning_rate * pace.rate for pace in paces]
    groups = [
        {"params": [number], "lr": rate, _RATE: rate, "maximize": pace.ascends}
        for number, pace, rate in zip(numbers, paces, rates, strict=True)
    ]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)


def _descend(
    numbers: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    optimizer: torch.optim.AdamW,
    clip: float | None,
    factor: float,
) -> None:
    """One step of the optimiser. clip: as in `Training`.  factor: what the learning rates are multiplied by."""
    for group in optimizer.param_groups:
        group["lr"] = group[_RATE] * factor
    for number, gradient in zip(numbers, gradients, strict=True):
        number.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(numbers, clip)
    optimizer.step()
