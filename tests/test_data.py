"""Images and text: what comes with the project, what is downloaded, and what users bring.

The files are small, but in the published layouts. The network is a server on this machine.
"""

import hashlib
import io
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


def test_the_digits_and_where_they_are_shifted():
    train, _, test, _ = data.load_images("digits")
    assert train.shape == (1000, 1, 8, 8) and test.shape == (797, 1, 8, 8)
    # `limit` takes the first ones. Each is at one of 25 places, and all places occur.
    shifted, labels, _, _ = data.load_images("shifted-digits", limit=500)
    windows = shifted.unfold(2, 8, 1).unfold(3, 8, 1)  # (500, 1, 5, 5, 8, 8)
    fits = (windows == train[:500, :, None, None]).all(-1).all(-1).flatten(1)  # (500, 25)
    assert fits.any(1).all() and fits.any(0).all() and len(labels) == 500
    # A result can be compared with one of last year only if places and labels never change.
    assert data.checksum(*data.load_images("shifted-digits")) == 2072799117


def npz(**changes):
    """The bytes of an .npz. A change to None leaves an array out."""
    arrays = {
        "train_images": random_bytes(3, 4, 4, 3),
        "train_labels": np.array([0, 2, 1]),
        "test_images": random_bytes(2, 4, 4, 3),
        "test_labels": np.array([[2], [0]], np.uint16),
        **changes,
    }
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


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
        ("my.npz", {}, {"my.npz": b"\x80\x04N."}, "pickled (object) data"),
        ("svhn", {}, {"scipy": None}, "svhn needs SciPy, which reads its files: pip install scipy"),
        (".", {}, {"PIL": None}, ". holds pictures, which need Pillow: pip install pillow"),
        ("tiny-imagenet", {}, {"PIL": None}, "tiny-imagenet holds pictures, which need Pillow"),
        # Arrays
        (
            "my.npz",
            {},
            {"my.npz": npz(train_images=np.full((3, 4, 4), np.nan))},
            "are float64 (3, 4, 4); values from 0 to 1",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(train_images=np.ones((3, 4, 4)))},
            "multiply them by 255, then .astype(numpy.uint8)",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_images=random_bytes(2, 4, 5, 3))},
            "but are uint8 (2, 4, 5, 3)",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_images=random_bytes(2, 3, 4, 4))},
            "but are uint8 (2, 3, 4, 4)",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_images=random_bytes(2, 4, 4, 2))},
            "but are uint8 (2, 4, 4, 2)",
        ),
        ("my.npz", {}, {"my.npz": npz(test_images=random_bytes(2))}, "but are uint8 (2,)"),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_images=random_bytes(0, 4, 4, 3))},
            "but are uint8 (0, 4, 4, 3)",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_images=random_bytes(2, 8, 8, 3))},
            "but have (3, 8, 8) and labels up to 2",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(train_labels=np.array([0.0, np.nan, 2.0]))},
            "3 whole numbers, one for each image",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(train_labels=np.array([0, 1]))},
            "one for each image, but are int64 (2,)",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(train_labels=np.array([0, -1, 2]))},
            "from 0 to 65,535, but go from -1 to 2",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(train_labels=np.array([0, 1, 10**12]))},
            "but go from 0 to 1000000000000",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_labels=np.array([0, 3]))},
            "labels up to 2, like those for training, but have",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_labels=None)},
            "('test_labels is not a file in the archive')",
        ),
        (
            "my.npz",
            {},
            {"my.npz": npz(test_labels=np.array([0, print], object))},
            "Object arrays cannot be loaded",
        ),
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
def test_data_that_cannot_be_used_are_named(name, options, files, word, monkeypatch):
    """A file that is None is a package that is missing."""
    pytest.importorskip(NEEDS.get(name, "numpy"))
    for path, content in files.items():
        if content is None:
            monkeypatch.setitem(sys.modules, path, None)
        else:
            put(path, content)
    load = data.load_text if "context" in options else data.load_images
    assert word in wrong(load, name, **options)


# ---------------------------------------------------------------------------------------------
# An .npz of the user's own


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3)])
def test_own_images_come_as_they_are(shape):
    images = random_bytes(5, *shape)
    put("my.npz", npz(train_images=images[:3], test_images=images[3:]))
    train, train_labels, test, test_labels = data.load_images("my.npz")
    assert np.array_equal(
        torch.cat([train, test]), images.reshape(5, 4, 4, -1).transpose(0, 3, 1, 2)
    )
    assert train_labels.tolist() == [0, 2, 1] and test_labels.tolist() == [2, 0]


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
def test_only_a_right_download_is_kept(name, server, capsys, monkeypatch):
    algorithm = data.FILES[name][1]
    checksum = hashlib.new(algorithm, b"right").hexdigest()
    for address, sent, limit, word in (
        # Nobody listens at port 9.
        ("http://127.0.0.1:9/", b"right", -1, "Connection refused"),
        ("http://127.0.0.1:{}/elsewhere", b"right", -1, "(HTTP Error 404: File not found)"),
        ("http://127.0.0.1:{}/sent", b"right", 2, "2"),
        ("http://127.0.0.1:{}/sent", b"wrong", -1, "its 5 bytes do not have the"),
    ):
        file = (address.format(server.server_port), algorithm, checksum)
        monkeypatch.setitem(data.FILES, name, file)
        put("sent", sent)
        server.limit = limit
        message = wrong(data.fetch, name, None)
        assert f"{file[0]}: get it by other means, and put it as {name} into data/" in message
        assert "(--data-dir)" in message and word in message
        assert not any(Path("data").iterdir())

    put("sent", b"right")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert data.fetch(name, None).read_bytes() == b"right"
    assert [path.name for path in Path("data").iterdir()] == [name]
    assert f"{name}: 5 bytes\r" in capsys.readouterr().err


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
    rows = random_bytes(4 * len(files), label_bytes + 3072)
    publish(
        archive,
        folder,
        {f"{file}.bin": part for file, part in zip(files, np.split(rows, len(files)))},
    )
    for data_dir in ("packed", "loose"):
        train, train_labels, test, test_labels = data.load_images(name, data_dir=data_dir)
        assert train.shape[1:] == (3, 32, 32) and len(test) == 4
        assert np.array_equal(torch.cat([train, test]).flatten(1), rows[:, label_bytes:])
        assert np.array_equal(torch.cat([train_labels, test_labels]), rows[:, label_bytes - 1])


def test_svhn_is_read_by_scipy_and_its_label_10_is_the_digit_0():
    savemat = pytest.importorskip("scipy.io").savemat
    images = random_bytes(10, 3, 32, 32)
    for name, step in (("train", 1), ("test", -1)):
        savemat(
            f"{name}_32x32.mat",
            {"X": images[::step].transpose(2, 3, 1, 0), "y": np.arange(1, 11)[::step, None]},
        )
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
    train, train_labels, test, test_labels = data.load_images("tiny-imagenet", None, "packed")
    assert train.shape == (1000, 3, 64, 64) and test.shape == (2, 3, 64, 64)
    is_light = torch.cat([train, test])[:, 0, 0, 0] > 100
    assert torch.equal(is_light, torch.cat([train_labels, test_labels]) == 1)


def test_texts_have_their_usual_parts():
    """enwik8 is split 90 to 5 to 5, WikiText-103 comes in parts, and others are split 90 to 10."""
    text = random_bytes(1000).tobytes()
    publish("enwik8.zip", ".", {"enwik8": text, "tinyshakespeare.txt": text})
    publish(
        "wikitext-103-raw-v1.zip",
        "wikitext-103-raw",
        {
            "wiki.train.raw": text[:900],
            "wiki.valid.raw": text[900:950],
            "wiki.test.raw": text[950:],
        },
    )
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
    contents = {
        "train/cat/a.png": picture((0, 0, 0)),
        "train/cat/b.PNG": picture((1, 1, 1)),
        "train/cat/deep/c.png": picture((2, 2, 2)),
        "train/dog/a.png": picture((3, 3, 3)),
        "train/dog/b.png": picture((4, 4, 4)),
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
    assert train_labels[:3].unique().tolist() == [0, 1]
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


def test_a_picture_is_turned_as_exif_says_and_cut_in_its_center():
    Image = pytest.importorskip("PIL.Image")
    pixels = random_bytes(20, 60, 3)
    exif = Image.Exif()
    # Orientation 6: the picture is stored a quarter turned to the left.
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save("turned.png", exif=exif)
    assert np.array_equal(data.decode("turned.png", 20), pixels[:, 20:40].transpose(2, 0, 1))


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
    # A channel that is the same everywhere is not divided by zero. float32 has seven digits.
    found = torch.stack(data.mean_and_std(torch.from_numpy(images)))  # (2, 3, 1, 1)
    assert np.allclose(
        found[..., 0, 0],
        [images.mean((0, 2, 3)), images.std((0, 2, 3)) + [0, 1, 0]],
        rtol=1e-6,
        atol=0,
    )
