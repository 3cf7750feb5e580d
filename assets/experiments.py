"""The experiments behind the README, each one command line of a script.

    python assets/experiments.py                  what there is, and how far it is
    python assets/experiments.py digits strength  start these, or go on with them where they were stopped

A run is in runs/NAME, with its checkpoints; its results.json is kept as assets/results/NAME.json once it is finished.
All take one thread each, so that no figure depends on the number of cores: start as many at a time as there are cores.
"""
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train_lm  # noqa: E402
import train_vit  # noqa: E402
from mimetic_min import figures, options, vit  # noqa: E402

SCRIPTS = {"train_vit.py": train_vit, "train_lm.py": train_lm}
RESULTS = ROOT / "assets/results"
ALL = "--init default noise mimetic"
TEN = "--seed 0 1 2 3 4 5 6 7 8 9"                # five choose the rate, five are reported
FIVE = "--seed 0 1 2 3 4"
PART = f"train_vit.py --lr 2e-3 4e-3 {TEN} --init mimetic"
CIFAR = "train_vit.py --data cifar10 --limit 5000 --epochs 10 --patch-size 4 --dim 96 --depth 6 --heads 3 --lr 1e-3 " \
        "--seed 0 1 2"
DOCS_PART = "train_lm.py --lr 4e-3 --seed 3 4 5 --init"
QK_OFF, VP_OFF = "--qk-alpha off --qk-beta off", "--vp-alpha off --vp-beta off"
FLIPPED_QK, FLIPPED_VP = "--qk-beta=-0.7", "--vp-beta=0.4"
DOCS_GRID = "train_lm.py --lr 1e-3 2e-3 4e-3 8e-3 --seed 0 1 2 3 4 5 --init"
ALPHAS, BETAS = (0, 0.4, 0.7, 1), (-0.7, -0.4, 0, 0.4, 0.7)

EXPERIMENTS = {  # name: the command line
    "digits": f"train_vit.py --init default xavier noise simple mimetic --lr 5e-4 1e-3 2e-3 4e-3 8e-3 {TEN}",
    "qk-alone": f"{PART} {VP_OFF}",
    "vp-alone": f"{PART} {QK_OFF}",
    "qk-alone-flipped": f"{PART} {VP_OFF} {FLIPPED_QK}",
    "vp-alone-flipped": f"{PART} {QK_OFF} {FLIPPED_VP}",
    "both-flipped": f"{PART} {FLIPPED_QK} {FLIPPED_VP}",
    "transposed": PART,
    "learned": f"train_vit.py --position learned --lr 2e-3 4e-3 {TEN} {ALL}",
    **{f"images-{n}": f"train_vit.py --limit {n} --epochs {40_000 // n} --lr 1e-3 4e-3 {TEN} {ALL}"
       for n in (100, 200, 500)},
    **{f"strength/{product}{alpha}{beta:+}":
       f"train_vit.py --init mimetic --{product}-alpha={alpha} --{product}-beta={beta} --seed 0 1"
       for product in ("qk", "vp") for alpha in ALPHAS for beta in BETAS},
    "cifar10": f"{CIFAR} {ALL}",
    "cifar10-transposed": f"{CIFAR} --init mimetic",
    "docs": f"{DOCS_GRID} mimetic",
    "docs-negative": f"{DOCS_GRID} default noise mimetic --qk-beta=-0.1",
    **{f"docs-{name}": f"{DOCS_PART} {words}" for name, words in {
        "qk-alone": f"mimetic {VP_OFF}",
        "vp-alone": f"mimetic {QK_OFF}",
        "vp-flipped": "mimetic --vp-beta=0.05",
        "ramped": "mimetic --vp-beta=-0.1 --vp-last-beta=0.1",
        "paper": "mimetic --qk-beta=-0.4 --vp-beta=-0.1 --vp-last-beta=0.1",
        "vision": "mimetic --qk-alpha=0.7 --qk-beta=0.7 --vp-alpha=0.4 --vp-beta=-0.4",
        "sincos": "default noise mimetic --position sincos"}.items()},
    "shakespeare": f"train_lm.py --data shakespeare --steps 2000 --lr 1e-3 2e-3 4e-3 {FIVE} {ALL}",
}
set_right = vit.Attention.mimetic_init_


@torch.no_grad()
def set_transposed(self, *strengths):
    """What the public copies do: W_V and W_proj go into nn.Linear, which computes x @ W^T, as they are."""
    set_right(self, *strengths)
    for W in (self.W_V, self.W_proj):
        W.copy_(W.T.clone())


TRANSPOSED = patch.object(vit.Attention, "mimetic_init_", set_transposed)
CHANGES = {"transposed": TRANSPOSED, "cifar10-transposed": TRANSPOSED}


def run(name):
    """Start an experiment, or go on with it, and keep its results."""
    script, *words = EXPERIMENTS[name].split()
    folder = ROOT / "runs" / name
    words = ["--resume", str(folder)] if (folder / "results.json").exists() else [*words, "--out", str(folder)]
    with CHANGES.get(name, nullcontext()):
        SCRIPTS[script].main(words)
    (RESULTS / name).parent.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text((folder / "results.json").read_text())
    if name in ("digits", "cifar10", "docs", "docs-negative", "shakespeare"):
        (RESULTS / f"{name}-diagonals.json").write_text(json.dumps(diagonals(folder), indent=1) + "\n")


@torch.no_grad()
def diagonals(folder):
    """The mean of the diagonal of both products in each layer, before and after the training of default and mimetic."""
    rows = []
    for path in sorted(folder.glob("*.pt")):
        state = torch.load(path, weights_only=True)
        if state["run"]["init"] in ("default", "mimetic"):
            row = {key: state["run"][key] for key in ("init", "seed", "lr")}
            for when in ("before", "trained"):
                model = figures.model_of(state, trained=when == "trained")
                for which in ("query-key", "value-projection"):
                    row[f"{which}, {when}"] = [figures.diagonal(figures.product(block.attention, which))
                                               for block in model.blocks]
            rows.append(row)
    return rows


def state(name):
    if (RESULTS / f"{name}.json").exists():
        return "done"
    file = ROOT / "runs" / name / "results.json"
    return f"{len(json.loads(file.read_text())['runs'])} runs" if file.exists() else ""


def main():
    torch.set_num_threads(1)
    for word in sys.argv[1:]:
        names = [name for name in EXPERIMENTS if word in (name, name.split("/")[0])]
        vit.require(names, "experiment", word, "one of those that are listed without any")
        for name in names:
            run(name)
    if not sys.argv[1:]:
        for name, words in EXPERIMENTS.items():
            print(f"{name:20} {state(name):8} python {words}")


if __name__ == "__main__":
    options.script(main, options.Parser(prog="experiments.py"))
