"""Images and text for the two training scripts: shipped with the project, downloaded once, or the user's own file.

A download goes to data/ and counts only once its SHA-256 is right. Nothing is unpickled.
"""
import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .report import in_place, write
from .vit import require

DOWNLOADS = {  # name: (address, SHA-256, where it goes)
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", Path("data/cifar-10-batches-bin")),
    "cifar100": ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                 "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", Path("data/cifar-100-binary")),
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", Path("data/tinyshakespeare.txt")),
}
CIFAR = {  # name: (training files, test file, bytes of labels before the 3,072 of an image, classes)
    "cifar10": ([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1, 10),
    "cifar100": (["train.bin"], "test.bin", 2, 100),           # the second label is the finer one, of 100 classes
}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_images(source, limit=None, data_dir=None):
    """Four tensors, train_images, train_labels, test_images and test_labels: images uint8 (n, channels, size, size).

    `source` is one of
    - "digits", the 1,797 8x8 scans, values 0 to 16, of the UCI Optical Recognition of Handwritten Digits test set
      (E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), in the order in which
      scikit-learn's load_digits has them: the first 1,000 train, the last 797 test;
    - "cifar10" or "cifar100", the binary versions of https://www.cs.toronto.edu/~kriz/cifar.html (A. Krizhevsky, 2009),
      out of the folder `data_dir`, or without one out of data/, where they are downloaded to once;
    - the path of an .npz that holds arrays of these four names: square images as uint8 (n, size, size) or
      (n, size, size, channels), labels as whole numbers from 0.
    With `limit`, only the first `limit` training images are used. Raises ValueError, which names the file and what is
    wrong with it.
    """
    require(data_dir is None or source in CIFAR, "data_dir", data_dir, f"left out, as the data are {source!r}")
    if source == "digits":
        with np.load(Path(__file__).with_name("digits.npz")) as file:
            images, labels = file["images"][:, None], file["labels"]
        arrays = [images[:1000], labels[:1000], images[1000:], labels[1000:]]
    else:
        arrays = _read_cifar(source, data_dir) if source in CIFAR else _read_npz(source)
    count = len(arrays[0])
    require(limit is None or 1 <= limit <= count, "limit", limit, f"from 1 to {count}, the number of training images")
    train_images, train_labels, test_images, test_labels = map(torch.from_numpy, arrays)
    return (train_images[:limit].contiguous(), train_labels[:limit].long(),
            test_images.contiguous(), test_labels.long())


def _read_cifar(source, data_dir):
    train_files, test_file, label_bytes, classes = CIFAR[source]
    folder = DOWNLOADS[source][2] if data_dir is None else Path(data_dir)
    files = [*train_files, test_file]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing and data_dir is None:
        with _download(source, f"{', '.join(files)} into {folder} or a --data-dir") as archive:
            _unpack(archive, folder, missing)

    def check(ok, file, wrong):
        require(ok, "data_dir", str(folder), f"a folder with the binary files of {source}; {file} {wrong}")

    def read(file, count):
        try:
            records = np.fromfile(folder / file, np.uint8)
        except OSError as error:
            check(False, file, f"cannot be read ({error.strerror})")
        size = count * (label_bytes + 3072)
        check(len(records) == size, file, f"has {len(records):,} bytes, not {size:,}")
        records = records.reshape(count, -1)
        images, labels = records[:, label_bytes:].reshape(count, 3, 32, 32), records[:, label_bytes - 1]
        check(labels.max() < classes, file, f"holds the label {labels.max()}; they go from 0 to {classes - 1}")
        return images, labels

    train = [read(file, 50_000 // len(train_files)) for file in train_files]
    return [*map(np.concatenate, zip(*train)), *read(test_file, 10_000)]


def _read_npz(source):
    def check(ok, wrong):
        right = f"'digits', 'cifar10', 'cifar100' or an .npz with the arrays {', '.join(ARRAYS)}; {wrong}"
        require(ok, "data", source, right)

    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
    except OSError as error:
        check(False, f"it cannot be read ({error.strerror or error})")
    except MemoryError:
        check(False, "it is larger than the memory")
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
        check(0 <= labels.min() and labels.max() < 2**16, f"{name}_labels go from {labels.min()} to {labels.max()}")
        check(labels.max() <= train_labels.max(),
              f"{name}_labels go up to {labels.max()}, those in training to {train_labels.max()}")
    check(train_images.shape[1:] == test_images.shape[1:],
          f"a training image is {train_images.shape[1:]}, a test image {test_images.shape[1:]}")
    if train_images.ndim == 3:
        train_images, test_images = train_images[..., None], test_images[..., None]
    return [train_images.transpose(0, 3, 1, 2), train_labels.astype(np.int64),
            test_images.transpose(0, 3, 1, 2), test_labels.astype(np.int64)]


def _download(source, put):
    """A nameless temporary file with what is downloaded. Raises ValueError, which says what to `put` where instead."""
    address, sha256, path = DOWNLOADS[source]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=path.parent)          # gone when it is closed, or the process ends
        with urllib.request.urlopen(address, timeout=60) as response:
            total = f" of {response.length / 1e6:.1f}" if response.length else ""
            while chunk := response.read(1 << 20):
                file.write(chunk)
                in_place(f"downloading {address}: {file.tell() / 1e6:.1f}{total} MB", done=False)
        size = file.seek(0, os.SEEK_END)
        in_place(f"downloaded {address}: {size / 1e6:.1f}{total} MB", done=True)
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        wrong = found != sha256 and f"its {size:,} bytes have the SHA-256 {found}, not {sha256}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        in_place("", done=False)                                # clears the line
        wrong = [*str(error).splitlines(), type(error).__name__][0]
    require(not wrong, "data", source, f"downloaded from {address}, which failed ({wrong}); try again, or put {put}")
    file.seek(0)
    return file


def _unpack(archive, folder, files):
    """Write the `files` of a .tar.gz into `folder`, each under its own name and no other."""
    contents = {}
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for file in files:
                contents[file] = tar.extractfile(f"{folder.name}/{file}").read()
    except Exception:                             # whatever tarfile makes of an archive that is something else
        pass
    missing = [file for file in files if file not in contents]
    require(not missing, "data_dir", str(folder), f"filled by hand: the archive has no {', '.join(missing)}")
    for file in files:
        write(folder / file, contents[file])


def moments(images):
    """Mean and deviation of each channel of uint8 images (n, channels, size, size): float32 (channels, 1, 1).

    A channel that is all one value has the deviation 1, so that it becomes all zero.
    """
    pixels, parts = images[:, 0].numel(), images.split(1000)    # a sum of all at once makes int64 of all
    mean = sum(part.sum((0, 2, 3)) for part in parts).double() / pixels
    squares = sum(part.int().square().sum((0, 2, 3)) for part in parts).double() / pixels
    deviation = (squares - mean**2).sqrt()
    deviation[deviation == 0] = 1.0
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def fingerprint(*arrays):
    """A number that tells data from others: the CRC-32 of arrays of bytes, of a long one its first and last million."""
    crc = 0
    for array in arrays:
        flat = np.asarray(array).reshape(-1)
        for part in (flat,) if flat.nbytes < 1 << 28 else (flat[:1_000_000], flat[-1_000_000:]):
            crc = zlib.crc32(part, crc)
    return crc


def augment(images, draws, flip):
    """Each image (batch, channels, size, size) cropped out of itself with an eighth of its size in zeros around it.

    With `flip`, half of them are mirrored as well. For 32x32 this is the recipe of He et al. (2015), section 4.2. It is
    one gather on the device of the images. `draws` (batch, 3) are uniform between 0 and 1, and decide on all three.
    """
    batch, _, size, _ = images.shape
    pad, device = size // 8, images.device
    row, column = (draws[:, :2] * (2 * pad + 1)).long().split(1, dim=1)                                  # (batch, 1)
    along = torch.arange(size, device=device)
    rows, columns = row + along, column + along                                                          # (batch, size)
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    padded, n = F.pad(images, (pad, pad, pad, pad)), torch.arange(batch, device=device)
    return padded[n[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def load_text(source, context):
    """Two uint8 arrays, the first 90% of the bytes for training and the last 10% for validation.

    `source` is "docs", the Python language reference that comes with CPython (its text differs a little between
    releases); "shakespeare", Tiny Shakespeare (A. Karpathy, 2015), downloaded to data/ once; or the path of any file,
    which is mapped into memory and may be larger than that. Raises ValueError if it cannot be read, or is too short
    for one window of `context` bytes and the next byte in either part.
    """
    if source == "docs":
        from pydoc_data.topics import topics
        text = np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
    else:
        try:
            path = _shakespeare() if source == "shakespeare" else source
            text = np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.empty(0, np.uint8)
        except OSError as error:
            right = f"'docs', 'shakespeare' or a file; it cannot be read ({error.strerror})"
            require(False, "data", source, right)
    cut = len(text) * 9 // 10
    require(len(text) - cut > context, "data", source,
            f"longer: the last tenth of its {len(text)} bytes is no more than the context of {context}")
    return text[:cut], text[cut:]


def _shakespeare():
    address, sha256, path = DOWNLOADS["shakespeare"]
    if not path.exists():
        with _download("shakespeare", f"it at {path}") as file:
            write(path, file.read())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    require(found == sha256, "data", "shakespeare", f"the published text, but {path} is another (SHA-256 {found}): "
            f"move it away, or train on it with --data {path}")
    return path
