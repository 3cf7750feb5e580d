"""Several processes that train one model, each on its share of every batch, on PyTorch's own launcher:

    torchrun --nproc_per_node=4 train_vit.py --batch-size 512

Started without it, a process is the only one, and nothing here does anything.
"""
import os
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .vit import require


def count():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this one, from 0. Process 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def join():
    """Become one of the launcher's processes, if it has started this one: with its own GPU, and silent unless first.

    What they exchange goes through nccl where it lies on CUDA, through gloo on the CPU: torch's own choice.
    """
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group()
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")


def leave():
    """The end of what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check(options):
    """Raise ValueError for a batch or a device that the processes cannot share."""
    require(options.batch_size % count() == 0, "batch_size", options.batch_size,
            f"a multiple of {count()}, the number of processes")
    if count() > 1 and options.device != "cpu":
        right = f"cpu, or cuda with a GPU for each of the {os.environ['LOCAL_WORLD_SIZE']} processes on this machine"
        enough = int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
        require(options.device == "cuda" and enough, "device", options.device, right)


def launcher():
    """The command that starts what runs here."""
    return f"torchrun --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}" if count() > 1 else "python"


def is_lost(error):
    """Whether this is the error of a process that waited for another one, in vain."""
    return count() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def share(batch):
    """This process's part of the rows of a batch: every count()-th one."""
    return batch[rank() :: count()]


def synchronised(model):
    """The model with gradients that are the mean over the processes, those of the whole batch. Waits for the others."""
    return DistributedDataParallel(model, forward_sync_buffers=False) if count() > 1 else model


def total(numbers):
    """The sum of a tensor over the processes, in float64 on the CPU. Waits for the device and for the others."""
    numbers = numbers.cpu().double()
    if count() > 1:
        dist.all_reduce(numbers)
    return numbers


def from_first(make):
    """What make() returns in the first process, in which alone it is called."""
    result = [make() if rank() == 0 else None]
    if count() > 1:
        dist.broadcast_object_list(result)
    return result[0]


@contextmanager
def in_turn():
    """A block that the first process of each machine goes through before the others: it alone downloads."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        total(torch.zeros(1))
    yield
    if is_first:
        total(torch.zeros(1))
