"""Several processes under torchrun compute what one process computes. One that dies ends the job,
and the job can go on.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import ENVIRONMENT, MAIN, ROOT, SHORT, both_scripts, results

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*words):
    command = [*TORCHRUN, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def train(task):
    return ROOT / f"train_{task}.py"


# ---------------------------------------------------------------------------------------------
# The same figures


@both_scripts
def test_two_processes_reach_the_figures_of_one(task):
    """They differ only by rounding, and only the first process prints and writes.

    A float32 sum in another order differs by about 1e-7 of itself, and over 24 steps this grows to
    1e-6. A share that was left out, or counted twice, would change the loss by more than 1e-3.
    """
    more = ["--augment", "crop+flip"] if task == "vit" else []
    words = [*SHORT[task], *more, "--init", "default", "mimetic"]
    MAIN[task]([*words, "--out", "one"])
    done = torchrun(train(task), *words, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 runs of 24 steps, in two\n")
    assert done.stdout.count("s left\n") == 2 * 8
    assert done.stdout.count("against default") == 1
    assert sorted(os.listdir("two")) == sorted(os.listdir("one"))
    assert results("two")["config"] == results("one")["config"]
    for one, two in zip(results("one")["runs"], results("two")["runs"], strict=True):
        for a, b in zip(one["curve"], two["curve"], strict=True):
            assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
            if task == "vit":
                # Rounding may tip an image that is on the edge.
                assert abs(a["accuracy"] - b["accuracy"]) * 797 < 2.5
            else:
                assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


# Runs a script and keeps what its model sees, and its weights before torch can share them.
SPY = """
import sys
import torch
root, task, *words = sys.argv[1:]
sys.path.insert(0, root)
import train_lm, train_vit
from mimetic_min.lab import parallel

module, Model = {"vit": (train_vit, train_vit.ViT), "lm": (train_lm, train_lm.GPT)}[task]
wrap, forward = parallel.wrap, Model.forward
models, starts, batches, tests = [], [], [], []

def spy(model):
    models.append(model)
    starts.append({name: W.detach().clone() for name, W in model.state_dict().items()})
    return wrap(model)

def look(model, batch):
    # A sample has a batch of one.
    if len(batch) > 1:
        (batches if torch.is_grad_enabled() else tests).append(batch)
    return forward(model, batch)

parallel.wrap, Model.forward = spy, look
module.main(words)
seen = {
    "start": starts[0],
    "end": models[0].state_dict(),
    "batches": torch.cat(batches),
    # Of eight evaluations, the first.
    "tests": torch.cat(tests[: len(tests) // 8]),
}
torch.save(seen, f"seen-{parallel.count()}-{parallel.rank()}.pt")
"""


@both_scripts
def test_each_process_sees_its_share_and_all_have_the_same_weights(task):
    """Together they see each batch, and in an evaluation each test example, once."""
    Path("spy.py").write_text(SPY)
    words = [str(ROOT), task, *SHORT[task], "--init", "mimetic"]
    done = torchrun("spy.py", *words, "--out", "two")
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "spy.py", *words, "--out", "one"], capture_output=True)
    assert done.returncode == 0, done.stderr
    one = torch.load("seen-1-0.pt")
    first = torch.load("seen-2-0.pt")
    second = torch.load("seen-2-1.pt")
    for name, W in one["start"].items():
        # The same start, not only after torch has copied it from the first process.
        assert torch.equal(first["start"][name], W)
        assert torch.equal(second["start"][name], W)
        assert torch.equal(first["end"][name], second["end"][name])
    in_turn = torch.stack([first["batches"], second["batches"]], 1).flatten(0, 1)
    assert torch.equal(in_turn, one["batches"])
    assert len(one["tests"]) == {"vit": 797, "lm": 256}[task]
    assert torch.equal(first["tests"], one["tests"][0::2])
    assert torch.equal(second["tests"], one["tests"][1::2])


# ---------------------------------------------------------------------------------------------
# A process that dies, and what two processes cannot share

# Runs a script whose second process is killed in the middle of its eleventh step.
DEADLY = """
import os
import signal
import sys
root, *words = sys.argv[1:]
sys.path.insert(0, root)
sys.argv = ["train_vit.py", *words]
import train_vit
from mimetic_min.lab import parallel
from mimetic_min.lab import script as lab_script

learning_rate = train_vit.learning_rate

def deadly(step, steps, peak):
    if step == 10 and parallel.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return learning_rate(step, steps, peak)

train_vit.learning_rate = deadly
lab_script.run(train_vit.prepare, train_vit.train_grid)
"""


def test_a_process_that_dies_ends_the_job_and_the_job_can_go_on():
    """It goes on from its last checkpoint to the same figures, to the last bit: the sum of the
    gradients of two processes has one order.
    """
    words = [*SHORT["vit"], "--init", "mimetic"]
    done = torchrun(train("vit"), *words)
    assert done.returncode == 0, done.stderr
    # The first process chose the folder for both.
    assert os.listdir("runs") == ["vit-shifted-digits"]

    Path("deadly.py").write_text(DEADLY)
    done = torchrun("deadly.py", ROOT, *words, "--out", "broken")
    assert done.returncode == 1
    assert results("broken")["runs"] == []
    assert torch.load("broken/mimetic-seed0-lr0.002.pt", weights_only=True)["steps_done"] == 9
    way = "to go on: torchrun --nproc_per_node=2 train_vit.py --resume broken"
    assert way in done.stderr

    done = torchrun(train("vit"), "--resume", "broken")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("s left\n") == 8 - 3
    (whole,) = results("runs/vit-shifted-digits")["runs"]
    (broken,) = results("broken")["runs"]
    assert whole | {"seconds": 0} == broken | {"seconds": 0}


# Runs a script whose processes abort if Python is asked to clean up, as torch's threads may do.
ABORTING = """
import atexit
import os
import sys
root, *words = sys.argv[1:]
sys.path.insert(0, root)
sys.argv = ["train_vit.py", *words]
import train_vit
from mimetic_min.lab import script as lab_script

atexit.register(os.abort)
lab_script.run(train_vit.prepare, train_vit.train_grid)
"""


@pytest.mark.parametrize("words, status", [([], 0), (["--batch-size", "33"], 1)])
def test_processes_that_are_done_end_with_their_own_status(words, status):
    """torchrun ends with 1 if a process ends with 2."""
    Path("aborting.py").write_text(ABORTING)
    done = torchrun("aborting.py", ROOT, *SHORT["vit"], "--init", "mimetic", *words)
    assert done.returncode == status
    assert "Aborted" not in done.stderr
    assert "SIGABRT" not in done.stderr
    # What the first process still had to print is printed.
    assert ("seed 0 " in done.stdout) == (status == 0)


@pytest.mark.parametrize("victim", [0, 1])
def test_no_process_outlives_a_killed_one(victim):
    words = [*SHORT["vit"], "--init", "default", "--epochs", "40000", "--out", "run"]
    words.remove("--epochs")
    words.remove("4")
    job = subprocess.Popen(
        [*TORCHRUN, str(train("vit")), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    assert job.stdout.readline() == "1 runs of 240,000 steps, in run\n"
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes()
        ranks[int(re.search(rb"\0RANK=(\d)", environment)[1])] = int(child)
    os.kill(ranks[victim], signal.SIGKILL)
    job.communicate()
    assert job.returncode == 1
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ["--batch-size", "51"],
            "--batch-size must be a multiple of the 2 processes, but it is 51",
        ),
        (
            ["--out", "."],
            "--out must be a new or empty folder, but . has files; to go on:"
            " torchrun --nproc_per_node=2 train_vit.py --resume .",
        ),
        (
            ["--data", "cifar10", "--data-dir", "."],
            "there is no file cifar-10-binary.tar.gz in the folder .",
        ),
    ],
)
def test_what_the_first_process_refuses_is_one_line(words, line):
    """The others stop with it. Before, their wait for the first one ended in a traceback."""
    Path("mine.txt").touch()
    done = torchrun(train("vit"), *words)
    # torchrun's own status, and its own traceback.
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert f"train_vit.py, process 0: {line}\n" in done.stderr
    assert os.listdir() == ["mine.txt"]
