"""The experiments behind results/README.md. Each is one command line of a script.

(The two experiments named -transposed also change what the script does; see below.)

    python results/experiments.py                    what there is, and how far each one is
    python results/experiments.py shifted docs       start these, or go on with them

A run folder is runs/NAME. After each run its results are kept in results/raw/NAME.json, with one
line per run. From this file an experiment goes on, on any machine that has the same data.

Every experiment computes with one thread, so that no figure depends on the number of cores. Start
as many at a time as there are cores. A figure is the same again on the same kind of processor with
the same torch; elsewhere rounding differs, and training with it, by about the spread over seeds.
"""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "results/raw"
sys.path.insert(0, str(ROOT))

import train_lm
import train_vit
from mimetic_min.lab import options, runs, script

SCRIPTS = {"train_vit.py": train_vit, "train_lm.py": train_lm}

# Where several rates are tried, the first half of the seeds chooses one, and the rest is reported.
TEN = "--seed 0 1 2 3 4 5 6 7 8 9"
SIX = "--seed 0 1 2 3 4 5"
THREE = "--seed 0 1 2"
FIVE_RATES = "--lr 5e-4 1e-3 2e-3 4e-3 8e-3"
TEXT_RATES = "--lr 1e-3 2e-3 4e-3 8e-3"

# Noise whose two products have the Frobenius norm of the mimetic start's, found with NumPy: the top
# head_dim singular values of alpha Z have the same sum of squares as those of the target. In
# MATCHED_CIFAR_04 the mimetic start has query-key at (0.4, 0.4).
MATCHED_VIT = "--init noise --qk-alpha 0.944 --vp-alpha 0.566"
MATCHED_CIFAR = "--init noise --qk-alpha 0.952 --vp-alpha 0.566"
MATCHED_CIFAR_04 = "--init noise --qk-alpha 0.544 --vp-alpha 0.566"
MATCHED_GPT = "--init noise --qk-alpha 0.504 --vp-alpha 0.412"

SHIFTED_PART = f"train_vit.py {TEN}"
SHIFTED_FEWER = f"train_vit.py --init default noise mimetic --lr 2e-3 4e-3 {SIX}"
DOCS_PART = f"train_lm.py --lr 4e-3 {SIX}"
CIFAR_MODEL = "train_vit.py --data cifar10 --patch-size 4 --dim 96 --depth 6 --heads 3"
CIFAR_SHORT = f"{CIFAR_MODEL} --limit 5000 --epochs 10"
CIFAR_MIDDLE = f"{CIFAR_MODEL} --limit 5000 --epochs 20"
CIFAR_MIDDLE_04 = f"{CIFAR_MIDDLE} --qk-alpha 0.4 --qk-beta 0.4"
CIFAR = f"{CIFAR_MODEL} --limit 5000 --epochs 60"
LARGE = "train_lm.py --dim 256 --depth 6 --heads 8 --context 128 --steps 1000"
SHAKESPEARE = "train_lm.py --data shakespeare --steps 2000"
TEXT_INITS = "--init default xavier noise mimetic"

QK_ALPHAS = VP_ALPHAS = (0, 0.1, 0.4, 0.7)
QK_BETAS = (-0.7, 0, 0.35, 0.7, 1)
VP_BETAS = (-0.8, -0.4, -0.2, 0, 0.4)

# The strengths that the GPT's defaults were chosen from: query-key's alpha and beta,
# value-projection's.
CHOICES = [
    (0.1, 0.7, 0.1, -0.4),
    (0.7, 0.7, 0.4, -0.4),
    (0.1, 0.4, 0.1, -0.4),
    (0.1, 0.7, 0.1, -0.2),
    (0.1, 0.7, 0.1, -0.7),
    (0.2, 0.7, 0.2, -0.4),
    (0.05, 0.7, 0.05, -0.4),
]

EXPERIMENTS = {
    # Images
    "shifted": f"train_vit.py --init off default xavier noise simple mimetic {FIVE_RATES} {TEN}",
    "shifted-default": f"train_vit.py {TEN}",
    "digits": (
        f"train_vit.py --data digits --init off default noise mimetic --lr 1e-3 2e-3 4e-3 {SIX}"
    ),
    "shifted-500": f"{SHIFTED_FEWER} --limit 500 --epochs 80",
    "shifted-200": f"{SHIFTED_FEWER} --limit 200 --epochs 200",
    "shifted-alone": f"{SHIFTED_PART} --init query-key value-projection",
    "shifted-qk-flipped": f"{SHIFTED_PART} --init mimetic --qk-beta -0.7",
    "shifted-vp-flipped": f"{SHIFTED_PART} --init mimetic --vp-beta 0.4",
    "shifted-both-flipped": f"{SHIFTED_PART} --init mimetic --qk-beta -0.7 --vp-beta 0.4",
    "shifted-transposed": f"{SHIFTED_PART} --init mimetic",
    "shifted-matched": f"{SHIFTED_PART} {MATCHED_VIT}",
    "shifted-learned": f"{SHIFTED_PART} --init default noise mimetic --position learned",
    "cifar": f"{CIFAR} --init default noise mimetic --lr 1e-3 {THREE}",
    "cifar-controls": f"{CIFAR} --init off xavier --lr 1e-3 {THREE}",
    "cifar-0.4": f"{CIFAR} --init noise mimetic --qk-alpha 0.4 --qk-beta 0.4 --lr 1e-3 {THREE}",
    "cifar-matched": f"{CIFAR} {MATCHED_CIFAR} --lr 1e-3 {THREE}",
    "cifar-rates": f"{CIFAR_SHORT} --init default noise mimetic --lr 5e-4 2e-3",
    "cifar-short": f"{CIFAR_SHORT} --init off default xavier noise mimetic --lr 1e-3 {THREE}",
    "cifar-middle": f"{CIFAR_MIDDLE} --init noise mimetic --lr 1e-3 {THREE}",
    "cifar-middle-0.4": f"{CIFAR_MIDDLE_04} --init default xavier noise mimetic --lr 1e-3 {THREE}",
    "cifar-middle-0.4-slow": f"{CIFAR_MIDDLE_04} --init default noise mimetic --lr 5e-4 {THREE}",
    "cifar-middle-0.4-fast": f"{CIFAR_MIDDLE_04} --init noise mimetic --lr 2e-3 {THREE}",
    "cifar-middle-0.4-matched": f"{CIFAR_MIDDLE} {MATCHED_CIFAR_04} --lr 1e-3 {THREE}",
    "cifar-all": f"{CIFAR_MODEL} --epochs 20 --init default noise mimetic --lr 1e-3",
    # Text
    "docs": f"train_lm.py {TEXT_INITS} {TEXT_RATES} {SIX}",
    "docs-default": "train_lm.py --seed 0 1 2 7 8 9",
    "docs-learned": f"train_lm.py --position learned {TEXT_INITS} {TEXT_RATES} {THREE}",
    # The strengths of layouts.RECIPE_OF_GPT2.
    "docs-learned-small": (
        "train_lm.py --position learned --init noise mimetic --qk-alpha 0.4 --qk-beta 0.1"
        f" --vp-alpha 0.02 --vp-beta -0.05 {TEXT_RATES} {THREE}"
    ),
    "docs-alone": f"{DOCS_PART} --init query-key value-projection language simple off",
    "docs-qk-flipped": f"{DOCS_PART} --init mimetic --qk-beta -0.7",
    "docs-vp-flipped": f"{DOCS_PART} --init mimetic --vp-beta 0.4",
    "docs-both-flipped": f"{DOCS_PART} --init mimetic --qk-beta -0.7 --vp-beta 0.4",
    "docs-ramp": f"{DOCS_PART} --init mimetic --vp-last-beta 0.4",
    "docs-transposed": f"{DOCS_PART} --init mimetic",
    "docs-matched": f"{DOCS_PART} {MATCHED_GPT}",
    "docs-vision": (f"{DOCS_PART} --init noise mimetic --qk-alpha 0.7 --vp-alpha 0.4"),
    "shakespeare": f"{SHAKESPEARE} {TEXT_INITS} --lr 1e-3 4e-3 {THREE}",
    "shakespeare-learned": f"{SHAKESPEARE} --position learned {TEXT_INITS} --lr 1e-3 4e-3 {THREE}",
    "large": f"{LARGE} {TEXT_INITS} --lr 2e-3 --seed 0 1",
    # Which strengths: on seeds that no other table of the GPT reports.
    **{
        f"choice-{n}": (
            "train_lm.py --init mimetic --seed 10 11 --lr 4e-3"
            f" --qk-alpha {qk_alpha} --qk-beta {qk_beta} --vp-alpha {vp_alpha} --vp-beta {vp_beta}"
        )
        for n, (qk_alpha, qk_beta, vp_alpha, vp_beta) in enumerate(CHOICES, 1)
    },
    **{
        f"strength-qk{alpha}{beta:+}": (
            f"train_lm.py --init mimetic --lr 4e-3 --seed 10 --qk-alpha {alpha} --qk-beta {beta}"
        )
        for alpha in QK_ALPHAS
        for beta in QK_BETAS
    },
    **{
        f"strength-vp{alpha}{beta:+}": (
            f"train_lm.py --init mimetic --lr 4e-3 --seed 10 --vp-alpha {alpha} --vp-beta {beta}"
        )
        for alpha in VP_ALPHAS
        for beta in VP_BETAS
    },
}


# ---------------------------------------------------------------------------------------------
# The one start that no option makes


def transpose_value_projection(initialise):
    """The public copies' mistake: W_V and W_proj are put into nn.Linear, which transposes them."""

    @torch.no_grad()
    def initialise_transposed(model, init, args):
        initialise(model, init, args)
        for block in model.blocks:
            for W in (block.attention.W_V, block.attention.W_proj):
                W.copy_(W.T.clone())

    return initialise_transposed


def change_of(name, train_script):
    """What an experiment changes in its script, as a context manager."""
    if name.endswith("-transposed"):
        changed = transpose_value_projection(train_script.initialise)
        return patch.object(train_script, "initialise", changed)
    return nullcontext()


# ---------------------------------------------------------------------------------------------
# Running and keeping


def compact(results):
    """results.json as text with one line per run."""
    # "runs" is the last key. Its value is written by hand.
    head = json.dumps({**results, "runs": None}, indent=1).removesuffix("null\n}")
    lines = [json.dumps(run, separators=(",", ":")) for run in results["runs"]]
    return head + "[\n" + ",\n".join(lines) + "\n]}\n"


def keep(name, folder):
    """Copy what is finished in a run folder to results/raw."""
    results = json.loads((folder / "results.json").read_text())
    for run in results["runs"]:
        run.pop("sample", None)
    path = RAW / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write(path, compact(results).encode())


def run(name):
    """Start an experiment, or go on with it, and keep its results after each run."""
    file, *words = EXPERIMENTS[name].split()
    train_script = SCRIPTS[file]
    folder = ROOT / "runs" / name
    if not (folder / "results.json").exists() and (RAW / f"{name}.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(RAW / f"{name}.json", folder / "results.json")
    if (folder / "results.json").exists():
        words = ["--resume", str(folder)]
    else:
        words += ["--out", str(folder)]

    finish = runs.Grid.finish

    def finish_and_keep(grid, finished):
        keep_diagonals(finished)
        finish(grid, finished)
        keep(name, folder)

    def how_to_go_on(task, folder):
        return f"to go on: python results/experiments.py {name}"

    with (
        change_of(name, train_script),
        patch.object(runs.Grid, "finish", finish_and_keep),
        patch.object(runs, "how_to_go_on", how_to_go_on),
    ):
        train_script.main(words)


def keep_diagonals(run):
    """Add the mean of both diagonals in each layer, before and after the training, to a result."""
    if "final" not in run.result:
        return
    for when in ("start", "trained"):
        weights = run.weights(when)
        layers = [key.removesuffix("W_V") for key in weights if key.endswith("W_V")]
        query_key = []
        value_projection = []
        for layer in layers:
            W_Q, W_K, W_V, W_proj = (weights[layer + W] for W in ("W_Q", "W_K", "W_V", "W_proj"))
            diagonals = (W_Q @ W_K.mT).diagonal(dim1=-2, dim2=-1)
            query_key.append(round(diagonals.mean().item(), 4))
            value_projection.append(round((W_V @ W_proj).diagonal().mean().item(), 4))
        run.result[f"diagonals_{when}"] = {
            "query-key": query_key,
            "value-projection": value_projection,
        }


def options_of(name):
    """The options of an experiment, as its script reads them."""
    file, *words = EXPERIMENTS[name].split()
    task = file.removeprefix("train_").removesuffix(".py")
    return options.parse(SCRIPTS[file].make_parser(), words, task=task)


def planned(name):
    """The number of runs of an experiment."""
    args = options_of(name)
    return len(args.seed) * len(args.lr) * len(args.init)


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        if name not in EXPERIMENTS:
            raise ValueError(f"there is no experiment {name}; give no name to list them")
    for name in sys.argv[1:]:
        run(name)
    if len(sys.argv) == 1:
        for name, line in EXPERIMENTS.items():
            path = RAW / f"{name}.json"
            done = len(json.loads(path.read_text())["runs"]) if path.exists() else 0
            print(f"{name:24} {done:3} of {planned(name):3} runs   python {line}")


if __name__ == "__main__":
    # A mistake is one line and no traceback, and Ctrl-C says how to go on.
    script.run(prepare=lambda: [main()], train_grid=lambda _: None)
