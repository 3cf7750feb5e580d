"""Images and text: what is shipped, what is downloaded, and what users bring, whole or broken."""
import hashlib
import io
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train_vit
from mimetic_min import data
from test_training import results, script


def arrays(**changes):
    return {"train_images": np.arange(96, dtype=np.uint8).reshape(3, 4, 4, 2), "train_labels": np.array([0, 2, 1]),
            "test_images": np.full((2, 4, 4, 2), 9, np.uint8), "test_labels": np.array([2, 0])} | changes


def npz(**changes):
    np.savez("my.npz", **{name: array for name, array in arrays(**changes).items() if array is not None})


# ---- the digits, and images of one's own

def test_the_digits_are_those_of_scikit_learn():
    """1,000 and 797 images of values 0 to 16, whose first is a zero. The sum is that of load_digits().images."""
    train_images, train_labels, test_images, test_labels = data.load_images("digits")
    assert train_images.shape == (1000, 1, 8, 8) and test_images.shape == (797, 1, 8, 8)
    assert train_images.dtype == torch.uint8 and torch.cat([train_images, test_images]).max() == 16
    assert train_images[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and train_labels[:10].tolist() == list(range(10))
    assert int(train_images.sum()) + int(test_images.sum()) == 561718
    counts = torch.bincount(torch.cat([train_labels, test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_own_images_come_as_they_are():
    npz()
    train_images, train_labels, test_images, test_labels = data.load_images("my.npz")
    assert train_images.dtype == torch.uint8 and train_labels.dtype == torch.int64
    assert np.array_equal(train_images.numpy(), arrays()["train_images"].transpose(0, 3, 1, 2))
    assert np.array_equal(test_images.numpy(), arrays()["test_images"].transpose(0, 3, 1, 2))
    assert train_labels.tolist() == [0, 2, 1] and test_labels.tolist() == [2, 0]
    assert len(data.load_images("my.npz", limit=2)[0]) == len(data.load_images("my.npz", limit=2)[1]) == 2
    npz(train_images=np.zeros((3, 4, 4), np.uint8), test_images=np.zeros((2, 4, 4), np.uint8))
    assert data.load_images("my.npz")[0].shape == (3, 1, 4, 4)
    train_vit.main("--data my.npz --batch-size 2 --epochs 2 --dim 8 --heads 2 --depth 1".split())
    assert np.isfinite(results("runs/vit-my")["runs"][-1]["curve"][-1]["train_loss"])  # all pixels 0: no division by 0


@pytest.mark.parametrize("changes, wrong", [
    (dict(test_labels=None), "this one has no test_labels"),
    (dict(train_images=np.full((3, 4, 4, 2), np.nan)), "train_images are float64, not uint8"),
    (dict(test_images=np.zeros((2, 4, 5, 2), np.uint8)), "test_images have the shape (2, 4, 5, 2), not (n, size,"),
    (dict(train_labels=np.array([0.0, 1.0, 2.0])), "train_labels are float64, not whole numbers"),
    (dict(train_labels=np.array([0, 1])), "train_labels have the shape (2,) for 3 images"),
    (dict(train_labels=np.array([0, -1, 2])), "train_labels go from -1 to 2"),
    (dict(train_labels=np.array([0, 1, 10**12])), "train_labels go from 0 to 1000000000000"),
    (dict(train_labels=np.array([0, 1, 2**64 - 1], np.uint64)), "train_labels go from 0 to 18446744073709551615"),
    (dict(test_labels=np.array([0, 3])), "test_labels go up to 3, those in training to 2"),
    (dict(test_images=np.zeros((2, 8, 8, 2), np.uint8)), "a training image is (4, 4, 2), a test image (8, 8, 2)"),
    (dict(train_images=np.zeros((0, 4, 4, 2), np.uint8), train_labels=np.zeros(0, int)), "have the shape (0, 4, 4, 2)"),
])
def test_images_that_are_wrong_are_named(changes, wrong):
    npz(**changes)
    with pytest.raises(ValueError) as error:
        data.load_images("my.npz")
    assert str(error.value).startswith("data is 'my.npz': it must be 'digits', ") and wrong in str(error.value)


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return open, ("it ran", "w")


def test_a_pickle_offered_as_images_does_not_run():
    for content in (pickle.dumps(Evil()), pickle.dumps({"train_images": Evil()}, protocol=0)):
        Path("my.npz").write_bytes(content)
        with pytest.raises(ValueError, match="^data is 'my.npz': .*it cannot be read as one$"):
            data.load_images("my.npz")
    npz(train_labels=np.array([Evil()] * 3, dtype=object))
    with pytest.raises(ValueError, match="^data is 'my.npz': .*it cannot be read as one$"):
        data.load_images("my.npz")
    assert not Path("it ran").exists()
    pickle.loads(pickle.dumps(Evil())).close()
    assert Path("it ran").exists()                                   # so it would have been seen


def mutations(length):
    """A position to cut a file at, or some bytes to put at some positions."""
    position = st.integers(0, length - 1)
    return st.one_of(position, st.dictionaries(position, st.integers(0, 255), min_size=1, max_size=4))


def mutated(content, mutation):
    if isinstance(mutation, int):
        return content[:mutation]
    content = bytearray(content)
    for position, value in mutation.items():
        content[position] = value
    return bytes(content)


@given(change=st.data())
@settings(max_examples=200)
def test_a_damaged_npz_is_refused_or_holds_images(change):
    """Whatever is cut off or changed in the file: ValueError that names it, or four arrays that fit together."""
    file = io.BytesIO()
    np.savez(file, **arrays())
    Path("my.npz").write_bytes(mutated(file.getvalue(), change.draw(mutations(len(file.getvalue())))))
    try:
        train_images, train_labels, test_images, test_labels = data.load_images("my.npz")
    except ValueError as error:
        assert str(error).startswith("data is 'my.npz': it must be ") and "\n" not in str(error)
    else:
        assert train_images.shape[1:] == test_images.shape[1:] and train_images.dtype == torch.uint8
        assert len(train_images) == len(train_labels) and len(test_images) == len(test_labels)
        assert 0 <= min(train_labels.min(), test_labels.min()) and test_labels.max() <= train_labels.max()


# ---- what the README says of other data sets: the lines there, run on small files of the same format

def readme_lines(first):
    """The Python block of the README that starts with the line `first`."""
    text = Path(train_vit.__file__).with_name("README.md").read_text()
    return text[text.index(f"```python\n{first}") + len("```python\n") :].split("```")[0]


def test_svhn_as_the_readme_converts_it():
    """MATLAB files with X (32, 32, 3, n) and y (n, 1) of 1 to 10, where 10 is the digit 0."""
    io_ = pytest.importorskip("scipy.io")
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (2, 32, 32, 3, 12), dtype=np.uint8), random.permutation(24).reshape(2, 12)
    for name, X, y in zip(("train", "test"), images, labels % 10 + 1):
        io_.savemat(f"{name}_32x32.mat", {"X": X, "y": y[:, None].astype(np.uint8)})
    exec(readme_lines("# SVHN"), {})
    loaded = data.load_images("svhn.npz")
    for i in (0, 1):
        assert np.array_equal(loaded[2 * i], images[i].transpose(3, 2, 0, 1))
        assert loaded[2 * i + 1].tolist() == ((labels[i] % 10 + 1) % 10).tolist()


def test_tiny_imagenet_as_the_readme_converts_it():
    """train/CLASS/images/*.JPEG and val/images/*.JPEG, one of them grey, with classes in val/val_annotations.txt.

    The training images come out in an order that mixes the classes, and is the same again each time.
    """
    Image = pytest.importorskip("PIL.Image")
    root, classes, notes = Path("tiny-imagenet-200"), ["n01", "n02", "n03"], []
    for n in range(9):
        grey = n == 4
        image = Image.new("L" if grey else "RGB", (64, 64), 28 * n if grey else (28 * n, 7, 9))
        folder = root / ("val/images" if n > 5 else f"train/{classes[n // 2]}/images")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{n}.JPEG")
        if n > 5:
            notes.append(f"{n}.JPEG\t{classes[8 - n]}\t0\t0\t62\t62\n")
    (root / "wnids.txt").write_text("n02\nn01\nn03\n")
    (root / "val/val_annotations.txt").write_text("".join(notes))
    exec(readme_lines("# Tiny ImageNet"), {})
    train_images, train_labels, test_images, test_labels = data.load_images("tiny-imagenet.npz")
    assert train_images.shape == (6, 3, 64, 64) and test_images.shape == (3, 3, 64, 64)

    def shades(images):
        return [round(float(image[0].float().mean()) / 28) for image in images]

    assert dict(zip(shades(train_images), train_labels.tolist())) == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    assert dict(zip(shades(test_images), test_labels.tolist())) == {6: 2, 7: 1, 8: 0}
    assert train_labels.tolist() != sorted(train_labels.tolist())
    exec(readme_lines("# Tiny ImageNet"), {})
    assert torch.equal(data.load_images("tiny-imagenet.npz")[0], train_images)
    grey = train_images[shades(train_images).index(4)]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


# ---- CIFAR and Tiny Shakespeare, from a server on this machine

def cifar_files(source):
    """All files of a data set of that format, with the real sizes: a few random images, the rest black."""
    train_files, test_file, label_bytes, classes = data.CIFAR[source]
    random = np.random.default_rng(0)
    files = {}
    for name in (*train_files, test_file):
        count = 10_000 if name == test_file else 50_000 // len(train_files)
        records = np.zeros((count, label_bytes + 3072), np.uint8)
        records[:, label_bytes - 1] = np.arange(count) % classes
        records[:, : label_bytes - 1] = 255                          # coarse labels, which nobody is to read
        records[:20, label_bytes:] = random.integers(0, 256, (20, 3072))
        files[name] = records
    return files


@pytest.fixture(scope="module")
def archives():
    """{data set: (its .tar.gz, its files)}"""
    made = {}
    for source in data.CIFAR:
        files, file = cifar_files(source), io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
            for name, records in files.items():
                add(tar, f"{data.DOWNLOADS[source][2].name}/{name}", records.tobytes())
        made[source] = file.getvalue(), files
    return made


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def serve(monkeypatch):
    """serve(source, content, fault) has the `source` downloaded from a server on this machine, once a call.

    The checksum is that of `content`. The answer is "whole", or has one of the faults; later ones are whole again.
    Returns the list of requests, and an event: with the fault "stalled", half of it is sent until that is set.
    """
    answers, requests, go_on, half_sent = {}, [], threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            content, fault = answers[self.path]
            answers[self.path] = content, "whole"
            if fault == "404":
                return self.send_error(404)
            if fault == "a redirect in a circle":
                answers[self.path] = content, fault if requests.count(self.path) < 5 else "whole"
                self.send_response(302)
                self.send_header("Location", self.path)
                return self.end_headers()
            self.send_response(200)
            if fault != "cut, without a length":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault == "a wrong byte":
                content = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
            if fault in ("broken off", "cut, without a length", "stalled"):
                self.wfile.write(content[: len(content) // 2])
                half_sent.set()
                if fault != "stalled" or not go_on.wait(60):
                    return None
                content = content[len(content) // 2 :]
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")

    def start(source, content, fault="whole"):
        path = f"/{source}"
        answers[path] = content, fault
        entry = f"http://127.0.0.1:{server.server_port}{path}", hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(data.DOWNLOADS, source, (*entry, data.DOWNLOADS[source][2]))
        return requests, half_sent, go_on

    yield start
    go_on.set()
    server.shutdown()
    server.server_close()


FAULTS = ["broken off", "cut, without a length", "a wrong byte", "404", "a redirect in a circle"]


def check_cifar(source, loaded, files):
    train_files, test_file, label_bytes, classes = data.CIFAR[source]
    train = np.concatenate([files[name] for name in train_files])
    for records, images, labels in ((train, *loaded[:2]), (files[test_file], *loaded[2:])):
        assert images.shape == (len(records), 3, 32, 32) and images.dtype == torch.uint8
        assert np.array_equal(images.numpy().reshape(len(records), 3072), records[:, -3072:])
        assert np.array_equal(labels.numpy(), records[:, label_bytes - 1]) and labels.max() == classes - 1


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_once(source, archives, serve, capsys):
    archive, files = archives[source]
    requests, *_ = serve(source, archive)
    check_cifar(source, data.load_images(source), files)
    size = len(archive) / 1e6
    assert capsys.readouterr().out == f"downloaded {data.DOWNLOADS[source][0]}: {size:.1f} of {size:.1f} MB\n"
    folder = data.DOWNLOADS[source][2]
    assert os.listdir("data") == [folder.name] and set(os.listdir(folder)) == set(files)
    check_cifar(source, data.load_images(source), files)
    check_cifar(source, data.load_images(source, data_dir=str(folder)), files)
    assert len(requests) == 1
    test_file = folder / data.CIFAR[source][1]
    test_file.unlink()                                               # as if unpacking had been interrupted
    check_cifar(source, data.load_images(source), files)
    assert len(requests) == 2
    content = test_file.read_bytes()
    test_file.write_bytes(content[:-1])                              # what is there is not overwritten
    right = f"data_dir is '{folder}': it must be a folder with the binary files of {source}; {test_file.name} has "
    with pytest.raises(ValueError, match=right + f"{len(content) - 1:,} bytes, not {len(content):,}"):
        data.load_images(source)
    wrong = bytearray(content)
    wrong[data.CIFAR[source][2] - 1] = data.CIFAR[source][3]
    test_file.write_bytes(wrong)
    top = data.CIFAR[source][3]
    with pytest.raises(ValueError, match=right.replace("has ", f"holds the label {top}; they go from 0 to {top - 1}")):
        data.load_images(source)
    assert test_file.read_bytes() == wrong and len(requests) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_download_of_cifar_leaves_nothing_and_the_next_is_clean(fault, archives, serve):
    archive, files = archives["cifar10"]
    serve("cifar10", archive, fault)
    with pytest.raises(ValueError) as error:
        data.load_images("cifar10")
    remedy = f"put {', '.join(files)} into data/cifar-10-batches-bin or a --data-dir"
    assert_says_what_was_tried(error, "cifar10", remedy)
    assert os.listdir("data") == []
    check_cifar("cifar10", data.load_images("cifar10"), files)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_download_of_shakespeare_leaves_nothing_and_the_next_is_clean(fault, serve):
    text = bytes(range(256)) * 40
    requests, *_ = serve("shakespeare", text, fault)
    with pytest.raises(ValueError) as error:
        data.load_text("shakespeare", 8)
    assert_says_what_was_tried(error, "shakespeare", "put it at data/tinyshakespeare.txt")
    assert os.listdir("data") == []
    for _ in range(2):
        asked = len(requests)
        train, validation = data.load_text("shakespeare", 8)
        assert train.tobytes() + validation.tobytes() == text and os.listdir("data") == ["tinyshakespeare.txt"]
    assert len(requests) == asked                                    # once is enough
    Path("data/tinyshakespeare.txt").write_bytes(text[:-1])
    with pytest.raises(ValueError, match="data/tinyshakespeare.txt is another .*: move it away, or train on it with "):
        data.load_text("shakespeare", 8)
    assert Path("data/tinyshakespeare.txt").read_bytes() == text[:-1] and len(requests) == asked


@given(change=st.data())
@settings(max_examples=15)
def test_a_damaged_cifar_file_is_refused_or_read_as_it_is(archives, change):
    """Cut off anywhere, or with a label that is none: ValueError that names it. A changed pixel is read as it is."""
    records = archives["cifar10"][1]["test_batch.bin"]
    if not Path("here").exists():
        os.mkdir("here")
        for name, whole in archives["cifar10"][1].items():
            whole.tofile(f"here/{name}")
    content = mutated(records.tobytes(), change.draw(mutations(records.size)))
    Path("here/test_batch.bin").write_bytes(content)
    found = np.frombuffer(content, np.uint8)
    if len(found) < records.size or found[::3073].max() > 9:
        with pytest.raises(ValueError, match="^data_dir is 'here': .*; test_batch.bin h"):
            data.load_images("cifar10", data_dir="here")
    else:
        *_, images, labels = data.load_images("cifar10", data_dir="here")
        assert np.array_equal(np.concatenate([labels[:, None], images.reshape(-1, 3072)], 1).ravel(), found)


def assert_says_what_was_tried(error, source, remedy):
    line = str(error.value)
    address = data.DOWNLOADS[source][0]
    assert line.startswith(f"data is '{source}': it must be downloaded from {address}, which failed (")
    assert line.endswith("); try again, or " + remedy) and "\n" not in line


def test_something_else_in_the_place_of_a_download_is_named_and_left(archives, serve):
    serve("cifar10", archives["cifar10"][0])
    os.mkdir("data")
    Path("data/cifar-10-batches-bin").write_text("mine")
    with pytest.raises(ValueError, match="^data/cifar-10-batches-bin/data_batch_1.bin cannot be written: "):
        data.load_images("cifar10")
    assert Path("data/cifar-10-batches-bin").read_text() == "mine"
    os.mkdir("data/tinyshakespeare.txt")
    with pytest.raises(ValueError, match=r"^data is 'shakespeare': .* it cannot be read \(Is a directory\)$"):
        data.load_text("shakespeare", 8)


def test_no_network_is_one_line(monkeypatch):
    """Nobody listens at port 9 of this machine."""
    monkeypatch.setenv("no_proxy", "*")
    for source, load in (("cifar100", data.load_images), ("shakespeare", lambda source: data.load_text(source, 8))):
        monkeypatch.setitem(data.DOWNLOADS, source, ("http://127.0.0.1:9/", *data.DOWNLOADS[source][1:]))
        with pytest.raises(ValueError, match="Connection refused"):
            load(source)


def test_a_download_that_is_killed_leaves_nothing_and_the_next_is_clean(serve):
    text = bytes(range(256)) * 8000
    _, half_sent, go_on = serve("shakespeare", text, "stalled")
    entry = f"data.DOWNLOADS['shakespeare'] = {data.DOWNLOADS['shakespeare'][:2]!r} + (pathlib.Path('data/t.txt'),)"
    code = f"import pathlib; from mimetic_min import data; {entry}; data.load_text('shakespeare', 8)"
    environment = os.environ | {"PYTHONPATH": str(Path(train_vit.__file__).parent)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    assert half_sent.wait(60)
    child.kill()
    child.wait()
    assert os.listdir("data") == []
    train, validation = data.load_text("shakespeare", 8)
    assert train.tobytes() + validation.tobytes() == text


def test_the_published_addresses_and_checksums():
    """As on https://www.cs.toronto.edu/~kriz/cifar.html (whose MD5 are of the same files), and of nanoGPT's text."""
    assert {name: (address, sha256) for name, (address, sha256, _) in data.DOWNLOADS.items()} == {
        "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        "cifar100": ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                     "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        "shakespeare": ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")}


def test_an_archive_writes_its_own_files_and_nothing_outside(serve):
    """With the right checksum, but members that climb out, links in the place of files, or not the files."""
    for wanted in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, None):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name in ("../evil", f"{os.getcwd()}/evil", "cifar-100-binary/../../evil", "cifar-100-binary/new"):
                add(tar, name, b"evil")
            if wanted is not None:
                member = tarfile.TarInfo("cifar-100-binary/train.bin")
                member.type, member.linkname = wanted, "../../outside"
                tar.addfile(member)
                add(tar, "cifar-100-binary/test.bin", b"")
        Path("outside").write_text("mine")
        serve("cifar100", file.getvalue())
        with pytest.raises(ValueError, match="^data_dir is 'data/cifar-100-binary': .* the archive has no train.bin"):
            data.load_images("cifar100")
        assert sorted(os.listdir()) == ["data", "outside"] and Path("outside").read_text() == "mine"
        assert os.listdir("data") == []


@given(change=st.data())
@settings(max_examples=100)
def test_a_damaged_archive_is_refused_or_whole(change):
    """Even with a checksum that holds, which only its author could make: all files come out, or none."""
    files = {"train.bin": bytes(range(200)), "test.bin": b"x" * 500}
    file, folder = io.BytesIO(), Path("data/cifar-100-binary")
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in files.items():
            add(tar, f"cifar-100-binary/{name}", content)
    folder.mkdir(parents=True, exist_ok=True)
    content = mutated(file.getvalue(), change.draw(mutations(len(file.getvalue()))))
    try:
        data._unpack(io.BytesIO(content), folder, list(files))
    except ValueError as error:
        assert str(error).startswith("data_dir is ") and os.listdir(folder) == []
    else:
        assert set(os.listdir(folder)) == set(files)
        for name in files:
            (folder / name).unlink()


# ---- augmentation and what the script makes of the images

@given(size=st.integers(8, 40), channels=st.integers(1, 3), seed=st.integers(0, 2**32), flip=st.booleans())
@settings(max_examples=50)
def test_augmented_images_are_crops_of_the_padded_ones(size, channels, seed, flip):
    """Each comes out of its own image, by one shift in all channels, mirrored or not; all shifts and sides turn up."""
    images = torch.randint(1, 256, (400, channels, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(seed))
    draws = torch.from_numpy(np.random.default_rng(seed).random((400, 3), np.float32))
    made, pad = data.augment(images, draws, flip), size // 8
    assert made.shape == images.shape and made.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    seen = []
    for image, result in zip(padded, made.numpy()):
        fits = [(row, column, side) for row in range(2 * pad + 1) for column in range(2 * pad + 1) for side in (1, -1)
                if np.array_equal(image[:, row : row + size, column : column + size][:, :, ::side], result)]
        assert len(fits) == 1
        seen += fits
    rows, columns, sides = map(np.array, zip(*seen))
    assert set(sides) == ({1, -1} if flip else {1})
    assert abs((sides == -1).mean() - 0.5 * flip) <= 6 * 0.5 / np.sqrt(400)      # six standard deviations of a coin
    choices = 2 * pad + 1
    for shifts in (rows, columns):                                   # each of k choices: 400/k times, within six sigma
        spread = 6 * np.sqrt(400 / choices * (1 - 1 / choices))
        assert np.abs(np.bincount(shifts, minlength=choices) - 400 / choices).max() <= spread


def test_the_largest_draws_stay_inside_the_padded_image():
    """The largest float32 below 1 makes the last crop, and no index beyond it, at any size."""
    for size in range(8, 200, 8):
        images = torch.randint(1, 256, (1, 1, size, size), dtype=torch.uint8)
        made, pad = data.augment(images, torch.full((1, 3), 1 - 2.0**-24), False), size // 8
        assert torch.equal(made, torch.nn.functional.pad(images, (0, pad, 0, pad))[..., pad:, pad:])


def test_images_are_normalised_augmented_and_evaluated_as_told(monkeypatch):
    """Three channels of other sizes, 601 test images: what the model is given is what NumPy makes of the files."""
    random = np.random.default_rng(5)
    scale = np.array([3, 40, 255])
    counts = {"train": 40, "test": 601}
    images = {name: (random.random((n, 8, 8, 3)) * scale).astype(np.uint8) for name, n in counts.items()}
    labels = {name: np.arange(len(images[name])) % 4 for name in images}
    np.savez("my.npz", **{f"{name}_images": images[name] for name in images},
             **{f"{name}_labels": labels[name] for name in images})
    pixels = images["train"].astype(float)
    expected = {name: (images[name] - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2)) for name in images}
    given_to = {True: [], False: []}                                 # in training and not
    forward = train_vit.ViT.forward

    def spy(self, batch):
        given_to[self.training].append(batch.clone())
        return forward(self, batch)

    monkeypatch.setattr(train_vit.ViT, "forward", spy)
    options = "--data my.npz --batch-size 10 --epochs 2 --dim 8 --heads 2 --depth 1 --init default --seed 3".split()
    train_vit.main([*options, "--out", "a"])
    shown = torch.cat(given_to[False]).reshape(8, 601, 3, 8, 8)      # at each of the 8 evaluations, every image once
    for evaluation in shown.numpy():
        assert np.allclose(evaluation.transpose(0, 2, 3, 1), expected["test"], rtol=0, atol=1e-5)  # float32, size 3
    order = np.concatenate([np.random.default_rng([3, epoch]).permutation(40) for epoch in range(2)])
    batches = torch.cat(given_to[True]).numpy().transpose(0, 2, 3, 1)
    assert np.allclose(batches, expected["train"][order], rtol=0, atol=1e-5)
    train_vit.main([*options, "--out", "b", "--augment", "crop"])
    changed = torch.cat(given_to[True][8:]).numpy().transpose(0, 2, 3, 1)
    same = [np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(changed, expected["train"][order])]
    assert 0 < sum(same) < 40                                        # a ninth of the crops is the image itself
    assert results("b")["config"]["augment"] == "crop" and results("a")["config"]["augment"] == "none"


def test_cifar_is_cropped_and_mirrored_and_digits_are_not(monkeypatch):
    calls = []
    monkeypatch.setattr(train_vit, "augment", lambda images, draws, flip: calls.append(flip) or images)
    small = "--epochs 1 --limit 100 --dim 8 --heads 2 --depth 1 --init default".split()
    train_vit.main(small)
    assert calls == []
    Path("here").mkdir()
    for name, records in cifar_files("cifar10").items():
        records.tofile(f"here/{name}")
    load = train_vit.load_images                                     # few, as the evaluations need not take long
    monkeypatch.setattr(train_vit, "load_images", lambda *of: [t[:100] for t in load(*of)])
    train_vit.main([*small, "--data", "cifar10", "--data-dir", "here", "--patch-size", "8"])
    assert calls == [True, True]
    train_vit.main([*small, "--data", "cifar10", "--data-dir", "here", "--patch-size", "8", "--augment", "none"])
    assert calls == [True, True]


# ---- text

def test_text_is_bytes_split_nine_to_one():
    Path("my.txt").write_bytes(bytes(range(250)))
    train, validation = data.load_text("my.txt", context=24)
    assert train.tolist() == list(range(225)) and validation.tolist() == list(range(225, 250))
    train, validation = data.load_text("docs", context=64)
    assert len(train) > 9 * len(validation) - 10 > 300_000 and b"statement" in train.tobytes()


@given(content=st.binary(max_size=400), context=st.integers(1, 50))
@example(content=b"", context=1)
@settings(max_examples=100)
def test_any_bytes_are_a_text_if_they_are_enough(content, context):
    """A tenth of at least context + 1 bytes is for validation; else one line says how long the file is."""
    Path("my.txt").write_bytes(content)
    validation_bytes = len(content) - len(content) * 9 // 10
    if validation_bytes > context:
        train, validation = data.load_text("my.txt", context)
        assert train.tobytes() + validation.tobytes() == content and len(validation) == validation_bytes
    else:
        line = f"its {len(content)} bytes is no more than the context of {context}$"
        with pytest.raises(ValueError, match="^data is 'my.txt': it must be longer: the last tenth of " + line):
            data.load_text("my.txt", context)


def test_a_file_larger_than_memory_is_trained_on():
    """A file of 8 GiB, which is a hole on the disk, by a process that may have 4 GiB of its own."""
    with open("large", "wb") as file:
        file.truncate(8 << 30)
    words = "--data large --steps 8 --dim 8 --heads 1 --depth 1 --context 8 --init default --sample 1".split()

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))

    done = script("lm", *words, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    code = "import numpy; numpy.fromfile('large', numpy.uint8)"      # the limit holds: read as a whole, it does not fit
    assert subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True).returncode == 1
