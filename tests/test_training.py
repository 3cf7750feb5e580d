"""Training, from the options of both scripts to their figures.

The other tests of the scripts import the helpers at the top of this file.
"""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train_lm
import train_vit
from mimetic_min import GPT, GPTConfig, ViT, ViTConfig
from mimetic_min.data import load_images, load_text
from mimetic_min.lab import options, parallel, progress, runs
from mimetic_min.lab import script as lab_script

# ---------------------------------------------------------------------------------------------
# Helpers

ROOT = Path(train_vit.__file__).parent
MODULE = {"vit": train_vit, "lm": train_lm}
MAIN = {"vit": train_vit.main, "lm": train_lm.main}

# The shape of the models, and runs of two lengths: 8 steps with an evaluation after each, and 24
# steps, enough to learn something, with an evaluation after every third.
SHAPE = {
    "vit": "--patch-size 6 --dim 8 --heads 2 --depth 1".split(),
    "lm": "--context 16 --dim 8 --heads 2 --depth 1 --sample 9".split(),
}
TINY = {
    "vit": [*SHAPE["vit"], *"--limit 10 --batch-size 10 --epochs 8".split()],
    "lm": [*SHAPE["lm"], *"--steps 8".split()],
}
SHORT = {
    "vit": [*SHAPE["vit"], *"--limit 300 --batch-size 50 --epochs 4".split()],
    "lm": [*SHAPE["lm"], *"--steps 24".split()],
}
# Processes of their own have one thread, too: with another number of threads, sums have another
# order, and the last bits differ.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

# A job that a shell runs in the background ignores SIGINT, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

LR = {"vit": 0.002, "lm": 0.004}
METRICS = {"vit": ["accuracy"], "lm": ["loss", "bpc", "perplexity"]}

both_scripts = pytest.mark.parametrize("task", ["vit", "lm"])


def script(task, *words, stdout=None):
    """`python train_vit.py WORDS`, but in this process: (exit status, stdout, stderr).

    What a script shows with a traceback is raised here. `stdout` is a file to print to.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    command = [f"train_{task}.py", *map(str, words)]
    status = 0
    with tempfile.NamedTemporaryFile("w") as out, tempfile.NamedTemporaryFile("w") as err:
        try:
            with (
                redirect_stdout(stdout or out),
                redirect_stderr(err),
                mock.patch.object(sys, "argv", command),
            ):
                lab_script.run(MODULE[task].prepare, MODULE[task].train_grid)
        except SystemExit as end:
            status = end.code
        finally:
            for number, handler in zip(numbers, handlers):
                signal.signal(number, handler)
        out.flush()
        err.flush()
        return status, Path(out.name).read_text(), Path(err.name).read_text()


def process(task, *words, **environment):
    """`python train_vit.py WORDS` in a process of its own."""
    command = [sys.executable, str(ROOT / f"train_{task}.py"), *words]
    environment = ENVIRONMENT | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def results(folder):
    return json.loads(Path(folder, "results.json").read_text())


def checkpoint(folder, run, when=""):
    """What the scripts keep of a run: its newest checkpoint, or its "-start"."""
    name = f"{run['init']}-seed{run['seed']}-lr{run['lr']}{when}.pt"
    return torch.load(Path(folder, name), weights_only=True)


def new_model(task, config):
    return ViT(ViTConfig(**config)) if task == "vit" else GPT(GPTConfig(**config))


def contents(folder="."):
    """{name: bytes} of all files below a folder."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


def call_in_each_step(monkeypatch, task, act):
    """Have act(step, lr) called at the beginning of each training step. It may return a rate that
    is taken instead of the schedule's.
    """
    learning_rate = MODULE[task].learning_rate
    rates = []

    def act_once(step, steps, peak):
        # A step asks twice: for its matrices and for its vectors.
        if rates:
            return rates.pop()
        rate = act(step, peak)
        rates.append(learning_rate(step, steps, peak) if rate is None else rate)
        return rates[0]

    monkeypatch.setattr(MODULE[task], "learning_rate", act_once)


# ---------------------------------------------------------------------------------------------
# What a run leaves behind


@both_scripts
def test_each_start_trains_to_a_smaller_loss(task):
    """Every number is finite, and the loss at the end is smaller than at the beginning."""
    inits = list(MODULE[task].INITS)
    MAIN[task]([*SHORT[task], "--lr", "0.01", "--init", *inits, "--out", "run"])
    found = results("run")["runs"]
    assert [run["init"] for run in found] == inits
    for run in found:
        curve = run["curve"]
        assert all(math.isfinite(value) for point in curve for value in point.values())
        assert curve[-1]["train_loss"] < curve[0]["train_loss"], run["init"]


@both_scripts
def test_results_and_log_have_their_format(task):
    """results.json and log.csv, as DESIGN.md and the README describe them, number by number."""
    MAIN[task]([*SHORT[task], "--init", "default", "mimetic", "--seed", "0", "3", "--out", "run"])
    found = results("run")
    data = {"vit": "shifted-digits", "lm": "docs"}[task]
    assert (found["task"], found["data"], found["config"]["data"]) == (task, data, data)
    assert found["config"]["seed"] == [0, 3]
    # The grid goes seed by seed, so that a stopped one can be compared.
    order = [("default", 0), ("mimetic", 0), ("default", 3), ("mimetic", 3)]
    assert [(run["init"], run["seed"]) for run in found["runs"]] == order
    keys = ["init", "seed", "lr", "parameters", "steps", "seconds", "curve", "final"]
    if task == "lm":
        keys.append("sample")
    for run in found["runs"]:
        assert list(run) == keys
        assert (run["lr"], run["steps"]) == (LR[task], 24)
        assert run["seconds"] > 0
        assert [point["step"] for point in run["curve"]] == list(range(3, 25, 3))
        assert all(list(p) == ["step", "train_loss", *METRICS[task]] for p in run["curve"])
        assert run["final"] == {name: run["curve"][-1][name] for name in METRICS[task]}
    with open("run/log.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["init", "seed", "lr", "step", "train_loss", *METRICS[task]]
    points = [
        {"init": run["init"], "seed": run["seed"], "lr": run["lr"], **point}
        for run in found["runs"]
        for point in run["curve"]
    ]
    assert rows == [{name: str(value) for name, value in point.items()} for point in points]


def test_the_weights_in_the_folder_are_those_of_the_accuracy():
    train_vit.main([*SHORT["vit"], "--init", "mimetic", "--out", "run"])
    (run,) = results("run")["runs"]
    state = checkpoint("run", run)
    model = new_model("vit", state["config"])
    model.load_state_dict(state["model"])
    assert sum(p.numel() for p in model.parameters()) == run["parameters"]

    train_images, _, images, labels = load_images("shifted-digits", 300)
    pixels = train_images.double()
    normalised = (images - pixels.mean()) / pixels.std(correction=0)
    with torch.no_grad():
        right = (model(normalised.float()).argmax(-1) == labels).sum().item()
    # Rounding may tip one image that is on the edge.
    assert abs(right - run["final"]["accuracy"] * 797) <= 1


def test_a_language_model_has_its_loss_in_nats_in_bits_and_as_a_perplexity():
    """And a sample that its trained weights write, which is printed, too."""
    status, out, err = script("lm", *SHORT["lm"], "--init", "mimetic", "--out", "run")
    assert (status, err) == (0, "")
    (run,) = results("run")["runs"]
    final = run["final"]
    assert final["bpc"] == pytest.approx(final["loss"] / math.log(2))
    assert final["perplexity"] == pytest.approx(math.exp(final["loss"]))

    state = checkpoint("run", run)
    model = new_model("lm", state["config"])
    model.load_state_dict(state["model"])
    line_break = torch.tensor([[10]])
    generator = torch.Generator().manual_seed(0)
    tokens = model.generate(line_break, 9, temperature=0.8, generator=generator)
    assert run["sample"] == bytes(tokens[0, 1:].tolist()).decode(errors="replace")
    assert out.endswith(f"---- mimetic writes (seed 0, lr 0.004):\n{run['sample']}\n")


@both_scripts
def test_the_weights_of_the_start_are_kept(task):
    """mimetic-seed3-lr0.002-start.pt holds the model that `initialise` makes."""
    words = [*TINY[task], "--init", *MODULE[task].INITS, "--seed", "3"]
    MAIN[task]([*words, "--out", "run"])
    args = options.parse(MODULE[task].make_parser(), words, task)
    for run in results("run")["runs"]:
        state = checkpoint("run", run, "-start")
        torch.manual_seed(3)
        model = new_model(task, state["config"])
        MODULE[task].initialise(model, run["init"], args)
        for name, W in model.state_dict().items():
            assert torch.equal(W, state["model"][name]), (run["init"], name)
            if run["init"] != "off":
                assert not torch.equal(W, checkpoint("run", run)["model"][name])


@both_scripts
def test_off_keeps_the_attention_at_zero(task):
    """W_V and W_proj are 0 at the start. Each is the gradient of the other, so they stay 0."""
    MAIN[task]([*SHORT[task], "--init", "off", "mimetic", "--out", "run"])
    off, mimetic = results("run")["runs"]
    for run, is_zero in ((off, True), (mimetic, False)):
        for name, W in checkpoint("run", run)["model"].items():
            if name.endswith(("W_V", "W_proj")):
                assert torch.equal(W, torch.zeros_like(W)) == is_zero


@both_scripts
def test_the_same_seed_gives_the_same_figures_and_no_two_seeds_do(task):
    """Whatever was trained before, in the same process."""
    MAIN[task]([*TINY[task], "--seed", "0", "1", "--init", "mimetic", "--out", "a"])
    MAIN[task]([*TINY[task], "--seed", "0", "--init", "default", "mimetic", "--out", "b"])
    seed0, seed1 = results("a")["runs"]
    default, again = results("b")["runs"]
    assert seed0["curve"] == again["curve"]
    assert seed0["curve"] != seed1["curve"]
    assert seed0["curve"] != default["curve"]


# ---------------------------------------------------------------------------------------------
# A fair comparison: the starts differ in their attention and in nothing else


@both_scripts
def test_all_starts_see_the_same_batches_and_differ_only_in_their_attention(task, monkeypatch):
    inits = list(MODULE[task].INITS)
    seen = []  # for each run, its batches
    starts = []  # for each run, its weights before the first step
    model_class = {"vit": ViT, "lm": GPT}[task]
    forward = model_class.forward

    def spy(self, batch):
        if torch.is_grad_enabled():
            if len(seen[-1]) == 0:
                starts.append({name: W.detach().clone() for name, W in self.named_parameters()})
            seen[-1].append(batch.clone())
        return forward(self, batch)

    monkeypatch.setattr(model_class, "forward", spy)
    for init in inits:
        seen.append([])
        MAIN[task]([*TINY[task], "--init", init])

    for init, batches, start in zip(inits, seen, starts, strict=True):
        assert len(batches) == 8
        assert all(torch.equal(a, b) for a, b in zip(batches, seen[0], strict=True))
        for name, W in start.items():
            if ".attention." not in name:
                assert torch.equal(W, starts[0][name]), (init, name)
    for i in range(len(inits)):
        for j in range(i):
            pairs = [(starts[i][name], starts[j][name]) for name in starts[0]]
            assert not all(torch.equal(a, b) for a, b in pairs), (inits[i], inits[j])


def started(task, init, *words):
    """The attentions of a model of three layers with a start, and those before it was given."""
    args = options.parse(MODULE[task].make_parser(), words, task)
    config = {"dim": 16, "heads": 2, "depth": 3}
    torch.manual_seed(0)
    before = [block.attention for block in new_model(task, config).blocks]
    torch.manual_seed(0)
    model = new_model(task, config)
    MODULE[task].initialise(model, init, args)
    return [block.attention for block in model.blocks], before


@both_scripts
def test_the_starts_are_what_they_are_called(task):
    """Without noise (alpha 0) the products are their diagonals, which the options choose."""
    clean = "--qk-alpha 0 --qk-beta 0.5 --vp-alpha 0 --vp-beta -0.25".split()
    I = torch.eye(16)
    same_coordinates = torch.diag_embed(torch.tensor(8 * [0.5] + 8 * [0.0]))

    for init in ("mimetic", "query-key", "value-projection"):
        for now, before in zip(*started(task, init, *clean)):
            if init == "value-projection":
                assert torch.equal(now.W_Q, before.W_Q)
                assert torch.equal(now.W_K, before.W_K)
            else:
                # Half of the diagonal, since a head has 8 of the 16 coordinates.
                torch.testing.assert_close(
                    now.qk_product().diagonal(0, 1, 2).sum(1), 4 * torch.ones(2)
                )
                torch.testing.assert_close(now.qk_product()[0], same_coordinates)
            if init == "query-key":
                assert torch.equal(now.W_V, before.W_V)
                assert torch.equal(now.W_proj, before.W_proj)
            else:
                torch.testing.assert_close(now.vp_product(), -0.25 * I)

    for now, _ in zip(*started(task, "noise", "--qk-alpha", "0", "--vp-alpha", "0.5")):
        # The diagonal of the control is 0, whatever the betas are.
        assert torch.equal(now.qk_product(), torch.zeros(2, 16, 16))
        # 16 entries N(0, 0.5^2 / 16) have a mean of deviation 1/32. Five of them are below 0.16.
        assert abs(now.vp_product().diagonal().mean()) < 0.16
        assert now.vp_product().norm() > 1
    for now, _ in zip(*started(task, "simple")):
        assert torch.equal(now.W_K, now.W_Q)
        assert torch.equal(now.W_proj, -now.W_V.T)
    for now, _ in zip(*started(task, "xavier")):
        # Uniform with variance 1/16, so within sqrt(3/16). One in 256 is almost sure to be near.
        assert all(0.4 < W.abs().max() <= math.sqrt(3 / 16) for W in now.parameters())
    for now, before in zip(*started(task, "default")):
        assert all(torch.equal(a, b) for a, b in zip(now.parameters(), before.parameters()))
    for now, before in zip(*started(task, "off")):
        assert torch.equal(now.W_Q, before.W_Q)
        assert not now.W_V.any() and not now.W_proj.any()


def test_the_beta_of_value_projection_can_go_on_a_line_through_the_layers():
    words = "--qk-alpha 0 --vp-alpha 0 --vp-beta 0.5 --vp-last-beta -0.5".split()
    attentions, _ = started("lm", "mimetic", *words)
    for attention, beta in zip(attentions, (0.5, 0.0, -0.5)):
        torch.testing.assert_close(attention.vp_product(), beta * torch.eye(16))


def test_language_has_the_signs_of_trained_gpt2s():
    """Query-key is negative; value-projection goes from negative to positive."""
    words = "--qk-alpha 0 --vp-alpha 0".split()
    attentions, _ = started("lm", "language", *words)
    for attention, beta in zip(attentions, (-0.4, 0.0, 0.4)):
        traces = attention.qk_product().diagonal(0, 1, 2).sum(1)
        torch.testing.assert_close(traces, torch.full((2,), -0.7 * 8))
        torch.testing.assert_close(attention.vp_product(), beta * torch.eye(16))


# ---------------------------------------------------------------------------------------------
# The recipe, against a plain loop


def plain_adamw(parameters, rate, step, state, betas, decay):
    """Loshchilov and Hutter (2019), algorithm 2. `step` counts from 1. Vectors do not decay."""
    for p in parameters:
        m, v = state.setdefault(p, (torch.zeros_like(p), torch.zeros_like(p)))
        m.mul_(betas[0]).add_(p.grad, alpha=1 - betas[0])
        v.mul_(betas[1]).add_(p.grad**2, alpha=1 - betas[1])
        m_hat = m / (1 - betas[0] ** step)
        v_hat = v / (1 - betas[1] ** step)
        if p.ndim > 1:
            p.mul_(1 - rate * decay)
        p.sub_(rate * m_hat / (v_hat.sqrt() + 1e-8))


class PlainImages:
    """300 scans of digits, and the accuracy on the 797 of the test."""

    def __init__(self):
        self.x, self.y, self.test_x, self.test_y = load_images("shifted-digits", 300)
        pixels = self.x.double()
        self.mean = pixels.mean()
        self.std = pixels.std(correction=0)

    def numbers(self, images):
        return ((images.double() - self.mean) / self.std).float()

    def loss(self, model, seed, step):
        epoch, i = divmod(step, 6)
        order = np.random.default_rng([seed, epoch]).permutation(300)
        batch = torch.tensor(order[50 * i : 50 * i + 50])
        return F.cross_entropy(model(self.numbers(self.x[batch])), self.y[batch])

    def agrees(self, model, point):
        right = (model(self.numbers(self.test_x)).argmax(1) == self.test_y).sum().item()
        # Rounding may tip some images that are on the edge.
        return abs(right - 797 * point["accuracy"]) <= 3


class PlainText:
    """Windows of 16 bytes of the language reference, and the loss on 256 side by side."""

    def __init__(self):
        self.text, self.validation = load_text("docs", 16)

    def nats(self, model, text, starts):
        windows = np.stack([text[start : start + 17] for start in starts])
        windows = torch.tensor(windows).long()
        logits = model(windows[:, :16])
        return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:])

    def loss(self, model, seed, step):
        starts = np.random.default_rng([seed, step]).integers(0, len(self.text) - 16, 12)
        return self.nats(model, self.text, starts)

    def agrees(self, model, point):
        last = (len(self.validation) - 1) // 16 - 1
        starts = [16 * int(i * last / 255) for i in range(256)]
        nats = self.nats(model, self.validation, starts).item()
        return nats == pytest.approx(point["loss"], abs=3e-5)


@pytest.mark.parametrize(
    "task, plain, betas, decay",
    [("vit", PlainImages, (0.9, 0.999), 0.05), ("lm", PlainText, (0.9, 0.99), 0.1)],
)
def test_a_run_is_what_a_plain_loop_makes(task, plain, betas, decay):
    """The batches, the schedule, AdamW and the evaluation, written out once more.

    The optimizer of the scripts is fused, and its rounding differs: over 24 steps this changes a
    loss by about 1e-6. The smallest change of the recipe, another beta2, makes more than 1e-4.
    """
    steps, seed, peak = 24, 3, 1e-2
    words = ["--init", "mimetic", "--seed", str(seed), "--lr", str(peak)]
    MAIN[task]([*SHORT[task], *words, "--out", "run"])
    (run,) = results("run")["runs"]
    torch.manual_seed(seed)
    model = new_model(task, checkpoint("run", run)["config"]).mimetic_init_()
    data = plain()
    state = {}
    losses = []
    for step in range(steps):
        loss = data.loss(model, seed, step)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step < 2:
            # Two steps of warmup are a tenth of 24.
            rate = peak * (step + 1) / 3
        else:
            cosine = math.cos(math.pi * (step - 2) / (steps - 2))
            rate = peak * (0.1 + 0.9 * (1 + cosine) / 2)
        with torch.no_grad():
            norm = sum((p.grad**2).sum() for p in model.parameters()) ** 0.5
            for p in model.parameters():
                p.grad *= min(1, 1 / norm)
            plain_adamw(model.parameters(), rate, step + 1, state, betas, decay)
            if (step + 1) % 3 == 0:
                point = run["curve"][step // 3]
                assert point["step"] == step + 1
                assert point["train_loss"] == pytest.approx(np.mean(losses[-3:]), abs=3e-5)
                assert data.agrees(model, point)


@both_scripts
def test_gradients_are_clipped_to_a_norm_of_1(task, monkeypatch):
    """Shown on losses that are a thousand times too large."""
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *of: 1000 * cross_entropy(*of))
    norms = []

    def look(optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    hook = register_optimizer_step_pre_hook(look)
    try:
        MAIN[task]([*TINY[task], "--init", "mimetic"])
    finally:
        hook.remove()
    assert norms == pytest.approx([1.0] * 8, rel=1e-4)


@given(task=st.sampled_from(["vit", "lm"]), steps=st.integers(1, 3000), peak=st.floats(1e-6, 1))
@example(task="vit", steps=1, peak=1.0)
@example(task="lm", steps=3000, peak=1.0)
def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth(task, steps, peak):
    """Warmup for 100 steps, or for a tenth of a short run, and then half a wave of a cosine."""
    rates = [MODULE[task].learning_rate(step, steps, peak) for step in range(steps)]
    warmup = min(100, steps // 10)
    assert rates[warmup] == max(rates) == pytest.approx(peak)
    assert 0 < min(rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] >= 0.1 * peak * (1 - 1e-12)
    if steps >= 100:
        # After the last step, the cosine would be at exactly a tenth.
        assert rates[-1] < 0.11 * peak


@pytest.mark.parametrize("task, decay", [("vit", 0.05), ("lm", 0.1)])
def test_only_matrices_decay(task, decay):
    """Biases and gains are pulled to zero by nothing: a gain of 0 would switch its layer off."""
    model = new_model(task, {"dim": 8, "heads": 2, "depth": 1})
    found = {}
    for group in MODULE[task].make_optimizer(model).param_groups:
        found |= {p: group["weight_decay"] for p in group["params"]}
    for name, p in model.named_parameters():
        expected = 0.0 if name.endswith("bias") or "norm" in name else decay
        assert found[p] == expected, name


# ---------------------------------------------------------------------------------------------
# The data of a step


def images_of(*words):
    """Training images whose only pixels are their numbers, so that they can be told apart."""
    numbers = np.arange(1, 31, dtype=np.uint8)
    pictures = np.zeros((30, 8, 8), np.uint8)
    pictures[:, 3:5, 3:5] = numbers[:, None, None]
    labels = numbers % 3
    np.savez(
        "my.npz",
        train_images=pictures,
        train_labels=labels,
        test_images=pictures,
        test_labels=labels,
    )
    words = ["--data", "my.npz", "--batch-size", "10", *words]
    return train_vit.Images(options.parse(train_vit.make_parser(), words, "vit"))


def numbers_in(images, batch):
    pixels = batch * images.std + images.mean
    return pixels.amax((1, 2, 3)).round().int().tolist()


def test_an_epoch_has_each_image_once_and_each_epoch_has_an_order_of_its_own():
    images = images_of()
    assert images.steps_per_epoch == 3
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        order = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch, labels = images.batch(seed, step)
            numbers = numbers_in(images, batch)
            assert labels.tolist() == [number % 3 for number in numbers]
            order += numbers
        assert sorted(order) == list(range(1, 31))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_augmented_images_move_and_the_same_step_moves_them_alike():
    still, _ = images_of().batch(0, 0)
    images = images_of("--augment", "crop")
    moved, labels = images.batch(0, 0)
    # The 2x2 numbers stay inside, since a crop moves by at most an eighth of the size.
    assert numbers_in(images, moved) == numbers_in(images, still)
    assert not torch.equal(moved, still)
    assert torch.equal(images.batch(0, 0)[0], moved)
    assert images.batch_size == len(labels) == 10


@pytest.mark.parametrize(
    "data, augment",
    [("shifted-digits", "none"), ("cifar10", "crop+flip"), ("svhn", "crop")],
)
def test_each_data_set_is_augmented_as_it_suits_it(data, augment, monkeypatch):
    """A digit is not mirrored, since a mirrored digit is another digit or none."""
    arrays = load_images("digits", 10)
    monkeypatch.setattr(train_vit, "load_images", lambda *of: arrays)
    for words, expected in (([], augment), (["--augment", "none"], "none")):
        words = ["--data", data, *words]
        args = options.parse(train_vit.make_parser(), words, "vit")
        assert train_vit.Images(args).augment == expected


def text_of(length, context):
    text = train_lm.Text.__new__(train_lm.Text)
    text.train = text.validation = np.arange(length).astype(np.uint8)
    text.context = context
    text.batch_size = 4
    text.device = "cpu"
    return text


@given(context=st.integers(1, 20), extra=st.integers(1, 9000))
@example(context=16, extra=1)
def test_the_validation_windows_cover_the_text_evenly(context, extra):
    """At most 256 windows, side by side, none twice, from the first to the last that there is."""
    text = text_of(context + extra, context)
    starts = text.validation_offsets()
    windows = (context + extra - 1) // context
    assert len(starts) == min(windows, 256)
    assert starts[0] == 0
    assert starts[-1] == (windows - 1) * context
    gaps = np.diff(starts) // context
    assert not len(gaps) or gaps.min() >= 1
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    inputs, targets = text.windows(text.validation, starts)
    assert inputs.shape == targets.shape == (len(starts), context)


def test_each_target_is_the_byte_after_its_input():
    text = text_of(200, 16)
    inputs, targets = text.batch(seed=0, step=5)
    assert inputs.shape == (4, 16)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(text.batch(0, 5)[0], inputs)
    assert not torch.equal(text.batch(0, 6)[0], inputs)
    assert not torch.equal(text.batch(1, 5)[0], inputs)


# ---------------------------------------------------------------------------------------------
# Runs that diverge


@both_scripts
def test_a_run_that_diverges_is_marked_and_the_grid_goes_on(task, monkeypatch):
    """An infinite rate in step 11 spoils the weights, which the evaluation after step 12 sees."""

    def spoil(step, lr):
        if lr == 9.0:
            return math.inf if step == 10 else 1e-3

    call_in_each_step(monkeypatch, task, spoil)
    words = [*SHORT[task], "--init", "mimetic", "default", "--lr", "9", "1e-3", "--out", "run"]
    status, out, err = script(task, *words)
    line = "{} with seed 0 and lr 9 diverged by step 12; try a lower --lr\n"
    assert (status, err) == (0, line.format("mimetic") + line.format("default"))
    found = results("run")["runs"]
    assert [run.get("diverged") for run in found] == [12, 12, None, None]
    for run in found[:2]:
        assert "final" not in run and "sample" not in run
        assert [point["step"] for point in run["curve"]] == [3, 6, 9]
        state = checkpoint("run", run)
        assert state["steps_done"] == 9
        assert all(W.isfinite().all() for W in state["model"].values())
    assert all("final" in run for run in found[2:])
    assert "\nmimetic   0.001 " in out

    # It stays marked, and is not tried again.
    before = contents("run")
    status, again, err = script(task, "--resume", "run")
    assert (status, err) == (0, "")
    assert contents("run") == before


@both_scripts
def test_a_rate_that_is_far_too_high_is_one_line_and_no_traceback(task):
    words = [*SHORT[task], "--init", "default", "--lr", "1e30"]
    status, out, err = script(task, *words)
    assert status == 0
    assert "\nEvery run diverged. Try a lower --lr.\n" in out
    assert err.startswith("default with seed 0 and lr 1e+30 diverged by step ")
    assert err.count("\n") == 1


def test_weights_that_are_not_finite_count_as_diverged_though_the_loss_is_finite(monkeypatch):
    """The weight of a class that never comes up can spoil no loss."""
    monkeypatch.setattr(train_vit, "accuracy", spoil_a_weight)
    train_vit.main([*TINY["vit"], "--init", "default", "--out", "run"])
    (run,) = results("run")["runs"]
    assert (run["diverged"], run["curve"]) == (1, [])
    assert not Path("run/default-seed0-lr0.002.pt").exists()


@torch.no_grad()
def spoil_a_weight(model, images):
    model.head.bias[9] = -math.inf
    return 0.5


# ---------------------------------------------------------------------------------------------
# Progress


def test_progress_is_a_line_for_each_evaluation():
    """How far, the losses, and how long it still takes. Where nobody watches, nothing else."""
    status, out, err = script("vit", *TINY["vit"], "--init", "off", "--out", "run")
    (run,) = results("run")["runs"]
    lines = out.splitlines()
    assert lines[0] == "1 runs of 8 steps, in run"
    for point, line in zip(run["curve"], lines[1:9], strict=True):
        start = (
            f"off        seed 0  lr 0.002  step {point['step']} of 8"
            f"  train loss {point['train_loss']:.3f}  accuracy {100 * point['accuracy']:.1f} %  "
        )
        assert line.startswith(start) and line.endswith(" s left")
    assert lines[9] == "" and lines[10].startswith("start")
    assert "\r" not in out and err == ""


def test_on_a_terminal_each_run_has_one_line_that_is_overwritten(monkeypatch, capsys):
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "due", lambda: True)
    train_vit.main([*SHORT["vit"], "--init", "off", "default", "--out", "run"])
    head, *updates = capsys.readouterr().out.split("\r\x1b[K")
    assert head == "2 runs of 24 steps, in run\n"
    # After each step, and once more after each evaluation; the last one of a run stays.
    assert len(updates) == 2 * (24 + 8)
    assert [i for i, update in enumerate(updates) if "\n" in update] == [31, 63]
    # There is a loss to see before the first evaluation, and then an accuracy, too.
    assert "  step 1 of 24  train loss 2." in updates[0] and "accuracy" not in updates[0]
    assert "  step 4 of 24  train loss 2." in updates[4] and "accuracy" in updates[4]
    # A line longer than the terminal would not be overwritten.
    assert all(len(update.split("\n")[0]) < 80 for update in updates)


def test_somebody_who_watches_sees_something_new_twice_a_second(monkeypatch, capsys):
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    now = 10.0
    progress.show("here", done=False)
    now = 10.5
    assert not progress.due()
    now = 10.6
    assert progress.due()
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    assert not progress.due()


def test_the_time_left_counts_the_runs_that_are_still_to_come(monkeypatch, capsys):
    """Each step takes 2 s. After 1 of 8 steps of the first of two runs, 15 are to come: 30 s."""
    now = [100.0]
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def tick(step, lr):
        now[0] += 2.0

    call_in_each_step(monkeypatch, "vit", tick)
    train_vit.main([*TINY["vit"], "--init", "off", "default"])
    left = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[1:17]]
    assert left == [f"{seconds} s left" for seconds in range(30, -1, -2)]


# ---------------------------------------------------------------------------------------------
# Other devices


@both_scripts
def test_a_step_reads_nothing_back_from_its_device(task, monkeypatch):
    """On torch's meta device, whose tensors have no values: to read one is an error.

    A step that reads a number from a GPU waits for it, and the GPU then waits for the next step.
    """
    words = [*SHORT[task], *(["--augment", "crop+flip"] if task == "vit" else [])]
    args, config, data, grid = MODULE[task].prepare([*words, "--out", "run"])
    args.device = "meta"
    if task == "vit":
        for name in ("train", "train_labels", "mean", "std"):
            setattr(data, name, getattr(data, name).to("meta"))
    else:
        data.device = "meta"
    done = []

    def one_step(model, optimizer):
        assert {p.device.type for p in model.parameters()} == {"meta"}
        yield 0

    run = SimpleNamespace(
        init="mimetic",
        seed=0,
        lr=1e-3,
        total_steps=24,
        result={},
        steps=one_step,
        log=lambda step, loss: done.append(loss),
        evaluates=lambda step: False,
    )
    monkeypatch.setattr(torch, "autocast", lambda *of, **more: nullcontext())
    # The scripts choose the fused AdamW, which the meta device does not have.
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, fused, **more: adamw(p, **more))
    with grid:
        MODULE[task].train(run, args, config, data)
    (loss,) = done
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.item()


@both_scripts
@pytest.mark.parametrize("device, expected", [("cuda", True), ("cpu", False), ("mps", False)])
def test_only_cuda_computes_in_bfloat16(task, device, expected, monkeypatch):
    asked = []

    class Asked(Exception):
        pass

    def autocast(device_type, dtype, enabled):
        asked.append((device_type, dtype, enabled))
        raise Asked

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, device: model)
    args, config, data, grid = MODULE[task].prepare([*TINY[task], "--out", "run"])
    args.device = device
    with grid, pytest.raises(Asked):
        MODULE[task].train(next(grid.unfinished()), args, config, data)
    assert asked == [(device, torch.bfloat16, expected)]


@pytest.mark.slow
def test_images_stay_bytes_until_the_batch():
    """20,000 images of 3,072 bytes may cost their size twice: as they are read, and as tensors.

    As float32 they would cost four times as much more.
    """
    peaks = []
    for name, count in (("few", 1000), ("many", 20_000)):
        images = np.zeros((count, 32, 32, 3), np.uint8)
        labels = np.arange(count) % 10
        np.savez(
            name,
            train_images=images,
            train_labels=labels,
            test_images=images[:100],
            test_labels=labels[:100],
        )
        words = "--patch-size 16 --epochs 1 --batch-size 1000 --dim 8 --heads 1 --depth 1"
        command = [sys.executable, str(ROOT / "train_vit.py"), "--data", f"{name}.npz"]
        child = subprocess.Popen(
            [*command, *words.split(), "--init", "default"],
            stdout=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss * 1024)
    assert peaks[1] - peaks[0] < 2.5 * 19_000 * 3072


@pytest.mark.slow
@both_scripts
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code
def test_a_compiled_model_reaches_the_same_figures(task):
    """A compiled model adds its numbers in another order, which differs by about 1e-7 of a sum."""
    words = [*TINY[task], "--init", "mimetic"]
    MAIN[task]([*words, "--out", "plain"])
    MAIN[task]([*words, "--compile", "--out", "compiled"])
    (plain,) = results("plain")["runs"]
    (compiled,) = results("compiled")["runs"]
    for a, b in zip(plain["curve"], compiled["curve"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
    # The names of its weights are not those of the wrapper that torch.compile returns.
    state = checkpoint("compiled", compiled)
    new_model(task, state["config"]).load_state_dict(state["model"])


def test_one_process_needs_no_launcher():
    assert (parallel.count(), parallel.rank(), parallel.launcher()) == (1, 0, "python")
    model = torch.nn.Linear(1, 1)
    assert parallel.wrap(model) is model
