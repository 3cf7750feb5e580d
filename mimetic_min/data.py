"""Images and text for the two training scripts: what ships with the project, or the user's own file.

Nothing is downloaded, and nothing is unpickled.
"""
from pathlib import Path

import numpy as np
import torch

from .vit import require

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_images(source, limit=None):
    """Four tensors, train_images, train_labels, test_images and test_labels: images uint8 (n, channels, size, size).

    `source` is "digits" or the path of an .npz that holds arrays of these four names: square images as uint8
    (n, size, size) or (n, size, size, channels), labels as whole numbers from 0. With `limit`, only the first `limit`
    training images are used. Raises ValueError, which names the file and what is wrong with it.

    The digits are the 1,797 8x8 scans, values 0 to 16, of the UCI Optical Recognition of Handwritten Digits test set
    (E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), in the order in which scikit-learn's
    load_digits has them: the first 1,000 train, the last 797 test.
    """
    if source == "digits":
        with np.load(Path(__file__).with_name("digits.npz")) as file:
            images, labels = file["images"], file["labels"]
        arrays = [images[:1000], labels[:1000], images[1000:], labels[1000:]]
    else:
        arrays = _read_npz(source)
    train_images, test_images = map(torch.from_numpy, arrays[::2])
    train_labels, test_labels = (torch.from_numpy(labels.astype(np.int64)) for labels in arrays[1::2])
    if train_images.ndim == 3:
        train_images, test_images = train_images[..., None], test_images[..., None]
    count = len(train_images)
    require(limit is None or 1 <= limit <= count, "limit", limit, f"from 1 to {count}, the number of training images")
    return (train_images[:limit].permute(0, 3, 1, 2).contiguous(), train_labels[:limit],
            test_images.permute(0, 3, 1, 2).contiguous(), test_labels)


def _read_npz(source):
    def check(ok, wrong):
        require(ok, "data", source, f"'digits' or an .npz with the arrays {', '.join(ARRAYS)}; {wrong}")

    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
    except OSError as error:
        check(False, f"it cannot be read ({error.strerror or error})")
    except Exception:                             # whatever NumPy makes of a file that is something else, or broken
        check(False, "it cannot be read as one")
    missing = [name for name in ARRAYS if name not in arrays]
    check(not missing, f"this one has no {', '.join(missing)}")
    train_images, train_labels, test_images, test_labels = arrays.values()
    for name, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        check(images.dtype == np.uint8, f"{name}_images are {images.dtype}, not uint8")
        check(images.ndim in (3, 4) and len(images) and images.shape[1] == images.shape[2] and images.size,
              f"{name}_images have the shape {images.shape}, not (n, size, size) or (n, size, size, channels)")
        check(labels.dtype.kind in "iu", f"{name}_labels are {labels.dtype}, not whole numbers")
        check(labels.shape == images.shape[:1], f"{name}_labels have the shape {labels.shape} for {len(images)} images")
        check(0 <= labels.min() and labels.max() <= train_labels.max(),
              f"{name}_labels go from {labels.min()} to {labels.max()}, those in training to {train_labels.max()}")
    check(train_images.shape[1:] == test_images.shape[1:],
          f"a training image is {train_images.shape[1:]}, a test image {test_images.shape[1:]}")
    return list(arrays.values())


def load_text(source, context):
    """Two uint8 arrays, the first 90% of the bytes for training and the last 10% for validation.

    `source` is "docs", the Python language reference that comes with CPython (its text differs a little between
    releases), or the path of any file. Raises ValueError if that cannot be read, or is too short for one window of
    `context` bytes and the next byte in either part.
    """
    if source == "docs":
        from pydoc_data.topics import topics
        text = np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
    else:
        try:
            text = np.fromfile(source, np.uint8)
        except OSError as error:
            require(False, "data", source, f"'docs' or a file; it cannot be read ({error.strerror})")
    cut = len(text) * 9 // 10
    require(len(text) - cut > context, "data", source,
            f"longer: the last tenth of its {len(text)} bytes is no more than the context of {context}")
    return text[:cut], text[cut:]
