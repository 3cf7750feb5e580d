"""Images and text for the two training scripts, as arrays of bytes.

Two data sets need no network: the digits, which come with this project, and the language reference
that comes with Python. The others are downloaded to data/ once, or read from a folder that you
name. Pictures, arrays and texts of your own are read where they are. Data that cannot be used raise
ValueError, or OSError with the path, in one sentence. Nothing is ever unpickled.
"""

import hashlib
import io
import os
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

# The names of data sets. The first two images and the first text are not downloaded.
IMAGES = ("shifted-digits", "digits", "cifar10", "cifar100", "svhn", "tiny-imagenet")
TEXTS = ("pydoc", "shakespeare", "enwik8", "wikitext-103")

# ---------------------------------------------------------------------------------------------
# Errors, each in one sentence


def check(is_fine, sentence):
    if not is_fine:
        raise ValueError(sentence)


@contextmanager
def explain(sentence):
    """Whatever a library raises on a file, or on a server, gets this sentence in front of it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{sentence} ({str(error) or type(error).__name__})") from error


# ---------------------------------------------------------------------------------------------
# Published files

# File name: address and checksum. Others rely on the same checksums: MLDatasets.jl on those of
# CIFAR, torchvision on those of SVHN, Avalanche on that of Tiny ImageNet, and Hugging Face datasets
# on those of enwik8 and WikiText-103. That of Tiny Shakespeare is of the file in char-rnn.
FILES = {
    "cifar-10-binary.tar.gz": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar-100-binary.tar.gz": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "sha256",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    "train_32x32.mat": (
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        "md5",
        "e26dedcc434d2e4c54c9b2d4a06d8373",
    ),
    "test_32x32.mat": (
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        "md5",
        "eb5a983be6a315427106f1b164d9cef3",
    ),
    "tiny-imagenet-200.zip": (
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "md5",
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
    "tinyshakespeare.txt": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "sha256",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "enwik8.zip": (
        "https://mattmahoney.net/dc/enwik8.zip",
        "sha256",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    ),
    "wikitext-103-raw-v1.zip": (
        "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
        "sha256",
        "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
    ),
}


def fetch(name, data_dir):
    """The path of a published file: in `data_dir`, or else in data/, to where it is downloaded.

    A file gets its name in data/ only when its checksum is right, so one that is there is trusted.
    """
    address, algorithm, checksum = FILES[name]
    path = Path(data_dir or "data", name)
    if path.exists():
        return path
    check(data_dir is None, f"{data_dir} must hold {name} ({address}), or what it unpacks to")

    path.parent.mkdir(exist_ok=True)
    content = bytearray()
    with explain(
        f"cannot download {address}: get it by other means, and put it as {name} into data/, or "
        "into another folder that you name with data_dir (--data-dir)"
    ):
        # Some servers refuse the name with which Python introduces itself.
        with urllib.request.urlopen(
            urllib.request.Request(address, headers={"User-Agent": "mimetic_min"}), timeout=60
        ) as response:
            while chunk := response.read(1 << 20):
                content += chunk
                if sys.stderr.isatty():
                    print(f"{name}: {len(content):,} bytes", end="\r", file=sys.stderr)
        check(
            hashlib.new(algorithm, content).hexdigest() == checksum,
            f"its {len(content):,} bytes do not have the {algorithm} {checksum}",
        )

    # The process id keeps apart two processes that download at the same time.
    temporary = path.with_name(f"{name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def read_members(archive, data_dir, members):
    """The bytes of some members of a published .zip or .tar.gz, which is not unpacked.

    If they lie in the folder already, as the archive unpacks them, they are read from there.
    """
    loose = [Path(data_dir or "data", member) for member in members]
    if loose[0].exists():
        return [path.read_bytes() for path in loose]
    path = fetch(archive, data_dir)
    with explain(f"{path} cannot be read"):
        open_member = (
            zipfile.ZipFile(path).open
            if path.suffix == ".zip"
            else tarfile.open(path, "r:gz").extractfile
        )
        return [open_member(member).read() for member in members]


# ---------------------------------------------------------------------------------------------
# Images


def load_images(data, limit=None, data_dir=None, image_size=None):
    """Four tensors: train, train_labels, test, test_labels.

    Images are uint8 (n, channels, size, size), labels int64 (n,). `data` is one of

    - "digits": the 1,797 scans of 8x8, with values from 0 to 16, of the UCI "Optical Recognition of
      Handwritten Digits" test set (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0,
      https://doi.org/10.24432/C50P49). The first 1,000 are for training, the last 797 for the test.
    - "shifted-digits": the same scans, each placed at random on a canvas of 12x12.
    - "cifar10", "cifar100", "svhn" (needs SciPy), "tiny-imagenet" (needs Pillow): downloaded to
      data/ once, or read from the folder `data_dir`, which holds the published archive, or what it
      unpacks to.
    - the path of an .npz with arrays train_images, train_labels, test_images and test_labels:
      uint8 (n, size, size) or (n, size, size, 1 or 3), and whole numbers from 0, (n,) or (n, 1).
    - the path of a folder of pictures (needs Pillow): FOLDER/train/CLASS/* and FOLDER/test/CLASS/*
      (or val in place of test). Each is scaled to `image_size` on its shorter side, 32 if it is
      None, and the center is cut out. Classes are numbered in the order of their names.

    With `limit` only the first `limit` training images are used. Those of a folder and of Tiny
    ImageNet are in an order that is mixed, and the same every time. Those of an .npz are in its own
    order. Raises ValueError or OSError.
    """
    is_folder = data not in IMAGES and os.path.isdir(data)
    check(
        data_dir is None or data in IMAGES[2:],
        f"data_dir is only for data sets that are downloaded, and {data} is none of them",
    )
    check(
        image_size is None or (is_folder and image_size >= 1),
        f"image_size must be 1 or more, and is only for a folder of pictures, but for {data} it is "
        f"{image_size}",
    )
    check(limit is None or limit >= 1, f"limit must be 1 or more, but it is {limit}")
    check(
        find_spec("PIL") or not (is_folder or data == "tiny-imagenet"),
        f"{data} holds pictures, which need Pillow: pip install pillow",
    )

    readers = {
        "shifted-digits": lambda: read_digits(shifted=True),
        "digits": lambda: read_digits(shifted=False),
        "cifar10": lambda: read_cifar(
            "cifar-10-binary.tar.gz",
            data_dir,
            label_bytes=1,
            train=[f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
            test=["cifar-10-batches-bin/test_batch.bin"],
        ),
        "cifar100": lambda: read_cifar(
            "cifar-100-binary.tar.gz",
            data_dir,
            label_bytes=2,
            train=["cifar-100-binary/train.bin"],
            test=["cifar-100-binary/test.bin"],
        ),
        "svhn": lambda: read_svhn(data_dir),
        "tiny-imagenet": lambda: read_tiny_imagenet(data_dir, limit),
    }
    if data in readers:
        arrays = readers[data]()
    else:
        arrays = read_folder(Path(data), limit, image_size or 32) if is_folder else read_npz(data)

    train, train_labels, test, test_labels = (
        # NumPy copies an array only if it is not contiguous, or not writable.
        torch.from_numpy(np.require(array, requirements=["C", "W"]))
        for array in arrays
    )
    check(
        limit is None or limit <= len(train),
        f"limit must be at most {len(train):,}, the number of training images, but it is {limit}",
    )
    return train[:limit], train_labels[:limit].long(), test, test_labels.long()


def read_digits(shifted):
    """The digits as they come, or each at a random place on a canvas of 12x12.

    In the digits as they come a stroke is always at the same place, so that a model without
    attention reads them just as well, and they say nothing about attention. On the canvas the parts
    of a digit have to be found first. Each image keeps its place, in every epoch and every run.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images = file["images"][:, None]  # (1797, 1, 8, 8)
        labels = file["labels"]
    if shifted:
        places = np.random.default_rng(0).integers(0, 5, (len(images), 2))
        images = np.pad(images, ((0, 0), (0, 0), (0, 4), (0, 4)))
        images = np.stack([np.roll(image, place, (1, 2)) for image, place in zip(images, places)])
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def read_cifar(archive, data_dir, label_bytes, train, test):
    """CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009), the binary version: 50,000 and 10,000 images of
    3x32x32.

    A file is a row of records: one or two labels of a byte each, of which the last is the finer
    one, then 3,072 bytes of pixels, which are the red, the green and the blue plane.
    """
    size = label_bytes + 3072
    arrays = []
    for members in (train, test):
        content = b"".join(read_members(archive, data_dir, members))
        check(
            content and len(content) % size == 0,
            f"{' and '.join(members)} must be records of {size:,} bytes, but have {len(content):,}",
        )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        arrays += [records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]]
    return arrays


def read_svhn(data_dir):
    """The Street View House Numbers (Y. Netzer et al., 2011), cropped: 73,257 and 26,032 images of
    3x32x32. The digit 0, which is the label 10 in the files, gets the label 0.
    """
    check(find_spec("scipy"), "svhn needs SciPy, which reads its files: pip install scipy")
    from scipy.io import loadmat

    arrays = []
    for path in [fetch(f"{part}_32x32.mat", data_dir) for part in ("train", "test")]:
        with explain(f"{path} cannot be read"):
            variables = loadmat(path)
            arrays += [variables["X"].transpose(3, 0, 1, 2), variables["y"] % 10]
    return channels_first("svhn", arrays)


def read_npz(path):
    with (
        explain(
            f"data must be {', '.join(IMAGES)}, a folder or an .npz, but {path} cannot be read"
        ),
        np.load(path, allow_pickle=False) as file,
    ):
        arrays = [
            np.asarray(file[f"{part}_{kind}"])
            for part in ("train", "test")
            for kind in ("images", "labels")
        ]
    return channels_first(path, arrays)


def channels_first(source, arrays):
    """The four arrays with images as (n, channels, size, size) and labels as int64 (n,), from
    images as (n, size, size) or (n, size, size, 1 or 3) and labels as (n,) or (n, 1).
    """
    results = []
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        check(
            images.dtype == np.uint8
            and images.ndim in (3, 4)
            and images.shape[1] == images.shape[2]
            and images.shape[3:] in ((), (1,), (3,))
            and images.size > 0,
            f"{part}_images of {source} must be uint8 (n, size, size) or (n, size, size, 1 or 3), "
            f"but are {images.dtype} {images.shape}; values from 0 to 1 become uint8 if you "
            "multiply them by 255, then .astype(numpy.uint8)",
        )
        check(
            labels.dtype.kind in "iu" and labels.shape in ((len(images),), (len(images), 1)),
            f"{part}_labels of {source} must be {len(images):,} whole numbers, one for each image, "
            f"but are {labels.dtype} {labels.shape}",
        )
        check(
            labels.min() >= 0 and labels.max() < 2**16,
            f"{part}_labels of {source} must be from 0 to 65,535, but go from {labels.min()} to "
            f"{labels.max()}",
        )
        images = images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2)
        results += [images, labels.reshape(-1).astype(np.int64)]
    train, train_labels, test, test_labels = results
    check(
        train.shape[1:] == test.shape[1:] and train_labels.max() >= test_labels.max(),
        f"test images of {source} must have the shape {train.shape[1:]} and labels up to "
        f"{train_labels.max()}, like those for training, but have {test.shape[1:]} and labels up "
        f"to {test_labels.max()}",
    )
    return results


# ---------------------------------------------------------------------------------------------
# Pictures, in every format that Pillow reads


def read_tiny_imagenet(data_dir, limit):
    """Tiny ImageNet (Stanford CS231n, 2015): 200 classes of 500 training images of 3x64x64 each.
    The test set are the 10,000 for validation, since the labels of its own were never published.
    """
    root = "tiny-imagenet-200"
    classes, annotations = read_members(
        f"{root}.zip", data_dir, [f"{root}/wnids.txt", f"{root}/val/val_annotations.txt"]
    )
    train = [
        (name, f"{root}/train/{name}/images/{name}_{i}.JPEG")
        for name in classes.decode().split()
        for i in range(500)
    ]
    lines = [line.split("\t") for line in annotations.decode().splitlines()]
    test = [(line[1], f"{root}/val/images/{line[0]}") for line in lines]
    return read_pictures(
        train,
        test,
        64,
        limit,
        open_all=lambda names: map(io.BytesIO, read_members(f"{root}.zip", data_dir, names)),
    )


def read_folder(folder, limit, size):
    """The pictures in FOLDER/train/CLASS/ and FOLDER/test/CLASS/ (or val), at any depth.

    Hidden files and folders are left out, and so are files whose suffix is of no format that Pillow
    reads, such as Thumbs.db.
    """
    from PIL import Image

    suffixes = {name for name, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    test = "test" if "test" in found else "val"
    check(
        "train" in found and test in found,
        f"{folder} must hold the folders train and test (or val), but those that it holds are: "
        f"{', '.join(found) or 'none'}",
    )
    parts = {"train": [], test: []}
    for part in parts:
        for path in sorted(path for path in (folder / part).glob("[!.]*") if path.is_dir()):
            pictures = [
                picture
                for picture in sorted(path.rglob("*"))
                if picture.suffix.lower() in suffixes
                and not any(name.startswith(".") for name in picture.relative_to(path).parts)
            ]
            check(
                pictures and (folder / "train" / path.name).is_dir(),
                f"{path} is a class without pictures, or without any in {folder / 'train'}",
            )
            parts[part] += [(path.name, picture) for picture in pictures]
    return read_pictures(parts["train"], parts[test], size, limit, open_all=list)


def read_pictures(train, test, size, limit, open_all):
    """The four arrays, from two lists of (class, picture). Classes are numbered by their names.

    `open_all` makes of a list of pictures what Pillow can open. The order of pictures is mixed, and
    the same every time, so that the first `limit` of them, which are all that is read, are of all
    classes.
    """
    classes = sorted({name for name, _ in train})
    check(len(classes) > 1 and test, "pictures must be of two classes, and some be for the test")
    arrays = []
    for part, count in ((train, limit), (test, None)):
        np.random.default_rng(0).shuffle(part)
        names, pictures = zip(*part[:count])
        print(f"reading {len(pictures):,} pictures", file=sys.stderr)
        images = np.empty((len(pictures), 3, size, size), np.uint8)
        for i, file in enumerate(open_all(pictures)):
            with explain(f"{pictures[i]} cannot be read as a picture"):
                images[i] = decode(file, size)
        arrays += [images, np.searchsorted(classes, names)]
    return arrays


def decode(file, size):
    """A picture as RGB, uint8 (3, size, size)."""
    from PIL import Image, ImageOps

    with Image.open(file) as picture:
        # A camera that was held upright stores the picture lying, and how to turn it in EXIF.
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            # 16 bits, which Pillow would cut off at 255. The picture is in the upper 8 of them.
            picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
        # What is transparent becomes white.
        picture = Image.alpha_composite(
            Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")
        ).convert("RGB")
        return np.asarray(ImageOps.fit(picture, (size, size))).transpose(2, 0, 1)


# ---------------------------------------------------------------------------------------------
# What a training script does with images


def mean_and_std(images):
    """Mean and standard deviation of each channel: two float32 tensors (channels, 1, 1).

    `images` are uint8 (n, channels, size, size). A channel that has one value everywhere gets the
    deviation 1, so that it becomes zero and not NaN when it is normalized.
    """
    # How often each value occurs gives exact sums, without a copy as float, four times as large.
    counts = [channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]
    shares = torch.stack(counts).double() / images[:, 0].numel()  # (channels, 256)
    values = torch.arange(256).double()
    mean = shares @ values
    std = (shares @ values**2 - mean**2).sqrt()
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
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    # A view, in which windows[:, :, row, column] are the crops at one place.
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    row, column = (draws[:, :2] * (2 * pad + 1)).long().unbind(1)
    crops = windows[torch.arange(batch), :, row, column]  # (batch, channels, size, size)
    mirrored = flip & (draws[:, 2] < 0.5)  # (batch,)
    return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)


# ---------------------------------------------------------------------------------------------
# Text


def load_text(data, context, data_dir=None):
    """Two uint8 NumPy arrays: the bytes for training and the bytes for validation.

    `data` is one of

    - "pydoc": the language reference that comes with Python, as its help() shows it. The text
      differs a little between releases.
    - "shakespeare" (A. Karpathy, 2015), "enwik8" (M. Mahoney, 2006: the first 100 million bytes of
      Wikipedia), "wikitext-103" (S. Merity et al., 2016: the raw text): downloaded to data/ once,
      or read from the folder `data_dir`, which holds the published file, or what it unpacks to.
    - the path of a file, which is mapped into memory and may be larger than that.

    The first 90% are for training and the last 10% for validation. enwik8 has its usual split: 90
    and 5 million bytes, and 5 that nobody looks at here. WikiText-103 has its own. Raises
    ValueError or OSError if the text cannot be read, and ValueError if a part is too short for one
    window of `context` bytes and the byte after.
    """
    check(
        data_dir is None or data in TEXTS[1:],
        f"data_dir is only for data sets that are downloaded, and {data} is none of them",
    )
    if data == "wikitext-103":
        train, validation = (
            np.frombuffer(content, np.uint8)
            for content in read_members(
                "wikitext-103-raw-v1.zip",
                data_dir,
                ["wikitext-103-raw/wiki.train.raw", "wikitext-103-raw/wiki.valid.raw"],
            )
        )
    else:
        if data == "pydoc":
            from pydoc_data.topics import topics

            text = np.frombuffer(
                "\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8
            )
        elif data == "enwik8":
            text = np.frombuffer(*read_members("enwik8.zip", data_dir, ["enwik8"]), np.uint8)
        else:
            path = fetch("tinyshakespeare.txt", data_dir) if data == "shakespeare" else data
            with explain(f"data must be {', '.join(TEXTS)} or a file, but {path} cannot be read"):
                text = np.memmap(path, np.uint8, "r")
        train, validation, _ = np.split(
            text, [len(text) * 90 // 100, len(text) * (95 if data == "enwik8" else 100) // 100]
        )
    check(
        min(len(train), len(validation)) > context,
        f"both parts of a text must be longer than the context of {context:,} bytes, but those of "
        f"{data} have {len(train):,} (training) and {len(validation):,} (validation)",
    )
    return train, validation


def checksum(*arrays):
    """A number that tells data from others: the CRC-32 of the bytes of all arrays.

    Of a huge array it takes only the first 2**28 entries, to be quick.
    """
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.asarray(array).reshape(-1)[: 1 << 28], crc)
    return crc
