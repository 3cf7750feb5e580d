#!/usr/bin/env bash
# The experiments of docs/results.md. Each is one call of one of the two scripts.
#
#     bash docs/experiments.sh text                   trains into runs/text, or resumes
#     bash docs/experiments.sh text-rates-choose      the runs that chose a rate or a strength
#     bash docs/experiments.sh text --seed 20 21      later options win: different seeds
#     RUN="echo python" bash docs/experiments.sh text                   only prints the command
#     RUN="torchrun --nproc_per_node=4" bash docs/experiments.sh text   four runs at a time
#     python docs/report.py add runs/text             puts the finished runs into results.csv
#
# The results in docs/ come from CPUs in float32, except those of cifar, cifar-parts,
# cifar-qk-flipped, cifar-vp-flipped, cifar-all, vit-tiny, learned-unit, sincos-gpt2, learned-gpt2,
# and most of text-rates-choose and cifar-rates-choose. These come from an H200 GPU, with products in
# bfloat16.
#
# Data are downloaded once. Without a network, set CIFAR10 to an .npz of four arrays, and SHAKESPEARE
# to the text file.
set -euo pipefail
cd "$(dirname "$0")/.."
asked=${1:?give the name of an experiment}
shift
# NAME-choose trains into the folder of NAME: the runs that choose belong to the experiment.
name=${asked%-choose}
choose=

controls="--init default xavier shuffled mimetic"
three="--init default shuffled mimetic"
# These two depend on the strengths. Tables take the other inits from the experiment that is varied.
two="--init shuffled mimetic"

shakespeare="train_lm.py --data ${SHAKESPEARE:-shakespeare}"
cifar="train_vit.py --data ${CIFAR10:-cifar10}${CIFAR10:+ --augment crop+flip} --patch-size 4"
small="$cifar --limit 5000"
wide="$small --lr 1e-3 --dim 96 --depth 6 --heads 3"
eight="$small --lr 1e-3 --depth 8 --heads 2"
deep="$small --lr 1e-3 --depth 12 --heads 2"
textdeep="train_lm.py --steps 1000 --depth 12 --lr 2e-3 --seed 0 1 2"
gpt2="train_lm.py --position learned --stream gpt2 $two --lr 1e-3 4e-3 --seed 0 1 2 --qk-alpha 0.1"

# `choose` holds the options for the tuning runs. Their seeds are not reported.
case $name in
    # Text: the Python reference
    text)                    c="train_lm.py --seed 0 1 2 3 4"
                             choose="--init default --lr 2e-3 4e-3 8e-3 --seed 10 11" ;;
    text-repeat)             c="train_lm.py $three --seed 30 31 32" ;;
    text-rates)              c="train_lm.py --steps 1000 $controls --lr 4e-3 --seed 0 1 2 3 4"
                             choose="--lr 2e-3 4e-3 8e-3 --seed 10 11" ;;
    text-large)              c="train_lm.py --steps 1000 $three --dim 256 --depth 6 --heads 8 --context 128 --lr 2e-3 --seed 0 1 2" ;;
    text-long)               c="train_lm.py --steps 4000 $three --seed 0 1 2" ;;
    text-deep)               c="$textdeep $three" ;;
    text-deep-quarter)       c="$textdeep $two --vp-alpha 0.025 --vp-beta -0.1" ;;
    shakespeare)             c="$shakespeare --steps 2000 $controls --seed 0 1 2" ;;
    # Which of the two matters, positions or stream?
    sincos-unit)             c="train_lm.py --position sincos --stream unit $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    learned-unit)            c="train_lm.py --position learned --stream unit $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    sincos-gpt2)             c="train_lm.py --position sincos --stream gpt2 $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    learned-gpt2)            c="train_lm.py --position learned --stream gpt2 $controls --lr 1e-3 4e-3 --seed 0 1 2" ;;
    # Smaller strengths for nanoGPT's own combination
    gpt2-vp0.02-qk0.7)       c="$gpt2 --qk-beta 0.7 --vp-alpha 0.02 --vp-beta -0.05" ;;
    gpt2-vp0.02-qk0.2)       c="$gpt2 --qk-beta 0.2 --vp-alpha 0.02 --vp-beta -0.05" ;;
    gpt2-vp0-qk0.7)          c="$gpt2 --qk-beta 0.7 --vp-alpha 0 --vp-beta -0.05" ;;
    gpt2-vp0-qk0.2)          c="$gpt2 --qk-beta 0.2 --vp-alpha 0 --vp-beta -0.05" ;;
    # Parts of the method
    text-parts)              c="train_lm.py --init query-key value-projection simple language --seed 0 1 2" ;;
    text-qk-flipped)         c="train_lm.py --init mimetic --qk-beta -0.7 --seed 0 1 2" ;;
    text-vp-flipped)         c="train_lm.py --init mimetic --vp-beta 0.4 --seed 0 1 2" ;;

    # Shifted digits
    digits)                  c="train_vit.py --seed 0 1 2 3 4 5 6 7 8 9"
                             choose="--init default --lr 1e-3 2e-3 4e-3 8e-3 --seed 10 11" ;;
    # Xavier has a different best rate: add --init xavier --lr 4e-3
    digits-rates)            c="train_vit.py --epochs 40 $controls --lr 2e-3 --seed 0 1 2 3 4"
                             choose="--lr 1e-3 2e-3 4e-3 8e-3 --seed 10 11" ;;

    # CIFAR-10, 5,000 images
    cifar)                   c="$small --lr 1e-3 --seed 0 1 2 3 4" ;;
    cifar-rates)             c="$small --lr 2e-3 --seed 0 1 2 3 4"
                             choose="--lr 5e-4 1e-3 2e-3 4e-3 --seed 10 11" ;;
    cifar-repeat)            c="$small --lr 2e-3 $three --seed 30 31 32" ;;
    cifar-long)              c="$small --lr 1e-3 --epochs 100 $three --seed 0 1 2" ;;
    cifar-wide)              c="$wide $three --seed 0 1 2" ;;
    cifar-wide-quarter)      c="$wide $two --seed 0 1 2 --vp-alpha 0.1 --vp-beta -0.1" ;;
    cifar-learned)           c="$small --lr 1e-3 --position learned $controls --seed 0 1 2" ;;
    cifar-parts)             c="$small --lr 1e-3 --init query-key value-projection simple --seed 0 1 2" ;;
    cifar-qk-flipped)        c="$small --lr 1e-3 --init mimetic --qk-beta -0.7 --seed 0 1 2" ;;
    cifar-vp-flipped)        c="$small --lr 1e-3 --init mimetic --vp-beta 0.4 --seed 0 1 2" ;;
    # 12 layers, at several strengths
    cifar-deep)              c="$deep $three --seed 0 1 2 3 4"
                             choose="--lr 2.5e-4 5e-4 1e-3 2e-3 --seed 10 11" ;;
    cifar-deep-slow)         c="$deep --init mimetic --lr 2.5e-4 5e-4 --seed 0 1 2" ;;
    cifar-deep-quarter)      c="$deep $two --seed 0 1 2 3 4 --vp-alpha 0.1 --vp-beta -0.1"
                             choose="--seed 10" ;;
    # The runs that chose a quarter
    cifar-deep-third)        c="$deep $two --seed 10 --vp-alpha 0.133 --vp-beta -0.133" ;;
    cifar-deep-half)         c="$deep --init mimetic --seed 10 --vp-alpha 0.2 --vp-beta -0.2" ;;
    cifar-deep-beta-quarter) c="$deep --init mimetic --seed 10 --vp-alpha 0.4 --vp-beta -0.1" ;;
    cifar-deep-beta-third)   c="$deep --init mimetic --seed 10 --vp-alpha 0.4 --vp-beta -0.133" ;;
    cifar-deep-beta-half)    c="$deep --init mimetic --seed 10 --vp-alpha 0.4 --vp-beta -0.2" ;;
    # 8 layers, one seed
    cifar-8)                 c="$eight $two --seed 10" ;;
    cifar-8-quarter)         c="$eight $two --seed 10 --vp-alpha 0.1 --vp-beta -0.1" ;;
    # CIFAR-10, all 50,000 images
    cifar-all)               c="$cifar --epochs 10 --batch-size 100 --lr 1e-3 $controls --seed 0 1 2" ;;
    # The paper's model, ViT-Tiny. This needs a GPU.
    vit-tiny)                c="$cifar --epochs 30 --batch-size 512 --lr 1e-3 $three --dim 192 --depth 12 --heads 3" ;;
    *)                       echo "no experiment is called $name" >&2; exit 2 ;;
esac
if [[ $asked == *-choose ]]; then
    c+=" ${choose:?"$name has no tuning runs"}"
fi
${RUN:-python} $c --out "runs/$name" "$@"
