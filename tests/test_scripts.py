"""The two scripts: what they train, print and refuse."""

import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_runs import SCRIPTS, TINY, both_scripts, call, figures

from mimetic_min import GPTConfig, ViTConfig, gpt, runs, vit

MODULE = {"vit": vit, "lm": gpt}
CONFIG = {"vit": ViTConfig, "lm": GPTConfig}


def data_of(task, words=""):
    """The data of a script, with these words on its command line."""
    script = SCRIPTS[task]
    args = script.make_parser().parse_args(f"{TINY[task]} {words}".split())
    return (script.Images if task == "vit" else script.Text)(args, torch.device("cpu"))


def new_model(task, init, **shape):
    """The untrained model of seed 0, with the strengths of the script."""
    args = SCRIPTS[task].make_parser().parse_args([])
    return SCRIPTS[task].new_model(runs.Run(init, 0, 0.1), args, CONFIG[task](**shape))


# ---------------------------------------------------------------------------------------------
# The main job


@both_scripts
def test_all_inits_are_trained_and_compared_once(task, capsys, monkeypatch):
    script = SCRIPTS[task]
    metric, lr, style = ("accuracy", 0.002, ".1%") if task == "vit" else ("loss", 0.004, ".3f")
    # 20 steps
    words = f"--batch-size 8 --init {' '.join(script.INITS)}{' --steps 20' * (task == 'lm')}"
    assert call(task, words) is None
    out = capsys.readouterr().out
    (folder,) = Path("runs").iterdir()
    assert folder.name == ("vit-shifted-digits" if task == "vit" else "lm-LICENSE")

    header, *rows = np.loadtxt(folder / "log.csv", str, delimiter=",")
    assert list(header) == ["init", "seed", "lr", "step", "train_loss", metric]
    assert [tuple(row[:4]) for row in rows] == [
        (init, "0", str(lr), step)
        for init in script.INITS
        for step in ["3", "5", "8", "10", "13", "15", "18", "20"]
    ]
    # Each row was printed, and the last one of a run stands in the table.
    for init, _, _, step, loss, result in rows:
        shown = f"{float(result):{style}}"
        losses = f"train loss {float(loss):.3f}  {metric} {shown}"
        assert re.search(rf"\n{init} +seed 0  lr {lr}  step {step} of 20  {losses}", out)
        assert step != "20" or re.search(rf"\n{init} +{lr} +{shown}", out)
    assert "\r" not in out
    checkpoints = [f"{init}-seed0-lr{lr}.pt" for init in script.INITS]
    assert sorted(os.listdir(folder)) == sorted(["log.csv", "options.json", *checkpoints])
    # What is 0 in both factors stays 0.
    off = torch.load(folder / checkpoints[0])["model"]
    assert not any(W.any() for name, W in off.items() if name.endswith(("W_V", "W_proj")))

    monkeypatch.setattr(MODULE[task], "__file__", __file__)
    assert call(task, words) is None
    again = capsys.readouterr().out
    assert re.match("The code has changed.*\n0 of . runs", again)
    assert out.split("\n\n")[1] == again.split("\n\n")[1]
    assert f"All was finished before. To train anew, delete {folder}" in again


@both_scripts
def test_plot_draws_three_pictures_into_the_folder(task):
    pytest.importorskip("matplotlib")
    call(task, "--plot --out run")
    pictures = {path.name for path in Path("run").glob("*.png")}
    assert pictures == {"curves.png", "products.png", "attention.png"}


def test_on_a_terminal_one_line_is_overwritten(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    call("lm", "--init mimetic")
    # One for each of 16 steps. Every second one is evaluated, and its line stays.
    lines = capsys.readouterr().out.split("\r\033[K")[1:]
    assert [line.count("\n") for line in lines[:15]] == [0, 1] * 7 + [0]


def test_two_processes_make_what_one_makes(monkeypatch, capsys):
    """They begin together in an empty folder. Whoever ends last prints the table. Later, with
    nothing left to do, the first would.
    """
    call("lm", "--seed 0 1 --out one")
    command = [sys.executable, SCRIPTS["lm"].__file__, *TINY["lm"].split(), "--seed", "0", "1"]
    children = [
        subprocess.Popen(
            [*command, "--out", "two"],
            env={**os.environ, "RANK": rank, "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outs = [child.communicate()[0] for child in children]
    assert [out.split(" runs")[0] for out in outs] == ["2 of 4", "2 of 4"]
    assert any("minus default" in out for out in outs)
    assert figures("one") == figures("two")
    monkeypatch.setattr(runs, "RANK", 1)
    monkeypatch.setattr(runs, "WORLD_SIZE", 2)
    capsys.readouterr()
    call("lm", "--seed 0 1 --out two")
    assert capsys.readouterr().out == "0 of 4 runs to train, 16 steps each, in two\n"


# ---------------------------------------------------------------------------------------------
# The training


@both_scripts
def test_a_run_equals_a_plain_loop(task):
    """AdamW, decay of matrices alone, a step of warmup and 15 of a cosine, clipped gradients. And
    the last row of the log has the result of the trained model.
    """
    call(task, "--init mimetic --lr 0.01 --out run")
    state = torch.load("run/mimetic-seed0-lr0.01.pt")
    data = data_of(task)
    model = new_model(task, "mimetic", **state["config"])
    decay, beta2 = (0.05, 0.999) if task == "vit" else (0.1, 0.99)
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay * (p.ndim > 1)} for p in model.parameters()],
        lr=0.01,
        betas=(0.9, beta2),
    )
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 15)) / 2 for i in range(15)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [0.5, *cosine, 0].__getitem__)
    for step in range(16):
        inputs, targets = data.batch(0, step)
        loss = F.cross_entropy(model(inputs).movedim(-1, 1), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    # Rounding alone.
    torch.testing.assert_close(dict(model.named_parameters()), state["model"], atol=1e-4, rtol=0)

    if task == "vit":
        pixels = data.train.double()
        images = ((data.test - pixels.mean()) / pixels.std(correction=0)).float()
        result = (model(images).argmax(1) == data.test_labels).double().mean()
    else:
        # Windows of 8 bytes, one after the other.
        text = torch.from_numpy(data.validation[: len(data.validation) // 8 * 8 + 1].astype(int))
        result = F.cross_entropy(model(text[:-1].view(-1, 8)).flatten(0, 1), text[1:])
    # One image in 797 may be undecided.
    row = list(state["rows"][-1].values())
    np.testing.assert_allclose(row[3:], [16, loss.item(), result.item()], atol=0.0015)


@pytest.mark.parametrize("task, words", [("vit", ""), ("vit", "--augment crop+flip"), ("lm", "")])
def test_batches_depend_on_the_seed_and_the_step_alone(task, words):
    data = data_of(task, words)
    batches = {(seed, step): data.batch(seed, step) for seed in (0, 1) for step in range(8)}
    assert len({inputs.numpy().tobytes() for inputs, _ in batches.values()}) == 16
    for (seed, step), batch in reversed(batches.items()):
        assert all(map(torch.equal, data.batch(seed, step), batch))
    inputs, targets = map(torch.cat, zip(*[batches[1, step] for step in range(4, 8)]))
    if task == "vit":
        # An epoch has all images once. Crops may move a stroke out of the picture.
        std, mean = torch.std_mean(inputs)
        assert (std.item(), mean.item()) == pytest.approx((1, 0), abs=0.1)
        assert torch.equal(targets.sort().values, data.train_labels.sort().values)
    else:
        # A target is the byte after its input, in a window of the training text.
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert bytes([*inputs[0], targets[0, -1]]) in data.train.tobytes()


@both_scripts
def test_each_init_is_what_its_help_says(task):
    shape = {"dim": 64, "depth": 3, "heads": 2}
    models = {init: new_model(task, init, **shape) for init in SCRIPTS[task].INITS}
    torch.manual_seed(0)
    plain = type(models["off"])(CONFIG[task](**shape))
    for model in models.values():
        for name, W in plain.named_parameters():
            assert "attention" in name or torch.equal(W, model.get_parameter(name))

    for layer in range(3):
        a = {init: model.blocks[layer].attention for init, model in models.items()}
        default, mimetic, simple = plain.blocks[layer].attention, a["mimetic"], a["simple"]
        for one, other in [
            (a["off"].W_V, 0 * default.W_V),
            (a["off"].W_proj, 0 * default.W_V),
            (a["default"].W_Q, default.W_Q),
            (a["default"].W_proj, default.W_proj),
            (a["query-key"].W_V, default.W_V),
            (a["query-key"].W_proj, default.W_proj),
            (a["value-projection"].W_Q, default.W_Q),
            (a["value-projection"].W_K, default.W_K),
            (simple.W_Q, simple.W_K),
            (simple.W_V, -simple.W_proj.T),
            (a["shuffled"].W_Q, mimetic.W_Q),
            (a["shuffled"].W_K.sort(1).values, mimetic.W_K.sort(1).values),
            (a["shuffled"].W_V, mimetic.W_V),
            (a["shuffled"].W_proj.sort(1).values, mimetic.W_proj.sort(1).values),
            # Xavier's bound is sqrt(3 / 64), of 4,096 entries.
            (a["xavier"].W_K.abs().max(), torch.tensor(math.sqrt(3 / 64))),
        ]:
            torch.testing.assert_close(one, other, atol=0.001, rtol=0)

        # The means of both diagonals. Half of the rank of query-key is cut, and more than half of
        # its diagonal of 0.7 stays.
        for init, qk, vp in [
            ("mimetic", 0.5, -0.4),
            ("query-key", 0.5, 0),
            ("value-projection", 0, -0.4),
            ("shuffled", 0, 0),
            ("simple", 1, -1),
            *[("language", -0.5, [-0.4, 0, 0.4][layer])] * ("language" in a),
        ]:
            diagonal = a[init].qk_product().diagonal(0, 1, 2), a[init].vp_product().diagonal()
            means = [x.mean().item() for x in diagonal]
            assert means == pytest.approx([qk, vp], abs=0.2)


# ---------------------------------------------------------------------------------------------
# Help and errors


@both_scripts
def test_help_explains_every_init_and_shows_every_default(task, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert call(task, "--help") == 0
    text = capsys.readouterr().out
    for init, meaning in SCRIPTS[task].INITS.items():
        assert f"\n  {init:18}{meaning}\n" in text
    defaults = vars(SCRIPTS[task].make_parser().parse_args([])).values()
    assert sorted(re.findall(r"\(default: (.*)\)\n", text)) == sorted(map(str, defaults))


@pytest.mark.parametrize(
    "tasks, words, answer",
    [
        ("vit lm", "--init mimik", "invalid choice: 'mimik'"),
        ("vit lm", "--position rope", "invalid choice: 'rope'"),
        ("lm", "--stream wide", "invalid choice: 'wide'"),
        ("vit lm", "--seed -1", "--seed must be from 0 to 2**63 - 1"),
        ("vit lm", "--seed 1.5", "invalid int value"),
        ("vit lm", "--lr 0", "--lr above 0 and finite"),
        ("vit lm", "--lr nan", "--lr above 0 and finite"),
        ("vit lm", "--lr inf", "--lr above 0 and finite"),
        ("vit lm", "--heads 3", "heads must divide dim"),
        ("vit lm", "--heads 0", "heads must be a whole number above 0"),
        ("vit lm", "--dim -8", "dim must be a whole number above 0"),
        ("vit", "--dim 6", "dim must be a multiple of 4"),
        ("lm", "--dim 9 --heads 3", "dim must be even"),
        ("vit lm", "--depth 0", "depth must be a whole number above 0"),
        ("vit", "--patch-size 5", "patch_size must divide image_size"),
        ("vit", "--patch-size 0", "patch_size must be"),
        ("lm", "--context 0", "context must be"),
        ("lm", "--context 1000", "context of 1,000"),
        ("vit lm", "--qk-alpha 1.5", "qk_alpha must be between 0 and 1"),
        ("vit lm", "--qk-beta nan", "qk_beta must be between -1 and 1"),
        ("vit lm", "--vp-alpha -0.1", "vp_alpha must be between 0 and 1"),
        ("vit lm", "--vp-beta=-inf", "vp_beta must be between -1 and 1"),
        ("vit lm", "--batch-size 0", "must be above 0"),
        ("vit", "--batch-size 41", "--batch-size must be at most 40"),
        ("vit", "--epochs 0", "must be above 0"),
        ("lm", "--steps -1", "must be above 0"),
        ("lm", "--sample 0", "must be above 0"),
        ("vit", "--limit 0", "limit must be 1 or more"),
        ("vit", "--limit 9999", "limit must be at most 1,000"),
        ("vit", "--image-size 8", "image_size"),
        ("vit lm", "--device tpu", "no device tpu"),
        ("vit lm", "--device cuda:99", "no device cuda:99"),
        ("vit lm", "--data nothing", "nothing cannot be read"),
        ("lm", "--data folder", "folder cannot be read"),
        (
            "vit",
            "--data folder",
            "folder must hold the folders train and test"
            if find_spec("PIL")
            else "folder holds pictures, which need Pillow",
        ),
        ("vit lm", "--data empty", "empty"),
        ("vit", "--data cifar10 --data-dir folder", "cifar-10-binary.tar.gz"),
        ("lm", "--data enwik8 --data-dir folder", "enwik8.zip"),
        ("vit lm", "--data-dir folder", "data_dir is only for"),
        ("vit lm", "--out empty", "empty"),
        ("vit lm", "--out empty/run", "empty"),
        ("vit lm", "--resume run", "unrecognized arguments: --resume"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_no_folder(tasks, words, answer, capsys):
    Path("empty").touch()
    Path("folder").mkdir()
    for task in tasks.split():
        assert call(task, words) == 2
        out, err = capsys.readouterr()
        sentence = err.split(f"\ntrain_{task}.py: error: ")[1]
        assert re.fullmatch(f".*{re.escape(answer)}.*\n", sentence)
        assert (out, sorted(os.listdir())) == ("", ["empty", "folder"])
