"""How much faster a smaller model can be: the work of the dense model over its own. Pure functions of shapes.

An engine's time is bounded from below by the bytes it must read and by the operations it must do. Which of the two
decides depends on the machine, so both ratios are given. Where the time is the larger of the two terms, or their sum,
the speed-up lies between them: the larger ratio bounds it, whatever the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..families.shape import ModelShape


@dataclass(frozen=True)
class Windowed:
    """Layers that see a window of so many tokens at once; the widths are theirs alone, otherwise as in `Shape`."""

    window: int
    query_width: int
    kv_width: int


@dataclass(frozen=True)
class Shape:
    """What the work of a decoder depends on.

    parameters: all, tied ones once.  embedding: elements of the token embedding.  head: elements of the LM head.
    tied: whether they are one matrix.  query_width: query heads × elements of a head, summed over the layers.
    kv_width: key and value elements of one token, summed over the layers.
    windowed: which of them are of layers that see no more than a window.  positions: elements of learned positions.
    """

    parameters: int
    embedding: int
    head: int
    tied: bool
    query_width: int
    kv_width: int
    windowed: tuple[Windowed, ...] = ()
    positions: int = 0

    @classmethod
    def of(cls, shape: ModelShape) -> Shape:
        """What of a model's shape decides."""
        widths = shape.query_width, shape.kv_width
        windowed = tuple(
            Windowed(layer.window, layer.query_heads * shape.head_dim, shape.kv_elements(layer))
            for layer in shape.layers
            if layer.window is not None
        )
        return cls(shape.parameters, shape.embedding, shape.head, shape.tied, *widths, windowed, shape.positions)

    @property
    def read_parameters(self) -> int:
        """Weights that every step reads: all but embedding and positions, of which it looks up single rows."""
        return self.parameters - self.positions - (0 if self.tied else self.embedding)

    @property
    def layer_parameters(self) -> int:
        """Weights that every token of a prompt is multiplied by: the read ones but the LM head."""
        return self.read_parameters - self.head

    def seen(self, context: float) -> tuple[float, float]:
        """Query width × tokens that it sees, and KV width × tokens, where so many are in the cache."""
        beyond = [(layer, max(0, context - layer.window)) for layer in self.windowed]
        return (
            context * self.query_width - sum(layer.query_width * tokens for layer, tokens in beyond),
            context * self.kv_width - sum(layer.kv_width * tokens for layer, tokens in beyond),
        )

    def pairs(self, tokens: float) -> float:
        """Query width × pairs of a token and one before it that it sees, in a prompt of so many."""
        unseen = sum(layer.query_width * max(0, tokens - layer.window) ** 2 for layer in self.windowed)
        return (tokens**2 * self.query_width - unseen) / 2


@dataclass(frozen=True)
class Work:
    """bytes: that must be read.  flops: floating-point operations, a multiplication and an addition counted as two."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Limit:
    """The work of the dense model over the pruned one's: bytes read, and operations."""

    bytes: float
    flops: float

    @property
    def bound(self) -> float:
        """The largest speed-up that the work allows."""
        return max(self.bytes, self.flops)


def decode_work(shape: Shape, batch: float, context: float, weight_bytes: int, kv_bytes: int) -> Work:
    """Work of one decode step: one token for each of `batch` sequences with `context` tokens in the cache.

    weight_bytes, kv_bytes: of one element.  Read are the weights once and the whole cache of the batch:
    bytes = read parameters · weight_bytes + batch · context · KV width · kv_bytes.
    Each token meets every weight once, and each query head the keys and the values of every token before it:
    flops = batch · (2 · read parameters + 4 · context · query width).
    Where a layer sees a window, the context counts there up to that.
    """
    seen_by_queries, seen = shape.seen(context)
    flops = batch * (2 * shape.read_parameters + 4 * seen_by_queries)
    return Work(shape.read_parameters * weight_bytes + batch * seen * kv_bytes, flops)


def prefill_work(shape: Shape, tokens: float, weight_bytes: int, kv_bytes: int) -> Work:
    """Work of the prefill of one prompt of `tokens` tokens; of the LM head only its last token.

    Causal attention meets half of the pairs: flops = 2 · tokens · layer parameters + 2 · head + 2 · tokens² · query
    width, less the pairs that lie further apart than a layer's window.
    bytes: the weights once, and the keys and values that are written.
    """
    flops = 2 * tokens * shape.layer_parameters + 2 * shape.head + 4 * shape.pairs(tokens)
    return Work(shape.read_parameters * weight_bytes + tokens * shape.kv_width * kv_bytes, flops)


def limit(dense: Work, pruned: Work) -> Limit:
    """The ratios of the work of two models for the same step."""
    return Limit(dense.bytes / pruned.bytes, dense.flops / pruned.flops)


@dataclass(frozen=True)
class Limits:
    """How much faster each phase can become. request: prefill and decode together."""

    prefill: float
    decode: float

    @property
    def request(self) -> float:
        """A sum of two times shrinks by no more than the part that shrinks most."""
        return max(self.prefill, self.decode)


def limits(
    dense: Shape, pruned: Shape, batch: float, prompt: float, output: float, weight_bytes: int, kv_bytes: int
) -> Limits:
    """Bounds on the speed-up at one point of a sweep.

    batch: sequences at once.  prompt, output: tokens; a decode step sees the prompt and, on average, half the output.
    """
    prefills = (prefill_work(shape, prompt, weight_bytes, kv_bytes) for shape in (dense, pruned))
    decodes = (decode_work(shape, batch, prompt + output / 2, weight_bytes, kv_bytes) for shape in (dense, pruned))
    return Limits(limit(*prefills).bound, limit(*decodes).bound)
