"""The experiments behind the README, each one command line of a script.

    python assets/experiments.py                  what there is, and how far it is
    python assets/experiments.py digits docs      start these, or go on with them where they were stopped

A run is in runs/NAME, with its checkpoints; its results.json is kept as assets/results/NAME.json once it is finished.
"""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "assets/results"
ALL = "--init default noise mimetic"
TEN = "--seed 0 1 2 3 4 5 6 7 8 9"                # five choose the rate, five are reported
QK_OFF, VP_OFF = "--qk-alpha off --qk-beta off", "--vp-alpha off --vp-beta off"
PARTS = f"train_vit.py {TEN} --lr 2e-3 4e-3"
STRENGTHS = [(alpha, beta) for alpha in (0, 0.25, 0.5, 0.75, 1) for beta in (-1, -0.5, 0, 0.5, 1)]

EXPERIMENTS = {  # name: the command line
    "digits": f"train_vit.py --init default xavier noise simple mimetic --lr 5e-4 1e-3 2e-3 4e-3 8e-3 {TEN}",
    "docs": f"train_lm.py {ALL} --lr 1e-3 2e-3 4e-3 8e-3 --seed 0 1 2 3 4 5",
    "shakespeare": f"train_lm.py --data shakespeare --steps 2000 {ALL} --lr 1e-3 2e-3 4e-3 --seed 0 1 2 3 4 5",
    "qk-alone": f"{PARTS} --init noise mimetic {VP_OFF}",
    "vp-alone": f"{PARTS} --init noise mimetic {QK_OFF}",
    "qk-alone-flipped": f"{PARTS} --init mimetic {VP_OFF} --qk-beta=-0.7",
    "vp-alone-flipped": f"{PARTS} --init mimetic {QK_OFF} --vp-beta=0.4",
    "qk-flipped": f"{PARTS} --init mimetic --qk-beta=-0.7",
    "vp-flipped": f"{PARTS} --init mimetic --vp-beta=0.4",
    "both-flipped": f"{PARTS} --init mimetic --qk-beta=-0.7 --vp-beta=0.4",
    "learned": f"{PARTS} {ALL} --position learned",
    **{f"images-{n}": f"train_vit.py {ALL} --limit {n} --epochs {40_000 // n} --lr 1e-3 4e-3 {TEN}"
       for n in (100, 200, 500)},
    **{f"strength-qk-{alpha}-{beta}": f"train_vit.py --init mimetic --seed 0 1 --qk-alpha={alpha} --qk-beta={beta}"
       for alpha, beta in STRENGTHS},
    **{f"strength-vp-{alpha}-{beta}": f"train_vit.py --init mimetic --seed 0 1 --vp-alpha={alpha} --vp-beta={beta}"
       for alpha, beta in STRENGTHS},
    "cifar10": f"train_vit.py --data cifar10 --limit 5000 --epochs 15 --patch-size 4 --dim 96 --depth 6 --heads 3 "
               f"{ALL} --lr 1e-3 2e-3 --seed 0 1 2",
}


def run(name):
    """Start an experiment, or go on with it, and keep its results."""
    script, *words = EXPERIMENTS[name].split()
    folder = ROOT / "runs" / name
    words = ["--resume", folder] if (folder / "results.json").exists() else [*words, "--out", folder]
    subprocess.run([sys.executable, ROOT / script, *words], cwd=ROOT, check=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text((folder / "results.json").read_text())


def state(name):
    if (RESULTS / f"{name}.json").exists():
        return "done"
    file = ROOT / "runs" / name / "results.json"
    return f"{len(json.loads(file.read_text())['runs'])} runs" if file.exists() else ""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if state(name) != "done":
            run(name)
    if not sys.argv[1:]:
        for name, words in EXPERIMENTS.items():
            print(f"{name:20} {state(name):8} python {words}")
