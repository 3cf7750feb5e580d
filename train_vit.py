"""Does a vision transformer learn better from a mimetic start? Train it from several, side by side, on small images.

    python train_vit.py                                      default, noise and mimetic on the digits: a minute
    python train_vit.py --init default mimetic --seed 0 1 2 --lr 1e-3 2e-3
    python train_vit.py --data cifar10 --patch-size 4 --dim 96 --depth 6 --heads 3 --limit 5000 --lr 1e-3 --epochs 15
    python train_vit.py --data my_images.npz --patch-size 4  your own images (see README.md)
"""
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import options, training
from mimetic_min.data import CIFAR, augment, fingerprint, load_images, moments
from mimetic_min.parallel import in_turn, share, total
from mimetic_min.vit import ViT, ViTConfig, require

PARSER = options.parser(__doc__.splitlines()[0], ViT, ViTConfig, lr=2e-3, batch_size=50)
PARSER.add_argument("--data", default="digits", help="digits, cifar10, cifar100, or an .npz of your own")
PARSER.add_argument("--data-dir", help="with the binary files of cifar10 or cifar100; without it they are downloaded")
PARSER.add_argument("--augment", type=options.AUGMENT, help="none, crop or crop+flip; the last is cifar's default")
PARSER.add_argument("--epochs", type=options.COUNT, default=40, help="passes over the training images")
PARSER.add_argument("--patch-size", type=options.COUNT, default=ViTConfig.patch_size, help="pixels a side of a token")
PARSER.add_argument("--limit", type=options.COUNT, help="train on the first so many images alone")


def main(argv=None):
    """Train the grid of runs that the options ask for. Raises ValueError for one that is wrong."""
    o = options.parse(PARSER, argv, "vit")
    o.augment = o.augment or ("crop+flip" if o.data in CIFAR else "none")    # a mirrored digit is none
    with in_turn():
        arrays = load_images(o.data, o.limit, o.data_dir)
    classes = int(max(labels.max() for labels in arrays[1::2])) + 1
    train_images, train_labels, test_images, test_labels = (t.to(o.device) for t in arrays)
    channels, image_size = train_images.shape[1:3]
    config = ViTConfig(image_size, o.patch_size, channels, classes, o.dim, o.depth, o.heads, o.position)
    require(o.batch_size <= len(train_images), "batch_size", o.batch_size,
            f"at most {len(train_images)}, the number of training images")
    steps_an_epoch = len(train_images) // o.batch_size

    mean, deviation = (t.to(o.device) for t in moments(arrays[0]))

    def normalise(images):                                      # uint8 to mean 0 and deviation 1 in each channel
        return (images - mean) / deviation

    @lru_cache(1)
    def plan(seed, epoch):                                      # the order of an epoch, and how each image is augmented
        random = np.random.default_rng([seed, epoch])
        order, draws = random.permutation(len(train_images)), random.random((len(train_images), 3), np.float32)
        return torch.from_numpy(order).to(o.device), torch.from_numpy(draws).to(o.device)

    def loss(model, seed, step):
        epoch, i = divmod(step, steps_an_epoch)
        order, draws = (share(part[i * o.batch_size : (i + 1) * o.batch_size]) for part in plan(seed, epoch))
        images = train_images[order]
        if o.augment != "none":
            images = augment(images, draws, flip=o.augment == "crop+flip")
        return F.cross_entropy(model(normalise(images)), train_labels[order])

    def evaluate(model):                                        # every test image once
        batches = zip(share(test_images).split(250), share(test_labels).split(250))
        correct = sum((model(normalise(images)).argmax(-1) == labels).sum() for images, labels in batches)
        return {"accuracy": total(correct).item() / len(test_images)}

    training.run_grid(training.Experiment(
        task="vit", fingerprint=fingerprint(*arrays), model=lambda: ViT(config), loss=loss, evaluate=evaluate,
        steps=o.epochs * steps_an_epoch, betas=(0.9, 0.999), weight_decay=0.05), o)


if __name__ == "__main__":
    options.script(main, PARSER)
