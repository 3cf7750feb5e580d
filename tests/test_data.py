"""Images and text: what comes with the project, what is downloaded, and what users bring.

Downloads come from a server on this machine. Without torchvision, the tests that need it are
skipped.
"""

import gzip
import hashlib
import re
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from mimetic_min import data


def error_of(load, *arguments, **options):
    """The sentence of the ValueError that `load` raises."""
    with pytest.raises(ValueError) as error:
        load(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def random_bytes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def server(monkeypatch):
    """The address of a server that sends the files in the folder of this test."""
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.fixture
def datasets():
    return pytest.importorskip("torchvision").datasets


# ---------------------------------------------------------------------------------------------
# The digits


def test_the_digits_and_where_they_are_shifted():
    train, _, test, test_labels = data.load_images("digits")
    assert train.shape == (1000, 1, 8, 8) and test.shape == (797, 1, 8, 8)
    assert test.dtype == torch.uint8 and test_labels.dtype == torch.int64
    # `limit` takes the first ones. Each is at one of 25 places, and all places occur.
    shifted, labels, _, _ = data.load_images("shifted-digits", limit=500)
    windows = shifted.unfold(2, 8, 1).unfold(3, 8, 1)  # (500, 1, 5, 5, 8, 8)
    fits = (windows == train[:500, :, None, None]).all(-1).all(-1).flatten(1)  # (500, 25)
    assert fits.any(1).all() and fits.any(0).all() and len(labels) == 500


def test_the_shifted_digits_never_change():
    """Otherwise nobody could compare a result with one of last year."""
    assert data.checksum(*data.load_images("shifted-digits")) == 2072799117


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"limit": 0}, "limit must be 1 or more, but it is 0"),
        ({"limit": 1001}, "limit must be at most 1,000, the number of training images, but it is"),
        ({"limit": 1}, "of two classes or more, but go from 0 to 0; if the images are sorted by"),
        ({"limit": 4}, "none of the 4 training images has (4, 5, 6, 7, 8); if they are sorted by"),
        ({"image_size": 8}, "is only for a folder of pictures, but for digits it is 8"),
    ],
)
def test_options_that_do_not_fit_the_digits(options, sentence):
    assert len(data.load_images("digits", limit=40)[0]) == 40
    # A name means the data set, even where a folder has this name.
    Path("digits").mkdir()
    assert sentence in error_of(data.load_images, "digits", **options)


# ---------------------------------------------------------------------------------------------
# An .npz


def write_npz(**changes):
    arrays = {
        "train_images": random_bytes(4, 6, 6, 3),
        "train_labels": np.array([0, 2, 1, 1]),
        "test_images": random_bytes(2, 6, 6, 3),
        "test_labels": np.array([[2], [0]], np.uint16),
    }
    np.savez("my.npz", **(arrays | changes))


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1), (6, 6, 3)])
def test_the_arrays_of_an_npz_become_tensors_with_channels_first(shape):
    images = random_bytes(6, *shape)
    write_npz(train_images=images[:4], test_images=images[4:])
    train, train_labels, test, test_labels = data.load_images("my.npz")
    expected = images.reshape(6, 6, 6, -1).transpose(0, 3, 1, 2)
    assert np.array_equal(train, expected[:4]) and np.array_equal(test, expected[4:])
    assert train.is_contiguous() and test.is_contiguous()
    assert train_labels.tolist() == [0, 2, 1, 1] and test_labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    "name, array, sentence",
    [
        ("train_images", np.ones((4, 6, 6)), "but are float64 (4, 6, 6); values from 0 to 1"),
        ("train_images", np.ones((4, 6, 6)), "multiply them by 255, then .astype(numpy.uint8)"),
        ("train_images", random_bytes(0, 6, 6), "train_images of my.npz must be uint8 (n, size,"),
        ("test_images", random_bytes(2), "test_images of my.npz must be uint8 (n, size, size)"),
        ("test_images", random_bytes(2, 6, 5), "but are uint8 (2, 6, 5)"),
        ("test_images", random_bytes(2, 3, 6, 6), "but are uint8 (2, 3, 6, 6)"),
        ("test_images", random_bytes(2, 6, 6, 4), "but are uint8 (2, 6, 6, 4)"),
        ("test_images", random_bytes(2, 8, 8, 3), "have (3, 6, 6) and those for the test (3, 8, 8"),
        ("train_images", np.full((4, 6, 6, 3), 7, np.uint8), "of my.npz are all the same"),
        ("train_labels", np.array([0.0, 1, 2, 1]), "be 4 whole numbers, one for each image, but"),
        ("train_labels", np.array([0, 1]), "train_labels of my.npz must be 4 whole numbers"),
        ("train_labels", np.array([0, -1, 2, 1]), "from 0 to 65,535, and of two classes or more"),
        ("train_labels", np.array([0, 1, 2, 10**9]), "but go from 0 to 1000000000"),
        ("test_labels", np.array([4, 3]), "none of the 4 training images has (3, 4)"),
        ("test_labels", np.array([0, print], object), "(Object arrays cannot be loaded when"),
    ],
)
def test_an_npz_with_an_array_that_cannot_be_used(name, array, sentence):
    write_npz(**{name: array})
    assert sentence in error_of(data.load_images, "my.npz")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"a letter", b"\x80\x04N."])
def test_a_file_that_is_no_npz(content):
    Path("my.npz").write_bytes(content)
    sentence = error_of(data.load_images, "my.npz")
    assert "fashion-mnist, a folder or an .npz, but my.npz cannot be read (" in sentence


def test_an_npz_without_one_of_the_arrays():
    np.savez("my.npz", train_images=random_bytes(4, 6, 6))
    sentence = error_of(data.load_images, "my.npz")
    assert "cannot be read ('train_labels is not a file in the archive')" in sentence


def test_an_npz_with_something_else_than_arrays():
    with zipfile.ZipFile("my.npz", "w") as file:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            file.writestr(name, b"a letter")
    assert "train_images of my.npz must be uint8" in error_of(data.load_images, "my.npz")


# ---------------------------------------------------------------------------------------------
# What torchvision downloads


def test_without_torchvision_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    sentence = error_of(data.load_images, "cifar10")
    assert sentence.startswith("cifar10 needs torchvision, in the version that belongs to torch ")
    assert f"{torch.__version__}: pip install torchvision (" in sentence


@pytest.mark.parametrize(
    "error, cause",
    [
        ("RuntimeError('operator nms\\ndoes not exist')", "operator nms does not exist"),
        ("AssertionError", "AssertionError"),
    ],
)
def test_a_torchvision_that_does_not_fit_torch(error, cause, monkeypatch):
    Path("torchvision.py").write_text(f"raise {error}")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(".")
    sentence = error_of(data.load_images, "cifar10")
    assert sentence.endswith(f"pip install torchvision ({cause})")


def test_mnist_is_downloaded(datasets, server, monkeypatch):
    """Two files of images and two of labels: a number for the kind of file, the sizes, the bytes"""
    images, labels = random_bytes(6, 28, 28), np.array([0, 2, 1, 1, 2, 0], np.uint8)
    listed = []
    for content, (name, _) in zip(
        [
            struct.pack(">IIII", 2051, 4, 28, 28) + images[:4].tobytes(),
            struct.pack(">II", 2049, 4) + labels[:4].tobytes(),
            struct.pack(">IIII", 2051, 2, 28, 28) + images[4:].tobytes(),
            struct.pack(">II", 2049, 2) + labels[4:].tobytes(),
        ],
        datasets.MNIST.resources,
    ):
        packed = gzip.compress(content)
        Path(name).write_bytes(packed)
        listed.append((name, hashlib.md5(packed).hexdigest()))

    monkeypatch.setattr(datasets.MNIST, "mirrors", [server])
    # As long as torchvision expects the files that are published, it refuses these.
    sentence = error_of(data.load_images, "mnist", "new/folder")
    assert sentence.startswith("torchvision can neither read mnist from new/folder nor download it")
    assert "corrupted" in sentence

    monkeypatch.setattr(datasets.MNIST, "resources", listed)
    train, train_labels, test, test_labels = data.load_images("mnist", "new/folder")
    assert np.array_equal(torch.cat([train, test]), images[:, None]) and len(test) == 2
    assert np.array_equal(torch.cat([train_labels, test_labels]), labels)


@pytest.mark.parametrize(
    "name, kind, training, shape, axes",
    [
        ("cifar10", "CIFAR10", True, (6, 32, 32, 3), (0, 3, 1, 2)),
        ("cifar100", "CIFAR100", True, (6, 32, 32, 3), (0, 3, 1, 2)),
        ("svhn", "SVHN", "train", (6, 3, 32, 32), (0, 1, 2, 3)),
        ("fashion-mnist", "FashionMNIST", True, (6, 1, 28, 28), (0, 1, 2, 3)),
    ],
)
def test_the_other_data_sets(name, kind, training, shape, axes, datasets, monkeypatch):
    """Here they are not downloaded: each gets its arrays in the shape in which torchvision keeps
    them, and then torchvision's own code makes images of them.
    """
    images, labels = random_bytes(*shape), np.array([0, 2, 1, 1, 2, 0])

    def fill(dataset, root, part, transform, download):
        assert type(dataset).__name__ == kind and root == "my data" and download
        chosen = slice(4) if part == training else slice(4, 6)
        dataset.data, dataset.targets = images[chosen], labels[chosen]
        if kind == "FashionMNIST":
            dataset.data = torch.from_numpy(images[chosen, 0])
        dataset.labels = dataset.targets
        dataset.transform, dataset.target_transform = transform, None

    monkeypatch.setattr(getattr(datasets, kind), "__init__", fill)
    train, train_labels, test, test_labels = data.load_images(name, "my data")
    assert np.array_equal(torch.cat([train, test]), images.transpose(axes))
    assert train_labels.tolist() == [0, 2, 1, 1] and test_labels.tolist() == [2, 0]


# ---------------------------------------------------------------------------------------------
# A folder of pictures


def write_picture(path, pixels):
    """Write pixels (height, width, 3) in the plainest format, PPM. Readers go by the content of a
    file, so its name may end like that of any picture.
    """
    height, width, _ = pixels.shape
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(f"P6 {width} {height} 255\n".encode() + pixels.tobytes())


@pytest.fixture
def folder(datasets):
    """A folder of 10 cats in the shades 0 to 9, and 10 dogs in the shades 10 to 19."""
    for i in range(20):
        pixels = np.full((16, 16, 3), i, np.uint8)
        write_picture(f"my/train/{'cat' if i < 10 else 'dog'}/{i}.png", pixels)
        write_picture(f"my/val/{'cat' if i < 10 else 'dog'}/deeper/{i}.JPEG", pixels)


def test_the_training_images_of_a_folder_are_mixed(folder):
    train, train_labels, test, test_labels = data.load_images("my")
    shades = train[:, 0, 0, 0].tolist()
    assert train.shape == test.shape == (20, 3, 32, 32) and sorted(shades) == list(range(20))
    for images, labels in ((train, train_labels), (test, test_labels)):
        assert torch.equal(labels, (images[:, 0, 0, 0] >= 10).long())
    assert train_labels[:6].unique().tolist() == [0, 1]

    # With a limit, the others are not even read.
    for shade in shades[6:]:
        Path(f"my/train/{'cat' if shade < 10 else 'dog'}/{shade}.png").write_bytes(b"not read")
    assert torch.equal(data.load_images("my", limit=6)[0], train[:6])


def test_a_picture_is_scaled_and_its_center_is_cut_out(folder):
    """They lie in test/ here, which goes before val/."""
    wide = random_bytes(20, 60, 3)
    write_picture("my/test/cat/1.png", wide)
    squares = np.repeat(np.repeat(random_bytes(5, 5, 3), 8, axis=0), 8, axis=1)
    write_picture("my/test/dog/1.png", squares)
    _, _, test, _ = data.load_images("my", image_size=20)
    assert np.array_equal(test[0], wide[:, 20:40].transpose(2, 0, 1))
    # Far from the edges, the squares of 8x8 have become squares of 4x4.
    assert np.array_equal(test[1, :, 1::4, 1::4], random_bytes(5, 5, 3).transpose(2, 0, 1))


def test_folders_that_cannot_be_used(folder):
    assert "image_size must be 1 or more" in error_of(data.load_images, "my", image_size=0)
    assert "limit must be at most 20" in error_of(data.load_images, "my", limit=21)
    sentence = error_of(data.load_images, "my/train")
    assert "my/train must hold pictures in train/CLASS/ and test/CLASS/ (or val/CLASS/)" in sentence

    Path("my/train/cat/3.png").write_bytes(b"P6 16 16 255\nonly a few of its pixels")
    assert "my/train/cat/3.png cannot be read as a pict" in error_of(data.load_images, "my")

    Path("my/val/cat").rename("my/val/bird")
    sentence = error_of(data.load_images, "my")
    assert sentence.endswith("the same classes, but only one of them has bird, cat")


def test_the_guide_sorts_tiny_imagenet_into_folders(datasets):
    """The pictures for validation come without folders, and those for the test without labels."""
    for i in range(2):
        pixels = np.full((64, 64, 3), i, np.uint8)
        write_picture(f"tiny-imagenet-200/train/n0{i}/images/n0{i}_0.JPEG", pixels)
        write_picture(f"tiny-imagenet-200/val/images/val_{i}.JPEG", pixels)
        write_picture(f"tiny-imagenet-200/test/images/test_{i}.JPEG", pixels)
    Path("tiny-imagenet-200/val/val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t0\t32\t44\t62\nval_1.JPEG\tn00\t52\t55\t57\t59\n"
    )
    guide = Path(data.__file__).parents[1].joinpath("docs/guide.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    [lines] = [block for block in blocks if "val_annotations.txt" in block]
    subprocess.run(["sh", "-c", lines], check=True)
    train, _, test, test_labels = data.load_images("tiny-imagenet-200", image_size=64)
    assert train.shape == (2, 3, 64, 64) and test_labels.tolist() == [0, 1]
    assert test[:, 0, 0, 0].tolist() == [1, 0]


# ---------------------------------------------------------------------------------------------
# What a training script does with images


def test_augmented_images_are_crops_of_the_padded_ones():
    images = random_bytes(3, 2, 16, 16)
    # The place of a crop, from 0 to 4 in the padded picture, and whether it is mirrored
    draws = torch.tensor([[0, 1 - 2**-24, 0.9], [0.5, 0.3, 0.4], [0.7, 0, 0.6]])
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    crops = np.stack([padded[0, :, :16, 4:], padded[1, :, 2:18, 1:17], padded[2, :, 3:19, :16]])
    assert np.array_equal(data.augment(torch.from_numpy(images), draws, flip=False), crops)
    crops[1] = crops[1, :, :, ::-1]
    assert np.array_equal(data.augment(torch.from_numpy(images), draws, flip=True), crops)


def test_mean_and_std_are_those_of_numpy():
    images = random_bytes(100, 3, 4, 4)
    images[:, 1] = 7
    mean, std = data.mean_and_std(torch.from_numpy(images))
    # A channel that is the same everywhere is not divided by zero. float32 has seven digits.
    expected = images.std((0, 2, 3)) + np.array([0, 1, 0])
    assert np.allclose(std[:, 0, 0], expected, rtol=1e-6, atol=0)
    assert np.allclose(mean[:, 0, 0], images.mean((0, 2, 3)), rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------------
# Text


def test_the_language_reference_comes_with_python():
    train, validation = data.load_text("pydoc", context=64)
    assert b"statement" in train.tobytes() and len(train) + len(validation) > 300_000


def test_a_text_is_split_into_90_and_10_percent():
    text = random_bytes(1005)
    Path("my.txt").write_bytes(text.tobytes())
    train, validation = data.load_text("my.txt", context=100)
    assert np.array_equal(train, text[:904]) and np.array_equal(validation, text[904:])


def test_a_text_may_be_larger_than_memory():
    # A file of 5 GB that takes no space, since nothing was written to it.
    with open("huge.txt", "wb") as file:
        file.truncate(5 * 2**30)
    train, validation = data.load_text("huge.txt", context=64)
    assert isinstance(train, np.memmap) and len(train) + len(validation) == 5 * 2**30
    # The checksum reads only the beginning.
    assert data.checksum(train) == zlib.crc32(bytes(2**28))


def test_texts_that_cannot_be_used():
    sentence = error_of(data.load_text, "my.txt", context=9)
    assert "must be pydoc, shakespeare or a file of text, but my.txt cannot be read (" in sentence
    Path("my.txt").write_bytes(bytes(89))
    sentence = error_of(data.load_text, "my.txt", context=9)
    assert "9 bytes, but those of my.txt have 80 (training) and 9 (validation)" in sentence


def test_shakespeare_is_downloaded_once(server, monkeypatch):
    text = random_bytes(1000)
    Path("sent").write_bytes(text.tobytes())
    monkeypatch.setattr(data, "SHAKESPEARE", f"{server}sent")
    # As long as the file is not the one that is published, it is refused.
    assert f'expected "{data.SHAKESPEARE_SHA256}' in error_of(data.load_text, "shakespeare", 64)
    assert not any(Path("data").iterdir())

    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    data.load_text("shakespeare", 64)
    assert [path.name for path in Path("data").iterdir()] == ["tinyshakespeare.txt"]
    Path("sent").unlink()
    train, validation = data.load_text("shakespeare", 64)
    assert np.array_equal(np.concatenate([train, validation]), text)


@pytest.mark.parametrize(
    "address, cause",
    [
        ("{}nowhere", "HTTP Error 404: File not found"),
        ("http://127.0.0.1:9/", "Connection refused"),
    ],
)
def test_a_text_that_cannot_be_downloaded(address, cause, server, monkeypatch):
    monkeypatch.setattr(data, "SHAKESPEARE", address.format(server))
    sentence = error_of(data.load_text, "shakespeare", 64, "new/folder")
    assert "get it by other means and save it as new/folder/tinyshakespeare.txt" in sentence
    assert cause in sentence and not any(Path("new/folder").iterdir())


def test_the_checksum_is_that_of_all_bytes():
    content = random_bytes(15).tobytes() + np.arange(4).tobytes()
    assert data.checksum(random_bytes(15).reshape(5, 3), torch.arange(4)) == zlib.crc32(content)
