"""Several processes that do one run together, as `torchrun` and `accelerate launch` start them.

Shape suffix: B batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist
from typing_extensions import Self

from ..errors import GraspruneError, first_line
from ..stored_tensors import in_pages_of_its_own
from .peers import Gradients, Named, Peers
from .watch import Watch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TO_COME = 300.0
"""Seconds between the first process that comes and the last one: their starts differ, not their work."""

_PATIENCE = timedelta(days=30)
"""How long torch waits in an exchange: whether the others live the watch says, how long they take nobody knows."""


@dataclass(frozen=True)
class Launch:
    """What a launcher says of this process in its environment.

    rank, count: as in `Peers`.  local_rank, local_count: the same of its machine.  address, port: of the first one.
    """

    rank: int
    count: int
    local_rank: int
    address: str
    port: int
    local_count: int

    @classmethod
    def found(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """By the variables that torchrun sets; None where they tell of one process, or none at all.

        Raises GraspruneError where they make no sense.
        """
        if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
            return None
        rank, count = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        if rank >= count:
            raise GraspruneError(f"RANK={rank} in the environment is not below WORLD_SIZE={count}")
        if not (address := environment.get("MASTER_ADDR")):
            raise GraspruneError(f"WORLD_SIZE={count} in the environment, but no MASTER_ADDR: start it with torchrun")
        local_rank = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank
        local_count = _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else count
        return cls(rank, count, local_rank, address, _number(environment, "MASTER_PORT"), local_count)

    def take_device(self) -> bool:
        """Have `cuda` be the GPU of this process; whether there are GPUs. Raises GraspruneError for too few of them."""
        if not torch.cuda.is_available():
            return False
        if self.local_rank >= (gpus := torch.cuda.device_count()):
            raise GraspruneError(
                f"LOCAL_RANK={self.local_rank}, but this machine has {gpus} GPUs: start a process for each, or give "
                "--device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return True


class Processes(Peers):
    """This process and its peers. It is made by `joined`.

    on_gpu: whether tensors on the GPU are exchanged between GPUs, of which each process has its own.
    """

    def __init__(self, rank: int, count: int, watch: Watch, *, on_gpu: bool) -> None:
        self.rank, self.count, self.watch, self.on_gpu = rank, count, watch, on_gpu
        self.local_count = count
        self._asks = False
        self._agreed: Tensor | None = None

    def mean(
        self, indices_B: Tensor, work: Gradients, numbers: Sequence[Tensor], *, in_step: bool = False
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """See `Peers.mean`: one sum of one vector, which leaves the same bits everywhere.

        Sequence i of a batch is for rank i, and so on around; who has none adds zeros.
        """
        part_B = indices_B[self.rank :: self.count]
        sizes = [1, 1, *(number.numel() for number in numbers)]
        whole = torch.zeros(sum(sizes), dtype=torch.float32, device=numbers[0].device)
        loss, asks, *gradients = whole.split(sizes)
        if len(part_B):
            own_loss, own_gradients = work(part_B)
            share = len(part_B) / len(indices_B)
            for place, own in zip((loss, *gradients), (own_loss, *own_gradients), strict=True):
                torch.mul(own.detach().flatten(), share, out=place)
        elif in_step:
            work(indices_B[:1])
        asks.fill_(float(self._asks))
        whole.copy_(self._summed(whole))
        self._agreed = asks
        of_numbers = zip(gradients, numbers, strict=True)
        return loss.reshape(()), [gradient.view_as(number) for gradient, number in of_numbers]

    def whole(self, part: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Peers.whole`; on the CPU, where GPUs do not exchange."""
        own, longest = (part if self.on_gpu else part.cpu()), max(rows)
        # All parts are exchanged at one length, and as bytes: gloo does not know every dtype.
        if len(own) < longest:
            own = torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
        shape = (self.count, longest, *own.shape[1:])
        parts = in_pages_of_its_own(shape, own.dtype) if own.device.type == "cpu" else own.new_empty(shape)
        self._exchanged(dist.all_gather, list(_bytes_of(parts.flatten(1))), _bytes_of(own.contiguous().flatten()))
        if len(set(rows)) == 1:
            return parts.flatten(0, 1)
        return torch.cat([each[:count] for each, count in zip(parts, rows, strict=True)])

    def of_all(self, tensors: Named) -> list[Named]:
        """See `Peers.of_all`."""
        own = _packed(tensors)
        sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(self.count)]
        self._exchanged(dist.all_gather, sizes, torch.tensor([len(own)], device="cpu"))
        longest = max(int(size) for size in sizes)
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        everything = [torch.empty_like(padded) for _ in range(self.count)]
        self._exchanged(dist.all_gather, everything, padded)
        return [_unpacked(packed[: int(size)]) for packed, size in zip(everything, sizes, strict=True)]

    def of_first(self, work: Callable[[], Named | None]) -> Named | None:
        """See `Peers.of_first`."""
        found = work() if self.is_first else None
        packed = torch.zeros(0, dtype=torch.uint8, device="cpu") if found is None else _packed(found)
        size = torch.tensor([len(packed)], device="cpu")
        self._exchanged(dist.broadcast, size, 0)
        if not int(size):
            return None
        packed = packed if self.is_first else torch.empty(int(size), dtype=torch.uint8, device="cpu")
        self._exchanged(dist.broadcast, packed, 0)
        return found if self.is_first else _unpacked(packed)

    def text_of_first(self, work: Callable[[], str]) -> str:
        """See `Peers.text_of_first`."""

        def as_tensors() -> Named:
            return {"text": torch.tensor(list(work().encode()), dtype=torch.uint8, device="cpu")}

        found = self.of_first(as_tensors)
        return bytes((found or {})["text"].tolist()).decode()

    def stop(self) -> None:
        """See `Peers.stop`."""
        self._asks = True

    @property
    def is_ending(self) -> bool:
        """See `Peers.is_ending`."""
        return self.watch.end is not None

    @property
    def stops(self) -> bool:
        """See `Peers.stops`."""
        return self._agreed is not None and bool(self._agreed.item() > 0)

    def _summed(self, vector: Tensor) -> Tensor:
        placed = vector if self.on_gpu or vector.device.type == "cpu" else vector.cpu()
        self._exchanged(dist.all_reduce, placed)
        return placed

    def _exchanged(self, exchange: Callable[..., Any], *given: Any) -> None:
        """Do it; where it fails since a process has ended, that is what is raised."""
        self.watch.check()
        try:
            exchange(*given)
        except RuntimeError as error:
            raise self.watch.failed(error) from None


@contextmanager
def joined(launch: Launch, *, share_device: bool = False) -> Iterator[Processes]:
    """The processes of a launch, once all of them have come; the block ends for all when it does for the first one.

    share_device: whether each computes on the device that it is given, which others may have too.
    Raises GraspruneError when some do not come, and `ProcessEnded` inside the block when one ends before the others.
    """
    on_gpu = not share_device and launch.take_device()
    store, watch = _met(launch)
    peers = Processes(launch.rank, launch.count, watch, on_gpu=on_gpu)
    code: int | None = None
    try:
        peers._exchanged(_connect, launch, store, on_gpu)
        counts = peers.of_all({"local": torch.tensor(launch.local_count, device="cpu")})
        peers.local_count = max(int(each["local"]) for each in counts)
        yield peers
        code = 0
        if not peers.is_first:
            watch.wait()
    except GraspruneError as error:
        watch.leave(2, str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        watch.leave(getattr(stop, "code", 130), str(stop))
        raise
    finally:
        watch.leave(code)
        if dist.is_initialized() and (watch.end is None or watch.end.code is not None):
            dist.destroy_process_group()


def _met(launch: Launch) -> tuple[Store, Watch]:
    from torch.distributed.rendezvous import rendezvous  # of builds of torch that have it

    try:
        meeting = rendezvous("env://", launch.rank, launch.count, timeout=timedelta(seconds=TO_COME))
        store, _, _ = next(meeting)
        watch = Watch.begun(launch.rank, launch.count, store, launch.address, TO_COME)
    except (RuntimeError, OSError) as error:
        what = first_line(error)
        raise GraspruneError(
            f"the {launch.count} processes of this run do not meet at {launch.address}:{launch.port}: {what}"
        ) from None
    return store, watch


def _connect(launch: Launch, store: Store, on_gpu: bool) -> None:
    from torch.distributed.distributed_c10d import PrefixStore

    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore("grasprune", store),
        rank=launch.rank,
        world_size=launch.count,
        timeout=_PATIENCE,
    )


def _packed(tensors: Named) -> Tensor:
    """Named tensors as bytes, shape (bytes,), on the CPU."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return torch.frombuffer(bytearray(save(plain)), dtype=torch.uint8)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _unpacked(packed: Tensor) -> Named:
    return load(packed.numpy().tobytes())


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise GraspruneError(f"{name}={value!r} in the environment is no number: start it with torchrun")
    return int(value)
