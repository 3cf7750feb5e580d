"""The two scripts from their command lines to their run folders, and the parts that they share."""
import csv
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train_lm
import train_vit
from mimetic_min import data, gpt, report, training, vit

ROOT = Path(train_vit.__file__).parent
SHORT = {  # seconds, not minutes
    "vit": ["--epochs", "4", "--limit", "300", "--dim", "32", "--depth", "2"],
    "lm": ["--steps", "24", "--dim", "32", "--depth", "2", "--heads", "2", "--context", "16", "--sample", "9"],
}
MAIN = {"vit": train_vit.main, "lm": train_lm.main}
both_scripts = pytest.mark.parametrize("task", ["vit", "lm"])


def script(task, *words, **more):
    return subprocess.run([sys.executable, ROOT / f"train_{task}.py", *words], capture_output=True, text=True, **more)


def results(folder):
    return json.loads(Path(folder, "results.json").read_text())


# ---- end to end

@both_scripts
def test_a_short_run_from_the_command_line(task):
    """The default three inits: the loss falls, the table compares them, and the run folder is complete."""
    done = script(task, *SHORT[task])
    assert done.returncode == 0 and done.stderr == ""
    folder = Path("runs", {"vit": "vit-digits", "lm": "lm-docs"}[task])
    found = results(folder)
    assert (found["task"], found["data"]) == (task, {"vit": "digits", "lm": "docs"}[task])
    assert [run["init"] for run in found["runs"]] == ["default", "noise", "mimetic"]
    steps = 24
    metrics = {"vit": {"accuracy"}, "lm": {"loss", "bpc", "perplexity"}}[task]
    with open(folder / "log.csv") as file:
        log = list(csv.DictReader(file))
    for run in found["runs"]:
        assert run["seed"] == 0 and run["lr"] == {"vit": 2e-3, "lm": 1e-3}[task] and run["seconds"] > 0
        assert run["steps"] == steps and [point["step"] for point in run["curve"]] == list(range(3, steps + 1, 3))
        assert run["curve"][-1]["train_loss"] < run["curve"][0]["train_loss"]
        assert run["final"].keys() == metrics
        columns = run["curve"][0].keys()
        rows = [row for row in log if row["init"] == run["init"]]
        assert [{name: float(row[name]) for name in columns} for row in rows] == run["curve"]
        state = torch.load(folder / f"{run['init']}-seed0-lr{run['lr']}.pt", weights_only=True)
        config = state["config"]
        model = vit.ViT(vit.ViTConfig(**config)) if task == "vit" else gpt.GPT(gpt.GPTConfig(**config))
        model.load_state_dict(state["model"])
        assert sum(p.numel() for p in model.parameters()) == run["parameters"]
        if task == "vit":  # the weights in the folder are those that the accuracy is of
            train_images, _, images, labels = data.load_images("digits", 300)
            pixels = train_images.double()
            with torch.no_grad():
                guess = model(((images - pixels.mean()) / pixels.std(correction=0)).float()).argmax(-1)
            right = (guess == labels).sum().item()
            assert abs(right - run["final"]["accuracy"] * 797) <= 1  # rounding may tip one that is on the edge
        else:
            assert run["final"]["bpc"] == pytest.approx(run["final"]["loss"] / np.log(2))
            assert run["final"]["perplexity"] == pytest.approx(np.exp(run["final"]["loss"]))
            newline, generator = torch.tensor([[10]]), torch.Generator().manual_seed(0)
            tokens = model.generate(newline, 9, temperature=0.8, generator=generator)
            assert run["sample"] == bytes(tokens[0, 1:].tolist()).decode(errors="replace")
            assert f"---- {run['init']}, seed 0, lr 0.001, writes:\n{run['sample']}" in done.stdout
    assert done.stdout.count("s left\n") == 3 * 8 and "\r" not in done.stdout
    assert "\n".join(report.table(found["runs"])) in done.stdout


def test_progress_is_one_line_in_place_on_a_terminal():
    """On a terminal each run has one line, overwritten as it goes on: step, loss, metric and time left."""
    here, there = pty.openpty()
    child = subprocess.Popen([sys.executable, ROOT / "train_vit.py", *SHORT["vit"], "--init", "default"],
                             stdout=there, stderr=there)
    os.close(there)
    shown = b""
    while True:
        try:
            shown += os.read(here, 65536)
        except OSError:                                              # what Linux answers once the other end is closed
            break
    assert child.wait() == 0
    updates = shown.decode().split("\r\x1b[K")[1:]
    assert len(updates) > 3 and all("\n" not in update for update in updates[:-1])
    last = updates[-1].splitlines()[0]
    assert re.fullmatch(r"default  seed 0  lr 0.002  step 24/24  train \d\.\d{3}  accuracy \d+\.\d  0 s left", last)


@both_scripts
def test_the_same_seed_gives_the_same_result_and_no_two_seeds_do(task):
    MAIN[task]([*SHORT[task], "--seed", "0", "1", "--init", "mimetic", "--out", "a"])
    MAIN[task]([*SHORT[task], "--seed", "0", "--init", "default", "mimetic", "--out", "b"])
    a, b = results("a")["runs"], results("b")["runs"]
    assert a[0]["curve"] == b[1]["curve"]
    assert a[0]["curve"] != a[1]["curve"] and b[0]["curve"] != b[1]["curve"]


def test_the_strengths_reach_the_initialiser():
    """--qk-beta and the others change what mimetic is, and off leaves a product at the default initialisation."""
    p = train_lm.PARSER.parse_args(["--qk-alpha", "off", "--qk-beta", "off", "--vp-alpha", "0", "--vp-beta", "0.5",
                                    "--vp-last-beta", "-0.5"])
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(dim=16, heads=2, depth=3))
    before = [block.attention.qk_product().detach().clone() for block in model.blocks]
    training.initialise(model, "mimetic", p)
    for block, qk, beta in zip(model.blocks, before, (0.5, 0.0, -0.5)):
        assert torch.equal(block.attention.qk_product(), qk)
        torch.testing.assert_close(block.attention.vp_product(), beta * torch.eye(16))
    training.initialise(model, "xavier", p)
    for block in model.blocks:
        attention = gpt.Attention(16, 2)
        attention.xavier_init_()
        assert 0.9 < block.attention.W_V.abs().max() / attention.W_V.abs().max() < 1.1  # uniform: near the same bound
    training.initialise(model, "simple", p)
    assert all(torch.equal(block.attention.W_K, -block.attention.W_Q) for block in model.blocks)
    training.initialise(model, "noise", p)
    assert all(torch.equal(block.attention.vp_product(), torch.zeros(16, 16)) for block in model.blocks)


# ---- the recipe, against a plain loop that is written from the README

def plain_adamw(parameters, rate, step, state, betas, decay):
    """Loshchilov and Hutter (2019), algorithm 2, on matrices with decay and on vectors without; `step` is from 1."""
    for p in parameters:
        m, v = state.setdefault(p, (torch.zeros_like(p), torch.zeros_like(p)))
        m.mul_(betas[0]).add_(p.grad, alpha=1 - betas[0])
        v.mul_(betas[1]).add_(p.grad**2, alpha=1 - betas[1])
        p.mul_(1 - rate * (decay if p.ndim > 1 else 0))
        p.sub_(rate * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + 1e-8))


@pytest.mark.parametrize("task, betas, decay", [("vit", (0.9, 0.999), 0.05), ("lm", (0.9, 0.99), 0.1)])
def test_a_run_is_what_the_readme_says(task, betas, decay):
    """Every 3 steps: the mean training loss since the last time, and the metric on all the data it is to cover.

    Rounding differs from the fused optimiser's and grows over 24 steps from 1e-7; 1e-3 is below what any change of the
    recipe makes of it.
    """
    steps, seed, peak = 24, 3, 4e-3
    MAIN[task]([*SHORT[task], "--init", "mimetic", "--seed", str(seed), "--lr", str(peak), "--out", "run"])
    curve = results("run")["runs"][0]["curve"]
    torch.manual_seed(seed)
    if task == "vit":
        x, y, test_x, test_y = data.load_images("digits", 300)
        pixels = x.numpy().astype(float)
        x, test_x = (((images.numpy() - pixels.mean()) / pixels.std()) for images in (x, test_x))
        x, test_x = torch.tensor(x, dtype=torch.float32), torch.tensor(test_x, dtype=torch.float32)
        model = vit.ViT(vit.ViTConfig(8, 2, 1, 10, 32, 2, 4))
    else:
        text, validation = data.load_text("docs", 16)
        model = gpt.GPT(gpt.GPTConfig(256, 16, 32, 2, 2))
    model.mimetic_init_()
    state, losses = {}, []
    for step in range(steps):
        if task == "vit":
            batch = np.random.default_rng([seed, step // 6]).permutation(300)[50 * (step % 6) :][:50]
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        else:
            starts = np.random.default_rng([seed, step]).integers(0, len(text) - 16, 12)
            window = torch.tensor(np.stack([text[start : start + 17] for start in starts])).long()
            loss = torch.nn.functional.cross_entropy(model(window[:, :16]).reshape(-1, 256), window[:, 1:].reshape(-1))
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        warm, turn = (step + 1) / 3, (step - 2) / (steps - 2)        # two steps of warmup are a tenth of 24
        rate = peak * (warm if step < 2 else 0.1 + 0.9 * (1 + np.cos(np.pi * turn)) / 2)
        with torch.no_grad():
            norm = sum((p.grad**2).sum() for p in model.parameters()) ** 0.5
            for p in model.parameters():
                p.grad *= min(1, 1 / norm)
            plain_adamw(model.parameters(), rate, step + 1, state, betas, decay)
            if step % 3 < 2:
                continue
            point = curve[step // 3]
            assert point["step"] == step + 1 and point["train_loss"] == pytest.approx(np.mean(losses[-3:]), abs=1e-3)
            if task == "vit":
                right = (model(test_x).argmax(1) == test_y).sum().item()
                assert abs(right - 797 * point["accuracy"]) <= 3         # rounding may tip some that are on the edge
            else:                                                    # 256 of the windows side by side, first to last
                starts = range(0, len(validation) - 16, 16)
                starts = [starts[int(i * (len(starts) - 1) / 255)] for i in range(256)]
                windows = np.stack([validation[start : start + 17] for start in starts])
                windows = torch.tensor(windows).long()
                nats = torch.nn.functional.cross_entropy(model(windows[:, :16]).transpose(1, 2), windows[:, 1:])
                assert point["loss"] == pytest.approx(nats.item(), abs=1e-3)


def test_both_scripts_start_with_the_published_settings():
    """4 layers and heads, the README's recipe for the digits and nanoGPT's settings for a CPU."""
    v, g = vars(train_vit.PARSER.parse_args([])), vars(train_lm.PARSER.parse_args([]))
    both = dict(init=["default", "noise", "mimetic"], seed=[0], depth=4, heads=4, compile=False, out=None, resume=None)
    for found, strengths, own in (
            (v, (0.7, 0.7, 0.4, -0.4), dict(data="digits", dim=64, patch_size=2, epochs=40, batch_size=50, lr=[2e-3])),
            (g, (0.4, 0.1, 0.02, -0.05), dict(data="docs", dim=128, context=64, steps=1000, batch_size=12, lr=[1e-3]))):
        expected = both | own | dict(zip(("qk_alpha", "qk_beta", "vp_alpha", "vp_beta"), strengths))
        assert {name: found[name] for name in expected} == expected


# ---- bad input

BAD = [
    ("vit", "--epochs 0", "epochs is '0': it must be a whole number from 1"),
    ("vit", "--epochs ten", "epochs is 'ten': it must be a whole number from 1"),
    ("vit", "--lr 1e-3 0", "lr is '0': it must be a number above 0"),
    ("vit", "--lr nan", "lr is 'nan': it must be a number above 0"),
    ("vit", "--seed -1", "seed is '-1': it must be a whole number from 0"),
    ("vit", "--batch-size 1001", "batch_size is 1001: it must be at most 1000, the number of training images"),
    ("vit", "--limit 1001", "limit is 1001: it must be from 1 to 1000, the number of training images"),
    ("vit", "--patch-size 3", "patch_size is 3: it must be a divisor of the image size, 8"),
    ("vit", "--heads 5", "heads is 5: it must be a divisor of dim, 64"),
    ("vit", "--dim 66 --heads 1", "dim is 66: it must be a multiple of 4 with sincos positions"),
    ("vit", "--position sine", "position is 'sine': it must be 'sincos' or 'learned'"),
    ("vit", "--init mimetik", "init is 'mimetik': it must be one of default, xavier, noise, simple, mimetic"),
    ("vit", "--init default --qk-beta 1.5", "qk_beta is 1.5: it must be from -1 to 1"),
    ("vit", "--qk-alpha nan", "qk_alpha is nan: it must be from 0 to 1"),
    ("vit", "--qk-alpha of", "qk_alpha is 'of': it must be a number, or off"),
    ("vit", "--vp-beta off", "vp_alpha is 0.4: it must be off (None) just where vp_beta is"),
    ("vit", "--device tpu", "device is 'tpu': it must be cpu, or a cuda or mps that torch finds here"),
    ("vit", "--data cats.npz", "data is 'cats.npz': it must be 'digits', 'cifar10', 'cifar100' or an .npz with the "
     "arrays train_images, train_labels, test_images, test_labels; it cannot be read (No such file or directory)"),
    ("vit", "--data-dir x", "data_dir is 'x': it must be left out, as the data are 'digits'"),
    ("vit", "--data cifar10 --data-dir x", "data_dir is 'x': it must be a folder with the binary files of cifar10; "
     "data_batch_1.bin cannot be read (No such file or directory)"),
    ("vit", "--augment flip", "augment is 'flip': it must be none, crop or crop+flip"),
    ("vit", "--resume nowhere", "resume is 'nowhere': it must be a folder with the results.json that train_vit.py "
     "wrote, which cannot be read (No such file or directory)"),
    ("vit", "--out file/x", "out is 'file/x': it must be a folder that can be made and read (Not a directory)"),
    ("vit", "--out /proc/x", "out is '/proc/x': it must be a folder that can be made and read (No such file"),
    ("vit", "--device meta", "device is 'meta': it must be cpu, or a cuda or mps that torch finds here"),
    ("vit", "--device cuda:99", "device is 'cuda:99': it must be cpu, or a cuda or mps that torch finds here"),
    ("vit", "--epoch 3", "unrecognized arguments: --epoch 3"),
    ("vit", "--out file", "out is 'file': it must be a new or empty folder"
     " (to go on: python train_vit.py --resume file)"),
    ("vit", "--batch-size 99999999999", "batch_size is '99999999999': it must be a whole number from 1"),
    ("lm", "--steps 1.5", "steps is '1.5': it must be a whole number from 1"),
    ("lm", "--context 50000", "data is 'docs': it must be longer: the last tenth of its"),
    ("lm", "--data no.txt", "data is 'no.txt': it must be 'docs', 'shakespeare' or a file; it cannot be read"
     " (No such file or directory)"),
    ("lm", "--data /dev", "data is '/dev': it must be 'docs', 'shakespeare' or a file; it cannot be read"
     " (Is a directory)"),
    ("lm", "--vp-beta 2", "vp_beta is 2.0: it must be from -1 to 1"),
    ("lm", "--position sincos --dim 33 --heads 3", "dim is 33: it must be even with sincos positions"),
]


@pytest.mark.parametrize("task, words, message", BAD, ids=[f"{task} {words}" for task, words, _ in BAD])
def test_bad_input_is_a_ValueError_and_leaves_nothing_behind(task, words, message):
    Path("file").write_text("mine")
    with pytest.raises(ValueError) as error:
        MAIN[task](words.split())
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert os.listdir() == ["file"] and Path("file").read_text() == "mine"


@pytest.mark.parametrize("task, words, line", [
    ("vit", "--batch-size 0", "train_vit.py: --batch-size is '0': it must be a whole number from 1"),
    ("vit", "--heads 5", "train_vit.py: --heads is 5: it must be a divisor of dim, 64"),
    ("lm", "--qk-beta -2", "train_lm.py: --qk-beta is -2.0: it must be from -1 to 1"),
    ("lm", "--lr", "train_lm.py: argument --lr: expected at least one argument"),
])
def test_bad_input_is_one_line_and_status_2(task, words, line):
    done = script(task, *words.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")


@both_scripts
def test_the_way_to_go_on_can_be_pasted(task):
    MAIN[task]([*SHORT[task], "--init", "default", "--out", "my run"])
    with pytest.raises(ValueError, match=f"python train_{task}.py --resume 'my run'.$"):
        MAIN[task]([*SHORT[task], "--out", "my run"])


def test_a_runs_folder_that_is_not_there_any_more_is_named():
    """A link to a disk that is not mounted."""
    os.symlink("gone/scratch", "runs")
    with pytest.raises(ValueError, match="^out is 'runs/vit-digits': it must be a folder that can be made and read "):
        MAIN["vit"](SHORT["vit"])


def test_what_the_output_cannot_encode_is_replaced():
    """Such as the ± of the table, or a character of the sample."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = script("lm", *SHORT["lm"], "--init", "mimetic", "--seed", "0", "1", env=environment)
    assert done.returncode == 0 and done.stderr == "" and " ? " in done.stdout


@both_scripts
def test_nothing_in_a_run_folder_is_overwritten(task):
    """Without --out each run gets a fresh folder; an --out that holds a run is refused, and says how to go on."""
    options = [*SHORT[task], "--init", "default"]
    MAIN[task](options)
    first = f"runs/{task}-" + {"vit": "digits", "lm": "docs"}[task]
    before = {path.name: path.read_bytes() for path in Path(first).iterdir()}
    MAIN[task](options)
    assert sorted(path.name for path in Path("runs").iterdir()) == [Path(first).name, Path(first).name + "-2"]
    with pytest.raises(ValueError) as error:
        MAIN[task]([*options, "--out", first])
    assert str(error.value).endswith(f"(to go on: python train_{task}.py --resume {first})")
    with pytest.raises(ValueError, match="^resume is .*: it must be the only option, without --lr: the runs keep "):
        MAIN[task](["--resume", first, "--lr", "1"])
    MAIN[task](["--resume", first])                                  # nothing is left to do
    assert {path.name: path.read_bytes() for path in Path(first).iterdir()} == before
    other = {"vit": "lm", "lm": "vit"}[task]
    with pytest.raises(ValueError, match=f"it must be a folder with the results.json that train_{other}.py wrote"):
        MAIN[other](["--resume", first])


# ---- the schedule and the table

@given(steps=st.integers(1, 3000), peak=st.floats(1e-6, 1))
def test_the_rate_rises_to_the_peak_and_falls_to_a_tenth(steps, peak):
    rates = [training.rate(step, steps, peak) for step in range(steps)]
    top = min(100, steps // 10)
    assert rates[top] == pytest.approx(peak) and 0 < min(rates) and max(rates) <= peak * (1 + 1e-12)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] >= peak / 10 * (1 - 1e-12) and (steps < 100 or rates[-1] < 0.11 * peak)


def runs(metric, **finals):
    """Finished runs, from {init: {(lr, seed): value}}."""
    return [{"init": init, "lr": lr, "seed": seed, "final": {metric: value}}
            for init, values in finals.items() for (lr, seed), value in values.items()]


def test_table_of_means_spreads_and_standard_errors():
    """Worked by hand: 70, 72, 74 is 72 ± 2; 75, 75, 78 is 76 ± sqrt(3); 4 ± sqrt(4/3 + 3/3) is 4 ± 1.5."""
    by_seed = {"default": (0.70, 0.72, 0.74), "mimetic": (0.75, 0.75, 0.78), "noise": (0.71, 0.73, 0.75)}
    finals = {init: {(1e-3, seed): value for seed, value in enumerate(values)} for init, values in by_seed.items()}
    lines = report.table(runs("accuracy", **finals))
    assert [line.split() for line in lines[:4]] == [
        "init lr accuracy, % against default".split(),
        "default 0.001 72.0 ± 2.0".split(),
        "mimetic 0.001 76.0 ± 1.7 +4.0 ± 1.5".split(),
        "noise 0.001 73.0 ± 2.0 +1.0 ± 1.6 no difference seen".split()]
    assert lines[-1] == "mean ± standard deviation over seeds 0, 1, 2; difference ± its standard error"


def test_a_difference_is_seen_from_twice_its_standard_error():
    """Two groups of spread 2, three seeds each: the error is sqrt(8/3), so the mark is at 3.266."""
    default = {(0.1, seed): value for seed, value in enumerate((0.70, 0.72, 0.74))}
    for gain, seen in ((0.032, False), (0.033, True), (-0.032, False), (-0.033, True)):
        other = {key: value + gain for key, value in default.items()}
        line = report.table(runs("accuracy", default=default, mimetic=other))[2]
        assert line.endswith("no difference seen") != seen


def test_table_chooses_a_rate_on_other_seeds_than_it_reports():
    """Of losses the least is best: seed 0 chooses 0.1 for a and 0.2 for b, and seeds 1 and 2 report those."""
    a = {(0.1, 0): 1.0, (0.2, 0): 2.0, (0.1, 1): 3.0, (0.2, 1): 0.0, (0.1, 2): 5.0, (0.2, 2): 0.0}
    b = {(0.1, 0): 2.0, (0.2, 0): 1.0, (0.1, 1): 0.0, (0.2, 1): 1.0, (0.1, 2): 0.0, (0.2, 2): 1.0}
    lines = report.table(runs("loss", a=a, b=b))
    assert lines[0].split() == "init lr validation loss, nats against a".split()
    assert lines[1].split() == "a 0.1 4.000 ± 1.414".split()
    assert lines[2].split() == "b 0.2 1.000 ± 0.000 -3.000 ± 1.000".split()
    assert lines[-1] == "each lr is the best of 0.1, 0.2 by seed 0" and "over seeds 1, 2;" in lines[-2]


def test_table_ranks_a_run_that_diverged_last():
    """At 0.2 seed 0 diverged, so 0.1 is chosen though seed 1 is better there; mimetic diverged with one of two."""
    diverged = {"init": "default", "lr": 0.2, "seed": 0, "curve": [], "diverged": 5}
    some = runs("loss", default={(0.1, 0): 2.0, (0.1, 1): 2.0, (0.1, 2): 2.5, (0.2, 1): 1.0, (0.2, 2): 1.0},
                mimetic={(0.1, 0): 1.0, (0.1, 1): 1.0, (0.2, 0): 1.5, (0.2, 1): 1.5, (0.2, 2): 1.5})
    lines = report.table([some[0], diverged, *some[1:], diverged | {"init": "mimetic", "lr": 0.1, "seed": 2}])
    assert [line.split() for line in lines[1:3]] == ["default 0.1 2.250 ± 0.354".split(),
                                                     "mimetic 0.1 diverged, 1 of 2".split()]
    assert report.table([diverged]) == ["every run diverged: try a lower --lr"]
    assert report.table([diverged, *runs("accuracy", mimetic={(0.2, 0): 0.5})])[1:3] == [
        "default   0.2       diverged, 1 of 1", "mimetic   0.2       50.0"]


def test_table_compares_with_default_wherever_it_stands():
    lines = report.table(runs("accuracy", mimetic={(0.1, 0): 0.9}, default={(0.1, 0): 0.8}))
    assert lines[0].endswith("against default") and lines[1].split() == "mimetic 0.1 90.0 +10.0".split()
    assert lines[2].split() == "default 0.1 80.0".split()


def test_table_halves_the_seeds_and_takes_the_highest_accuracy():
    """Four seeds: 0 and 1 choose, for their mean, the rate of 0.6 over that of 0.5; 2 and 3 report 0.4 and 0.2."""
    finals = {(0.1, 0): 0.9, (0.1, 1): 0.3, (0.1, 2): 0.4, (0.1, 3): 0.2,
              (0.2, 0): 0.0, (0.2, 1): 1.0, (0.2, 2): 0.8, (0.2, 3): 0.9}
    lines = report.table(runs("accuracy", default=finals))
    assert lines[1].split() == "default 0.1 30.0 ± 14.1".split()
    assert lines[-1] == "each lr is the best of 0.1, 0.2 by seed 0, 1" and "over seeds 2, 3;" in lines[-2]


def test_time_left_is_the_time_so_far_for_all_steps_to_come(monkeypatch, capsys):
    """10 s for 4 steps are 2.5 s a step; 6 to come in this run and 20 in later ones take 65 s."""
    clock = iter([100.0, 102.5, 105.0, 107.5, 110.0])
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
    progress, run = report.Progress(), {"init": "noise", "seed": 5, "lr": 1e-3, "steps": 10, "curve": []}
    for step in (1, 2, 3, 4):
        progress.show(run, step, torch.tensor(0.25), step == 4, later=20)
    assert capsys.readouterr().out == "noise    seed 5  lr 0.001  step 4/10  train 0.250  65 s left\n"


def test_table_of_one_seed_claims_no_spread():
    lines = report.table(runs("loss", default={(0.1, 7): 2.0}, mimetic={(0.1, 7): 1.5}))
    assert lines[2].split() == "mimetic 0.1 1.500 -0.500".split()
    assert lines[-1] == "seed 7 alone, so without a spread; --seed 0 1 2 gives one"
