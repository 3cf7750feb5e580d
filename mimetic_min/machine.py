"""What the scripts need to know about the machine: its keyboard, its processes and its devices."""

import os
from contextlib import contextmanager, suppress

import torch


@contextmanager
def ctrl_c_stops():
    """For the main function of a script: Ctrl-C ends it with a sentence instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nStopped. Run the same command to resume.")
        raise SystemExit(130) from None


def processes():
    """This process's rank, and the number of processes: RANK and WORLD_SIZE.

    torchrun sets both. A job array that counts from 1 works as well: its last process gets rank 0.
    Raises ValueError for anything else, and for one without the other.
    """
    rank = os.environ.get("RANK", "0")
    world_size = os.environ.get("WORLD_SIZE", "1")
    both_or_neither = ("RANK" in os.environ) == ("WORLD_SIZE" in os.environ)
    are_numbers = rank.isdecimal() and world_size.isdecimal()
    if not (both_or_neither and are_numbers and int(rank) <= int(world_size) > 0):
        raise ValueError(
            "set both RANK and WORLD_SIZE, or neither: WORLD_SIZE must be a whole number above 0, "
            f"and RANK from 0 to WORLD_SIZE, but RANK is {os.environ.get('RANK')!r} and WORLD_SIZE "
            f"is {os.environ.get('WORLD_SIZE')!r}"
        )
    return int(rank) % int(world_size), int(world_size)


def use_device(name):
    """The torch.device of this process for --device `name`.

    Each of several processes gets one CPU thread and, for "cuda", its own GPU if there are enough.
    Raises ValueError for a device that torch does not have.
    """
    rank, world_size = processes()
    if world_size > 1:
        torch.set_num_threads(1)
    # What is raised for a missing device depends on the device.
    with suppress(Exception):
        if name == "cuda":
            # torchrun counts the processes of each machine in LOCAL_RANK. A job array does not.
            local_rank = int(os.environ.get("LOCAL_RANK", rank))
            name = f"cuda:{local_rank % torch.cuda.device_count()}"
        return torch.ones(1, device=name).device
    raise ValueError(
        f"torch has no device {name} here (LOCAL_RANK is {os.environ.get('LOCAL_RANK')})"
    )
