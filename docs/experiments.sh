#!/usr/bin/env bash
# The experiments of docs/results.md, each a command of one of the two scripts.
#
#     bash docs/experiments.sh text                   into runs/text; the same again resumes
#     bash docs/experiments.sh text --seed 20 21      options that follow win, here other seeds
#     RUN="torchrun --nproc_per_node=4" bash docs/experiments.sh text       four runs at a time
#     python docs/report.py add runs/text             its finished runs into docs/results.csv
#
# The data are downloaded once. (Without a network: DATA="--data-dir FOLDER", with the files there.)
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?give the name of an experiment}
shift
run=${RUN:-python}

controls="--init default xavier shuffled mimetic"
three="--init default shuffled mimetic"
# Two seeds choose a rate for each init. What is reported comes from others, at the chosen rate:
#     bash docs/experiments.sh text-rates --lr 4e-3 --seed 0 1 2 3 4
choosing="--seed 10 11"
cifar="train_vit.py --data cifar10 --patch-size 4 ${DATA:-}"
small="$cifar --limit 5000"

case $name in
    # Text: the Python reference
    text)                 c="train_lm.py --seed 0 1 2 3 4" ;;
    text-rates)           c="train_lm.py --steps 1000 $controls --lr 2e-3 4e-3 8e-3 $choosing" ;;
    text-large)           c="train_lm.py --steps 1000 $three --dim 256 --depth 6 --heads 8 --context 128 --lr 2e-3 --seed 0 1 2" ;;
    shakespeare)          c="train_lm.py --data shakespeare --steps 2000 $controls --seed 0 1 2 ${DATA:-}" ;;
    # Which of the two matters, positions or stream?
    sincos-unit)          c="train_lm.py --position sincos --stream unit $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    learned-unit)         c="train_lm.py --position learned --stream unit $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    sincos-gpt2)          c="train_lm.py --position sincos --stream gpt2 $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    learned-gpt2)         c="train_lm.py --position learned --stream gpt2 $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    # Parts of the method
    text-parts)           c="train_lm.py --init query-key value-projection simple language --seed 0 1 2" ;;
    text-qk-flipped)      c="train_lm.py --init mimetic --qk-beta -0.7 --seed 0 1 2" ;;
    text-vp-flipped)      c="train_lm.py --init mimetic --vp-beta 0.4 --seed 0 1 2" ;;

    # Shifted digits
    digits)               c="train_vit.py --seed 0 1 2 3 4 5 6 7 8 9" ;;
    digits-rates)         c="train_vit.py --epochs 40 $controls --lr 1e-3 2e-3 4e-3 $choosing" ;;

    # CIFAR-10, 5,000 images
    cifar)                c="$small --lr 1e-3 --seed 0 1 2 3 4" ;;
    cifar-rates)          c="$small --lr 5e-4 1e-3 2e-3 $choosing" ;;
    cifar-wide)           c="$small --lr 1e-3 $three --dim 96 --depth 6 --heads 3 --seed 0 1 2" ;;
    cifar-deep)           c="$small --lr 1e-3 $three --dim 64 --depth 12 --heads 2 --seed 0 1 2" ;;
    cifar-parts)          c="$small --lr 1e-3 --init query-key value-projection simple --seed 0 1 2" ;;
    cifar-qk-flipped)     c="$small --lr 1e-3 --init mimetic --qk-beta -0.7 --seed 0 1 2" ;;
    cifar-vp-flipped)     c="$small --lr 1e-3 --init mimetic --vp-beta 0.4 --seed 0 1 2" ;;
    # CIFAR-10, all 50,000 images
    cifar-all)            c="$cifar --epochs 10 --batch-size 100 --lr 1e-3 $controls --seed 0 1 2" ;;
    cifar-all-wide)       c="$cifar --epochs 10 --batch-size 100 --lr 1e-3 $controls --dim 96 --depth 6 --heads 3 --seed 0 1 2" ;;
    # The paper's model, ViT-Tiny. This needs a GPU.
    vit-tiny)             c="$cifar --epochs 30 --batch-size 512 --lr 1e-3 $three --dim 192 --depth 12 --heads 3" ;;
    *)                    echo "no experiment is called $name" >&2; exit 2 ;;
esac
$run $c --out "runs/$name" "$@"
