"""Does a GPT learn better from a mimetic start? Train it from several, side by side, on the bytes of a text.

    python train_lm.py                                       default, noise and mimetic on the Python reference
    python train_lm.py --init default mimetic --seed 0 1 2 --lr 1e-3 2e-3
    python train_lm.py --data shakespeare --steps 2000       nanoGPT's setting for a CPU
    python train_lm.py --data my_text.txt                    your own file
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import options, training
from mimetic_min.data import fingerprint, load_text
from mimetic_min.gpt import GPT, GPTConfig
from mimetic_min.parallel import in_turn, share, total

PARSER = options.parser(__doc__.splitlines()[0], GPT, GPTConfig, lr=1e-3, batch_size=12)
PARSER.add_argument("--data", default="docs", help="docs, shakespeare, or a file of your own")
PARSER.add_argument("--steps", type=options.COUNT, default=1000, help="batches to train on")
PARSER.add_argument("--context", type=options.COUNT, default=GPTConfig.context, help="bytes the model looks back on")
PARSER.add_argument("--sample", type=options.COUNT, default=200, help="bytes that each trained model writes")


def main(argv=None):
    """Train the grid of runs that the options ask for. Raises ValueError for one that is wrong."""
    o = options.parse(PARSER, argv, "lm")
    config = GPTConfig(context=o.context, dim=o.dim, depth=o.depth, heads=o.heads, position=o.position)
    with in_turn():
        text, validation = load_text(o.data, o.context)

    def windows(text, starts):                                  # each byte and the next one: (batch, context + 1)
        windows = torch.from_numpy(text[starts[:, None] + np.arange(o.context + 1)])
        return windows.to(o.device, non_blocking=True).long()

    def cross_entropy(model, tokens):                           # nats a byte
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def loss(model, seed, step):
        starts = np.random.default_rng([seed, step]).integers(0, len(text) - o.context, o.batch_size)
        return cross_entropy(model, windows(text, share(starts)))

    def evaluate(model):                                        # 256 windows, spread over the validation text evenly
        count = -((o.context - len(validation)) // o.context)   # windows side by side
        starts = np.linspace(0, count - 1, min(count, 256)).astype(int) * o.context
        mine, nats = share(starts), torch.zeros((), device=o.device)
        for batch in (mine[i : i + 32] for i in range(0, len(mine), 32)):
            nats += cross_entropy(model, windows(validation, batch)) * len(batch)
        nats = total(nats).item() / len(starts)
        return {"loss": nats, "bpc": nats / math.log(2), "perplexity": math.exp(min(nats, 700))}  # e^710 overflows

    def sample(model, seed):
        generator = torch.Generator(o.device).manual_seed(seed)
        newline = torch.tensor([[ord("\n")]], device=o.device)
        tokens = model.generate(newline, o.sample, temperature=0.8, generator=generator)
        return bytes(tokens[0, 1:].tolist()).decode(errors="replace")

    runs = training.run_grid(training.Experiment(
        task="lm", fingerprint=fingerprint(text, validation), model=lambda: GPT(config), loss=loss, evaluate=evaluate,
        steps=o.steps, betas=(0.9, 0.99), weight_decay=0.1, sample=sample), o)  # nanoGPT's recipe for characters
    for init in dict.fromkeys(o.init):
        for run in [run for run in runs if run["init"] == init and "sample" in run][:1]:
            print(f"\n---- {init}, seed {run['seed']}, lr {run['lr']:g}, writes:\n{run['sample']}")


if __name__ == "__main__":
    options.script(main, PARSER)
