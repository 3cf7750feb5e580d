"""Nothing lost: runs that are stopped, killed, out of disk or diverge, and folders that are damaged or hostile.

The faults are real: signals, SIGKILL at random moments, file systems that are full or read-only, changed bytes.
"""
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train_lm
import train_vit
from mimetic_min import gpt, options, report, training
from test_data import Evil, mutated, mutations
from test_training import MAIN, ROOT, SHORT, both_scripts, results, script

TINY = {  # one step an evaluation
    "vit": "--epochs 8 --limit 10 --batch-size 10 --dim 8 --heads 2 --depth 1 --init mimetic".split(),
    "lm": "--steps 8 --context 8 --dim 8 --heads 2 --depth 1 --sample 3 --init mimetic".split(),
}


def without_times(folder):
    found = results(folder)
    for run in found["runs"]:
        run.pop("seconds")
    return found


def weights(folder):
    return {path.name: torch.load(path, weights_only=True)["model"] for path in Path(folder).glob("*.pt")}


def assert_same(a, b):
    """Two run folders hold the same files, with the same figures and weights to the last bit, but for the times."""
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    assert without_times(a) == without_times(b)
    assert Path(a, "log.csv").read_text() == Path(b, "log.csv").read_text()
    for name, state in weights(a).items():
        assert all(torch.equal(state[key], other) for key, other in weights(b)[name].items())


# ---- the same seed

@both_scripts
def test_the_same_seed_gives_the_same_bits_in_another_process(task):
    for folder in ("a", "b"):
        done = script(task, *TINY[task], "--init", "default", "mimetic", "--out", folder)
        assert done.returncode == 0, done.stderr
    assert_same("a", "b")


@both_scripts
def test_all_inits_see_the_same_batches_and_start_alike_but_for_their_attention(task, monkeypatch):
    seen, starts = [], []
    model = {"vit": train_vit.ViT, "lm": train_lm.GPT}[task]
    forward = model.forward

    def spy(self, batch):
        if self.training:
            if not seen[-1]:
                starts.append({name: W.detach().clone() for name, W in self.named_parameters()})
            seen[-1].append(batch.clone())
        return forward(self, batch)

    monkeypatch.setattr(model, "forward", spy)
    inits = ["default", "xavier", "noise", "simple", "mimetic"]
    for init in inits:
        seen.append([])
        MAIN[task]([*TINY[task], "--init", init])
    for batches, start in zip(seen, starts, strict=True):
        assert len(batches) == 8 and all(torch.equal(a, b) for a, b in zip(seen[0], batches, strict=True))
        for name, W in starts[0].items():
            assert torch.equal(W, start[name]) == (start is starts[0] or ".attention." not in name), name


# ---- stopped, and gone on with

@both_scripts
@pytest.mark.parametrize("stop, number", [(1, signal.SIGINT), (7, signal.SIGTERM), (9, signal.SIGINT),
                                          (24, signal.SIGTERM), (32, signal.SIGTERM)])
def test_a_signal_saves_its_step_and_resume_ends_in_the_same_results(task, stop, number, monkeypatch):
    """SIGINT or SIGTERM after any step: the next one is done and saved, the grid is left, and can be gone on with.

    With dropout in the GPT, for which no option asks, so that the state of the random generator counts too, and with
    crops and flips of the images.
    """
    monkeypatch.setattr(train_lm, "GPTConfig", partial(gpt.GPTConfig, dropout=0.2))
    words = [*SHORT[task], "--init", "default", "mimetic"]
    if task == "vit":
        words += ["--augment", "crop+flip"]
    MAIN[task]([*words, "--out", "whole"])
    steps = iter(range(1, 1000))
    show = report.Progress.show

    def interrupt(*arguments, **more):
        show(*arguments, **more)
        if next(steps) == stop:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(training.Progress, "show", interrupt)
        with pytest.raises(KeyboardInterrupt) as end:
            MAIN[task]([*words, "--out", "cut"])
    assert end.value.__notes__ == [f"to go on: python train_{task}.py --resume cut"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    last = max(Path("cut").glob("*.pt"), key=os.path.getmtime)
    assert torch.load(last, weights_only=True)["step"] == min(stop % 24 + 1, 24) if stop % 24 else 24
    MAIN[task](["--resume", "cut"])
    assert_same("whole", "cut")


@both_scripts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_script_says_in_one_line_how_to_go_on(task, number):
    words = "--init default --dim 32 --depth 2 --heads 2 --out run".split()
    child = subprocess.Popen([sys.executable, ROOT / f"train_{task}.py", *words],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "s left" not in child.stdout.readline():                   # until the first evaluation
        assert child.poll() is None
    child.send_signal(number)
    child.stdout.read()
    line = f"train_{task}.py: stopped; to go on: python train_{task}.py --resume run\n"
    assert child.stderr.read() == line and child.wait() == 130
    assert sorted(path.suffix for path in Path("run").iterdir()) == [".csv", ".json", ".pt"]


def test_a_signal_in_an_evaluation_waits_for_no_further_step(monkeypatch):
    experiment = training.Experiment

    def interrupted(**more):
        evaluate = more.pop("evaluate")
        return experiment(evaluate=lambda model: os.kill(os.getpid(), signal.SIGTERM) or evaluate(model), **more)

    monkeypatch.setattr(training, "Experiment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MAIN["vit"]([*SHORT["vit"], "--out", "run"])
    assert torch.load("run/default-seed0-lr0.002.pt", weights_only=True)["step"] == 3


def test_a_signal_before_the_training_ends_the_script_in_one_line(capsys):
    """While the data are loaded, say: there is nothing to save yet."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            with pytest.raises(SystemExit) as end:
                options.script(lambda: os.kill(os.getpid(), number) or time.sleep(60), train_vit.PARSER)
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        assert end.value.code == 130 and capsys.readouterr().err.endswith(": stopped\n")


def test_a_reader_that_goes_away_stops_the_run_in_one_line():
    child = subprocess.Popen([sys.executable, ROOT / "train_vit.py", *SHORT["vit"], "--out", "run"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == ("train_vit.py: [Errno 32] Broken pipe; to go on: python train_vit.py --resume run\n")
    assert child.wait() == 2
    MAIN["vit"](["--resume", "run"])
    assert len(results("run")["runs"]) == 3


def test_an_output_that_is_full_stops_the_run_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, ROOT / "train_vit.py", *SHORT["vit"], "--out", "run"], stdout=full,
                              stderr=subprocess.PIPE, text=True)
    line = "train_vit.py: [Errno 28] No space left on device; to go on: python train_vit.py --resume run\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_two_signals_are_one_line():
    child = subprocess.Popen([sys.executable, ROOT / "train_vit.py", "--init", "default", "--out", "run"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "s left" not in child.stdout.readline():
        assert child.poll() is None
    for _ in range(20):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    child.stdout.read()
    assert child.stderr.read() == "train_vit.py: stopped; to go on: python train_vit.py --resume run\n"
    assert child.wait() == 130


def test_a_script_that_stops_for_one_signal_is_deaf_to_the_next():
    before = {number: signal.signal(number, options.stop_once) for number in options.SIGNALS}
    try:
        with options.signals_deferred() as came:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)                         # before the KeyboardInterrupt is even raised
        assert came == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@both_scripts
def test_a_grid_survives_twenty_kills_at_random_moments(task, monkeypatch):
    """SIGKILL twenty times, each at a moment drawn from the time of the whole grid, and the same results in the end.

    The children are forked from a server that has imported torch, so that the moments are those of the runs.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_vit", "train_lm", "torch._dynamo"])   # AdamW imports it
    words = [*TINY[task], "--init", "default", "mimetic", "--seed", "0", "1"]

    def start(folder):
        begun = Path(folder, "results.json").exists()
        child = context.Process(target=MAIN[task], args=(["--resume", folder] if begun else [*words, "--out", folder],))
        child.start()
        return child

    start("warm").join()                                             # starts the server
    begin = time.perf_counter()
    start("whole").join()
    duration, kills, grids = time.perf_counter() - begin, 0, 0
    while kills < 20:
        child = start(f"cut{grids}")
        child.join(random.uniform(0, duration))
        if child.exitcode is None:
            child.kill()
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            assert_same("whole", f"cut{grids}")
            grids += 1
    child = start(f"cut{grids}")
    child.join()
    assert child.exitcode == 0
    assert_same("whole", f"cut{grids}")


# ---- diverged

@both_scripts
def test_a_run_that_diverges_is_marked_and_the_grid_goes_on(task, monkeypatch, capsys):
    """A rate that is not a number in step 10 spoils the loss of step 11; the checkpoint of step 9 stays."""
    rate = training.rate
    monkeypatch.setattr(training, "rate", lambda step, steps, peak: np.nan if peak == 9 and step == 9
                        else rate(step, steps, 1e-3))
    MAIN[task]([*SHORT[task], "--init", "mimetic", "default", "--lr", "9", "1e-3", "--out", "run"])
    captured = capsys.readouterr()
    line = "train_{}.py: {} with seed 0 and --lr 9 diverged: its loss is not finite at step 11; try a lower --lr\n"
    assert captured.err == line.format(task, "mimetic") + line.format(task, "default")
    runs = results("run")["runs"]
    assert [run.get("diverged") for run in runs] == [11, 11, None, None]
    for run in runs[:2]:
        assert "final" not in run and [point["step"] for point in run["curve"]] == [3, 6, 9]
        state = torch.load(f"run/{run['init']}-seed0-lr9.0.pt", weights_only=True)
        assert state["step"] == 9 and all(W.isfinite().all() for W in state["model"].values())
    assert all("final" in run for run in runs[2:]) and "\n".join(report.table(runs)) in captured.out
    before = Path("run/results.json").read_bytes()
    MAIN[task](["--resume", "run"])
    assert Path("run/results.json").read_bytes() == before


@pytest.mark.parametrize("step", [1, 3, 5, 24])
def test_a_gradient_that_is_not_finite_is_seen_before_it_is_saved(step, monkeypatch):
    """The loss of its step is finite, but the weights are spoilt: the run ends there, without another checkpoint."""
    clip, calls = torch.nn.utils.clip_grad_norm_, iter(range(1, 1000))

    def overflow(parameters, *more):
        parameters = list(parameters)
        if next(calls) == step:
            parameters[0].grad[0, 0] = torch.inf
        return clip(parameters, *more)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    train_vit.main([*SHORT["vit"], "--init", "default", "--out", "run"])
    run, = results("run")["runs"]
    assert run["diverged"] == step and len(run["curve"]) == (step - 1) // 3
    for state in weights("run").values():
        assert all(W.isfinite().all() for W in state.values())


def test_a_rate_that_is_far_too_high_is_one_line_and_no_traceback():
    done = script("lm", *SHORT["lm"], "--init", "default", "--lr", "1e30")
    assert done.returncode == 0 and done.stdout.endswith("\nevery run diverged: try a lower --lr\n")
    start = "train_lm.py: default with seed 0 and --lr 1e+30 diverged: its loss is not finite at step "
    assert done.stderr.startswith(start) and done.stderr.count("\n") == 1


# ---- out of room

def unshared(command):
    """Run a bash command where it may mount file systems, which nobody else sees and which go with it."""
    words = ["unshare", "--map-root-user", "--mount", "bash", "-c", command]
    return subprocess.run(words, capture_output=True, text=True)


def python(task, *words):
    return " ".join([sys.executable, str(ROOT / f"train_{task}.py"), *words])


may_mount = pytest.mark.skipif(shutil.which("unshare") is None or unshared("mount -t tmpfs none /mnt").returncode != 0,
                               reason="this machine lets no user mount a file system")


@may_mount
@both_scripts
def test_a_full_disk_is_one_line_and_once_there_is_room_the_run_goes_on(task):
    words = [*SHORT[task], "--init", "default"]
    MAIN[task]([*words, "--out", "whole"])
    os.mkdir("disk")
    done = unshared(f"""mount -t tmpfs -o size=100k tmpfs disk
                        {python(task, *words, '--out', 'disk/run')}
                        echo status $?
                        ls disk/run
                        mount -o remount,size=10m disk
                        {python(task, '--resume', 'disk/run')} && cp -r disk/run .""")
    name = f"disk/run/default-seed0-lr{results('whole')['config']['lr'][0]}.pt"
    assert done.stderr == (f"train_{task}.py: {name} cannot be written: No space left on device; "
                           f"to go on: python train_{task}.py --resume disk/run\n")
    assert "\nstatus 2\nresults.json\n" in done.stdout               # no half of a checkpoint, and no temporary file
    assert_same("whole", "run")


@may_mount
@pytest.mark.parametrize("words, line", [
    ("--out disk/there", "train_vit.py: disk/there/results.json cannot be written: Read-only file system\n"),
    ("--out disk/new", "train_vit.py: --out is 'disk/new': it must be a folder that can be made and read "
     "(Read-only file system)\n"),
])
def test_a_read_only_folder_is_one_line(words, line):
    os.mkdir("disk")
    mounted = "mount -t tmpfs tmpfs disk && mkdir disk/there && mount -o remount,ro disk"
    done = unshared(f"{mounted} && {python('vit', words)}")
    assert (done.returncode, done.stderr) == (2, line)


def test_a_file_that_cannot_be_written_leaves_the_one_before_it():
    """At the process's limit on the size of a file, which needs no mount."""
    MAIN["vit"]([*TINY["vit"], "--out", "run"])
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    code = f"import sys; sys.path.insert(0, '{ROOT}'); from pathlib import Path; from mimetic_min.report import write; "
    code += "write(Path('run/results.json'), b'x' * 5000)"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4096, 4096))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit)
    assert done.stderr.endswith("ValueError: run/results.json cannot be written: File too large\n")
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_no_reader_ever_sees_half_a_file():
    """While it is written again and again, alternately full of a and of b, it is always full of one of them."""
    path, done = Path("file"), threading.Event()
    contents = [bytes([letter]) * 5_000_000 for letter in b"ab"]
    report.write(path, contents[0])

    def keep_writing():
        while not done.is_set():
            for content in reversed(contents):
                report.write(path, content)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = [path.read_bytes() for _ in range(100)]
    done.set()
    writer.join()
    assert all(content in contents for content in seen) and len(set(seen)) == 2


def test_a_model_that_is_too_large_is_one_line():
    limit = partial(resource.setrlimit, resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    done = script("vit", "--dim", "40000", "--init", "default", preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("train_vit.py: out of memory, try a smaller --dim, --depth or --batch-size (")


def test_a_bug_shows_its_traceback(capsys):
    """`script` makes one line of what the user can mend, and of nothing else."""
    def main():
        np.zeros(3).reshape(2)

    with pytest.raises(ValueError, match="reshape"):
        options.script(main, train_vit.PARSER)


# ---- damaged and hostile folders

def unfinished(task):
    """Make run/, whose only run has its last checkpoint but is not in the results yet, and the finished whole/."""
    MAIN[task]([*TINY[task], "--out", "run"])
    shutil.copytree("run", "whole")
    Path("run/results.json").write_text(json.dumps(results("run") | {"runs": []}))
    checkpoint, = Path("run").glob("*.pt")
    return checkpoint


@both_scripts
@given(change=st.data())
@settings(max_examples=60)
def test_a_damaged_checkpoint_is_refused_or_right(task, change):
    """Whatever is cut off or changed in it: ValueError that names it, or the same results as without the damage."""
    checkpoint = next(Path("run").glob("*.pt"), None) or unfinished(task)
    whole, before = next(Path("whole").glob("*.pt")).read_bytes(), json.dumps(results("whole") | {"runs": []})
    checkpoint.write_bytes(mutated(whole, change.draw(mutations(len(whole)))))
    Path("run/results.json").write_text(before)
    try:
        MAIN[task](["--resume", "run"])
    except ValueError as error:
        assert str(error) == (f"resume is 'run': it must be a folder with its own checkpoints; {checkpoint.name} is "
                              "damaged, or of another run: move it away to train this one from its start")
        assert Path("run/results.json").read_text() == before
    else:
        assert without_times("run") == without_times("whole")


def test_a_damaged_checkpoint_is_one_line_from_the_command_line():
    checkpoint = unfinished("vit")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    done = script("vit", "--resume", "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    line = "train_vit.py: --resume is 'run': it must be a folder with its own checkpoints; "
    assert done.stderr.startswith(line + checkpoint.name)


@both_scripts
def test_a_checkpoint_of_another_run_or_with_code_in_it_is_refused(task):
    checkpoint = unfinished(task)
    MAIN[task]([*TINY[task], "--seed", "1", "--out", "seed1"])
    MAIN[task]([*TINY[task], "--batch-size", "9", "--out", "batch9"])
    MAIN[task]([*TINY[task], "--seed", "0", "1", "--out", "both"])
    for path in Path("both").glob("*seed1*.pt"):                     # the right options, and the seed of another run
        shutil.copy(path, str(path).replace("seed1", "seed0"))
    Path("both/results.json").write_text(json.dumps(results("both") | {"runs": []}))
    with pytest.raises(ValueError, match="is damaged, or of another run: move it away"):
        MAIN[task](["--resume", "both"])
    torch.save({"model": Evil()}, "evil.pt")
    Path("evil.pickle").write_bytes(pickle.dumps(Evil()))
    for other in (next(Path("seed1").glob("*.pt")), next(Path("batch9").glob("*.pt")), "evil.pt", "evil.pickle"):
        shutil.copy(other, checkpoint)
        with pytest.raises(ValueError, match=f"{checkpoint.name} is damaged, or of another run: move it away"):
            MAIN[task](["--resume", "run"])
        assert not Path("it ran").exists()
    checkpoint.unlink()                                              # as the message says
    MAIN[task](["--resume", "run"])
    assert_same("run", "whole")
    torch.load("evil.pt", weights_only=False)
    assert Path("it ran").exists()                                   # so it would have been seen


@both_scripts
@given(change=st.data())
@settings(max_examples=100)
def test_a_damaged_results_json_is_refused_or_read(task, change):
    """Whatever is cut off or changed in it: one line that is a ValueError, or the closing table. It stays as it is."""
    if not Path("run").exists():
        MAIN[task]([*TINY[task], "--init", "default", "mimetic", "--out", "run"])
        shutil.copytree("run", "whole")
    content = Path("whole/results.json").read_bytes()
    content = mutated(content, change.draw(mutations(len(content))))
    Path("run/results.json").write_bytes(content)
    try:
        MAIN[task](["--resume", "run"])
    except ValueError as error:
        assert " is " in str(error) and "\n" not in str(error)
    assert Path("run/results.json").read_bytes() == content


@pytest.mark.parametrize("change", [
    lambda found: found.pop("runs"),
    lambda found: found.pop("config"),
    lambda found: found.pop("task"),
    lambda found: found.update(runs=None),
    lambda found: found.update(runs=[{}]),
    lambda found: found.update(runs=[1]),
    lambda found: found.update(runs=2 * found["runs"]),
    lambda found: found.update(config={}),
    lambda found: found.update(config=[]),
    lambda found: found.update(task=["vit"]),
    lambda found: found["config"].update(init=["best"]),
    lambda found: found["config"].update(init="mimetic"),
    lambda found: found["config"].update(lr=[1]),
    lambda found: found["config"].update(epochs=9),
    lambda found: found["config"].update(dim=None),
    lambda found: found["config"].update(dim=8.0),
    lambda found: found["config"].update(device="cuda:99"),
    lambda found: found["config"].update(more=1),
    lambda found: found["config"].update(help=True),
    lambda found: found.update(fingerprint=0),
    lambda found: found["config"].pop("dim"),
    lambda found: found["runs"][0].pop("final"),
    lambda found: found["runs"][0].pop("curve"),
    lambda found: found["runs"][0].update(curve="abc"),
    lambda found: found["runs"][0]["curve"][0].update(accuracy="high"),
    lambda found: found["runs"][0]["curve"][0].update(more=1),
    lambda found: found["runs"][0].update(final={"accuracy": 1.0}),
])
def test_a_results_json_that_somebody_changed_is_refused(change):
    MAIN["vit"]([*TINY["vit"], "--out", "run"])
    found = results("run")
    change(found)
    Path("run/results.json").write_text(json.dumps(found))
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    with pytest.raises(ValueError, match="^resume is 'run': it must be a folder"):
        MAIN["vit"](["--resume", "run"])
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


@pytest.mark.parametrize("words", [
    "--qk-alpha off --qk-beta off", "--position learned --heads 4", "--vp-beta -0.25 --limit 20", "--lr 1e-3 2e-30"])
def test_all_options_come_back(words):
    """What is resumed has the options that it was started with, whatever their type."""
    given_ = train_vit.PARSER.parse_args([*TINY["vit"], *words.split()])
    train_vit.main([*TINY["vit"], *words.split(), "--out", "run"])
    assert results("run")["config"] == json.loads(json.dumps(options.config(given_))) | {"augment": "none"}
    train_vit.main(["--resume", "run"])


@both_scripts
def test_data_that_have_changed_are_not_gone_on_with(task):
    random = np.random.default_rng(0)
    for n in range(2):
        images, labels = random.integers(0, 256, (2, 20, 8, 8), dtype=np.uint8), np.arange(20) % 3
        np.savez("my", train_images=images[0], train_labels=labels, test_images=images[1], test_labels=labels)
        Path("my.txt").write_bytes(random.bytes(400))
        if n == 0:
            MAIN[task]([*TINY[task], "--data", {"vit": "my.npz", "lm": "my.txt"}[task], "--out", "run"])
            MAIN[task](["--resume", "run"])
    with pytest.raises(ValueError, match=r"^resume is 'run': .* are what they were, but my\.(npz|txt) has changed"):
        MAIN[task](["--resume", "run"])


def test_what_a_start_that_was_killed_leaves_is_no_hindrance():
    os.mkdir("run")
    Path("run/results.json.tmp").write_text('{"ta')
    MAIN["vit"]([*TINY["vit"], "--out", "run"])
    assert len(results("run")["runs"]) == 1 and not Path("run/results.json.tmp").exists()
