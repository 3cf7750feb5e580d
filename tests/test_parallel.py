"""Several processes under torchrun: what they compute is what one computes, and one that dies ends the job.

Also what a GPU needs and a CPU can show: bfloat16 products, a step that reads nothing back, torch.compile.
"""
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import train_lm
import train_vit
from mimetic_min import parallel, training, vit
from mimetic_min.vit import ViT, ViTConfig
from test_training import MAIN, ROOT, SHORT, both_scripts, results, script

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*words, **more):
    return subprocess.run([*TORCHRUN, *words], capture_output=True, text=True, timeout=300, **more)


# ---- the same figures

@both_scripts
def test_two_processes_reach_what_one_does(task):
    """The figures differ by rounding alone, and the first process alone prints and writes.

    A float32 sum in another order differs by about 1e-7 of itself; over 24 steps this grows to 1e-6. A share that is
    left out, or counted twice, changes the loss by more than 1e-2.
    """
    more = ["--augment", "crop+flip"] if task == "vit" else []
    MAIN[task]([*SHORT[task], *more, "--out", "one"])
    done = torchrun(str(ROOT / f"train_{task}.py"), *SHORT[task], *more, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("s left\n") == 3 * 8 and done.stdout.count("against default") == 1
    assert "3 runs of 24 steps on 2 x cpu, into two\n" in done.stdout
    assert {file.name for file in Path("two").iterdir()} == {file.name for file in Path("one").iterdir()}
    assert results("two")["config"] == results("one")["config"]
    for one, two in zip(results("one")["runs"], results("two")["runs"]):
        for a, b in zip(one["curve"], two["curve"]):
            assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
            if task == "vit":
                assert abs(a["accuracy"] - b["accuracy"]) * 797 < 2.5        # rounding may tip one that is on the edge
            else:
                assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


SPY = """
import sys
import torch
sys.path.insert(0, sys.argv.pop(1))
import train_lm, train_vit
from mimetic_min import parallel
script, Model = {"vit": (train_vit, train_vit.ViT), "lm": (train_lm, train_lm.GPT)}[sys.argv.pop(1)]
models, seen, synchronised, forward = [], {True: [], False: []}, parallel.synchronised, Model.forward

def spy(model):
    models.append((model, {name: weight.clone() for name, weight in model.state_dict().items()}))
    return synchronised(model)

def look(self, batch):
    if len(batch) > 1:                                               # not for the sample
        seen[self.training].append(batch)
    return forward(self, batch)

parallel.synchronised, Model.forward = spy, look
script.main()
model, start = models[-1]
torch.save([start, model.state_dict(), torch.cat(seen[True]), torch.cat(seen[False])], f"seen{parallel.rank()}.pt")
"""


@both_scripts
def test_each_process_sees_its_share_and_all_have_the_same_weights(task):
    """Before DDP shares anything the mimetic weights are the same; what is seen is the batches and test data, once."""
    Path("spy.py").write_text(SPY)
    words = [str(ROOT), task, *SHORT[task], "--init", "mimetic"]
    done = torchrun("spy.py", *words, "--out", "two")
    assert done.returncode == 0, done.stderr
    alone = subprocess.run([sys.executable, "-c", SPY.replace("seen{", "alone{"), *words, "--out", "one"])
    assert alone.returncode == 0
    (start, end, batches, tests), (start1, end1, batches1, tests1) = (torch.load(f"seen{n}.pt") for n in (0, 1))
    alone_start, _, alone_batches, alone_tests = torch.load("alone0.pt")
    for name in start:
        assert torch.equal(start[name], start1[name]) and torch.equal(start[name], alone_start[name])
        assert torch.equal(end[name], end1[name])
    assert torch.equal(torch.stack([batches, batches1], 1).flatten(0, 1), alone_batches)
    tests, tests1, alone_tests = (t.unflatten(0, (8, -1))[0] for t in (tests, tests1, alone_tests))
    assert torch.equal(tests, alone_tests[::2]) and torch.equal(tests1, alone_tests[1::2])
    assert len(alone_tests) == {"vit": 797, "lm": 256}[task]


# ---- one that dies, and what cannot be shared

@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_job_in_one_line(victim):
    """No hang: torchrun ends, and the survivor names the reason and how to go on, which then works."""
    words = [*SHORT["vit"], "--init", "default", "--epochs", "4000", "--out", "run"]
    job = subprocess.Popen([*TORCHRUN, str(ROOT / "train_vit.py"), *words], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    assert job.stdout.readline().startswith("1 runs of 24,000 steps")
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = {int(re.search(rb"\0RANK=(\d)", Path(f"/proc/{child}/environ").read_bytes())[1]): int(child)
             for child in children}
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 1
    ours = [line for line in errors.splitlines() if line.startswith("train_vit.py, process")]
    reason = "(stopped, for another process of the job has ended|stopped)"   # torchrun's SIGTERM may come first
    way = "to go on: torchrun --nproc_per_node=2 train_vit.py --resume run"
    assert len(ours) == 1 and re.fullmatch(f"train_vit.py, process {1 - victim}: {reason}; {way}", ours[0])
    assert "[rank" not in errors                                     # where torch would show a traceback


DEADLY = """
import os
import signal
import sys
sys.path.insert(0, sys.argv.pop(1))
import train_vit
from mimetic_min import options, training
number, rate, steps = int(sys.argv.pop(1)), training.rate, []

def deadly(*of):
    steps.append(of)
    if len(steps) == 21:                                             # two groups of parameters: in the eleventh step
        os.kill(os.getpid(), number)
    return rate(*of)

training.rate = deadly
options.script(train_vit.main, train_vit.PARSER)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_that_was_stopped_goes_on_to_the_same_figures(number):
    """From the last evaluation on, to the last bit: the sum of two processes' gradients has one order."""
    words = [*SHORT["vit"], "--init", "mimetic"]
    done = torchrun(str(ROOT / "train_vit.py"), *words)
    assert done.returncode == 0, done.stderr
    assert os.listdir("runs") == ["vit-digits"]                      # which the first process chose for both
    Path("deadly.py").write_text(DEADLY)
    assert torchrun("deadly.py", str(ROOT), str(int(number)), *words, "--out", "broken").returncode == 1
    assert results("broken")["runs"] == []
    assert torch.load("broken/mimetic-seed0-lr0.002.pt", weights_only=True)["step"] == 9
    done = torchrun(str(ROOT / "train_vit.py"), "--resume", "broken")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("s left\n") == 8 - 3
    whole, broken = (results(folder)["runs"][0] | {"seconds": 0} for folder in ("runs/vit-digits", "broken"))
    assert whole == broken


def test_a_lost_process_is_told_from_a_bug(monkeypatch):
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:2: Connection reset by peer")
    assert not parallel.is_lost(gloo)                                # there is no other process
    monkeypatch.setattr(parallel, "count", lambda: 2)
    assert parallel.is_lost(gloo) and parallel.is_lost(torch.distributed.DistBackendError("NCCL error"))
    assert not parallel.is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_two_processes_cannot_share_is_named(monkeypatch):
    done = torchrun(str(ROOT / "train_vit.py"), "--batch-size", "51")
    assert done.returncode == 1                                      # torchrun's own
    line = "--batch-size is 51: it must be a multiple of 2, the number of processes"
    assert f"train_vit.py, process 0: {line}\n" in done.stderr and "[rank" not in done.stderr
    assert not Path("runs").exists()
    monkeypatch.setattr(parallel, "count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    options = train_vit.PARSER.parse_args([])
    for device, gpus, ok in [("cpu", 0, True), ("cuda", 2, True), ("cuda", 1, False), ("cuda:0", 2, False)]:
        options.device = device
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        if ok:
            parallel.check(options)
        else:
            with pytest.raises(ValueError, match=f"^device is '{device}': it must be cpu, or cuda with a GPU for each"):
                parallel.check(options)


# ---- what a GPU needs

@both_scripts
def test_a_step_reads_nothing_back_from_its_device(task, monkeypatch):
    """On torch's meta device, whose tensors have no values: to read one, or to mix it with a CPU's, is an error."""
    monkeypatch.setattr(training, "run_grid", lambda experiment, options: kept.append((experiment, options)) or [])
    kept = []
    options = {"vit": train_vit, "lm": train_lm}[task].PARSER.parse_args(SHORT[task])
    options.device, options.started = "meta", None
    options.augment = "crop+flip"
    monkeypatch.setattr("mimetic_min.options.parse", lambda *of: options)
    MAIN[task]([])
    (experiment, _), = kept
    model = training.new_model(experiment.model, {"seed": 0, "init": "mimetic"}, options)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    loss = experiment.loss(model, 0, 0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.item()


def test_bfloat16_on_cuda_alone_and_x_is_converted_once(monkeypatch):
    """What CUDA does, on the CPU's own autocast: products right to some of bfloat16's 8 bits, with one copy of x."""
    monkeypatch.setattr(torch, "autocast", lambda *of: of)
    assert training.precision("cuda:1") == ("cuda", torch.bfloat16)
    assert all(isinstance(training.precision(device), nullcontext) for device in ("cpu", "mps"))
    monkeypatch.undo()
    torch.manual_seed(0)
    attention, x = vit.Attention(64, 4), torch.randn(2, 16, 64)
    attention.mimetic_init_(0.7, 0.7, 0.4, -0.4)
    exact = attention(x)
    with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        patch.setattr(torch, "is_autocast_enabled", lambda kind: True)
        patch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
        with torch.profiler.profile(record_shapes=True) as profile:
            rough = attention(x)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() / exact.norm() < 4 * 2**-8         # three products and the map between them
    sizes = [event.input_shapes[0] for event in profile.events() if event.name == "aten::_to_copy"]
    assert sizes.count([2, 16, 64]) == 1


def test_the_images_stay_bytes_until_the_batch():
    """40,000 images of 3,072 bytes may cost their size twice, as read and as tensors; float32 would be four times."""
    peaks = []
    for name, count in (("few", 100), ("many", 40_000)):
        images, labels = np.zeros((count, 32, 32, 3), np.uint8), np.arange(count) % 10
        np.savez(name, train_images=images, train_labels=labels, test_images=images[:100], test_labels=labels[:100])
        words = "--patch-size 16 --epochs 1 --batch-size 100 --dim 8 --heads 1 --depth 1 --init default".split()
        child = subprocess.Popen([sys.executable, ROOT / "train_vit.py", "--data", f"{name}.npz", *words],
                                 stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss * 1024)
    assert peaks[1] - peaks[0] < 2.5 * 40_000 * 3072


# ---- --compile

@both_scripts
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch of itself
def test_a_compiled_model_reaches_the_same_figures(task):
    """Fused kernels round differently: as with two processes."""
    words = [*SHORT[task], "--init", "mimetic", "--depth", "1"]
    MAIN[task]([*words, "--out", "plain"])
    MAIN[task]([*words, "--compile", "--out", "compiled"])
    (plain,), (compiled,) = results("plain")["runs"], results("compiled")["runs"]
    assert [point["train_loss"] for point in compiled["curve"]] == pytest.approx(
        [point["train_loss"] for point in plain["curve"]], rel=1e-5)
    state = torch.load(Path("compiled", f"mimetic-seed0-lr{compiled['lr']}.pt"), weights_only=True)
    if task == "vit":
        ViT(ViTConfig(**state["config"])).load_state_dict(state["model"])  # its names are not those of the wrapper


def test_a_machine_that_cannot_compile_is_told_so():
    done = script("vit", *SHORT["vit"], "--compile", env=os.environ | {"CXX": "no-such-compiler", "PATH": ""})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("train_vit.py: torch cannot compile here, leave out --compile (")
