"""What a pruning method is. A method that scores units writes `score` and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import GRASPConfig, MethodOptions
from ..errors import OptionError
from ..execution import Runner
from ..families import Family
from ..loading import count_parameters
from ..problem import NO_TEXTS, Problem, TrainingTexts
from ..recovery import stages_in
from ..recovery.chain import Chain
from ..statistics import Statistic
from ..units import Budget, ElementMask, UnitInventory, UnitMask, project
from .selection import Selection

__all__ = ["Method", "Problem", "Selection", "shares_within_groups"]


class Method(ABC):
    """Scores units; what scores best within the budget stays.

    The class attributes are what `auto` and the checks of `GRASPConfig` mean for the method.
    """

    source: str = ""
    """The paper, for model cards."""

    needs_calibration: bool = True
    """Whether the method looks at the calibration sequences."""

    statistics: ClassVar[tuple[Statistic[Any], ...]] = ()
    """The statistics that it looks at, in `problem.statistics`."""

    allocation: Literal["uniform", "global"] = "global"
    """What `allocation="auto"` is: every layer keeps the same share, or units compete over the whole model."""

    allocations: tuple[str, ...] = ("uniform", "global")
    """The allocations that make sense for the method."""

    compensation: str = "none"
    """What `compensation="auto"` is."""

    compensation_beside_smaller: str | None = None
    """The same at all but the smallest of several keep ratios from one run; None for no other."""

    restoration: Literal["dense", "sequential"] = "dense"
    """What `restoration="auto"` is: the inputs that least squares fit."""

    least_squares: Literal["robust", "plain", "weighted"] = "robust"
    """What `least_squares="auto"` is: how least squares take massive activations."""

    statistic_samples: int = 128
    """What `statistic_samples=None` is: calibration sequences, at most, that statistics look at."""

    held_out: int = 0
    """What `held_out=None` is: calibration sequences that choices are judged on; 0 where nothing is left to choose."""

    training: ClassVar[str | None] = None
    """Label of the training that the choice of units takes, for the estimate; None where nothing is trained for it."""

    trains_at_all_budgets: bool = False
    """Whether `candidates_at` several budgets are others than the candidates at each by itself."""

    patterns: tuple[str, ...] = ("units",)
    """What the method can cut."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """Options that no other method has: `problem.config.own(self.Options)` are their values."""

    @abstractmethod
    def score(self, problem: Problem) -> Tensor:
        """One score per unit, shape (units,); higher is kept first. The same for every budget of a model and corpus."""

    def select(self, problem: Problem, scores_U: Tensor) -> UnitMask:
        """The units to keep. scores_U: what `score` returned, maybe for another budget of the same model."""
        uniform = self.allocation_for(problem.config) == "uniform"
        ranked_U = shares_within_groups(scores_U, problem.inventory) if uniform else scores_U
        return replace(project(ranked_U, problem.inventory, problem.budget), scores_U=scores_U)

    def candidates(self, problem: Problem, scores_U: Tensor) -> dict[str, UnitMask]:
        """Choices of units by name, the method's own last; the best on held-out data wins, if there are any."""
        return {problem.config.method: self.select(problem, scores_U)}

    def candidates_at(self, problems: Sequence[Problem], scores_U: Tensor) -> Callable[[Problem], dict[str, UnitMask]]:
        """`candidates` at several budgets. A method that trains does so once for all of them here.

        problems: largest budget first. What is returned takes each of them, maybe with fewer units allowed.
        """
        return lambda problem: self.candidates(problem, scores_U)

    def select_elements(self, problem: Problem) -> ElementMask:
        """The single weights to keep, for a method that lists a pattern other than "units"."""
        raise NotImplementedError

    def statistics_for(self, config: GRASPConfig) -> tuple[Statistic[Any], ...]:
        """The statistics that it looks at where a configuration decides that."""
        return self.statistics

    def budget(
        self, config: GRASPConfig, model: PreTrainedModel, family: Family, inventory: UnitInventory, added: int
    ) -> Budget:
        """The limits that a configuration comes to for a model of a family, which may be on the meta device.

        added: parameters that compensation adds.
        Raises BudgetError or OptionError where they cannot be met.
        """
        for kind in inventory.kinds:
            option = kind.minimum_option
            if option is not None and not getattr(config, option) and not family.blocks_may_go:
                raise OptionError(option, 0, f"every layer of a {family.name} keeps at least one {kind.label}")
        return Budget.resolve(config, inventory, count_parameters(model), added)

    def problem(
        self,
        runner: Runner,
        budget: Budget,
        tokens_NS: Tensor,
        held_out_NS: Tensor,
        config: GRASPConfig,
        training_texts: TrainingTexts = NO_TEXTS,
        others: Sequence[GRASPConfig] = (),
    ) -> Problem:
        """What the method is to solve, in which the statistics of all that looks at any are gathered together.

        others: configurations at which it is to be solved too.
        """
        chains = [self.chain_for(each) for each in (config, *others)]
        of_stages = [statistic for chain in chains for statistic in chain.statistics]
        declared = (*self.statistics_for(config), *of_stages)
        return Problem(
            runner,
            budget,
            tokens_NS,
            held_out_NS,
            config,
            declared,
            training_texts=training_texts,
            own_statistic_samples=self.statistic_samples,
        )

    def selection(self, problem: Problem, earlier: Selection | None = None) -> Selection:
        """The cuts to choose from, whole units or single weights. earlier: what of them is known already."""
        if problem.config.pattern != "units":
            return Selection(None, {problem.config.method: self.select_elements(problem)})
        scores_U = None if earlier is None else earlier.scores_U
        scores_U = self.score(problem) if scores_U is None else scores_U
        return Selection(scores_U, (earlier and earlier.candidates) or self.candidates(problem, scores_U))

    def selections(self, problems: Sequence[Problem]) -> Callable[[Problem], Selection]:
        """`selection` at several budgets of one model and corpus, with one scoring for all, as `candidates_at`."""
        if problems[0].config.pattern != "units":
            return self.selection
        scores_U = self.score(problems[0])
        candidates = self.candidates_at(problems, scores_U)
        return lambda problem: Selection(scores_U, candidates(problem))

    def beside_smaller(self, config: GRASPConfig) -> GRASPConfig:
        """The configuration of a keep ratio that is not the smallest of its run."""
        if config.compensation != "auto" or self.compensation_beside_smaller is None:
            return config
        return config.model_copy(update={"compensation": self.compensation_beside_smaller})

    def resolved(self, config: GRASPConfig) -> GRASPConfig:
        """The configuration with the method's own values for whatever is left to it by "auto"."""
        return config.model_copy(update=self.own_values(config))

    def own_values(self, options: Iterable[tuple[str, object]]) -> dict[str, str]:
        """Its own values for those of the options, each a name with a value, that are "auto" and left to it."""
        return {name: getattr(self, name) for name, value in options if value == "auto" and hasattr(self, name)}

    def chain_for(self, config: GRASPConfig) -> Chain:
        """What is to make up for the cut, the training of weights last."""
        config = self.resolved(config)
        recovery = () if config.recover == "none" else (config.recover,)
        return Chain.of((*stages_in(config.compensation), *recovery), config)

    def looks_at_data(self, config: GRASPConfig) -> bool:
        """Whether the method, or what makes up for its cut, needs calibration sequences."""
        return self.needs_calibration or self.chain_for(config).looks_at_data

    def held_out_for(self, config: GRASPConfig) -> int:
        """The number of held-out sequences that the configuration asks for."""
        return self.held_out if config.held_out is None else config.held_out

    def statistic_samples_for(self, config: GRASPConfig) -> int:
        """The number of sequences, at most, that statistics look at by this configuration."""
        return config.statistic_samples or self.statistic_samples

    def allocation_for(self, config: GRASPConfig) -> str:
        """The allocation that the configuration asks for."""
        return self.resolved(config).allocation

    def check(self, config: GRASPConfig) -> None:
        """Raise OptionError when the method does not support what the configuration asks for."""
        if config.pattern not in self.patterns:
            raise OptionError("pattern", config.pattern, f"{config.method} supports only {', '.join(self.patterns)}")
        if config.pattern != "units" and config.recover != "none":
            reason = f"pattern {config.pattern} cuts single weights, which training would bring back"
            raise OptionError("recover", config.recover, reason)
        for stage in self.chain_for(config).stages:
            stage.check()
        if self.allocation_for(config) not in self.allocations:
            raise OptionError(
                "allocation", config.allocation, f"{config.method} supports only {', '.join(self.allocations)}"
            )


def shares_within_groups(scores_U: Tensor, inventory: UnitInventory) -> Tensor:
    """Scores by which every group keeps the same share of its units, its best ones first.

    Returns minus each unit's place in the descending order of its group, as a fraction of the group, shape (units,).
    """
    parts = []
    for start, stop in inventory.spans():
        rank = torch.empty(stop - start)
        rank[scores_U[start:stop].argsort(descending=True, stable=True)] = torch.arange(stop - start) + 0.5
        parts.append(-rank / (stop - start))
    return torch.cat(parts)
