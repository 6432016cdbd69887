"""What result files hold, `grasp_config.json` first: frozen dataclasses, each with one writer and one reader."""

from .curves import CheckUp, TrainingCurves
from .environment import COMPUTING_PACKAGES, installed_versions
from .record import (
    RECORD_FORMAT,
    AskedBudget,
    BudgetRecord,
    CalibrationRecord,
    CorpusRecord,
    HeldOutLosses,
    Judgement,
    ModelIdentity,
    ModelSize,
    Record,
    RecoveryRecord,
    SharedRun,
    SharesKept,
    TrainedWith,
    option_of,
)
from .report_numbers import ReportNumbers
from .scores import ScoreDistribution, ScoresOfKind, score_distribution
from .stored import INLINE, OPTIONAL, Stored, check_format, read_json

__all__ = [
    "COMPUTING_PACKAGES",
    "INLINE",
    "OPTIONAL",
    "RECORD_FORMAT",
    "AskedBudget",
    "BudgetRecord",
    "CalibrationRecord",
    "CheckUp",
    "CorpusRecord",
    "HeldOutLosses",
    "Judgement",
    "ModelIdentity",
    "ModelSize",
    "Record",
    "RecoveryRecord",
    "ReportNumbers",
    "ScoreDistribution",
    "ScoresOfKind",
    "SharedRun",
    "SharesKept",
    "Stored",
    "TrainedWith",
    "TrainingCurves",
    "check_format",
    "installed_versions",
    "option_of",
    "read_json",
    "score_distribution",
]
