"""Images and text for the two training scripts.

Two data sets need no network: the digits, which come with this project, and the language reference
that comes with Python. datasets.py reads the others, and lab/download.py downloads them. Nothing is
ever unpickled.
"""

import os
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import datasets

# Those that are downloaded, by their names for --data.
IMAGES = ("cifar10", "cifar100", "svhn", "tiny-imagenet")
TEXTS = ("shakespeare", "enwik8", "wikitext-103")

# ---------------------------------------------------------------------------------------------
# Images


def load_images(source, limit=None, data_dir=None, image_size=None):
    """Four tensors: train_images, train_labels, test_images, test_labels.

    Images are uint8 (n, channels, size, size), labels int64 (n,). `source` is one of

    - "digits": the 1,797 scans of 8x8, with values from 0 to 16, of the UCI "Optical Recognition of
      Handwritten Digits" test set (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0,
      https://doi.org/10.24432/C50P49). The first 1,000 are for training, the last 797 for the test.
    - "shifted-digits": the same scans, each placed at random on a canvas of 12x12.
    - "cifar10", "cifar100", "svhn", "tiny-imagenet": downloaded to data/ once, or read from the
      folder `data_dir`. SVHN needs SciPy, and Tiny ImageNet needs Pillow.
    - the path of an .npz with arrays of the four names above: square images as uint8
      (n, size, size) or (n, size, size, channels), labels as whole numbers from 0.
    - the path of a folder of pictures, each of which is scaled to `image_size` on its shorter side
      and cut to a square (see datasets.read_folder). This needs Pillow, too.

    With `limit` only the first `limit` training images are used. Raises ValueError, with one line
    that names what is wrong.
    """
    check_data_dir(source, data_dir, IMAGES)
    is_folder = source not in ("digits", "shifted-digits", *IMAGES) and os.path.isdir(source)
    if image_size is not None and not is_folder:
        raise ValueError(f"image_size is for a folder of pictures, but the data are {source}")

    if source == "digits":
        arrays = read_digits()
    elif source == "shifted-digits":
        arrays = shift(read_digits())
    elif source in ("cifar10", "cifar100"):
        arrays = datasets.read_cifar(source, data_dir)
    elif source == "svhn":
        arrays = datasets.read_svhn(data_dir)
    elif source == "tiny-imagenet":
        arrays = datasets.read_tiny_imagenet(limit, data_dir)
    elif is_folder:
        arrays = datasets.read_folder(source, limit, image_size)
    else:
        arrays = read_npz(source)

    train_images, train_labels, test_images, test_labels = arrays
    datasets.check_limit(limit, len(train_images))
    return (
        as_tensor(train_images[:limit]),
        as_tensor(train_labels[:limit]).long(),
        as_tensor(test_images),
        as_tensor(test_labels).long(),
    )


def as_tensor(array):
    """The array as a tensor: copied only if it is not contiguous, or not writable."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def check_data_dir(source, data_dir, downloaded):
    """Raise ValueError if there is a `data_dir` that the source would ignore."""
    if data_dir is not None and source not in downloaded:
        names = ", ".join(downloaded)
        raise ValueError(f"data_dir is for {names}, but the data are {source}")


def read_digits():
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images = file["images"][:, None]  # (1797, 1, 8, 8)
        labels = file["labels"]
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def shift(digits):
    """Place each scan of 8x8 at random on a canvas of 12x12.

    In the digits as they come, a stroke is always at the same place, so that a model without
    attention reads them just as well, and they say nothing about attention. Here the parts of a
    digit have to be found first, and each image keeps its place, in every epoch and every run.
    """
    train_images, train_labels, test_images, test_labels = digits
    images = np.concatenate([train_images, test_images])
    places = np.random.default_rng(0).integers(0, 5, (len(images), 2))
    canvas = np.zeros((len(images), 1, 12, 12), np.uint8)
    for i, (row, column) in enumerate(places):
        canvas[i, :, row : row + 8, column : column + 8] = images[i]
    cut = len(train_images)
    return canvas[:cut], train_labels, canvas[cut:], test_labels


def read_npz(source):
    """The four arrays of an .npz of the user's own."""
    names = ("train_images", "train_labels", "test_images", "test_labels")
    known = ", ".join(("shifted-digits", "digits", *IMAGES))
    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except FileNotFoundError as error:
        raise ValueError(
            f"data must be {known}, an .npz or a folder of pictures, but there is no file {source}"
        ) from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise ValueError(f"{source} is larger than the memory") from error
    except Exception as error:
        # Whatever NumPy raises for a file that is something else, or broken.
        raise ValueError(f"{source} cannot be read as an .npz of arrays") from error

    for name in names:
        if name not in arrays:
            raise ValueError(f"{source} must hold the array {name}, but it has none of that name")
    train_labels = arrays["train_labels"]
    for part in ("train", "test"):
        check_npz_part(f"{source}: {part}", arrays[f"{part}_images"], arrays[f"{part}_labels"])
    if arrays["test_labels"].max() > train_labels.max():
        raise ValueError(
            f"{source}: test_labels go up to {arrays['test_labels'].max()}, but those in training "
            f"only to {train_labels.max()}"
        )
    train_shape = arrays["train_images"].shape[1:]
    test_shape = arrays["test_images"].shape[1:]
    if train_shape != test_shape:
        raise ValueError(
            f"{source}: test images must be {train_shape}, like those in training, "
            f"but they are {test_shape}"
        )

    for part in ("train", "test"):
        images = arrays[f"{part}_images"]
        if images.ndim == 3:
            images = images[..., None]
        arrays[f"{part}_images"] = images.transpose(0, 3, 1, 2)
        arrays[f"{part}_labels"] = arrays[f"{part}_labels"].astype(np.int64)
    return [arrays[name] for name in names]


def check_npz_part(part, images, labels):
    """Raise ValueError unless these are images and their labels."""
    if images.dtype != np.uint8:
        raise ValueError(f"{part}_images must be uint8, but they are {images.dtype}")
    if images.ndim not in (3, 4) or images.size == 0 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"{part}_images must have the shape (n, size, size) or (n, size, size, channels), "
            f"but it is {images.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{part}_labels must be whole numbers, but they are {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{part}_labels must have the shape ({len(images)},), one for each image, "
            f"but it is {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= 2**16:
        raise ValueError(
            f"{part}_labels must be between 0 and {2**16 - 1}, but they go from {labels.min()} "
            f"to {labels.max()}"
        )


def mean_and_std(images):
    """Mean and standard deviation of each channel: two float32 tensors (channels, 1, 1).

    `images` are uint8 (n, channels, size, size). A channel that has one value everywhere gets the
    deviation 1, so that it becomes zero and not NaN when it is normalised.
    """
    pixels = images[:, 0].numel()
    total, squares = 0, 0
    # Part by part, since the int32 copy is four times as large as the images.
    for part in images.split(1000):
        total = total + part.sum((0, 2, 3))  # (channels,)
        squares = squares + part.int().square().sum((0, 2, 3))
    mean = total.double() / pixels
    std = (squares.double() / pixels - mean**2).sqrt()
    std[std == 0] = 1.0
    return mean.float()[:, None, None], std.float()[:, None, None]


def augment(images, draws, flip):
    """Pad each image with zeros, crop it at random, and with `flip` mirror half of them.

    `images` are (batch, channels, size, size), and the zeros are an eighth of the size wide; for
    32x32 this is the recipe of He et al. (2015), section 4.2. `draws` (batch, 3) are uniform from 0
    to 1: the first two of a row are the place of the crop, and the third mirrors it if below 0.5.
    """
    batch, _, size, _ = images.shape
    pad = size // 8
    padded = F.pad(images, (pad, pad, pad, pad))
    top_left = (draws[:, :2] * (2 * pad + 1)).long()  # (batch, 2)
    along = torch.arange(size, device=images.device)
    rows = top_left[:, :1] + along  # (batch, size)
    columns = top_left[:, 1:] + along  # (batch, size)
    if flip:
        mirrored = draws[:, 2:] < 0.5  # (batch, 1)
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(batch, device=images.device)[:, None, None]
    crops = padded[image, :, rows[:, :, None], columns[:, None, :]]  # (batch, size, size, channels)
    return crops.permute(0, 3, 1, 2)


def fingerprint(*arrays):
    """A number that identifies the data: the CRC-32 of the bytes of all arrays.

    Of an array larger than 256 MB it takes only the first and last million entries, to be quick.
    """
    crc = 0
    for array in arrays:
        flat = np.asarray(array).reshape(-1)
        if flat.nbytes < 1 << 28:
            crc = zlib.crc32(flat, crc)
        else:
            crc = zlib.crc32(flat[:1_000_000], crc)
            crc = zlib.crc32(flat[-1_000_000:], crc)
    return crc


# ---------------------------------------------------------------------------------------------
# Text


def load_text(source, context, data_dir=None):
    """Two uint8 arrays, the bytes for training and the bytes for validation.

    `source` is one of

    - "docs": the Python language reference that comes with CPython. Its text differs a little
      between releases.
    - "shakespeare" (A. Karpathy, 2015), "enwik8" (M. Mahoney, 2006: the first 100 million bytes of
      Wikipedia), "wikitext-103" (S. Merity et al., 2016: the raw text): downloaded to data/ once,
      or read from the folder `data_dir`.
    - the path of a file, which is mapped into memory and may be larger than that.

    The first 90% are for training and the last 10% for validation, except that enwik8 has its usual
    split of 90 and 5 million bytes, and WikiText-103 its own. Raises ValueError if the text
    cannot be read, or if a part is too short for one window of `context` bytes and the byte after.
    """
    check_data_dir(source, data_dir, TEXTS)
    if source in TEXTS:
        train, validation = datasets.read_text(source, data_dir)
    else:
        text = read_docs() if source == "docs" else map_file(source)
        cut = len(text) * 90 // 100
        train, validation = text[:cut], text[cut:]
    if min(len(train), len(validation)) <= context:
        raise ValueError(
            f"the parts for training and validation must be longer than the context of {context} "
            f"bytes, but those of {source} have {len(train):,} and {len(validation):,} bytes"
        )
    return train, validation


def read_docs():
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode(), np.uint8)


def map_file(path):
    """The bytes of a file, read only when they are looked at."""
    try:
        if os.path.getsize(path) == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r")
    except FileNotFoundError as error:
        known = ", ".join(("docs", *TEXTS))
        raise ValueError(f"data must be {known} or a file, but there is no file {path}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
