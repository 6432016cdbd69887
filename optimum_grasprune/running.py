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
    if config.pattern != "units":
        raise OptionError("pattern", config.pattern, f"cuts single weights, and {_WHOLE}")
    if runner.in_memory:
        return
    if whole_layers or config.method == "block_influence":
        raise OptionError("method", config.method, f"drops whole layers, and {_WHOLE}")
    if chain.trainings:
        raise OptionError("recover", config.recover, f"trains the weights, and {_WHOLE}")
