"""Several processes that train one model, each on its share of every batch. PyTorch's launcher
starts them:

    torchrun --nproc_per_node=4 train_vit.py --batch-size 512

A script that was started without it is the only process, and then nothing here does anything.
"""

import os
import sys
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def count():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first():
    """Whether this is the process that prints and writes."""
    return rank() == 0


def join():
    """Meet the other processes, if the launcher started this one.

    On CUDA each takes a GPU of its own. All but the first print nothing.
    """
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group()
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def leave(status):
    """End this process with an exit status, if it is one of several.

    Python is not asked to clean up. DistributedDataParallel keeps torch's threads alive, and one
    that is still at work while Python ends makes the process abort, though all its work is done.
    """
    if dist.is_initialized():
        with suppress(OSError):
            print(end="", flush=True)
        os._exit(status)


def check(batch_size, device):
    """Raise ValueError for a batch or a device that the processes cannot share."""
    if batch_size % count() != 0:
        raise ValueError(
            f"--batch-size must be a multiple of the {count()} processes, but it is {batch_size}"
        )
    if count() > 1 and device != "cpu":
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        gpus = torch.cuda.device_count()
        if device != "cuda" or processes > gpus:
            raise ValueError(
                f"--device must be cpu, or cuda with one GPU per process, but it is {device},"
                f" with {processes} processes and {gpus} GPUs on this machine"
            )


def launcher():
    """The command that started this process."""
    if count() == 1:
        return "python"
    return f"torchrun --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"


def share(batch):
    """The rows of a batch that this process has: every count()-th one."""
    return batch[rank() :: count()]


def wrap(model):
    """The model, with gradients that are averaged over the processes."""
    if count() == 1:
        return model
    # The only buffers are positions, which do not change.
    return DistributedDataParallel(model, forward_sync_buffers=False)


def total(numbers):
    """The sum of a tensor over the processes, in float64 on the CPU. Waits for the device and for
    the others.
    """
    numbers = numbers.detach().cpu().double()
    if count() > 1:
        dist.all_reduce(numbers)
    return numbers


def from_first(make):
    """What make() returns in the first process. The others do not call it.

    A ValueError that it raises there is raised in every process.
    """
    made = None
    error = None
    if is_first():
        try:
            made = make()
        except ValueError as caught:
            error = caught
    message = [made, error]
    if count() > 1:
        dist.broadcast_object_list(message)
    made, error = message
    if error is not None:
        raise error
    return made


@contextmanager
def first_process_first():
    """A block that the first process of each machine finishes before the others begin.

    So only one of them downloads. If it raises a ValueError there, the others exit: the first one
    says why.
    """
    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    if not leads:
        _exit_if_one_failed()
    try:
        yield
    except ValueError:
        if leads:
            total(torch.ones(1))
        raise
    if leads:
        _exit_if_one_failed()


def _exit_if_one_failed():
    """Wait for the others, and exit if one of them says 1 instead of 0."""
    if total(torch.zeros(1)) > 0:
        leave(2)
