"""Checkpoints measured beside the model that they were cut from, on a few texts: the results on their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..corpora import Corpus
from ..evaluation import EVALUATION_WINDOW, Perplexity, perplexity
from ..export.results import MeasuredText
from ..loading import common_window, load_config, load_model, load_tokenizer
from ..model_files import ReadAs
from ..record.describe import public_sources
from .cells import EvaluationText, evaluation_texts


class BesideDense:
    """Measures checkpoints of one model. Making it reads the texts, and checks all that can be checked before.

    source: the dense model.  corpora, window, limits: as of `Comparison`.  bos: as in `EvaluationOptions`.
    device: where models are measured.  dtype: what the dense one is measured in, checkpoints in their own precision.
    Raises GraspruneError.
    """

    def __init__(
        self,
        source: str,
        corpora: Mapping[str, Corpus],
        window: int | None,
        limits: Sequence[int] | None,
        *,
        bos: bool | None = None,
        device: str = "auto",
        dtype: str = "auto",
        read_as: ReadAs,
    ) -> None:
        self.source, self.device, self.dtype, self.read_as = source, device, dtype, read_as
        config = load_config(source, **read_as)
        window = common_window({"the model": config}, window, EVALUATION_WINDOW, "eval_seq_len")
        tokenizer = load_tokenizer(source, **read_as)
        self.texts = evaluation_texts(corpora, tokenizer, config.vocab_size, window, limits, bos=bos)

    def measure(self, checkpoints: Sequence[str]) -> list[tuple[MeasuredText, ...]]:
        """What each checkpoint, given as its folder, gives on every text. One model at a time is in memory."""
        dense, *others = (self._perplexities(source) for source in (self.source, *checkpoints))
        return [tuple(map(self._measured, self.texts, dense, pruned)) for pruned in others]

    def _perplexities(self, source: str) -> list[Perplexity]:
        dtype = self.dtype if source == self.source else "auto"
        model = load_model(source, dtype=dtype, device=self.device, **self._read_as(source))
        return [perplexity(model, text.windows_WS) for text in self.texts]

    def _read_as(self, source: str) -> ReadAs:
        # A checkpoint is a folder, which has no revisions.
        return self.read_as if source == self.source else {**self.read_as, "revision": None}

    def _measured(self, text: EvaluationText, dense: Perplexity, pruned: Perplexity) -> MeasuredText:
        count, window = text.windows_WS.shape
        return MeasuredText(
            name=text.name,
            source=",".join(public_sources(text.corpus.source)),
            split=text.corpus.split,
            windows=count,
            window=window,
            dense=dense.loss,
            pruned=pruned.loss,
            dtypes=(dense.dtype, pruned.dtype),
        )
