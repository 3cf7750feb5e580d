"""The two scripts, run as a user runs them: what they train, print, resume and refuse.

The runs here are as short as can be: 16 steps of a model of width 8.
"""

import csv
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_lm
import train_vit
from mimetic_min import GPT, GPTConfig, ViT, ViTConfig, data, inits

SCRIPTS = {"vit": train_vit, "lm": train_lm}
SHAPE = "--device cpu --dim 8 --depth 1 --heads 2 --init off mimetic"
LICENSE = Path(train_lm.__file__).with_name("LICENSE")
TINY = {
    "vit": f"{SHAPE} --limit 40 --batch-size 10 --epochs 4",
    "lm": f"{SHAPE} --data {LICENSE} --context 8 --steps 16",
}
both_scripts = pytest.mark.parametrize("task", SCRIPTS)


def call(task, words):
    """main() of a script with these words on its command line. Returns its exit status."""
    try:
        SCRIPTS[task].main([*TINY[task].split(), *words.split()])
    except SystemExit as end:
        return end.code


def start(task, words, **environment):
    """The script in a process of its own."""
    return subprocess.Popen(
        [sys.executable, SCRIPTS[task].__file__, *TINY[task].split(), *words.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def figures(folder):
    """The text of every .csv. Each loss has all its digits, so equal texts mean equal weights."""
    return {path.name: path.read_text() for path in Path(folder).glob("*.csv")}


def data_of(task, words=""):
    """The data of a script, with these words on its command line."""
    args = SCRIPTS[task].make_parser().parse_args(f"{TINY[task]} {words}".split())
    return {"vit": train_vit.Images, "lm": train_lm.Text}[task](args, torch.device("cpu"))


# ---------------------------------------------------------------------------------------------
# The main job


@both_scripts
def test_all_inits_are_trained_and_compared(task, capsys):
    """In the default folder, with a row, a printed line and a place in the table for each."""
    metric, style = {"vit": ("accuracy", ".1%"), "lm": ("loss", ".3f")}[task]
    call(task, f"--lr 0.01 --init {' '.join(inits.INITS)}")
    out = capsys.readouterr().out
    assert "--seed 0 1 2" in out
    folder = Path("runs", {"vit": "vit-shifted-digits", "lm": "lm-LICENSE"}[task])
    assert out.startswith(f"9 of 9 runs to train, 16 steps each, in {folder}\n")
    for init in inits.INITS:
        *_, row = csv.DictReader(open(folder / f"{init}-seed0-lr0.01.csv"))
        result = f"{float(row[metric]):{style}}"
        assert re.search(f"\n{init} +seed 0  lr 0.01  step 16 of 16 .* {result}  0 s left", out)
        assert re.search(f"\n{init} +0.01 +{result} ", out)


@both_scripts
def test_plot_draws_three_pictures_into_the_folder(task):
    pytest.importorskip("matplotlib")
    call(task, "--seed 0 1 --plot --out run")
    assert len(list(Path("run").glob("*.png"))) == 3


def test_only_what_is_new_is_trained(capsys):
    """A text is identified by its bytes, whatever it is called."""
    Path("text").write_text("to be or not to be, " * 50)
    for words, to_do in (
        ("--init off --data text", "1 of 1"),
        ("--seed 0 1 --data ./text", "3 of 4"),
        (f"--seed 1 0 --data {Path('text').absolute()}", "0 of 4"),
        ("--init mimetic --seed 2 --lr 0.1 --data text", "1 of 1"),
    ):
        call("lm", words)
        assert capsys.readouterr().out.startswith(
            f"{to_do} runs to train, 16 steps each, in runs/lm-text\n"
        )


@both_scripts
def test_a_run_that_diverges_ends_and_is_not_trained_again(task, capsys):
    for to_do in ("1 of 1", "0 of 1"):
        call(task, "--init mimetic --lr 1e30 --out run")
        out = capsys.readouterr().out
        assert re.match(rf"{to_do} (.|\n)*\nmimetic +1e\+30 +diverged on 1 of 1", out)
        assert out.count("left in this run") < 8


# ---------------------------------------------------------------------------------------------
# Stopped and resumed


@both_scripts
def test_kills_and_ctrl_c_at_random_moments_lose_nothing(task):
    call(task, "--out whole")
    for stop in (signal.SIGINT, signal.SIGKILL, signal.SIGINT):
        child = start(task, "--out run")
        # The first line comes before the training, and then one after each evaluation.
        for _ in range(np.random.randint(2, 7)):
            child.stdout.readline()
        child.send_signal(stop)
        out, _ = child.communicate()
        # It had just ended, or it was killed, or it was stopped.
        assert child.returncode in (0, -signal.SIGKILL) or out.endswith(
            "\nStopped. Run the same command to resume.\n"
        )
    call(task, "--out run")
    assert figures("run") == figures("whole")


@pytest.mark.parametrize(
    "environments, to_do",
    [
        ([{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2"}], "2 of 4 runs"),
        ([{}, {}], "4 of 4 runs"),
    ],
    ids=["two processes", "the same command twice"],
)
def test_two_at_once_produce_what_one_produces(environments, to_do):
    """They start together in an empty folder. The last one to finish prints the table."""
    call("lm", "--seed 0 1 --out one")
    children = [start("lm", "--seed 0 1 --out two", **environment) for environment in environments]
    outs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert all(out.startswith(to_do) for out in outs)
    assert any("minus default" in out for out in outs)
    assert figures("one") == figures("two")
    assert len(list(Path("two").iterdir())) == 8


# ---------------------------------------------------------------------------------------------
# The training


CONFIGS = {
    "vit": ViTConfig(image_size=12, dim=8, depth=1, heads=2, position="learned"),
    "lm": GPTConfig(context=8, dim=8, depth=1, heads=2, position="learned", stream="gpt2"),
}
DATA = {
    "vit": data.load_images("shifted-digits", limit=40),
    "lm": data.load_text(LICENSE, context=8),
}


def plain_batch(task, words, seed, step):
    """What a run should train on at a step: inputs and targets."""
    if task == "vit":
        images, labels, *_ = DATA["vit"]
        epoch, i = divmod(step, 4)
        chosen = np.random.default_rng([seed, epoch]).permutation(40)[10 * i :][:10]
        batch = images[chosen]
        if "crop" in words:
            draws = np.random.default_rng([seed, epoch, i, 1]).random((10, 3), np.float32)
            batch = data.augment(batch, torch.from_numpy(draws), flip="flip" in words)
        return (batch - images.float().mean()) / images.float().std(correction=0), labels[chosen]
    text, _ = DATA["lm"]
    offsets = np.random.default_rng([seed, step]).integers(0, len(text) - 8, 12)
    windows = torch.from_numpy(text[offsets[:, None] + np.arange(9)]).long()
    return windows[:, :-1], windows[:, 1:]


@pytest.mark.parametrize(
    "task, words, init, seed",
    [
        ("vit", "--augment none", "mimetic", 0),
        ("vit", "--augment crop", "shuffled", 1),
        ("vit", "--augment crop+flip", "mimetic", 2),
        ("lm", "--stream gpt2", "mimetic", 0),
        ("lm", "--stream gpt2", "shuffled", 1),
    ],
)
def test_a_run_equals_a_plain_loop(task, words, init, seed):
    """AdamW, weight decay for matrices only, one warmup and 15 cosine steps, clipped gradients."""
    call(
        task,
        f"{words} --position learned --init {init} --seed {seed} --lr 0.01 --out run "
        "--qk-alpha 0.5 --qk-beta 0.6 --vp-alpha 0.3 --vp-beta -0.2",
    )
    state = torch.load(f"run/{init}-seed{seed}-lr0.01.pt")
    assert state["options"]["data checksum"] == data.checksum(*DATA[task])

    torch.manual_seed(seed)
    model = {"vit": ViT, "lm": GPT}[task](CONFIGS[task])
    inits.INITS[init]([block.attention for block in model.blocks], (0.5, 0.6, 0.3, -0.2))
    decay, beta2 = {"vit": (0.05, 0.999), "lm": (0.1, 0.99)}[task]
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay * (p.ndim > 1)} for p in model.parameters()],
        lr=0.01,
        betas=(0.9, beta2),
    )
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 15)) / 2 for i in range(15)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [0.5, *cosine, 0].__getitem__)
    for step in range(16):
        inputs, targets = plain_batch(task, words, seed, step)
        loss = torch.nn.functional.cross_entropy(model(inputs).movedim(-1, 1), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    # Equal up to rounding
    torch.testing.assert_close(dict(model.named_parameters()), state["model"], atol=1e-4, rtol=0)
    assert state["rows"][-1]["train_loss"] == pytest.approx(loss.item(), abs=1e-4)


@both_scripts
def test_the_warmup_takes_at_most_100_steps(task):
    """The default runs are longer than the 16 steps here."""
    assert [
        SCRIPTS[task].learning_rate(step, 4000, peak=101) for step in range(101)
    ] == pytest.approx(range(1, 102))


def test_the_accuracy_is_the_share_of_images_classified_right():
    """For a model that takes every image for a 3"""
    images = data_of("vit")
    threes = torch.eye(10)[3].expand(len(images.test), 10)
    found = train_vit.accuracy(lambda batch: threes[: len(batch)], images)
    assert found == (images.test_labels == 3).sum().item() / len(images.test)


@pytest.mark.parametrize(
    "size, windows",
    [
        # 108 bytes for validation, in 13 windows of 8 bytes
        (1080, range(13)),
        # 4,000 bytes, in 499 windows, of which about every second is used
        (40_000, [498 * i // 255 for i in range(256)]),
    ],
)
def test_the_loss_is_the_mean_over_the_validation_text(size, windows):
    """For a model that gives spaces e^5 times the probability of any other byte"""
    Path("text").write_bytes(np.random.default_rng(0).choice([32, 33], size).astype(np.uint8))
    text = data_of("lm", "--data text")
    logits = 5 * torch.eye(256)[ord(" ")]
    found = train_lm.validation_loss(lambda tokens: logits.expand(*tokens.shape, 256), text)
    targets = np.stack([text.validation[8 * i + 1 : 8 * i + 9] for i in windows])
    expected = math.log(255 + math.exp(5)) - 5 * np.mean(targets == ord(" "))
    assert found == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    "tasks, words, answer",
    [
        ("vit lm", "--init mimik", "invalid choice: 'mimik'"),
        ("vit lm", "--seed -1", "--seed must be 0 or more"),
        ("vit lm", "--seed 1.5", "invalid int value"),
        ("vit lm", f"--seed {2**64}", "--seed must be 0 or more, and below 2**64"),
        ("vit lm", "--lr 0", "--lr must be above 0 and finite"),
        ("vit lm", "--lr nan", "--lr must be above 0 and finite"),
        ("vit lm", "--heads 3", "heads must divide dim"),
        ("vit lm", "--depth 0", "every size must be above 0"),
        ("vit", "--patch-size 5", "patch_size must divide image_size"),
        ("vit lm", "--qk-alpha 1.5", "alpha must be between 0 and 1"),
        ("vit lm", "--vp-beta=-inf", "beta between -1 and 1"),
        ("vit", "--batch-size 0", "--batch-size must be from 1 to 40"),
        ("vit", "--batch-size 41", "--batch-size must be from 1 to 40"),
        ("lm", "--batch-size 0", "--batch-size must be above 0"),
        ("vit", "--epochs 0", "must have at least one step"),
        ("lm", "--steps -1", "must have at least one step"),
        ("vit", "--limit 9999", "limit must be at most 1,000"),
        ("vit lm", "--device tpu", "no device tpu"),
        ("vit lm", "--data nothing", "nothing cannot be read"),
        ("vit lm", "--data empty", "empty"),
        ("vit lm", "--out empty", "empty"),
        ("vit lm", "--out empty/run", "empty"),
        ("vit lm", "--resume run", "unrecognized arguments: --resume"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_no_folder(tasks, words, answer, capsys):
    Path("empty").touch()
    for task in tasks.split():
        assert call(task, words) == 2
        out, err = capsys.readouterr()
        assert re.fullmatch(f"usage: (.|\n)*: error: .*{re.escape(answer)}.*\n", err)
        assert (out, os.listdir()) == ("", ["empty"])
