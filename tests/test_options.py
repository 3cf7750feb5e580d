"""Options: what they mean, and the one line that each mistake gets before anything is written."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import (
    LR,
    MAIN,
    MODULE,
    SHAPE,
    TINY,
    both_scripts,
    call_in_each_step,
    contents,
    process,
    results,
    script,
)

import train_lm
import train_vit
from mimetic_min.lab import figures, options, parallel, runs


def parsed(task, words):
    """The options in a line of words."""
    return options.parse(MODULE[task].make_parser(), words.split(), task)


# ---------------------------------------------------------------------------------------------
# What the options mean


def test_both_scripts_start_with_the_settings_of_the_readme():
    diagonals = {"qk_beta": 0.7, "vp_beta": -0.4}
    both = {"seed": [0], "depth": 4, "heads": 4, "position": "sincos", **diagonals}
    vit = {
        "init": ["off", "default", "noise", "mimetic"],
        "data": "shifted-digits",
        "qk_alpha": 0.7,
        "vp_alpha": 0.4,
        "patch_size": 2,
        "dim": 64,
        "epochs": 40,
        "batch_size": 50,
        "lr": [2e-3],
    }
    lm = {
        "init": ["default", "xavier", "noise", "mimetic"],
        "data": "docs",
        "qk_alpha": 0.1,
        "vp_alpha": 0.1,
        "context": 64,
        "dim": 128,
        "steps": 1000,
        "batch_size": 12,
        "lr": [4e-3],
        "vp_last_beta": None,
    }
    for task, own in (("vit", vit), ("lm", lm)):
        found = vars(parsed(task, ""))
        expected = both | own
        assert {name: found[name] for name in expected} == expected
        assert LR[task] == own["lr"][0]


@pytest.mark.parametrize("words", ["--qk-beta -4e-1", "--qk-beta=-4e-1", "--qk-beta -.4"])
def test_a_negative_number_is_a_number_and_not_an_option(words):
    """Also in the notation that Python prints, as with -4e-05."""
    assert parsed("vit", words).qk_beta == -0.4


def test_a_folder_may_have_a_number_for_its_name():
    args = parsed("vit", "--out 2024 --data-dir 1e3")
    assert (args.out, args.data_dir) == ("2024", "1e3")


def test_init_seed_and_lr_take_several_values():
    args = parsed("vit", "--init off mimetic --seed 0 1 2 --lr 1e-3 0.002")
    assert args.init == ["off", "mimetic"]
    assert args.seed == [0, 1, 2]
    assert args.lr == [0.001, 0.002]


def test_a_value_that_is_given_twice_is_one_run():
    train_vit.main([*TINY["vit"], "--init", "off", "off", "--seed", "1", "1", "--out", "run"])
    assert len(results("run")["runs"]) == 1


def test_help_names_every_start_and_every_default():
    for task in ("vit", "lm"):
        text = MODULE[task].make_parser().format_help()
        for init, meaning in MODULE[task].INITS.items():
            assert f"{init:18} {meaning}" in text
        assert f"peak learning rate, one or more (default: {LR[task]})" in " ".join(text.split())


# ---------------------------------------------------------------------------------------------
# Mistakes

KNOWN_IMAGES = "shifted-digits, digits, cifar10, cifar100, svhn, tiny-imagenet"
KNOWN_TEXTS = "docs, shakespeare, enwik8, wikitext-103"
DEVICES = "cpu, or a cuda or mps device that torch finds here"

MISTAKES = [
    # Words that are not options
    ("vit", "--epoch 3", "unrecognized arguments: --epoch 3"),
    ("lm", "--patch-size 2", "unrecognized arguments: --patch-size 2"),
    ("vit", "mimetic", "unrecognized arguments: mimetic"),
    ("lm", "--lr", "--lr: expected at least one argument"),
    ("lm", "--steps", "--steps: expected one argument"),
    (
        "vit",
        "--seed 0 --init off --seed 1",
        "--seed was given twice; give it once, with all its values",
    ),
    ("vit", "--dim 8 --dim=8", "--dim was given twice; give it once, with all its values"),
    # Types
    ("vit", "--epochs 0", "--epochs must be a whole number above 0, but it is '0'"),
    ("vit", "--epochs ten", "--epochs must be a whole number above 0, but it is 'ten'"),
    ("lm", "--steps 1.5", "--steps must be a whole number above 0, but it is '1.5'"),
    ("lm", "--dim -4", "--dim must be a whole number above 0, but it is '-4'"),
    (
        "vit",
        "--batch-size 99999999999",
        "--batch-size must be a whole number above 0, but it is '99999999999'",
    ),
    ("vit", "--seed -1", "--seed must be a whole number from 0, but it is '-1'"),
    ("vit", "--lr 1e-3 0", "--lr must be a number above 0, but it is '0'"),
    ("vit", "--lr nan", "--lr must be a number above 0, but it is 'nan'"),
    ("lm", "--lr=-1e-3", "--lr must be a number above 0, but it is '-1e-3'"),
    ("lm", "--lr -1e-3", "--lr must be a number above 0, but it is '-1e-3'"),
    ("vit", "--qk-beta strong", "--qk-beta must be between -1 and 1, but it is 'strong'"),
    ("vit", "--qk-beta -inf", "--qk-beta must be between -1 and 1, but it is '-inf'"),
    (
        "vit",
        "--init mimetik",
        "--init must be one of off, default, xavier, noise, simple, mimetic, query-key,"
        " value-projection, but it is 'mimetik'",
    ),
    ("vit", "--position sine", "--position must be one of sincos, learned, but it is 'sine'"),
    ("vit", "--augment flip", "--augment must be one of none, crop, crop+flip, but it is 'flip'"),
    ("vit", "--device tpu", f"--device must be {DEVICES}, but it is 'tpu'"),
    ("vit", "--device cuda:99", f"--device must be {DEVICES}, but it is 'cuda:99'"),
    ("vit", "--device meta", f"--device must be {DEVICES}, but it is 'meta'"),
    ("vit", "--device hpu", f"--device must be {DEVICES}, but it is 'hpu'"),
    # Strengths
    ("vit", "--qk-beta 1.5", "--qk-beta must be between -1 and 1, but it is '1.5'"),
    ("vit", "--qk-alpha -0.1", "--qk-alpha must be between 0 and 1, but it is '-0.1'"),
    ("lm", "--vp-alpha 1e1", "--vp-alpha must be between 0 and 1, but it is '1e1'"),
    ("lm", "--vp-beta -2 --init default", "--vp-beta must be between -1 and 1, but it is '-2'"),
    ("lm", "--vp-last-beta 2", "--vp-last-beta must be between -1 and 1, but it is '2'"),
    # Shapes
    ("vit", "--heads 5", "heads must divide dim, but 5 does not divide 64"),
    ("lm", "--heads 5", "heads must divide dim, but 5 does not divide 128"),
    ("vit", "--patch-size 5", "patch_size must divide image_size, but 5 does not divide 12"),
    (
        "vit",
        "--dim 66 --heads 1",
        "dim must be a multiple of 4 with sincos positions, but it is 66",
    ),
    ("lm", "--dim 33 --heads 3", "dim must be even with sincos positions, but it is 33"),
    # Data
    (
        "vit",
        "--batch-size 1001",
        "--batch-size must be at most 1000, the number of training images, but it is 1001",
    ),
    (
        "vit",
        "--limit 1001",
        "limit must be between 1 and 1,000, the number of training images, but it is 1,001",
    ),
    (
        "vit",
        "--data cats.npz",
        f"data must be {KNOWN_IMAGES}, an .npz or a folder of pictures,"
        " but there is no file cats.npz",
    ),
    (
        "lm",
        "--data no.txt",
        f"data must be {KNOWN_TEXTS} or a file, but there is no file no.txt",
    ),
    (
        "vit",
        "--data-dir x",
        "data_dir is for cifar10, cifar100, svhn, tiny-imagenet, but the data are shifted-digits",
    ),
    (
        "lm",
        "--context 100000 --dim 8 --depth 1",
        "the parts for training and validation must be longer than the context of 100000 bytes,"
        " but those of docs have ...",
    ),
    # Folders
    (
        "vit",
        "--resume nowhere",
        "--resume finds no results.json in nowhere (No such file or directory)",
    ),
    (
        "vit",
        "--resume run --lr 1 --init=off --plot",
        "--resume keeps the options of its folder; leave out --lr, --init",
    ),
    (
        "vit",
        "--out there",
        "--out must be a new or empty folder, but there has files;"
        " to go on: python train_vit.py --resume there",
    ),
    ("lm", "--out file", "--out must be a folder that can be made, but file is not: File exists"),
    (
        "vit",
        "--out file/x",
        "--out must be a folder that can be made, but file/x is not: Not a directory",
    ),
    (
        "vit",
        "--out /proc/x",
        "--out must be a folder that can be made, but /proc/x is not: No such file or directory",
    ),
]


@pytest.mark.parametrize(
    "task, words, line", MISTAKES, ids=[f"{task} {words}" for task, words, _ in MISTAKES]
)
def test_a_mistake_is_one_line_and_nothing_is_written(task, words, line):
    """And exit status 2. What is in the way stays as it is."""
    Path("file").write_text("mine")
    os.mkdir("there")
    Path("there/notes.txt").write_text("mine, too")
    before = contents()
    status, out, err = script(task, *words.split())
    assert (status, out) == (2, "")
    # A line that ends in ... goes on with numbers that may change.
    if line.endswith("..."):
        assert err.startswith(f"train_{task}.py: {line[:-3]}")
    else:
        assert err == f"train_{task}.py: {line}\n"
    assert err.count("\n") == 1
    assert contents() == before
    assert sorted(os.listdir()) == ["file", "there"]


@pytest.mark.parametrize(
    "task, words",
    [
        ("vit", "--dim 1000000"),
        ("lm", "--dim 1000000"),
        ("vit", "--dim 2000000000"),  # more bytes than a number of 64 bits can count
        ("vit", "--depth 2000000000"),  # more layers than can be made to count their weights
        ("lm", "--context 2000000 --dim 1024 --depth 100"),
    ],
)
def test_a_model_that_is_too_large_for_the_memory_is_one_line(task, words):
    status, out, err = script(task, *words.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"train_{task}.py: this model needs about ")
    assert err.endswith(" GB; choose a smaller --dim, --depth or --batch-size\n")
    assert os.listdir() == []


def test_the_memory_that_a_model_needs_is_not_overestimated():
    """A model that fits must not be refused: four numbers for each weight, and more for a batch."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    config = train_vit.ViTConfig(dim=1024, depth=12, heads=16)
    with torch.device("meta"):
        model = train_vit.ViT(config)
    exact = 16 * sum(p.numel() for p in model.parameters())
    block = 16 * 12 * 1024**2
    assert 12 * block < exact < 12.1 * block
    just_fits = train_vit.ViTConfig(dim=1024, depth=memory // block, heads=16)
    options.check_memory(just_fits, 0, "cpu")
    too_large = train_vit.ViTConfig(dim=1024, depth=memory // block + 1, heads=16)
    with pytest.raises(ValueError, match="^this model needs about "):
        options.check_memory(too_large, 0, "cpu")


def test_from_python_a_mistake_is_a_value_error():
    with pytest.raises(ValueError, match="^heads must divide dim, but 5 does not divide 64$"):
        train_vit.main(["--heads", "5"])


# ---------------------------------------------------------------------------------------------
# --compile and --plot, which need more than torch


def test_compile_where_no_compiler_works_is_one_line(monkeypatch):
    def compile_fails(function):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(torch, "compile", compile_fails)
    status, out, err = script("vit", *TINY["vit"], "--compile")
    line = "--compile does not work here: torch.compile finds no compiler that it can use"
    assert (status, out, err) == (2, "", f"train_vit.py: {line}\n")
    assert os.listdir() == []


@pytest.mark.slow
def test_compile_on_a_machine_without_a_compiler_is_one_line(tmp_path):
    """The same without any patch: a process that finds no program, and no earlier result."""
    nothing = {
        "PATH": "",
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c"),
    }
    done = process("vit", *TINY["vit"], "--compile", "--out", "run", **nothing)
    line = "--compile does not work here: torch.compile finds no compiler that it can use"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"train_vit.py: {line}"
    assert "Traceback" not in done.stderr
    assert not Path("run").exists()


def test_plot_without_matplotlib_is_told_before_the_training(monkeypatch):
    def missing():
        raise ValueError("pictures need matplotlib: python -m pip install matplotlib")

    monkeypatch.setattr(figures, "check", missing)
    status, out, err = script("vit", *TINY["vit"], "--plot")
    line = "pictures need matplotlib: python -m pip install matplotlib"
    assert (status, out, err) == (2, "", f"train_vit.py: {line}\n")
    assert os.listdir() == []


# ---------------------------------------------------------------------------------------------
# --resume


@both_scripts
def test_resume_takes_the_options_of_its_folder(task):
    """Whatever their type, and however they were written."""
    words = "--position learned --vp-beta -2.5e-1 --qk-alpha 0 --lr 1e-3 2e-30 --seed 3"
    words = [*TINY[task], *words.split(), "--init", "off", "mimetic"]
    given = options.parse(MODULE[task].make_parser(), words, task)
    MAIN[task]([*words, "--out", "run"])
    assert results("run")["config"] == options.experiment(given)
    assert json.loads(json.dumps(options.experiment(given))) == options.experiment(given)
    again = options.parse(MODULE[task].make_parser(), ["--resume", "run"], task)
    assert options.experiment(again) == options.experiment(given)
    assert (again.resume, again.out) == ("run", None)


def test_the_machine_can_be_chosen_again(monkeypatch):
    """The device, --compile and --plot are not part of the experiment."""
    monkeypatch.setattr(options, "can_compile", lambda: True)
    monkeypatch.setattr(figures, "check", lambda: None)
    train_vit.main([*TINY["vit"], "--init", "off", "--out", "run"])
    assert not {"device", "compile", "plot", "out", "resume"} & results("run")["config"].keys()
    args = parsed("vit", "--resume run --device cpu:0 --compile --plot")
    assert (args.device, args.compile, args.plot) == ("cpu:0", True, True)
    args = parsed("vit", "--resume run")
    assert (args.compile, args.plot) == (False, False)


@both_scripts
def test_resume_refuses_the_folder_of_the_other_script(task):
    other = {"vit": "lm", "lm": "vit"}[task]
    MAIN[other]([*TINY[other], "--init", "off", "--out", "run"])
    status, out, err = script(task, "--resume", "run")
    line = f"--resume must name a folder of train_{task}.py, but run is another script's"
    assert (status, out, err) == (2, "", f"train_{task}.py: {line}\n")


@both_scripts
def test_resume_refuses_data_that_have_changed(task):
    """The rest of a run on other data would be the figure of nothing."""
    random = np.random.default_rng(0)

    def write_data():
        images = random.integers(0, 256, (2, 20, 12, 12), dtype=np.uint8)
        labels = np.arange(20) % 3
        np.savez(
            "my.npz",
            train_images=images[0],
            train_labels=labels,
            test_images=images[1],
            test_labels=labels,
        )
        Path("my.txt").write_bytes(random.bytes(400))

    name = {"vit": "my.npz", "lm": "my.txt"}[task]
    write_data()
    MAIN[task]([*TINY[task], "--init", "off", "--data", name, "--out", "run"])
    MAIN[task](["--resume", "run"])
    write_data()
    before = contents("run")
    status, out, err = script(task, "--resume", "run")
    line = f"--resume needs the data that run was started with, but {name} has changed"
    assert (status, out, err) == (2, "", f"train_{task}.py: {line}\n")
    assert contents("run") == before


def test_data_whose_name_begins_with_a_dash_come_back_too():
    Path("-my.txt").write_bytes(bytes(range(200)))
    words = [*SHAPE["lm"], "--steps", "2", "--init", "off"]
    train_lm.main([*words, "--data=-my.txt", "--out", "run"])
    train_lm.main(["--resume", "run"])


# ---------------------------------------------------------------------------------------------
# What the user can mend is told from a bug by where it is raised


TOO_LITTLE_MEMORY = (
    "too little memory; free some, or begin again with a smaller --dim, --depth or --batch-size"
)


@both_scripts
@pytest.mark.parametrize(
    "error, words, line",
    [
        (ValueError, ["dim must be small,\nbut it is not"], "dim must be small,"),
        (OSError, [5, "Input/output error", "x"], "[Errno 5] Input/output error: 'x'"),
        (MemoryError, [], TOO_LITTLE_MEMORY),
        (
            torch.OutOfMemoryError,
            ["CUDA out of memory."],
            TOO_LITTLE_MEMORY,
        ),
    ],
)
def test_before_the_training_every_such_error_is_one_line(task, error, words, line, monkeypatch):
    def fail(*of, **more):
        raise error(*words)

    monkeypatch.setattr(MODULE[task], {"vit": "load_images", "lm": "load_text"}[task], fail)
    status, out, err = script(task, *TINY[task])
    assert (status, out, err) == (2, "", f"train_{task}.py: {line}\n")
    assert os.listdir() == []


@both_scripts
@pytest.mark.parametrize(
    "error, words, line",
    [
        (OSError, [28, "No space left on device"], "[Errno 28] No space left on device"),
        (MemoryError, [], TOO_LITTLE_MEMORY),
        (
            torch.OutOfMemoryError,
            ["CUDA out of memory."],
            TOO_LITTLE_MEMORY,
        ),
    ],
)
def test_in_the_training_only_the_machine_gets_one_line(task, error, words, line, monkeypatch):
    """And it says how to go on."""

    def fail(step, lr):
        if step == 3:
            raise error(*words)

    call_in_each_step(monkeypatch, task, fail)
    status, _, err = script(task, *TINY[task], "--init", "off", "--out", "run")
    way = f"to go on: python train_{task}.py --resume run"
    assert (status, err) == (2, f"train_{task}.py: {line}; {way}\n")


@both_scripts
@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_a_bug_in_the_training_shows_its_traceback(task, error, monkeypatch):
    """Python shows the note under the traceback."""

    def fail(step, lr):
        if step == 3:
            raise error("shapes")

    call_in_each_step(monkeypatch, task, fail)
    with pytest.raises(error, match="shapes") as raised:
        script(task, *TINY[task], "--init", "off", "--out", "run")
    assert raised.value.__notes__ == [f"to go on: python train_{task}.py --resume run"]


def test_a_bug_before_the_training_shows_its_traceback(monkeypatch):
    def fail(*of, **more):
        raise RuntimeError("shapes")

    monkeypatch.setattr(train_vit, "load_images", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        script("vit", *TINY["vit"])


@both_scripts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_data_are_loaded_is_one_line(task, number, monkeypatch):
    """There is nothing yet to go on with."""
    name = {"vit": "load_images", "lm": "load_text"}[task]
    monkeypatch.setattr(MODULE[task], name, lambda *of, **more: os.kill(os.getpid(), number))
    status, out, err = script(task, *TINY[task])
    assert (status, out, err) == (130, "", f"train_{task}.py: stopped\n")
    assert os.listdir() == []


def test_a_signal_that_the_shell_has_switched_off_stays_switched_off(monkeypatch):
    """As SIGINT is for a job that was started with & by a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def interrupt(step, lr):
            os.kill(os.getpid(), signal.SIGINT)

        call_in_each_step(monkeypatch, "vit", interrupt)
        status, _, err = script("vit", *TINY["vit"], "--init", "off", "--out", "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, err) == (0, "")


def test_what_two_processes_cannot_share_is_named(monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError) as error:
        parsed("vit", "--batch-size 51")
    assert str(error.value) == ("--batch-size must be a multiple of the 2 processes, but it is 51")
    for device, gpus, is_possible in (
        ("cpu", 0, True),
        ("cuda", 2, True),
        ("cuda", 1, False),
        ("cuda:0", 2, False),
        ("mps", 0, False),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        if is_possible:
            parallel.check(50, device)
        else:
            with pytest.raises(ValueError) as error:
                parallel.check(50, device)
            assert str(error.value) == (
                f"--device must be cpu, or cuda with one GPU per process, but it is {device},"
                f" with 2 processes and {gpus} GPUs on this machine"
            )


def test_the_way_to_go_on_can_be_pasted():
    assert runs.how_to_go_on("lm", Path("my run")) == (
        "to go on: python train_lm.py --resume 'my run'"
    )
