"""What a model can be pruned by that is not in memory, all of it, on one device."""

from __future__ import annotations

from .config import GRASPConfig
from .dispatched import is_dispatched
from .errors import OptionError
from .execution import Runner
from .recovery.chain import Chain

_WHOLE = "the model has to be in memory for that, on one device: --runner whole"


def check_can_run(runner: Runner, config: GRASPConfig, chain: Chain, *, whole_layers: bool = False) -> None:
    """Raise OptionError for what a runner cannot do with its model. whole_layers: whether a plan drops some."""
    if runner.in_memory and not is_dispatched(runner.model):
        return
    if (refused := refusal(config, chain, in_memory=runner.in_memory, whole_layers=whole_layers)) is not None:
        raise refused


def refusal(config: GRASPConfig, chain: Chain, *, in_memory: bool, whole_layers: bool = False) -> OptionError | None:
    """What a runner answers that offloads, or, where it has no model in memory, goes layer by layer; None if it can.

    whole_layers: whether a plan drops some.
    """
    if config.pattern != "units":
        return OptionError("pattern", config.pattern, f"cuts single weights, and {_WHOLE}")
    if in_memory:
        return None
    if whole_layers or config.method == "block_influence":
        return OptionError("method", config.method, f"drops whole layers, and {_WHOLE}")
    if chain.trainings:
        return OptionError("recover", config.recover, f"trains the weights, and {_WHOLE}")
    return None
