"""Train one model in several processes, started by torchrun or by anything else that sets the same variables.

Every process keeps the whole model and takes its share of each batch's clips; only process 0 reads and writes the run
folder. In a single process everything here is a no-op.
"""

import contextlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqvae.launch import is_first, launched, say  # noqa: F401 -- also used as distributed.say

Result = TypeVar("Result")


class PeerLost(RuntimeError):
    """Another process has ended or hangs; the message is one line."""


def join(cuda: bool, timeout: int) -> None:
    """Join the other processes, if there are any; PeerLost if one keeps the others waiting for `timeout` seconds."""
    number, size = launched()
    if size == 1 or dist.is_initialized():
        return
    # Tensors on the GPU go through nccl, the few on the CPU through gloo, which does not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    with peers():
        dist.init_process_group(backend, rank=number, world_size=size, timeout=timedelta(seconds=timeout))


def leave() -> None:
    """Leave the other processes; each calls it when it is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is process 0, which reads, writes and prints."""
    return rank() == 0


def shares(n: int) -> list[int]:
    """Number of clips, out of n, that each process takes; they differ by one at most."""
    size, extra = divmod(n, world_size())
    return [size + (process < extra) for process in range(world_size())]


def shard(n: int) -> slice:
    """The slice of n clips that this process takes."""
    first = sum(shares(n)[: rank()])
    return slice(first, first + shares(n)[rank()])


def gather(own: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Join what the processes know of their clips: (..., own clips, F) each -> (..., n, F), without gradient.

    All processes get the same tensors, clips in the order of the batch.
    """
    own = {name: value.detach() for name, value in own.items()}
    if world_size() == 1:
        return own
    packed = torch.cat(list(own.values()))  # (M, own clips, F)
    lengths, mine = shares(n), packed.movedim(1, 0)
    mine = torch.cat([mine, mine.new_zeros(lengths[0] - len(mine), *mine.shape[1:])])  # all_gather wants one shape
    parts = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(parts, mine)
    whole = torch.cat([part[:length].movedim(0, 1) for part, length in zip(parts, lengths)], dim=1)  # (M, n, F)
    return dict(zip(own, whole.split([len(value) for value in own.values()])))


def on_all(act: Callable[[], Result]) -> Result:
    """Return `act()`; a ValueError or OSError raised on any process is raised on all."""
    if world_size() == 1:
        return act()
    result, error = None, None
    try:
        result = act()
    except (ValueError, OSError) as caught:
        error = caught
    for first in collect(error):
        if first is not None:
            raise first
    return result


def on_main(act: Callable[[], Result]) -> Result:
    """Return `act()` of process 0 on all processes; errors as in `on_all`."""
    if world_size() == 1:
        return act()
    result = [on_all(lambda: act() if is_main() else None)]
    with peers():
        dist.broadcast_object_list(result)
    return result[0]


def collect(own: Result) -> list[Result]:
    """Return every process's object, in order of rank, on all of them."""
    if world_size() == 1:
        return [own]
    parts: list[Result | None] = [None] * world_size()
    with peers():
        dist.all_gather_object(parts, own)
    return parts


class Vote:
    """Agree on the highest number that any process passes in, so that all act on it in the same step.

    The answer is that of the step before: it travels while a step is computed, so nobody waits for it.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, mine: int) -> int:
        if world_size() == 1:
            return mine
        agreed = self.close()
        number = torch.tensor(mine)  # on the CPU: reading it waits for no GPU
        self._pending = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True), number
        return agreed

    def close(self) -> int:
        """Wait for the last answer."""
        if self._pending is None:
            return 0
        work, number = self._pending
        work.wait()
        self._pending = None
        return int(number)


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Context manager: turn errors of a connection that broke, or was never made, into `PeerLost`."""
    number, size = launched()
    if size == 1:
        yield
        return
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        words = ("gloo", "nccl", "connection", "socket", "timed out", "clients joined", "wait timeout")
        ours = isinstance(error, dist.DistError) or any(word in text.lower() for word in words)
        if isinstance(error, PeerLost) or not ours:
            raise
        # gloo puts a place in its code before the reason, and advice after it
        reason = re.split(r"\. |\n", re.sub(r"^\[[^]]*\]\s*", "", text.strip()))[0][:200]
        raise PeerLost(f"process {number} of {size} has lost the others ({reason})") from None


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model so that gradients are averaged over processes while the backward pass still runs.

    DistributedDataParallel rather than one all-reduce after it, which would add as much as a fifth to a step
    (docs/scaling.md). It requires that every weight has a gradient in every step, which holds here.
    """
    if world_size() == 1:
        return model
    ddp = nn.parallel.DistributedDataParallel
    ids = [device.index] if device.type == "cuda" else None
    # Buffers are equal as they are. torch 2.15 renames the option that leaves them alone.
    names = inspect.signature(ddp).parameters
    # Gradients of channels-last convolutions are copied into buckets of another layout, which is cheap beside the step.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    no_sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return ddp(model, device_ids=ids, gradient_as_bucket_view=True, **{no_sync: False})
