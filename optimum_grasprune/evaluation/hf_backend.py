"""A loaded model as lm-evaluation-harness wants it. Needs lm-eval and accelerate, the extra `eval`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..numerics import tell_when_slow
from ..progress import Bar, bar


class LoadedModel(HFLM):
    """A model of ours in the harness's own class, which computes; the display alone is ours.

    batch_size: requests at once.  The tokenizer is copied, since the harness gives it a pad token.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
        self._parameters, self._work = model.num_parameters(), 0.0
        self._stage: Bar | None = None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Log-likelihoods of continuations."""
        return self._shown(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Log-likelihoods of whole texts."""
        return self._shown(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Texts that the model goes on with."""
        return self._shown(super().generate_until, requests)

    def _shown(self, run: Callable[..., Any], requests: list[Any]) -> Any:
        with bar(len(requests), "tasks", "request") as self._stage:
            done = run(requests, disable_tqdm=True)
            self._stage.update(len(requests) - self._stage.done)  # one pass serves several that share a context
        self._stage = None
        return done

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **others: Any) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, **others)

    def _model_call(self, inps: Tensor, *others: Any, **options: Any) -> Any:
        logits = super()._model_call(inps, *others, **options)
        self._work += self._parameters * inps.numel()
        tell_when_slow(logits.dtype, inps.device, self._work)
        if self._stage is not None:
            self._stage.update(len(inps))
        return logits
