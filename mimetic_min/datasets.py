"""The published data sets, and folders of pictures: where each comes from, and how it is read.

The entry points are `load_images` and `load_text` in data.py. The readers of images return four
NumPy arrays: train_images, train_labels, test_images, test_labels, with images as uint8
(n, channels, size, size). What cannot be read is a ValueError that says so in one line.
"""

import io
import re
import warnings
from pathlib import Path

import numpy as np

from .lab.download import FOLDER, PublishedFile, fetch, first_line, open_zip, read_tar, read_zip
from .lab.progress import clear, due, show

# Others rely on the same checksums: MLDatasets.jl on those of CIFAR, torchvision on those of SVHN,
# Avalanche on that of Tiny ImageNet, and Hugging Face datasets (in dataset_infos.json) on those of
# enwik8 and WikiText-103. That of Tiny Shakespeare is of the file in char-rnn.
DOWNLOADS = {
    "cifar10": [
        PublishedFile(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        )
    ],
    "cifar100": [
        PublishedFile(
            "cifar-100-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        )
    ],
    "svhn": [
        PublishedFile(
            "train_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
        ),
        PublishedFile(
            "test_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "md5:eb5a983be6a315427106f1b164d9cef3",
        ),
    ],
    "tiny-imagenet": [
        PublishedFile(
            "tiny-imagenet-200.zip",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
        )
    ],
    "shakespeare": [
        PublishedFile(
            "tinyshakespeare.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        )
    ],
    "enwik8": [
        PublishedFile(
            "enwik8.zip",
            "https://mattmahoney.net/dc/enwik8.zip",
            "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        )
    ],
    "wikitext-103": [
        PublishedFile(
            "wikitext-103-raw-v1.zip",
            "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
            "sha256:91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
        )
    ],
}


# ---------------------------------------------------------------------------------------------
# What the readers share


def read_file(path):
    """The bytes of a file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def check_limit(limit, count):
    """Raise ValueError unless the first `limit` of `count` training images can be taken."""
    if limit is not None and not 1 <= limit <= count:
        raise ValueError(
            f"limit must be between 1 and {count:,}, the number of training images, "
            f"but it is {limit:,}"
        )


# ---------------------------------------------------------------------------------------------
# CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009), binary version
#
# A file is a row of records, one for each image: one or two labels of a byte each, then 3,072 bytes
# of pixels, which are the red, the green and the blue plane of 32x32.

CIFAR = {
    "cifar10": {
        "folder": "cifar-10-batches-bin",
        "train": {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        "test": {"test_batch.bin": 10_000},
        "label_bytes": 1,
        "classes": 10,
    },
    # The second label is the finer one, of 100 classes.
    "cifar100": {
        "folder": "cifar-100-binary",
        "train": {"train.bin": 50_000},
        "test": {"test.bin": 10_000},
        "label_bytes": 2,
        "classes": 100,
    },
}


def read_cifar(source, data_dir):
    """50,000 training and 10,000 test images of 3x32x32.

    They are read from the .bin files in `data_dir`, or in the folder there that the archive unpacks
    to. If there are none, they are read from the archive itself.
    """
    cifar = CIFAR[source]
    counts = cifar["train"] | cifar["test"]
    sizes = {name: count * (cifar["label_bytes"] + 3072) for name, count in counts.items()}

    place = Path(data_dir or FOLDER) / cifar["folder"]
    if data_dir is not None and not place.is_dir():
        place = Path(data_dir)
    contents = {}
    if any((place / name).exists() for name in sizes):
        for name, size in sizes.items():
            contents[name] = read_file(place / name)
            found = len(contents[name])
            if found != size:
                raise ValueError(f"{place / name} must have {size:,} bytes, but it has {found:,}")
    else:
        [place] = fetch(DOWNLOADS[source], data_dir)
        members = {f"{cifar['folder']}/{name}": size for name, size in sizes.items()}
        for member, content in read_tar(place, members).items():
            contents[Path(member).name] = content

    images, labels = {}, {}
    for name, content in contents.items():
        records = np.frombuffer(content, np.uint8).reshape(counts[name], -1)
        images[name] = records[:, cifar["label_bytes"] :].reshape(-1, 3, 32, 32)
        labels[name] = records[:, cifar["label_bytes"] - 1]
        top = labels[name].max()
        if top >= cifar["classes"]:
            raise ValueError(
                f"{name} in {place} holds the label {top}, but the labels of {source} go from 0 to "
                f"{cifar['classes'] - 1}"
            )
    arrays = []
    for part in ("train", "test"):
        arrays.append(np.concatenate([images[name] for name in cifar[part]]))
        arrays.append(np.concatenate([labels[name] for name in cifar[part]]))
    return arrays


# ---------------------------------------------------------------------------------------------
# SVHN, the Street View House Numbers, cropped digits (Y. Netzer et al., 2011)
#
# Two MATLAB files with X, the images as (32, 32, 3, n), and y, the labels from 1 to 10.


def read_svhn(data_dir):
    """73,257 training and 26,032 test images of 3x32x32. The digit 0, which is the label 10 in the
    files, gets the label 0.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            "svhn needs SciPy to read its .mat files: python -m pip install scipy"
        ) from error

    arrays = []
    for path in fetch(DOWNLOADS["svhn"], data_dir):
        try:
            variables = loadmat(path, variable_names=["X", "y"])
            images = np.asarray(variables["X"])
            labels = np.asarray(variables["y"]).ravel()
        except Exception as error:
            # Whatever SciPy makes of a file that is something else, or broken.
            raise ValueError(
                f"{path} cannot be read as a file of SVHN ({first_line(error)})"
            ) from error
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
            raise ValueError(
                f"X in {path} must be uint8 (32, 32, 3, {len(labels)}), since y has {len(labels)} "
                f"labels, but it is {images.dtype} {images.shape}"
            )
        if labels.dtype.kind not in "iu" or not set(labels.tolist()) <= set(range(1, 11)):
            raise ValueError(f"y in {path} must hold whole numbers from 1 to 10, but holds others")
        arrays.append(images.transpose(3, 2, 0, 1))
        arrays.append(labels.astype(np.int64) % 10)
    return arrays


# ---------------------------------------------------------------------------------------------
# Pictures: JPEG, PNG and whatever else Pillow reads


def import_pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError("pictures need Pillow: python -m pip install pillow") from error
    return Image, ImageOps


def decode(content, name, size):
    """The picture in the bytes `content` as RGB, uint8 (3, size, size).

    Its shorter side is scaled to `size`, and the centre is cut out. `name` is for the message.
    """
    Image, ImageOps = import_pillow()
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a picture that is suspiciously large. Here it is refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                if picture.mode.startswith(("I", "F")):
                    # Pillow would cut such values off at 255, and not scale them.
                    raise ValueError(f"Pillow's mode {picture.mode} has more than 8 bits a channel")
                square = ImageOps.fit(
                    picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC
                )
        pixels = np.asarray(square)  # (size, size, 3)
    except Exception as error:
        # Pillow has many errors for the many ways in which a picture can be broken.
        raise ValueError(f"{name} is no picture that can be read ({first_line(error)})") from error
    return pixels.transpose(2, 0, 1)


def available_memory():
    """How many bytes the machine can still give, or None where it does not say."""
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def read_pictures(train, test, read, size, limit):
    """The four arrays, from two lists of (name, label). `read` gives the bytes of a name.

    The training pictures are put in an order that mixes the classes and is the same every time, so
    that the first `limit` of them, which are all that is read, are of all classes.
    """
    check_limit(limit, len(train))
    order = np.random.default_rng(0).permutation(len(train))
    train = [train[i] for i in order[:limit]]

    total = len(train) + len(test)
    needed = total * 3 * size**2
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{total:,} pictures of {size}x{size} need {needed / 1e9:.1f} GB of memory, but "
            f"{available / 1e9:.1f} GB are available: take a smaller --image-size or a --limit"
        )

    done = 0
    arrays = []
    for part in (train, test):
        images = np.empty((len(part), 3, size, size), np.uint8)
        for i, (name, _) in enumerate(part):
            images[i] = decode(read(name), name, size)
            done += 1
            if due():
                show(f"reading pictures: {done:,} of {total:,}", done=False)
        arrays.append(images)
        arrays.append(np.array([label for _, label in part], np.int64))
    clear()
    return arrays


# ---------------------------------------------------------------------------------------------
# Tiny ImageNet (Stanford CS231n, 2015): 200 classes of ImageNet at 64x64


def read_tiny_imagenet(limit, data_dir):
    """100,000 training images of 3x64x64, and as test set the 10,000 for validation, since the
    labels of the test set were never published.

    The pictures are read from the zip file as it is. Classes are numbered in the order of their
    names in wnids.txt, sorted. The few grey pictures have the same values in all three channels.
    """
    root = "tiny-imagenet-200"
    import_pillow()
    [path] = fetch(DOWNLOADS["tiny-imagenet"], data_dir)
    with open_zip(path) as archive:
        # No member of the published archive is larger than 3 MB.
        def read(name):
            return read_zip(archive, name, largest=10_000_000)

        classes = sorted(read(f"{root}/wnids.txt").decode("ascii", "replace").split())
        labels = {name: label for label, name in enumerate(classes)}

        train = []
        for name in sorted(archive.namelist()):
            match = re.fullmatch(root + r"/train/([^/]+)/images/[^/]+\.JPEG", name)
            if match and match[1] in labels:
                train.append((name, labels[match[1]]))
        missing = set(labels.values()) - {label for _, label in train}
        if missing or not train:
            first = classes[min(missing)] if missing else "any class"
            raise ValueError(f"{path} holds no training pictures of {first}")

        test = []
        annotations = f"{root}/val/val_annotations.txt"
        for line in read(annotations).decode("ascii", "replace").splitlines():
            name, class_name = (line.split("\t") + [""])[:2]
            if class_name not in labels:
                raise ValueError(f"{annotations} in {path} names no class for {name!r}")
            test.append((f"{root}/val/images/{name}", labels[class_name]))
        if not test:
            raise ValueError(f"{annotations} in {path} names no pictures")
        return read_pictures(train, test, read, 64, limit)


# ---------------------------------------------------------------------------------------------
# A folder of pictures


def read_folder(folder, limit, image_size):
    """The pictures of a folder, in the layout of torchvision's ImageFolder.

    FOLDER/train/CLASS/... and FOLDER/test/CLASS/... (or val) are the training and the test set.
    Without these two, FOLDER/CLASS/... holds both, and a fifth of each class, drawn by a fixed
    seed, is the test set. Classes are numbered in the order of their names. Files and folders whose
    name begins with a dot are left out; every other file must be a picture.
    """
    Image, _ = import_pillow()
    folder = Path(folder)
    train_part = folder / "train"
    test_part = folder / "test" if (folder / "test").is_dir() else folder / "val"
    if train_part.is_dir() != test_part.is_dir():
        raise ValueError(
            f"{folder} must have the folders train and test (or val), but has only one"
        )

    if train_part.is_dir():
        train = list_classes(train_part)
        test = list_classes(test_part)
        different = sorted(train.keys() ^ test.keys())
        if different:
            name = different[0]
            there, missing = (train_part, test_part) if name in train else (test_part, train_part)
            raise ValueError(f"the class {name} is in {there}, but not in {missing}")
    else:
        train, test = split_off_a_fifth(list_classes(folder))
        count = sum(len(paths) for paths in test.values())
        show(f"{folder}: the test set is a fifth of each class, {count:,} pictures", done=True)
    if len(train) < 2:
        raise ValueError(f"{folder} has only the class {list(train)[0]}, but needs two or more")

    train = with_labels(train)
    test = with_labels(test)
    if image_size is None:
        # 200 of them, evenly spaced, are enough for a median.
        sample = train[:: max(1, len(train) // 200)]
        median = np.median([shorter_side(Image, path) for path, _ in sample])
        image_size = 32 if median <= 48 else 64
        size = f"{image_size}x{image_size}"
        show(f"{folder}: the pictures are scaled to {size} (--image-size sets it)", done=True)
    elif image_size < 1:
        raise ValueError(f"image_size must be 1 or more, but it is {image_size}")
    return read_pictures(train, test, read_file, image_size, limit)


def list_classes(part):
    """{class: the paths of its pictures}, sorted."""
    try:
        folders = sorted(path for path in part.iterdir() if path.is_dir())
    except OSError as error:
        raise ValueError(f"{part} cannot be read ({error.strerror})") from error
    classes = {}
    for folder in folders:
        if folder.name.startswith("."):
            continue
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        classes[folder.name] = [path for path in paths if not path.name.startswith(".")]
        if not classes[folder.name]:
            raise ValueError(f"{folder} is a class without pictures")
    if not classes:
        raise ValueError(f"{part} holds no folders of pictures, one for each class")
    return classes


def split_off_a_fifth(classes):
    """Two dictionaries like `classes`: four fifths and one fifth of each class."""
    random = np.random.default_rng(0)
    train, test = {}, {}
    for name, paths in classes.items():
        if len(paths) < 2:
            raise ValueError(
                f"{paths[0]} is the only picture of its class, but a test needs another"
            )
        shuffled = [paths[i] for i in random.permutation(len(paths))]
        cut = max(1, len(paths) // 5)
        test[name] = shuffled[:cut]
        train[name] = shuffled[cut:]
    return train, test


def with_labels(classes):
    """The list of (path, label)."""
    pairs = []
    for label, paths in enumerate(classes.values()):
        pairs += [(path, label) for path in paths]
    return pairs


def shorter_side(Image, path):
    """The shorter side of a picture, from its header only."""
    try:
        with warnings.catch_warnings():
            # Whether it is too large is up to `decode`.
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                return min(picture.size)
    except Exception as error:
        raise ValueError(f"{path} is no picture that can be read ({first_line(error)})") from error


# ---------------------------------------------------------------------------------------------
# Texts


def read_text(source, data_dir):
    """Training and validation part, uint8, of "shakespeare", "enwik8" or "wikitext-103"."""
    [path] = fetch(DOWNLOADS[source], data_dir)
    if source == "shakespeare":
        text = np.frombuffer(read_file(path), np.uint8)
        cut = len(text) * 90 // 100
        return text[:cut], text[cut:]
    with open_zip(path) as archive:
        if source == "enwik8":
            # The usual split: of 100 million bytes the first 90 million, the next 5 for validation,
            # and the last 5, which nobody looks at here, for a test.
            text = np.frombuffer(read_zip(archive, "enwik8", largest=100_000_000), np.uint8)
            first = len(text) * 90 // 100
            second = len(text) * 95 // 100
            return text[:first], text[first:second]
        train = read_zip(archive, "wikitext-103-raw/wiki.train.raw", largest=1_000_000_000)
        validation = read_zip(archive, "wikitext-103-raw/wiki.valid.raw", largest=100_000_000)
        return np.frombuffer(train, np.uint8), np.frombuffer(validation, np.uint8)
