"""Images and text for the two training scripts, as arrays of bytes.

Two data sets need no network: the digits, which come with this project, and the language reference,
which comes with Python. torchvision downloads and reads the other images, and folders of pictures.
Your own arrays and text files are read in place. If data cannot be used, a ValueError, or an
OSError with the path, says why in one sentence.
"""

import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

# The first two image sets and the first text need no download.
IMAGES = ("shifted-digits", "digits", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist")
TEXTS = ("pydoc", "shakespeare")

# ---------------------------------------------------------------------------------------------
# Errors, each in one sentence


def check(is_fine, sentence):
    if not is_fine:
        raise ValueError(sentence)


@contextmanager
def explain(sentence):
    """Put this sentence in front of the message of any exception that is raised inside."""
    try:
        yield
    except Exception as error:
        # Some of these messages span several lines, and some are empty.
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{sentence} ({cause})") from error


# ---------------------------------------------------------------------------------------------
# Images


def load_images(data, data_dir="data", limit=None, image_size=None):
    """Four tensors: train, train_labels, test, test_labels.

    Images are uint8 (n, channels, size, size), and labels int64 (n,). `data` is one of

    - "digits": the 1,797 8x8 scans, with values from 0 to 16, in the UCI "Optical Recognition of
      Handwritten Digits" test set (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0,
      https://doi.org/10.24432/C50P49). The first 1,000 are for training, the last 797 for testing.
    - "shifted-digits": the same scans, each placed at random on a canvas of 12x12.
    - "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist": torchvision downloads them to
      `data_dir` once.
    - the path of a folder of pictures: FOLDER/train/CLASS/ and FOLDER/test/CLASS/ (or val in place
      of test). Each picture is scaled until its shorter side has `image_size` pixels, 32 if it is
      None, and then center-cropped.
    - the path of an .npz with arrays train_images, train_labels, test_images and test_labels:
      uint8 (n, size, size) or (n, size, size, 1 or 3), and whole numbers from 0, (n,) or (n, 1).

    With `limit`, only the first `limit` training images are used. A folder lists its pictures class
    by class, so they are shuffled first, in the same order every time.
    """
    is_folder = data not in IMAGES and Path(data).is_dir()
    check(
        (limit is None or limit > 0) and (image_size is None or (is_folder and image_size > 0)),
        "limit and image_size must be at least 1, and image_size applies only to a folder of "
        f"pictures, but they are {limit} and {image_size} for {data}",
    )

    if data in ("digits", "shifted-digits"):
        arrays = read_digits(shifted=data == "shifted-digits")
    elif data in IMAGES or is_folder:
        arrays = read_with_torchvision(data, data_dir, limit, image_size or 32)
    else:
        arrays = read_npz(data)
    return to_tensors(data, arrays, limit)


def to_tensors(data, arrays, limit):
    """Check four arrays in the .npz layout, from any source, and convert them to tensors."""
    tensors = []
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        check(
            images.dtype == np.uint8
            and images.ndim in (3, 4)
            and images.shape[1] == images.shape[2]
            and images.shape[3:] in ((), (1,), (3,))
            and images.size > 0,
            f"{part}_images of {data} must be uint8 (n, size, size) or (n, size, size, 1 or 3), "
            f"but are {images.dtype} {images.shape}; to convert values between 0 and 1, multiply "
            "them by 255, then use .astype(numpy.uint8)",
        )
        check(
            labels.dtype.kind in "iu" and labels.shape in ((len(images),), (len(images), 1)),
            f"{part}_labels of {data} must be {len(images):,} whole numbers, one for each image, "
            f"but are {labels.dtype} {labels.shape}",
        )
        images = images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2)
        tensors += [
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(labels.reshape(-1).astype(np.int64)),
        ]

    train, train_labels, test, test_labels = tensors
    check(
        limit is None or limit <= len(train),
        f"limit must be at most {len(train):,}, the number of training images, but it is {limit}",
    )
    train, train_labels = train[:limit], train_labels[:limit]
    check(
        train.shape[1:] == test.shape[1:],
        f"all images of {data} must have the same shape, but those for training have "
        f"{tuple(train.shape[1:])} and those for testing {tuple(test.shape[1:])}",
    )
    # The largest label sets the number of outputs of a model. A label that is an id rather than a
    # class, such as a billion, would use up all memory.
    check(
        0 <= train_labels.min() < train_labels.max() < 2**16,
        f"the labels of the {len(train):,} training images of {data} must be from 0 to 65,535, and "
        f"include at least two classes, but range from {train_labels.min()} to "
        f"{train_labels.max()}; if the images are sorted by class, shuffle them",
    )
    check(
        torch.isin(test_labels, train_labels).all(),
        f"test images of {data} have labels that none of the {len(train):,} training images has; "
        "if the images are sorted by class, shuffle them",
    )
    # When values between 0 and 1 are converted to bytes directly, nearly all become 0.
    check(
        train.max() > 1,
        f"the {len(train):,} training images of {data} have only the values 0 and 1; to convert "
        "values between 0 and 1, multiply them by 255, then use .astype(numpy.uint8)",
    )
    return train, train_labels, test, test_labels


# ---------------------------------------------------------------------------------------------
# Image readers. Each returns four arrays, as in an .npz


def read_digits(shifted):
    """The digits as they are, or each at a random place on a 12x12 canvas.

    In the original digits, strokes hardly move, so a model may read them without attention. On the
    canvas, it has to find the parts of a digit first. Each image keeps its place, in every epoch
    and every run.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images = file["images"]  # (1797, 8, 8)
        labels = file["labels"]
    if shifted:
        places = np.random.default_rng(0).integers(0, 5, (len(images), 2))
        images = np.pad(images, ((0, 0), (0, 4), (0, 4)))
        images = np.stack([np.roll(image, place, (0, 1)) for image, place in zip(images, places)])
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def read_with_torchvision(data, data_dir, limit, size):
    """Published images, which torchvision downloads and checks, or a folder of pictures."""
    # torchvision is optional. A version that does not match torch fails, too, with a RuntimeError.
    with explain(
        f"{data} needs torchvision, in the version that matches torch {torch.__version__}: "
        "pip install torchvision"
    ):
        from torchvision import datasets, transforms

    if data in IMAGES:
        # The class of a data set, and what it calls its two parts.
        dataset, *parts = {
            "cifar10": (datasets.CIFAR10, True, False),
            "cifar100": (datasets.CIFAR100, True, False),
            "svhn": (datasets.SVHN, "train", "test"),
            "mnist": (datasets.MNIST, True, False),
            "fashion-mnist": (datasets.FashionMNIST, True, False),
        }[data]
        with explain(f"torchvision can neither read {data} from {data_dir} nor download it"):
            train, test = [
                dataset(data_dir, part, transform=np.asarray, download=True) for part in parts
            ]
    else:

        def read_picture(path):
            with explain(f"{path} cannot be read as a picture"):
                return datasets.folder.default_loader(path)

        to_square = [transforms.Resize(size), transforms.CenterCrop(size), np.asarray]
        parts = ("train", "test" if Path(data, "test").is_dir() else "val")
        with explain(f"{data} must hold pictures in train/CLASS/ and test/CLASS/ (or val/CLASS/)"):
            train, test = [
                datasets.ImageFolder(
                    Path(data, part), transforms.Compose(to_square), loader=read_picture
                )
                for part in parts
            ]
        check(
            train.classes == test.classes,
            f"both parts of {data} must have the same classes, but only one of them has "
            f"{', '.join(sorted(set(train.classes) ^ set(test.classes)))}",
        )
        # ImageFolder lists one class after another. Once they are shuffled, the first pictures
        # cover all classes, and the rest need not be read.
        np.random.default_rng(0).shuffle(train.samples)
        train.samples = train.samples[:limit]

    # Each part is a sequence of pairs (image, label). A picture is read when its turn comes.
    return [np.array(column) for part in (train, test) for column in zip(*part)]


def read_npz(path):
    # A pickle can run arbitrary code when it is read, so pickled arrays are refused.
    with (
        explain(
            f"data must be {', '.join(IMAGES)}, a folder or an .npz, but {path} cannot be read"
        ),
        np.load(path, allow_pickle=False) as file,
    ):
        return [
            np.asarray(file[f"{part}_{kind}"])
            for part in ("train", "test")
            for kind in ("images", "labels")
        ]


# ---------------------------------------------------------------------------------------------
# What a training script does with images


def mean_and_std(images):
    """Mean and standard deviation of each channel: two float32 tensors (channels, 1, 1).

    `images` are uint8 (n, channels, size, size). A channel with one value everywhere gets a
    deviation of 1, so that it becomes zero and not NaN when it is normalized.
    """
    # Counting each value gives exact sums without a float copy, which would be four times as large.
    counts = [channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]
    shares = torch.stack(counts).double() / images[:, 0].numel()  # (channels, 256)
    values = torch.arange(256).double()
    mean = shares @ values
    std = (shares @ values**2 - mean**2).sqrt()
    std[std == 0] = 1.0
    return mean.float()[:, None, None], std.float()[:, None, None]


def augment(images, draws, flip):
    """Pad each image with zeros, crop it at random, and with `flip` mirror half of them.

    `images` are (batch, channels, size, size), and the zero border is an eighth of the size; for
    32x32 this is the recipe of He et al. (2015), section 4.2. `draws` (batch, 3) are uniform from 0
    to 1: the first two in a row place the crop, and the third mirrors it if it is below 0.5.
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

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def load_text(data, context, data_dir="data"):
    """Two uint8 NumPy arrays: the first 90% of a text for training, the last 10% for validation.

    `data` is one of

    - "pydoc": the language reference that comes with Python, as its help() shows it. The text
      differs a little between releases.
    - "shakespeare": Tiny Shakespeare (A. Karpathy, 2015), which is downloaded to `data_dir` once.
    - the path of a file, which is memory-mapped, so it may be larger than memory.

    Both parts must hold at least one window of `context` bytes and the byte after it.
    """
    if data == "pydoc":
        from pydoc_data.topics import topics

        text = np.frombuffer("\n\n".join(map(topics.get, sorted(topics))).encode(), np.uint8)
    else:
        path = download_shakespeare(data_dir) if data == "shakespeare" else data
        with explain(f"data must be {', '.join(TEXTS)} or a text file, but {path} cannot be read"):
            text = np.memmap(path, np.uint8, "r")
    train, validation = np.split(text, [len(text) * 90 // 100])
    check(
        min(len(train), len(validation)) > context,
        f"both parts of a text must be longer than the context of {context:,} bytes, but "
        f"{data} has {len(train):,} (training) and {len(validation):,} (validation)",
    )
    return train, validation


def download_shakespeare(data_dir):
    """The path of Tiny Shakespeare. An existing file is trusted."""
    path = Path(data_dir, "tinyshakespeare.txt")
    if not path.exists():
        with explain(f"cannot download {SHAKESPEARE}: get it by other means and save it as {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The file gets its name only when its checksum is right.
            torch.hub.download_url_to_file(SHAKESPEARE, path, SHAKESPEARE_SHA256, progress=False)
    return path


# ---------------------------------------------------------------------------------------------
# Images or text


def checksum(*arrays):
    """A CRC-32 of all arrays, to detect changed data.

    To be quick, it reads only the first 2**28 entries of a huge array.
    """
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.asarray(array).reshape(-1)[: 1 << 28], crc)
    return crc
