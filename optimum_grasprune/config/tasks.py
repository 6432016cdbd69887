"""What lm-evaluation-harness asks of a model, and what runs the model then."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from .base import Flag, Options


def _whole_or_share(limit: float | None) -> float | None:
    if limit is not None and limit >= 1 and limit != int(limit):
        raise PydanticCustomError("limit", "Should be a whole number of documents, or a share of them below 1")
    return limit


class TaskOptions(Options):
    """Tasks of lm-evaluation-harness, and how they are asked."""

    tasks: Annotated[str | None, Flag("NAME[,NAME…]")] = Field(
        default=None,
        description="tasks or groups of lm-evaluation-harness, or patterns as in mmlu_*; paper stands for "
        "arc_challenge, arc_easy, hellaswag, piqa and winogrande",
    )
    include_path: Annotated[str | None, Flag("FOLDER")] = Field(
        default=None, description="folder with task files of your own; Python code that they name is run"
    )
    task_data: Annotated[str | None, Flag("FOLDER")] = Field(
        default=None, description="folder with the data of local tasks, which they get as their metadata task_data"
    )
    limit: Annotated[float | None, AfterValidator(_whole_or_share), Flag("N|SHARE")] = Field(
        default=None, gt=0, description="documents of each task, from its start; below 1 a share of them; else all"
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="solved examples before each question; by default as the task says, mostly 0"
    )
    task_batch_size: int | None = Field(
        default=None, ge=1, description="requests of tasks run at once; by default 1, or as many as vLLM takes"
    )


class BackendOptions(Options):
    """What runs the models that tasks are asked of."""

    backend: Literal["hf", "vllm"] = Field(default="hf", description="what runs the models for tasks")
    model_args: Annotated[str | None, Flag("KEY=VALUE[,…]")] = Field(
        default=None,
        description="more for vLLM, as in tensor_parallel_size=2,max_model_len=2048 (model_args of the harness)",
    )
