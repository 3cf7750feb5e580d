"""Images and text: what comes with the project, what is downloaded, and what users bring.

Downloads come from a server on this machine. Without torchvision, the tests that need it are
skipped.
"""

import gzip
import hashlib
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from mimetic_min import data


def assert_error(sentence, load, *arguments, **options):
    """`load` raises a ValueError that says this."""
    with pytest.raises(ValueError) as error:
        load(*arguments, **options)
    assert sentence in str(error.value)


def random_bytes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# Images as they are in an .npz
ARRAYS = {
    "train_images": random_bytes(4, 28, 28),
    "train_labels": np.array([0, 2, 1, 1], np.uint8),
    "test_images": random_bytes(2, 28, 28),
    "test_labels": np.array([2, 0], np.uint8),
}


@pytest.fixture
def server(monkeypatch):
    """The address of a server that serves the files in this test's folder."""
    monkeypatch.setenv("no_proxy", "*")
    running = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(data, "SHAKESPEARE", f"http://127.0.0.1:{running.server_port}/my.txt")
    return f"http://127.0.0.1:{running.server_port}/"


# ---------------------------------------------------------------------------------------------
# Images that come with the project, and your own arrays


def test_the_shifted_digits_are_the_digits_at_places_that_never_change():
    """Otherwise nobody could compare a result with last year's."""
    digits, shifted = [data.load_images(name) for name in ("digits", "shifted-digits")]
    assert torch.equal(shifted[0].sum((2, 3)), digits[0].sum((2, 3)))
    assert data.checksum(*shifted) == 2072799117


def test_the_arrays_of_an_npz_are_read():
    np.savez("my.npz", **ARRAYS)
    for found, array in zip(data.load_images("my.npz"), ARRAYS.values()):
        assert np.array_equal(found.squeeze(), array)


@pytest.mark.parametrize(
    "changes, options, sentence",
    [
        ({}, {"data": "nowhere.npz"}, "fashion-mnist, a folder or an .npz, but nowhere.npz cannot"),
        ({}, {"data": __file__}, "test_data.py cannot be read ("),
        ({}, {"limit": 0}, "limit and image_size must be at least 1, and image_size applies only"),
        ({}, {"data": ".", "image_size": 0}, "limit and image_size must be at least 1"),
        ({}, {"image_size": 8}, "image_size applies only to a folder of pictures, but they are"),
        ({}, {"limit": 5}, "limit must be at most 4, the number of training images, but it is 5"),
        (
            {},
            {"limit": 1},
            "include at least two classes, but range from 0 to 0; if the images are sorted",
        ),
        # The first four digits are 0, 1, 2 and 3.
        ({}, {"data": "digits", "limit": 4}, "have labels that none of the 4 training images has"),
        (
            {"train_images": np.ones((4, 6, 6))},
            {},
            "but are float64 (4, 6, 6); to convert values between 0 and 1",
        ),
        ({"train_images": random_bytes(0, 6, 6)}, {}, "train_images of my.npz must be uint8 (n, s"),
        ({"test_images": random_bytes(2)}, {}, "test_images of my.npz must be uint8 (n, size, si"),
        ({"test_images": random_bytes(2, 6, 5)}, {}, "but are uint8 (2, 6, 5)"),
        ({"test_images": random_bytes(2, 3, 6, 6)}, {}, "but are uint8 (2, 3, 6, 6)"),
        ({"test_images": random_bytes(2, 6, 6, 4)}, {}, "but are uint8 (2, 6, 6, 4)"),
        # Shapes that are allowed, but do not go together
        ({"test_images": random_bytes(2, 8, 8, 3)}, {}, "(1, 28, 28) and those for testing (3, 8"),
        ({"test_images": random_bytes(2, 8, 8, 1)}, {}, "(1, 28, 28) and those for testing (1, 8"),
        (
            {"train_images": ARRAYS["train_images"] // 255},
            {},
            "images of my.npz have only the values 0 and 1; to convert",
        ),
        ({"train_labels": np.array([0.0, 1, 2, 1])}, {}, "be 4 whole numbers, one for each image,"),
        ({"train_labels": np.array([0, 1])}, {}, "train_labels of my.npz must be 4 whole numbers"),
        (
            {"train_labels": np.array([0, -1, 2, 1])},
            {},
            "from 0 to 65,535, and include at least two classes",
        ),
        (
            {"train_labels": np.array([[0], [1], [2], [10**9]])},
            {},
            "but range from 0 to 1000000000",
        ),
        ({"test_labels": np.array([[4], [3]])}, {}, "of the 4 training images has; if the images"),
        ({"test_labels": np.array([0, print], object)}, {}, "(Object arrays cannot be loaded when"),
    ],
)
def test_images_that_cannot_be_used(changes, options, sentence):
    np.savez("my.npz", **ARRAYS | changes)
    assert_error(sentence, data.load_images, **{"data": "my.npz"} | options)


# ---------------------------------------------------------------------------------------------
# What torchvision downloads


@pytest.mark.parametrize(
    "error, cause",
    [
        ("ImportError('No module named torchvision')", "No module named torchvision"),
        ("RuntimeError('operator nms\\ndoes not exist')", "operator nms does not exist"),
        ("AssertionError", "AssertionError"),
    ],
)
def test_without_a_matching_torchvision_the_error_says_what_to_install(error, cause, monkeypatch):
    Path("torchvision.py").write_text(f"raise {error}")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(".")
    assert_error(
        "cifar10 needs torchvision, in the version that matches torch "
        f"{torch.__version__}: pip install torchvision ({cause})",
        data.load_images,
        "cifar10",
    )


def test_mnist_is_downloaded(server, monkeypatch):
    """Two files of images and two of labels: a number for the kind of file, the sizes, the bytes"""
    datasets = pytest.importorskip("torchvision").datasets
    for (name, _), array in zip(datasets.MNIST.resources, ARRAYS.values()):
        content = np.array([2048 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes()
        Path(name).write_bytes(gzip.compress(content))

    # As long as torchvision expects the files that are published, it refuses these.
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server])
    assert_error(
        "torchvision can neither read mnist from new/folder nor download it (Error downloading",
        data.load_images,
        "mnist",
        "new/folder",
    )
    monkeypatch.setattr(
        datasets.MNIST, "resources", [(name, None) for name, _ in datasets.MNIST.resources]
    )
    for found, array in zip(data.load_images("mnist", "new/folder"), ARRAYS.values()):
        assert np.array_equal(found.squeeze(), array)


@pytest.mark.parametrize(
    "name, kind, training, pictures, stored",
    [
        ("cifar10", "CIFAR10", True, random_bytes(8, 32, 32, 3), random_bytes(8, 32, 32, 3)),
        ("cifar100", "CIFAR100", True, random_bytes(8, 32, 32, 3), random_bytes(8, 32, 32, 3)),
        (
            "svhn",
            "SVHN",
            "train",
            random_bytes(8, 3, 32, 32).transpose(0, 2, 3, 1),
            random_bytes(8, 3, 32, 32),
        ),
        (
            "fashion-mnist",
            "FashionMNIST",
            True,
            random_bytes(8, 28, 28, 1),
            torch.from_numpy(random_bytes(8, 28, 28)),
        ),
    ],
)
def test_the_other_data_sets(name, kind, training, pictures, stored, monkeypatch):
    """Here they are not downloaded: each gets its arrays in the shape in which torchvision keeps
    them, and then torchvision's own code turns them into images.
    """
    datasets = pytest.importorskip("torchvision").datasets

    def fill(dataset, root, part, transform, download):
        vars(dataset).update(
            data=stored[:4] if part == training else stored[4:],
            targets=[0, 2, 1, 0],
            labels=[0, 2, 1, 0],
            transform=transform,
            target_transform=None,
        )

    monkeypatch.setattr(getattr(datasets, kind), "__init__", fill)
    train, _, test, _ = data.load_images(name)
    assert np.array_equal(torch.cat([train, test]), pictures.transpose(0, 3, 1, 2))


# ---------------------------------------------------------------------------------------------
# A folder of pictures


@pytest.fixture
def folder():
    """Tiny ImageNet, as the guide sorts it. (The validation pictures come without class folders,
    and the test pictures without labels.)

    Here it has 20 pictures of the classes n0 and n1. They are in PPM format, since readers ignore
    the file extension. In the center, every byte of a picture is its label.
    """
    pytest.importorskip("torchvision")
    for i in range(20):
        pixels = np.pad(
            np.full((16, 16, 3), i // 10, np.uint8),
            ((0, 0), (16, 16), (0, 0)),
            constant_values=255,
        )
        for path in (f"train/n{i // 10}/images", "val/images", "test/images"):
            Path("tiny-imagenet-200", path).mkdir(parents=True, exist_ok=True)
            Path("tiny-imagenet-200", path, f"{i}.JPEG").write_bytes(
                b"P6 48 16 255\n" + pixels.tobytes()
            )
    Path("tiny-imagenet-200/val/val_annotations.txt").write_text(
        "".join(f"{i}.JPEG\tn{i // 10}\t0\t32\t44\t62\n" for i in range(20))
    )
    guide = Path(data.__file__).parents[1].joinpath("docs/guide.md").read_text()
    subprocess.run(["sh", "-c", guide.split("```")[1].removeprefix("sh")], check=True)


def test_pictures_are_scaled_and_cropped_and_a_limit_mixes_the_classes(folder):
    train, train_labels, test, test_labels = data.load_images(
        "tiny-imagenet-200", limit=6, image_size=24
    )
    assert test.shape == (20, 3, 24, 24)
    # The same six pictures every time
    assert train_labels.tolist() == [0, 1, 0, 0, 1, 1]
    labels = torch.cat([train_labels, test_labels])[:, None, None, None]
    assert (torch.cat([train, test])[..., 4:-4] == labels).all()


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ("val", "validation", "must hold pictures in train/CLASS/ and test/CLASS/ (or val/CLASS/)"),
        ("val/n1", "val/n2", "must have the same classes, but only one of them has n1, n2"),
        # If both exist, test/ takes precedence over val/.
        ("unlabeled", "test", "same classes, but only one of them has images, n0, n1"),
        ("val/val_annotations.txt", "val/n1/10.JPEG", "val/n1/10.JPEG cannot be read as a picture"),
    ],
)
def test_a_folder_that_cannot_be_used(old, new, sentence, folder):
    Path("tiny-imagenet-200", old).replace(Path("tiny-imagenet-200", new))
    assert_error(sentence, data.load_images, "tiny-imagenet-200")


# ---------------------------------------------------------------------------------------------
# What a training script does with images


def test_augmented_images_are_crops_of_the_padded_ones():
    images = random_bytes(3, 2, 16, 16)
    # The place of a crop, from 0 to 4 in the padded picture, and whether it is mirrored
    draws = torch.tensor([[0, 1 - 2**-24, 0.9], [0.5, 0.3, 0.4], [0.7, 0, 0.6]])
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    crops = np.stack([padded[0, :, :16, 4:], padded[1, :, 2:18, 1:17], padded[2, :, 3:19, :16]])
    assert np.array_equal(data.augment(torch.from_numpy(images), draws, flip=False), crops)
    assert np.array_equal(
        data.augment(torch.from_numpy(images), draws, flip=True),
        [crops[0], crops[1, :, :, ::-1], crops[2]],
    )


def test_mean_and_std_match_numpy():
    images = np.stack([random_bytes(100, 4, 4), np.full((100, 4, 4), 7, np.uint8)], axis=1)
    # A channel that is the same everywhere is not divided by zero. float32 has seven digits.
    assert np.allclose(
        torch.stack(data.mean_and_std(torch.from_numpy(images))).squeeze(),
        [images.mean((0, 2, 3)), images.std((0, 2, 3)) + np.array([0, 1])],
        rtol=1e-6,
        atol=0,
    )


# ---------------------------------------------------------------------------------------------
# Text


def test_shakespeare_is_downloaded_split_and_mapped_into_memory(server, monkeypatch):
    text = random_bytes(1005)
    Path("my.txt").write_bytes(text)
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    train, validation = data.load_text("shakespeare", context=100, data_dir="new")
    assert np.array_equal(train, text[:904]) and np.array_equal(validation, text[904:])
    # Only an array that is mapped into memory has a file name.
    assert train.filename == Path("new/tinyshakespeare.txt").resolve()


@pytest.mark.parametrize(
    "name, written, sentence",
    [
        ("nowhere.txt", "my.txt", "pydoc, shakespeare or a text file, but nowhere.txt cannot"),
        ("my.txt", "my.txt", "9 bytes, but my.txt has 80 (training) and 9 (validation)"),
        # A file other than the published one is refused.
        ("shakespeare", "my.txt", f'expected "{data.SHAKESPEARE_SHA256}'),
        ("shakespeare", "other.txt", "save it as tinyshakespeare.txt (HTTP Error 404"),
        # An existing file is not downloaded again.
        ("shakespeare", "tinyshakespeare.txt", "shakespeare has 80 (training)"),
    ],
)
def test_a_text_that_cannot_be_used(name, written, sentence, server):
    Path(written).write_bytes(bytes(89))
    assert_error(sentence, data.load_text, name, context=9, data_dir=".")
