"""What makes up for a cut, one file per stage. Any of it goes with any choice of units.

`base` is the contract of a stage, `registry` names the stages and the chains of them that `--compensation` offers, and
`chain` runs a chain. The names are known without loading torch.
"""

from .registry import chain_names, get_stage, register, stage_names, stages_in

__all__ = ["chain_names", "get_stage", "register", "stage_names", "stages_in"]
