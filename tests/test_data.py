"""Images and text: what comes with the project, what is downloaded, and what users bring.

The files are small, but in the published layouts. The network is a server on this machine.
"""

import hashlib
import io
import os
import pickle
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from mimetic_min import data


def wrong(load, *arguments, **options):
    """The message of the error that `load` raises: one line."""
    with pytest.raises((ValueError, OSError)) as error:
        load(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def put(path, content):
    """Write a file, and the folders above it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def random_bytes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def picture(color=(0, 0, 0), format="PNG", size=(16, 16), mode="RGB"):
    """The bytes of a picture of one color."""
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").new(mode, size, color).save(file, format)
    return file.getvalue()


# A black picture of 2x2, for those tests that need no Pillow to make one
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000200000002080000000057dd52f8000000"
    "0e4944415478da6360606060600000000600016fead79c0000000049454e44ae426082"
)

# ---------------------------------------------------------------------------------------------
# The digits


def test_the_digits_are_those_of_scikit_learn():
    """The sum and the counts are those of its load_digits(). `limit` takes the first ones."""
    train, train_labels, test, test_labels = data.load_images("digits")
    assert train.shape == (1000, 1, 8, 8) and int(train.sum()) + int(test.sum()) == 561718
    counts = torch.cat([train_labels, test_labels]).bincount().tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    limited = data.load_images("digits", limit=7)
    assert all(map(torch.equal, limited, (train[:7], train_labels[:7], test, test_labels)))


def test_each_shifted_digit_is_its_digit_at_one_of_25_places():
    scans = data.load_images("digits")[0][:, :, None, None]  # (1000, 1, 1, 1, 8, 8)
    shifted = data.load_images("shifted-digits")
    windows = shifted[0].unfold(2, 8, 1).unfold(3, 8, 1)  # (1000, 1, 5, 5, 8, 8)
    fits = (windows == scans).all(-1).all(-1).flatten(1)  # (1000, 25)
    # 1,000 / 25 = 40 images at each place, and six standard deviations are 37. (A scan with an
    # empty border fits at a few places, of which the first one counts.)
    assert fits.any(1).all() and (fits.int().argmax(1).bincount() - 40).abs().max() <= 37
    # A result can be compared with one of last year only if the places never change.
    assert data.checksum(*shifted) == 2072799117 != data.checksum(*shifted[:3])


# ---------------------------------------------------------------------------------------------
# Errors

# What makes a picture, or a file of SVHN, needs a package that may be missing.
NEEDS = {"svhn": "scipy.io", "tiny-imagenet": "PIL", "my": "PIL", ".": "PIL"}


@pytest.mark.parametrize(
    "name, options, files, word",
    [
        ("digits", dict(limit=0), {}, "limit must be 1 or more, but it is 0"),
        ("digits", dict(limit=1001), {}, "limit must be at most 1,000, the number of training"),
        ("digits", dict(data_dir="."), {}, "downloaded, and digits is none"),
        ("my.npz", dict(data_dir="."), {}, "data_dir is only for data sets that are"),
        ("digits", dict(image_size=8), {}, "is only for a folder of pictures, but for digits it"),
        (".", dict(image_size=0), {}, "image_size must be 1 or more"),
        ("digit", {}, {}, "tiny-imagenet, a folder or an .npz, but digit cannot be read ("),
        ("my.npz", {}, {"my.npz": b""}, "or an .npz, but my.npz cannot be read ("),
        ("my.npz", {}, {"my.npz": b"PK\3\4"}, "or an .npz, but my.npz cannot be read ("),
        ("my.npz", {}, {"my.npz": b"a letter"}, "or an .npz, but my.npz cannot be read ("),
        ("my.npz", {}, {"my.npz": pickle.dumps(print)}, "pickled (object) data"),
        # Published data
        ("cifar10", dict(data_dir="."), {}, ". must hold cifar-10-binary.tar.gz (https://www"),
        ("cifar10", {}, {"data/cifar-10-binary.tar.gz": b"cut"}, "tar.gz cannot be read ("),
        ("cifar100", {}, {"data/cifar-100-binary/train.bin": b"cut"}, "3,074 bytes, but have 3"),
        ("svhn", dict(data_dir="."), {"train_32x32.mat": b"cut"}, "must hold test_32x32.mat"),
        ("svhn", {}, {"data/train_32x32.mat": b"", "data/test_32x32.mat": b""}, "cannot be read ("),
        ("tiny-imagenet", {}, {"data/tiny-imagenet-200.zip": b"cut"}, "200.zip cannot be read ("),
        # Pictures
        (
            "my",
            {},
            dict.fromkeys(["my/training/a/1.png", "my/testing/a/1.png"], PNG),
            "that it holds are: testing, training",
        ),
        (
            "my",
            {},
            dict.fromkeys(["my/train/a/1.png"], PNG),
            "my must hold the folders train and test (or val), but",
        ),
        ("my", {}, dict.fromkeys(["my/test/a/1.png"], PNG), "but those that it holds are: test"),
        ("my", {}, dict.fromkeys(["my/1.png"], PNG), "but those that it holds are: none"),
        (
            "my",
            {},
            dict.fromkeys(["my/train/a/1.png", "my/test/a/1.png"], PNG),
            "pictures must be of two classes",
        ),
        (
            "my",
            {},
            dict.fromkeys(["my/train/a/1.png", "my/train/b/1.png", "my/val/1.png"], PNG),
            "and some be for the test",
        ),
        (
            "my",
            {},
            dict.fromkeys(["my/train/a/1.png", "my/train/b/1.png", "my/val/c/1.png"], PNG),
            "my/val/c is a class without",
        ),
        (
            "my",
            {},
            dict.fromkeys(["my/train/a/1.png", "my/train/b/no", "my/val/b/1.png"], PNG),
            "my/train/b is a class without",
        ),
        (
            "my",
            dict(limit=3),
            dict.fromkeys(["my/train/a/1.png", "my/train/b/1.png", "my/val/b/1.png"], PNG),
            "at most 2, the",
        ),
        (
            "my",
            {},
            {"my/train/a/1.png": PNG, "my/train/b/1.png": b"", "my/test/a/1.png": PNG},
            "my/train/b/1.png cannot be read as a picture (",
        ),
        (
            "my",
            {},
            {"my/train/a/1.png": PNG, "my/train/b/1.png": b"a letter", "my/test/a/1.png": PNG},
            "my/train/b/1.png cannot be read as a picture (",
        ),
        (
            "my",
            {},
            {"my/train/a/1.png": PNG, "my/train/b/1.png": PNG[:44], "my/test/a/1.png": PNG},
            "my/train/b/1.png cannot be read as a picture (",
        ),
        # Text
        ("doc", dict(context=8), {}, "wikitext-103 or a file, but doc cannot be read ("),
        (".", dict(context=8), {}, "but . cannot be read ([Errno 21] Is a directory: '.')"),
        ("a", dict(context=8), {"a": b""}, "a cannot be read (cannot mmap an empty file)"),
        ("a", dict(context=9), {"a": bytes(89)}, "have 80 (training) and 9 (validation)"),
        ("a", dict(context=8, data_dir="."), {}, "downloaded, and a is none"),
        ("pydoc", dict(context=8, data_dir="."), {}, "downloaded, and pydoc is none"),
        ("shakespeare", dict(context=8, data_dir="."), {}, ". must hold tinyshakespeare.txt (http"),
        ("enwik8", dict(context=8), {"data/enwik8.zip": b"cut"}, "enwik8.zip cannot be read ("),
    ],
)
def test_data_that_cannot_be_used_are_named(name, options, files, word):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    for path, content in files.items():
        put(path, content)
    load = data.load_text if "context" in options else data.load_images
    assert word in wrong(load, name, **options)


@pytest.mark.parametrize(
    "name, package, word",
    [
        ("svhn", "scipy", "svhn needs SciPy, which reads its files: pip install scipy"),
        ("tiny-imagenet", "PIL", "tiny-imagenet holds pictures, which need Pillow: pip install"),
        (".", "PIL", ". holds pictures, which need Pillow: pip install pillow"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(name, package, word, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert word in wrong(data.load_images, name)


# ---------------------------------------------------------------------------------------------
# An .npz of the user's own


def save_npz(**changes):
    arrays = {
        "train_images": random_bytes(3, 4, 4, 3),
        "train_labels": np.array([0, 2, 1]),
        "test_images": random_bytes(2, 4, 4, 3),
        "test_labels": np.array([[2], [0]], np.uint16),
        **changes,
    }
    np.savez("my.npz", **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3)])
def test_own_images_come_as_they_are(shape):
    images = random_bytes(5, *shape)
    save_npz(train_images=images[:3], test_images=images[3:])
    train, train_labels, test, test_labels = data.load_images("my.npz")
    expected = images.reshape(5, 4, 4, -1).transpose(0, 3, 1, 2)
    assert train.dtype == torch.uint8 and np.array_equal(torch.cat([train, test]), expected)
    assert train_labels.tolist() == [0, 2, 1] and test_labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    "name, array, word",
    [
        ("train_images", np.full((3, 4, 4), np.nan), "are float64 (3, 4, 4); values from 0 to 1"),
        ("train_images", np.ones((3, 4, 4)), "multiply them by 255, then .astype(numpy.uint8)"),
        ("test_images", random_bytes(2, 4, 5, 3), "but are uint8 (2, 4, 5, 3)"),
        ("test_images", random_bytes(2, 3, 4, 4), "but are uint8 (2, 3, 4, 4)"),
        ("test_images", random_bytes(2, 4, 4, 2), "but are uint8 (2, 4, 4, 2)"),
        ("test_images", random_bytes(2), "but are uint8 (2,)"),
        ("test_images", random_bytes(0, 4, 4, 3), "but are uint8 (0, 4, 4, 3)"),
        ("test_images", random_bytes(2, 8, 8, 3), "but have (3, 8, 8) and labels up to 2"),
        ("train_labels", np.array([0.0, np.nan, 2.0]), "3 whole numbers, one for each image"),
        ("train_labels", np.array([0, 1]), "one for each image, but are int64 (2,)"),
        ("train_labels", np.array([0, -1, 2]), "from 0 to 65,535, but go from -1 to 2"),
        ("train_labels", np.array([0, 1, 10**12]), "but go from 0 to 1000000000000"),
        ("test_labels", np.array([0, 3]), "labels up to 2, like those for training, but have"),
        ("test_labels", None, "('test_labels is not a file in the archive')"),
        ("test_labels", np.array([0, print], object), "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_wrong_are_named(name, array, word):
    save_npz(**{name: array})
    assert word in wrong(data.load_images, "my.npz")


# ---------------------------------------------------------------------------------------------
# Downloads


@pytest.fixture
def server(monkeypatch):
    """Serves the files of this folder, of each only the first `server.limit` bytes."""

    class Handler(SimpleHTTPRequestHandler):
        def copyfile(self, source, outputfile):
            outputfile.write(source.read(self.server.limit))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.shutdown()


@pytest.mark.parametrize("name", data.FILES)
@pytest.mark.parametrize(
    "address, sent, limit, word",
    [
        ("http://127.0.0.1:{}/elsewhere", b"right", -1, "(HTTP Error 404: File not found)"),
        # Nobody listens at port 9.
        ("http://127.0.0.1:9/", b"right", -1, "Connection refused"),
        ("http://127.0.0.1:{}/sent", b"right", 2, "2"),
        ("http://127.0.0.1:{}/sent", b"wrong", -1, "its 5 bytes do not have the"),
    ],
)
def test_a_bad_download_leaves_nothing_and_the_next_is_clean(
    name, address, sent, limit, word, server, capsys, monkeypatch
):
    algorithm = data.FILES[name][1]
    rest = (algorithm, hashlib.new(algorithm, b"right").hexdigest())
    monkeypatch.setitem(data.FILES, name, (address.format(server.server_port), *rest))
    put("sent", sent)
    server.limit = limit
    message = wrong(data.fetch, name, None)
    assert f"get it by other means, and put it as {name} into data/" in message
    assert data.FILES[name][0] in message and "(--data-dir)" in message and word in message
    assert os.listdir("data") == [] and f"{name}: " not in capsys.readouterr().err

    monkeypatch.setitem(data.FILES, name, (f"http://127.0.0.1:{server.server_port}/sent", *rest))
    put("sent", b"right")
    server.limit = -1
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert data.fetch(name, None).read_bytes() == b"right"
    assert os.listdir("data") == [name] and f"{name}: 5 bytes\r" in capsys.readouterr().err
    # Once is enough, and what lies there is trusted.
    put(f"data/{name}", b"mine")
    assert data.fetch(name, None).read_bytes() == data.fetch(name, "data").read_bytes() == b"mine"


def test_the_published_addresses_and_checksums():
    """Typed a second time, so that a slip in one place is seen."""
    assert [word for file in data.FILES.values() for word in file] == [
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "sha256",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        "md5",
        "e26dedcc434d2e4c54c9b2d4a06d8373",
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        "md5",
        "eb5a983be6a315427106f1b164d9cef3",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "md5",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "sha256",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "https://mattmahoney.net/dc/enwik8.zip",
        "sha256",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
        "sha256",
        "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
    ]


# ---------------------------------------------------------------------------------------------
# The published layouts


def publish(archive, root, members):
    """Write {name: bytes} into an archive, in the folder "packed", and as files of their own, in
    the folder "loose". In both, they lie in the folder `root`.
    """
    for name, content in members.items():
        put(f"loose/{root}/{name}", content)
    base, kind = archive.replace("tar.gz", "gztar").split(".")
    shutil.make_archive(f"packed/{base}", kind, "loose", root)


@pytest.mark.parametrize(
    "name, archive, label_bytes, folder, files",
    [
        (
            "cifar10",
            "cifar-10-binary.tar.gz",
            1,
            "cifar-10-batches-bin",
            [*map("data_batch_{}".format, range(1, 6)), "test_batch"],
        ),
        ("cifar100", "cifar-100-binary.tar.gz", 2, "cifar-100-binary", ["train", "test"]),
    ],
)
def test_cifar_in_its_binary_version(name, archive, label_bytes, folder, files):
    records = random_bytes(len(files), 4, label_bytes + 3072)
    publish(archive, folder, {f"{file}.bin": rows for file, rows in zip(files, records)})
    rows = np.concatenate(records)
    for data_dir in ("packed", "loose"):
        train, train_labels, test, test_labels = data.load_images(name, data_dir=data_dir)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
        assert len(test) == 4 and np.array_equal(torch.cat([train, test]), images)
        assert np.array_equal(torch.cat([train_labels, test_labels]), rows[:, label_bytes - 1])


def test_svhn_is_read_by_scipy_and_its_label_10_is_the_digit_0():
    savemat = pytest.importorskip("scipy.io").savemat
    images = random_bytes(10, 3, 32, 32)
    for name, step in (("train", 1), ("test", -1)):
        y = np.arange(1, 11, dtype=np.uint8)[::step, None]
        savemat(f"{name}_32x32.mat", {"X": images[::step].transpose(2, 3, 1, 0), "y": y})
    train, train_labels, test, test_labels = data.load_images("svhn", data_dir=".")
    assert np.array_equal(train, images) and np.array_equal(test, images[::-1])
    assert train_labels.tolist() == test_labels.tolist()[::-1] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_tiny_imagenet_is_read_from_its_pictures():
    """Pictures are black in the class n1, which wnids.txt names last, and light in n2."""
    pictures = {"n1": picture(0, "JPEG", (64, 64), "L"), "n2": picture((200, 200, 200), "JPEG")}
    members = {
        "wnids.txt": b"n2\nn1\n",
        "val/val_annotations.txt": b"n1.JPEG\tn1\t0\t0\t9\t9\nn2.JPEG\tn2\t0\t0\t9\t9\n",
        **{f"val/images/{name}.JPEG": pictures[name] for name in pictures},
        **{
            f"train/{name}/images/{name}_{i}.JPEG": pictures[name]
            for name in pictures
            for i in range(500)
        },
    }
    publish("tiny-imagenet-200.zip", "tiny-imagenet-200", members)
    for data_dir in ("packed", "loose"):
        train, train_labels, test, test_labels = data.load_images("tiny-imagenet", None, data_dir)
        assert train.shape == (1000, 3, 64, 64) and test.shape == (2, 3, 64, 64)
        is_light = torch.cat([train, test])[:, 0, 0, 0] > 100
        assert torch.equal(is_light, torch.cat([train_labels, test_labels]) == 1)


def test_texts_have_their_usual_parts():
    """enwik8 is split 90 to 5 to 5, WikiText-103 comes in parts, and others are split 90 to 10."""
    text = random_bytes(1000).tobytes()
    publish("enwik8.zip", ".", {"enwik8": text})
    publish(
        "wikitext-103-raw-v1.zip",
        "wikitext-103-raw",
        {
            "wiki.train.raw": text[:900],
            "wiki.valid.raw": text[900:950],
            "wiki.test.raw": text[950:],
        },
    )
    put("loose/tinyshakespeare.txt", text)
    for name, data_dir, end in (
        ("enwik8", "packed", 950),
        ("enwik8", "loose", 950),
        ("wikitext-103", "packed", 950),
        ("wikitext-103", "loose", 950),
        ("shakespeare", "loose", 1000),
        ("loose/tinyshakespeare.txt", None, 1000),
    ):
        train, validation = data.load_text(name, 49, data_dir)
        assert train.tobytes() == text[:900] and validation.tobytes() == text[900:end]
    # Such a file is mapped, so that it may be larger than memory.
    assert isinstance(train, np.memmap)
    train, validation = data.load_text("pydoc", context=64)
    assert len(train) > 9 * len(validation) - 10 > 300_000 and b"statement" in train.tobytes()


# ---------------------------------------------------------------------------------------------
# Pictures


def test_a_folder_of_pictures():
    """Hidden names and files of no format are left out. The size is 32 if nobody says another."""
    names = ["cat/a.png", "cat/b.PNG", "cat/deep/c.png", "dog/a.png", "dog/b.png"]
    contents = {
        **{f"train/{name}": picture((i, i, i)) for i, name in enumerate(names)},
        "test/dog/a.png": picture((9, 9, 9)),
        "train/a.png": b"not read",
        "train/.c/a.png": b"not read",
        "train/cat/.a.png": b"not read",
        "train/cat/.b/a.png": b"not read",
        "train/dog/README": b"not read",
        "train/dog/Thumbs.db": b"not read",
        # Pillow writes this format, but does not read it.
        "train/dog/a.pdf": b"not read",
    }
    for name, content in contents.items():
        put(f"my/{name}", content)
    train, train_labels, test, test_labels = data.load_images("my")
    assert test.shape == (1, 3, 32, 32) and test.unique().tolist() == [9]
    assert train_labels.dtype == torch.int64 and test_labels.tolist() == [1]
    shades = train[:, 0, 0, 0].tolist()
    assert dict(zip(shades, train_labels.tolist())) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}
    # The first ones are of both classes.
    assert shades != sorted(shades) and set(train_labels[:3].tolist()) == {0, 1}
    # Only these are read.
    put(f"my/train/{names[shades[4]]}", b"no picture")
    assert torch.equal(data.load_images("my", 3, image_size=8)[0], train[:3, :, :8, :8])


@pytest.mark.parametrize(
    "mode, color, format, expected",
    [
        ("RGB", (10, 20, 30), "PNG", [10, 20, 30]),
        ("RGB", (10, 20, 30), "BMP", [10, 20, 30]),
        ("RGBA", (10, 20, 30, 255), "PNG", [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), "PNG", [255, 255, 255]),
        ("RGBA", (0, 100, 200, 51), "PNG", [204, 224, 244]),
        ("L", 10, "PNG", [10, 10, 10]),
        ("LA", (10, 0), "PNG", [255, 255, 255]),
        ("1", 1, "PNG", [255, 255, 255]),
        ("P", 0, "GIF", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 0), "TIFF", [255, 255, 255]),
        # 40,000 of 65,535 is 155.6 of 255.
        ("I;16", 40_000, "PNG", [156, 156, 156]),
        ("I;16", 40_000, "TIFF", [156, 156, 156]),
        ("I", 40_000, "TIFF", [156, 156, 156]),
        ("I", 70_000, "TIFF", [255, 255, 255]),
    ],
)
def test_every_kind_of_picture_becomes_rgb(mode, color, format, expected):
    pixels = data.decode(io.BytesIO(picture(color, format, (9, 7), mode)), 5)
    # Within one step, which is what rounding may take.
    assert np.abs(pixels.reshape(3, 25).T - np.array(expected)).max() <= 1


def test_a_picture_is_turned_as_exif_says_scaled_and_cut_in_its_center():
    """Thirds of red, green and blue, darker above: only the green one, of 20x20, is left."""
    Image = pytest.importorskip("PIL.Image")
    pixels = np.repeat(np.eye(3), 20, 0)[None] * np.repeat([100, 200], 10)[:, None, None]
    exif = Image.Exif()
    # Orientation 6: the picture is stored a quarter turned to the left.
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.rot90(pixels).astype(np.uint8)).save(file, "PNG", exif=exif)
    found = data.decode(file, 40)
    # At a border the colors mix over two pixels of the picture, which are four of these.
    expected = np.array([[0, 0], [100, 200], [0, 0]])[:, :, None]
    assert np.array_equal(found[:, [8, 31], 4:-4], expected.repeat(32, 2))


# ---------------------------------------------------------------------------------------------
# What a training script does with images


@pytest.mark.parametrize("size, channels, flip", [(8, 1, True), (30, 2, True), (32, 3, False)])
def test_augmented_images_are_crops_of_the_padded_ones(size, channels, flip):
    images = random_bytes(20, channels, size, size)
    draws = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    # The first and the last crop
    draws[:2] = torch.tensor([[0.0], [1 - 2**-24]])
    made = data.augment(torch.from_numpy(images), draws, flip)
    pad = size // 8
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for i, (row, column, side) in enumerate(draws.tolist()):
        top, left = int(row * (2 * pad + 1)), int(column * (2 * pad + 1))
        crop = padded[i, :, top : top + size, left : left + size]
        assert np.array_equal(made[i], crop[:, :, ::-1] if flip and side < 0.5 else crop)


def test_mean_and_std_are_those_of_numpy():
    images = random_bytes(100, 3, 4, 4)
    images[:, 1] = 7
    # A channel that is the same everywhere is not divided by zero. float32 has seven digits.
    std = np.where([True, False, True], images.std((0, 2, 3)), 1)
    found = torch.stack(data.mean_and_std(torch.from_numpy(images)))  # (2, 3, 1, 1)
    assert np.allclose(found[..., 0, 0], [images.mean((0, 2, 3)), std], rtol=1e-6, atol=0)
