"""Images and text: what comes with the project, what is downloaded, and what users bring.

The files are small, but of the true formats, and the network is a server on this machine.
"""

import hashlib
import io
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train_vit
from mimetic_min import data, datasets
from mimetic_min.lab import download

PROJECT = Path(data.__file__).parent.parent


def wrong(load, *arguments, **options):
    """The message of the ValueError that `load` raises: one line."""
    with pytest.raises(ValueError) as error:
        load(*arguments, **options)
    message = str(error.value)
    assert message and "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------
# The digits


def test_the_digits_are_those_of_scikit_learn():
    """1,000 and 797 images, whose first is a zero. The sum is that of load_digits().images."""
    train_images, train_labels, test_images, test_labels = data.load_images("digits")
    assert train_images.shape == (1000, 1, 8, 8)
    assert test_images.shape == (797, 1, 8, 8)
    assert train_images.dtype == test_images.dtype == torch.uint8
    assert train_labels.dtype == test_labels.dtype == torch.int64
    assert torch.cat([train_images, test_images]).max() == 16
    assert train_images[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert train_labels[:10].tolist() == list(range(10))
    assert int(train_images.sum()) + int(test_images.sum()) == 561718
    counts = torch.bincount(torch.cat([train_labels, test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_each_shifted_digit_is_its_digit_at_one_of_25_places():
    """Nothing is lost or added, all places occur, and they are the same each time."""
    digits = data.load_images("digits")
    shifted = data.load_images("shifted-digits")
    again = data.load_images("shifted-digits")
    places = []
    for part in (0, 2):
        assert shifted[part].shape == (len(digits[part]), 1, 12, 12)
        assert torch.equal(shifted[part], again[part])
        assert torch.equal(shifted[part + 1], digits[part + 1])
        for scan, canvas in zip(digits[part], shifted[part], strict=True):
            windows = canvas.unfold(1, 8, 1).unfold(2, 8, 1)[0]  # (5, 5, 8, 8)
            found = [
                tuple(place) for place in (windows == scan[0]).all(-1).all(-1).nonzero().tolist()
            ]
            assert found and canvas.sum() == scan.sum()
            places.append(found[0])
    # Each of 25 places is that of 1,797 / 25 = 72 images, within six standard deviations. (A scan
    # with an empty border fits in more than one place; these are few, and the first one is taken.)
    counts = np.unique(places, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert np.abs(counts - 1797 / 25).max() <= 6 * np.sqrt(1797 / 25 * 24 / 25)


def test_the_places_of_the_shifted_digits_never_change():
    """A result on them can be compared with one of last year only if these are the same."""
    assert data.fingerprint(*data.load_images("shifted-digits")) == 2072799117


def test_limit_takes_the_first_training_images_and_all_test_images():
    whole = data.load_images("shifted-digits")
    limited = data.load_images("shifted-digits", limit=7)
    assert torch.equal(limited[0], whole[0][:7]) and torch.equal(limited[1], whole[1][:7])
    assert torch.equal(limited[2], whole[2]) and torch.equal(limited[3], whole[3])
    for limit in (0, -1, 1001):
        message = wrong(data.load_images, "digits", limit)
        assert message.startswith("limit must be between 1 and 1,000")
        assert message.endswith(f"but it is {limit:,}")


def test_an_option_that_the_data_would_ignore_is_refused():
    npz()
    for source in ("digits", "shifted-digits", "my.npz", "."):
        message = wrong(data.load_images, source, data_dir="here")
        assert message.startswith("data_dir is for cifar10, cifar100, svhn, tiny-imagenet, but ")
        assert message.endswith(f"the data are {source}")
    for source in ("digits", "shifted-digits", "cifar10", "svhn", "tiny-imagenet", "my.npz"):
        message = wrong(data.load_images, source, image_size=32)
        assert message == f"image_size is for a folder of pictures, but the data are {source}"
    for source in ("docs", "my.npz"):
        message = wrong(data.load_text, source, 8, data_dir="here")
        assert message.startswith("data_dir is for shakespeare, enwik8, wikitext-103, but the data")


def test_data_that_are_not_there_are_named_with_those_that_are():
    message = wrong(data.load_images, "digit")
    assert message.startswith("data must be shifted-digits, digits, cifar10, cifar100, svhn, tiny-")
    assert message.endswith("but there is no file digit")
    message = wrong(data.load_text, "doc", 8)
    assert message == (
        "data must be docs, shakespeare, enwik8, wikitext-103 or a file, but there is no file doc"
    )


# ---------------------------------------------------------------------------------------------
# An .npz of the user's own


def arrays(**changes):
    images = {
        "train_images": np.arange(96, dtype=np.uint8).reshape(3, 4, 4, 2),
        "train_labels": np.array([0, 2, 1]),
        "test_images": np.full((2, 4, 4, 2), 9, np.uint8),
        "test_labels": np.array([2, 0]),
    }
    return images | changes


def npz(**changes):
    kept = {name: array for name, array in arrays(**changes).items() if array is not None}
    np.savez("my.npz", **kept)


def test_own_images_come_as_they_are():
    npz()
    train_images, train_labels, test_images, test_labels = data.load_images("my.npz")
    assert train_images.dtype == torch.uint8 and train_labels.dtype == torch.int64
    assert np.array_equal(train_images, arrays()["train_images"].transpose(0, 3, 1, 2))
    assert np.array_equal(test_images, arrays()["test_images"].transpose(0, 3, 1, 2))
    assert train_labels.tolist() == [0, 2, 1]
    assert test_labels.tolist() == [2, 0]
    assert all(tensor.is_contiguous() for tensor in (train_images, test_images))
    assert len(data.load_images("my.npz", limit=2)[0]) == 2
    npz(train_images=np.zeros((3, 4, 4), np.uint8), test_images=np.zeros((2, 4, 4), np.uint8))
    assert data.load_images("my.npz")[0].shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(test_labels=None), "must hold the array test_labels"),
        (dict(train_images=np.full((3, 4, 4, 2), np.nan)), "must be uint8, but they are float64"),
        (dict(test_images=np.zeros((2, 4, 5, 2), np.uint8)), "but it is (2, 4, 5, 2)"),
        (dict(train_labels=np.array([0.0, 1.0, 2.0])), "whole numbers, but they are float64"),
        (dict(train_labels=np.array([0, 1])), "must have the shape (3,), one for each image, but"),
        (dict(train_labels=np.array([0, -1, 2])), "they go from -1 to 2"),
        (dict(train_labels=np.array([0, 1, 10**12])), "they go from 0 to 1000000000000"),
        (dict(train_labels=np.array([0, 1, 2**64 - 1], np.uint64)), "to 18446744073709551615"),
        (dict(test_labels=np.array([0, 3])), "test_labels go up to 3, but those in training only"),
        (dict(test_images=np.zeros((2, 8, 8, 2), np.uint8)), "but they are (8, 8, 2)"),
        (
            dict(train_images=np.zeros((0, 4, 4, 2), np.uint8), train_labels=np.zeros(0, int)),
            "but it is (0, 4, 4, 2)",
        ),
    ],
)
def test_images_that_are_wrong_are_named(changes, expected):
    npz(**changes)
    message = wrong(data.load_images, "my.npz")
    assert message.startswith("my.npz") and expected in message


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return open, ("it ran", "w")


def test_a_pickle_offered_as_images_does_not_run():
    for content in (pickle.dumps(Evil()), pickle.dumps({"train_images": Evil()}, protocol=0)):
        Path("my.npz").write_bytes(content)
        assert wrong(data.load_images, "my.npz") == "my.npz cannot be read as an .npz of arrays"
    npz(train_labels=np.array([Evil()] * 3, dtype=object))
    assert wrong(data.load_images, "my.npz") == "my.npz cannot be read as an .npz of arrays"
    assert not Path("it ran").exists()
    # So it would have been seen:
    pickle.loads(pickle.dumps(Evil())).close()
    assert Path("it ran").exists()


def mutations(length):
    """A position to cut a file at, or some bytes to put at some positions."""
    position = st.integers(0, length - 1)
    changes = st.dictionaries(position, st.integers(0, 255), min_size=1, max_size=4)
    return st.one_of(position, changes)


def mutated(content, mutation):
    if isinstance(mutation, int):
        return content[:mutation]
    content = bytearray(content)
    for position, value in mutation.items():
        content[position] = value
    return bytes(content)


def refused_or_images(load, *arguments, **options):
    """Whatever was done to the file: a ValueError in one line, or four arrays that fit together."""
    try:
        train_images, train_labels, test_images, test_labels = load(*arguments, **options)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert train_images.dtype == test_images.dtype == torch.uint8
        assert train_images.shape[1:] == test_images.shape[1:]
        assert len(train_images) == len(train_labels) > 0
        assert len(test_images) == len(test_labels) > 0
        assert min(train_labels.min(), test_labels.min()) >= 0


@given(change=st.data())
@settings(max_examples=150)
def test_a_damaged_npz_is_refused_or_holds_images(change):
    file = io.BytesIO()
    np.savez(file, **arrays())
    content = file.getvalue()
    Path("my.npz").write_bytes(mutated(content, change.draw(mutations(len(content)))))
    refused_or_images(data.load_images, "my.npz")


# ---------------------------------------------------------------------------------------------
# Downloads, from a server on this machine


@pytest.fixture
def serve(monkeypatch):
    """serve(source, *contents, fault) has the files of `source` downloaded from this machine.

    The checksums are those of `contents`. The first answer for each file is "whole", or has one of
    the faults; later ones are whole. Returns the list of requests, and two events: with the fault
    "stalled" half of a file is sent, the first is set, and the rest waits for the second.
    """
    answers, requests = {}, []
    half_sent, go_on = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            content, fault = answers[self.path]
            answers[self.path] = content, "whole"
            if fault == "no answer in HTTP":
                self.wfile.write(b"hello\r\n\r\n")
                return None
            if fault == "404":
                return self.send_error(404)
            if fault == "a redirect in a circle":
                if requests.count(self.path) < 5:
                    answers[self.path] = content, fault
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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")

    def start(source, *contents, fault="whole"):
        files = []
        for file, content in zip(datasets.DOWNLOADS[source], contents, strict=True):
            algorithm = file.checksum.split(":")[0]
            checksum = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
            address = f"http://127.0.0.1:{server.server_port}/{file.name}"
            answers[f"/{file.name}"] = content, fault
            files.append(file._replace(address=address, checksum=checksum))
        monkeypatch.setitem(datasets.DOWNLOADS, source, files)
        return requests, half_sent, go_on

    yield start
    go_on.set()
    server.shutdown()
    server.server_close()


FAULTS = [
    "broken off",
    "cut, without a length",
    "a wrong byte",
    "404",
    "a redirect in a circle",
    "no answer in HTTP",
]
TEXT = bytes(range(256)) * 40


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_download_leaves_nothing_and_the_next_is_clean(fault, serve, capsys):
    requests, *_ = serve("shakespeare", TEXT, fault=fault)
    message = wrong(data.load_text, "shakespeare", 8)
    address = datasets.DOWNLOADS["shakespeare"][0].address
    assert message.startswith(f"cannot download {address} (")
    assert message.endswith(
        "); try again, or put tinyshakespeare.txt into data/ or into a folder that --data-dir names"
    )
    assert not Path("data").exists()
    assert capsys.readouterr().out == ""
    for _ in range(2):
        asked = len(requests)
        train, validation = data.load_text("shakespeare", 8)
        assert train.tobytes() + validation.tobytes() == TEXT
        assert os.listdir("data") == ["tinyshakespeare.txt"]
    # Once is enough.
    assert len(requests) == asked
    assert capsys.readouterr().out == f"downloaded {address}: 0.0 MB\n"


def test_a_file_in_data_counts_only_if_it_is_the_published_one(serve):
    requests, *_ = serve("shakespeare", TEXT)
    data.load_text("shakespeare", 8)
    path = Path("data/tinyshakespeare.txt")
    path.write_bytes(TEXT[:-1])
    message = wrong(data.load_text, "shakespeare", 8)
    assert message.startswith(f"{path} is not the published file: its sha256 is ")
    assert message.endswith("; move it away, or use it as it is with --data-dir data")
    assert path.read_bytes() == TEXT[:-1]
    assert len(requests) == 1
    train, validation = data.load_text("shakespeare", 8, data_dir="data")
    assert train.tobytes() + validation.tobytes() == TEXT[:-1]


def test_of_two_files_only_the_missing_one_is_downloaded(serve):
    serve("svhn", b"the first file", b"the second file", fault="404")
    for _ in range(2):
        message = wrong(download.fetch, datasets.DOWNLOADS["svhn"])
        assert "or put train_32x32.mat and test_32x32.mat into data/ or" in message
    train, test = download.fetch(datasets.DOWNLOADS["svhn"])
    assert train.read_bytes() == b"the first file"
    assert test.read_bytes() == b"the second file"


def test_a_file_that_data_dir_lacks_is_named():
    os.mkdir("here")
    for source, name in (
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("svhn", "train_32x32.mat"),
    ):
        pytest.importorskip("scipy.io" if source == "svhn" else "PIL")
        message = wrong(data.load_images, source, data_dir="here")
        assert message == f"there is no file {name} in the folder here"
    message = wrong(data.load_text, "enwik8", 8, data_dir="here")
    assert message == "there is no file enwik8.zip in the folder here"


def test_no_network_is_one_line(monkeypatch):
    """Nobody listens at port 9 of this machine."""
    monkeypatch.setenv("no_proxy", "*")
    for source in ("cifar100", "shakespeare"):
        files = [
            file._replace(address="http://127.0.0.1:9/") for file in datasets.DOWNLOADS[source]
        ]
        monkeypatch.setitem(datasets.DOWNLOADS, source, files)
    assert "Connection refused" in wrong(data.load_images, "cifar100")
    assert "Connection refused" in wrong(data.load_text, "shakespeare", 8)


def test_something_else_in_the_place_of_a_download_is_named_and_left(serve):
    serve("shakespeare", TEXT)
    Path("data").write_text("mine")
    message = wrong(data.load_text, "shakespeare", 8)
    assert message.startswith("cannot write data/tinyshakespeare.txt: ")
    assert Path("data").read_text() == "mine"
    os.remove("data")
    os.makedirs("data/tinyshakespeare.txt")
    message = wrong(data.load_text, "shakespeare", 8)
    assert message == "data/tinyshakespeare.txt cannot be read (Is a directory)"


@pytest.mark.slow
def test_a_download_that_is_killed_leaves_nothing_and_the_next_is_clean(serve):
    text = bytes(range(256)) * 8000
    _, half_sent, _ = serve("shakespeare", text, fault="stalled")
    code = f"""
from mimetic_min import data, datasets
from mimetic_min.lab.download import PublishedFile
datasets.DOWNLOADS["shakespeare"] = {datasets.DOWNLOADS["shakespeare"]}
data.load_text("shakespeare", 8)
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    assert half_sent.wait(60)
    child.kill()
    child.wait()
    assert not Path("data").exists()
    train, validation = data.load_text("shakespeare", 8)
    assert train.tobytes() + validation.tobytes() == text


def test_the_published_addresses_and_checksums():
    """Typed a second time, so that a slip in one place is seen."""
    found = {file.address: file.checksum for files in datasets.DOWNLOADS.values() for file in files}
    assert found == dict(line.split() for line in PUBLISHED.splitlines())


PUBLISHED = """\
https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec
http://ufldl.stanford.edu/housenumbers/train_32x32.mat md5:e26dedcc434d2e4c54c9b2d4a06d8373
http://ufldl.stanford.edu/housenumbers/test_32x32.mat md5:eb5a983be6a315427106f1b164d9cef3
http://cs231n.stanford.edu/tiny-imagenet-200.zip md5:90528d7ca1a48142e341f4ef8d21d0de
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
https://mattmahoney.net/dc/enwik8.zip sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc
https://wikitext.smerity.com/wikitext-103-raw-v1.zip sha256:91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794
"""  # noqa: E501


# ---------------------------------------------------------------------------------------------
# Archives


def tar_gz(members, no_file=None):
    """The bytes of a .tar.gz with {name: content}.

    `no_file` is the type of one more member, which stands in the place of CIFAR-100's train.bin and
    pretends to have its size.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if no_file is not None:
            member = tarfile.TarInfo("cifar-100-binary/train.bin")
            member.type = no_file
            member.linkname = "../../outside"
            member.size = 153_700_000
            archive.addfile(member)
    return file.getvalue()


def zip_of(members):
    """The bytes of a .zip with {name: content}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


NO_FILES = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "folder": tarfile.DIRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "nothing": None,
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_hostile_tar_writes_nothing(kind, serve):
    """With the right checksum, but members that climb out, and something else in the place of a
    file.
    """
    evil = {name: b"evil" for name in ("../evil", f"{os.getcwd()}/evil", "cifar-100-binary/new")}
    evil["cifar-100-binary/test.bin"] = b"too short"
    Path("outside").write_text("mine")
    serve("cifar100", tar_gz(evil, NO_FILES[kind]))
    message = wrong(data.load_images, "cifar100")
    assert message.endswith("has no member cifar-100-binary/train.bin of 153,700,000 bytes")
    assert sorted(os.listdir()) == ["data", "outside"]
    assert Path("outside").read_text() == "mine"
    assert os.listdir("data") == ["cifar-100-binary.tar.gz"]


def test_a_member_of_another_size_does_not_count():
    Path("a.tar.gz").write_bytes(tar_gz({"a": b"12345"}))
    assert download.read_tar("a.tar.gz", {"a": 5}) == {"a": b"12345"}
    for size in (4, 6):
        message = wrong(download.read_tar, "a.tar.gz", {"a": size})
        assert message == f"a.tar.gz has no member a of {size} bytes"


def test_of_a_member_that_is_too_large_little_is_unpacked():
    """A bomb of 50 MB, of which only 1,000 bytes are wanted."""
    Path("a.zip").write_bytes(zip_of({"a": bytes(50_000_000)}))
    with download.open_zip("a.zip") as archive:
        tracemalloc.start()
        message = wrong(download.read_zip, archive, "a", largest=1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert message == "a in a.zip is larger than 1,000 bytes"
    assert peak < 5_000_000


def test_a_hostile_zip_writes_nothing_and_a_bomb_is_refused(serve):
    """The archive is 100 kB large, and its one member that counts is 100,000,001 bytes of zeros."""
    evil = {name: b"evil" for name in ("../evil", f"{os.getcwd()}/evil", "enwik8/../../evil")}
    content = zip_of(evil | {"enwik8": bytes(100_000_001)})
    assert len(content) < 1_000_000
    serve("enwik8", content)
    message = wrong(data.load_text, "enwik8", 8)
    assert message == "enwik8 in data/enwik8.zip is larger than 100,000,000 bytes"
    assert os.listdir() == ["data"] and os.listdir("data") == ["enwik8.zip"]


@given(change=st.data())
@settings(max_examples=100)
def test_of_a_damaged_tar_comes_what_was_asked_for_or_one_line(change):
    sizes = {"folder/a": 200, "folder/b": 500}
    content = tar_gz({"folder/a": bytes(range(200)), "folder/b": b"x" * 500})
    Path("a.tar.gz").write_bytes(mutated(content, change.draw(mutations(len(content)))))
    try:
        contents = download.read_tar(Path("a.tar.gz"), sizes)
    except ValueError as error:
        assert str(error).startswith("a.tar.gz ") and "\n" not in str(error)
    else:
        assert {name: len(found) for name, found in contents.items()} == sizes


@given(change=st.data())
@settings(max_examples=100)
def test_of_a_damaged_zip_comes_the_text_or_one_line(change):
    """A zip holds a checksum of each member, so a wrong byte of the text is always noticed."""
    content = zip_of({"enwik8": TEXT})
    Path("enwik8.zip").write_bytes(mutated(content, change.draw(mutations(len(content)))))
    try:
        train, validation = data.load_text("enwik8", 8, data_dir=".")
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert train.tobytes() + validation.tobytes() == TEXT[: len(TEXT) * 95 // 100]


# ---------------------------------------------------------------------------------------------
# CIFAR


def few_images(source, monkeypatch):
    """Have files of CIFAR with 50 and 20 images instead of 50,000 and 10,000."""
    cifar = datasets.CIFAR[source]
    few = {"train": dict.fromkeys(cifar["train"], 50), "test": dict.fromkeys(cifar["test"], 20)}
    monkeypatch.setitem(datasets.CIFAR, source, cifar | few)


def cifar_files(source):
    """{name: records} of the files of a data set in that format, with random pixels."""
    cifar = datasets.CIFAR[source]
    label_bytes = cifar["label_bytes"]
    random = np.random.default_rng(0)
    files = {}
    for name, count in (cifar["train"] | cifar["test"]).items():
        records = random.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
        # The coarse labels, which nobody is to read, stay random.
        records[:, label_bytes - 1] = random.integers(0, cifar["classes"], count)
        files[name] = records
    return files


def check_cifar(source, loaded, files):
    cifar = datasets.CIFAR[source]
    for part, images, labels in (("train", *loaded[:2]), ("test", *loaded[2:])):
        records = np.concatenate([files[name] for name in cifar[part]])
        assert images.shape == (len(records), 3, 32, 32) and images.dtype == torch.uint8
        assert np.array_equal(images.reshape(len(records), 3072), records[:, -3072:])
        assert np.array_equal(labels, records[:, cifar["label_bytes"] - 1])


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_once_and_read_from_its_archive(source, serve, capsys, monkeypatch):
    few_images(source, monkeypatch)
    files = cifar_files(source)
    folder = datasets.CIFAR[source]["folder"]
    content = tar_gz({f"{folder}/{name}": records.tobytes() for name, records in files.items()})
    requests, *_ = serve(source, content)
    check_cifar(source, data.load_images(source), files)
    [published] = datasets.DOWNLOADS[source]
    size = f"{len(content) / 1e6:.1f} MB"
    assert capsys.readouterr().out == f"downloaded {published.address}: {size}\n"
    assert os.listdir("data") == [published.name]
    check_cifar(source, data.load_images(source), files)
    check_cifar(source, data.load_images(source, data_dir="data"), files)
    assert len(requests) == 1


def write_cifar(folder, files):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        records.tofile(Path(folder, name))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar_has_50_000_and_10_000_images(source):
    files = cifar_files(source)
    write_cifar("here", files)
    loaded = data.load_images(source, data_dir="here")
    check_cifar(source, loaded, files)
    assert len(loaded[0]) == 50_000 and len(loaded[2]) == 10_000


def test_cifar_is_read_from_its_unpacked_files(monkeypatch):
    """In data/ or in --data-dir, in the folder of the archive or not. What is wrong is named."""
    few_images("cifar10", monkeypatch)
    files = cifar_files("cifar10")
    folder = Path("data/cifar-10-batches-bin")
    write_cifar(folder, files)
    check_cifar("cifar10", data.load_images("cifar10"), files)
    for data_dir in ("data", str(folder)):
        check_cifar("cifar10", data.load_images("cifar10", data_dir=data_dir), files)

    path = folder / "test_batch.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    message = wrong(data.load_images, "cifar10")
    assert message == f"{path} must have 61,460 bytes, but it has 61,459"
    path.write_bytes(b"\n" + content[1:])
    message = wrong(data.load_images, "cifar10")
    assert message == (
        f"test_batch.bin in {folder} holds the label 10, but the labels of cifar10 go from 0 to 9"
    )
    path.unlink()
    message = wrong(data.load_images, "cifar10")
    assert message == f"{path} cannot be read (No such file or directory)"


@given(change=st.data())
@settings(max_examples=50)
def test_a_damaged_cifar_file_is_refused_or_read_as_it_is(change):
    """Cut off, or with a label that is none, it is refused. A changed pixel is read as it is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_images("cifar100", monkeypatch)
        files = cifar_files("cifar100")
        write_cifar("here", files)
        records = files["test.bin"]
        content = mutated(records.tobytes(), change.draw(mutations(records.size)))
        Path("here/test.bin").write_bytes(content)
        found = np.frombuffer(content, np.uint8)
        if len(found) < records.size or found[1::3074].max() > 99:
            assert "test.bin" in wrong(data.load_images, "cifar100", data_dir="here")
        else:
            files["test.bin"] = found.reshape(records.shape)
            check_cifar("cifar100", data.load_images("cifar100", data_dir="here"), files)


# ---------------------------------------------------------------------------------------------
# SVHN


def svhn_file(images, labels):
    """The bytes of a .mat with X (32, 32, 3, n) and y (n, 1), compressed as the published ones."""
    file = io.BytesIO()
    variables = {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None]}
    pytest.importorskip("scipy.io").savemat(file, variables, do_compression=True)
    return file.getvalue()


def svhn_arrays(count, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = (random.permutation(count) % 10 + 1).astype(np.uint8)
    return images, labels


def test_svhn_is_downloaded_and_its_label_10_is_the_digit_0(serve):
    train_images, train_labels = svhn_arrays(20, seed=0)
    test_images, test_labels = svhn_arrays(12, seed=1)
    files = [svhn_file(train_images, train_labels), svhn_file(test_images, test_labels)]
    requests, *_ = serve("svhn", *files)
    for _ in range(2):
        loaded = data.load_images("svhn")
        assert np.array_equal(loaded[0], train_images)
        assert loaded[1].tolist() == [label if label < 10 else 0 for label in train_labels]
        assert np.array_equal(loaded[2], test_images)
        assert loaded[3].tolist() == [label if label < 10 else 0 for label in test_labels]
    assert requests == ["/train_32x32.mat", "/test_32x32.mat"]
    assert sorted(os.listdir("data")) == ["test_32x32.mat", "train_32x32.mat"]
    assert np.array_equal(data.load_images("svhn", limit=3, data_dir="data")[0], train_images[:3])


def test_a_file_that_is_not_svhn_is_named():
    savemat = pytest.importorskip("scipy.io").savemat
    images, labels = svhn_arrays(3, seed=0)
    path = Path("train_32x32.mat")
    Path("test_32x32.mat").write_bytes(svhn_file(images, labels))

    def message(content):
        path.write_bytes(content)
        return wrong(data.load_images, "svhn", data_dir=".")

    assert message(b"").startswith(f"{path} cannot be read as a file of SVHN (")
    assert message(svhn_file(images[:2], labels)).endswith("but it is uint8 (32, 32, 3, 2)")
    assert message(svhn_file(images / 255, labels)).endswith("but it is float64 (32, 32, 3, 3)")
    expected = f"y in {path} must hold whole numbers from 1 to 10, but holds others"
    assert message(svhn_file(images, labels - labels)) == expected
    assert message(svhn_file(images, labels + 10)) == expected
    assert message(svhn_file(images, labels + 0.5)) == expected
    savemat(path, {"X": images})
    assert "'y'" in wrong(data.load_images, "svhn", data_dir=".")


@given(change=st.data())
@settings(max_examples=50)
def test_a_damaged_svhn_file_is_refused_or_holds_images(change):
    content = svhn_file(*svhn_arrays(2, seed=0))
    Path("test_32x32.mat").write_bytes(content)
    # Half of the changes are in the first 200 bytes, where the headers are.
    length = change.draw(st.sampled_from([200, len(content)]))
    Path("train_32x32.mat").write_bytes(mutated(content, change.draw(mutations(length))))
    refused_or_images(data.load_images, "svhn", data_dir=".")


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    os.mkdir("pictures")
    message = wrong(data.load_images, "svhn")
    assert message == "svhn needs SciPy to read its .mat files: python -m pip install scipy"
    for source in ("tiny-imagenet", "pictures"):
        message = wrong(data.load_images, source)
        assert message == "pictures need Pillow: python -m pip install pillow"


# ---------------------------------------------------------------------------------------------
# Pictures


def picture(width=64, height=64, colour=(0, 0, 0), mode="RGB", format="JPEG", **options):
    """The bytes of a picture of one colour."""
    Image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, format, **options)
    return file.getvalue()


def shades(images):
    """The mean of the red channel of each image, in whole steps of 20."""
    return [round(float(image[0].float().mean()) / 20) for image in images]


CLASSES = ["n01", "n02", "n03"]
ROOT = "tiny-imagenet-200"


def tiny_imagenet(**changes):
    """The members of the archive: nine pictures whose shade of red is their number, and one of the
    training pictures is grey. Of its classes, "n02" comes first in wnids.txt.
    """
    members = {f"{ROOT}/wnids.txt": b"n02\nn01\nn03\n", f"{ROOT}/words.txt": b"n01\ta\n"}
    for number in range(6):
        name = CLASSES[number // 2]
        colour = (20 * number, 7, 9)
        path = f"{ROOT}/train/{name}/images/{name}_{number}.JPEG"
        members[path] = picture(colour=colour)
    members[f"{ROOT}/train/n03/images/n03_4.JPEG"] = picture(colour=80, mode="L")
    lines = ""
    for number in range(6, 9):
        members[f"{ROOT}/val/images/val_{number}.JPEG"] = picture(colour=(20 * number, 7, 9))
        lines += f"val_{number}.JPEG\t{CLASSES[8 - number]}\t0\t0\t62\t62\n"
    members[f"{ROOT}/val/val_annotations.txt"] = lines.encode()
    members[f"{ROOT}/test/images/test_0.JPEG"] = b"not read"
    return zip_of(members | changes)


def test_tiny_imagenet_is_read_from_its_archive(serve):
    """Classes are numbered by their sorted names. The validation part is the test set. The order of
    the training images mixes the classes and is the same each time.
    """
    requests, *_ = serve("tiny-imagenet", tiny_imagenet())
    train_images, train_labels, test_images, test_labels = data.load_images("tiny-imagenet")
    assert train_images.shape == (6, 3, 64, 64)
    assert test_images.shape == (3, 3, 64, 64)
    labels = dict(zip(shades(train_images), train_labels.tolist(), strict=True))
    assert labels == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    assert shades(test_images) == [6, 7, 8]
    assert test_labels.tolist() == [2, 1, 0]
    assert train_labels.tolist() != sorted(train_labels.tolist())
    grey = train_images[shades(train_images).index(4)]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])

    limited = data.load_images("tiny-imagenet", limit=4)
    assert torch.equal(limited[0], train_images[:4])
    assert torch.equal(limited[1], train_labels[:4])
    assert torch.equal(data.load_images("tiny-imagenet", data_dir="data")[0], train_images)
    assert len(requests) == 1
    assert os.listdir("data") == ["tiny-imagenet-200.zip"]


def test_the_pixels_are_those_that_pillow_decodes():
    Image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    file = io.BytesIO()
    pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    decoded = np.asarray(Image.open(file))
    assert np.array_equal(datasets.decode(file.getvalue(), "a", 64), decoded.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({f"{ROOT}/wnids.txt": b""}, "holds no training pictures of any class"),
        ({f"{ROOT}/wnids.txt": b"n01 n02 n03 n04"}, "holds no training pictures of n04"),
        ({f"{ROOT}/wnids.txt": bytes(10_000_001)}, "is larger than 10,000,000 bytes"),
        ({f"{ROOT}/val/val_annotations.txt": b""}, "names no pictures"),
        ({f"{ROOT}/val/val_annotations.txt": b"a.JPEG\tn09\n"}, "names no class for 'a.JPEG'"),
        ({f"{ROOT}/val/val_annotations.txt": b"\xff"}, "names no class for"),
        ({f"{ROOT}/val/val_annotations.txt": b"a.JPEG\tn01\n"}, "has no member"),
        ({f"{ROOT}/val/images/val_7.JPEG": b"none"}, "val_7.JPEG is no picture that can be read"),
    ],
)
def test_what_is_wrong_in_tiny_imagenet_is_named(changes, expected):
    Path("tiny-imagenet-200.zip").write_bytes(tiny_imagenet(**changes))
    assert expected in wrong(data.load_images, "tiny-imagenet", data_dir=".")


@given(change=st.data())
@settings(max_examples=50)
def test_a_damaged_tiny_imagenet_is_refused_or_holds_images(change):
    content = tiny_imagenet()
    content = mutated(content, change.draw(mutations(len(content))))
    Path("tiny-imagenet-200.zip").write_bytes(content)
    refused_or_images(data.load_images, "tiny-imagenet", data_dir=".")


def put(folder, *contents):
    """Write pictures into a folder, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def reds(*numbers, **options):
    return [picture(colour=(20 * number, 7, 9), **options) for number in numbers]


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_a_folder_with_a_training_and_a_test_part(test_part, capsys):
    put("my/train/dog/indoors", *reds(4, 5))
    put("my/train/cat", *reds(1, 2, 3))
    put(f"my/{test_part}/cat", *reds(6))
    put(f"my/{test_part}/dog", *reds(7))
    Path("my/train/cat/.hidden").write_text("not read")
    put("my/train/.hidden", b"not read")
    Path("my/README").write_text("not read")
    train_images, train_labels, test_images, test_labels = data.load_images("my", image_size=16)
    assert train_images.shape == (5, 3, 16, 16) and train_images.dtype == torch.uint8
    labels = dict(zip(shades(train_images), train_labels.tolist(), strict=True))
    assert labels == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1}
    assert shades(test_images) == [6, 7]
    assert test_labels.tolist() == [0, 1]
    assert capsys.readouterr().out == ""
    # With a limit the others are not even looked at: all that is no longer a picture is beyond it.
    first, second = shades(train_images)[:2]
    names = {1: "cat/0.jpg", 2: "cat/1.jpg", 3: "cat/2.jpg"}
    names |= {4: "dog/indoors/0.jpg", 5: "dog/indoors/1.jpg"}
    for shade, name in names.items():
        if shade not in (first, second):
            Path("my/train", name).write_bytes(b"no picture")
    assert torch.equal(data.load_images("my", limit=2, image_size=16)[0], train_images[:2])
    assert wrong(data.load_images, "my", 6, image_size=16).startswith("limit must be between 1 and")


def test_a_folder_without_these_parts_gives_a_fifth_of_each_class_to_the_test(capsys):
    put("my/cat", *reds(*range(10)))
    put("my/dog", *reds(10, 11))
    train_images, train_labels, test_images, test_labels = data.load_images("my", image_size=8)
    assert sorted(shades(train_images) + shades(test_images)) == list(range(12))
    assert sorted(test_labels.tolist()) == [0, 0, 1]
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        assert [int(shade > 9) for shade in shades(images)] == labels.tolist()
    assert capsys.readouterr().out == "my: the test set is a fifth of each class, 3 pictures\n"
    again = data.load_images("my", image_size=8)
    assert torch.equal(again[0], train_images) and torch.equal(again[2], test_images)


def test_the_shorter_side_is_scaled_and_the_centre_cut_out():
    """A picture of 60x20 in thirds of red, green and blue: only the green one is left."""
    Image = pytest.importorskip("PIL.Image")
    wide = Image.new("RGB", (60, 20))
    wide.paste((200, 0, 0), (0, 0, 20, 20))
    wide.paste((0, 200, 0), (20, 0, 40, 20))
    wide.paste((0, 0, 200), (40, 0, 60, 20))
    for turned in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        for size in (10, 20, 40):
            file = io.BytesIO()
            turned.save(file, "PNG")
            pixels = datasets.decode(file.getvalue(), "a", size)
            assert pixels.shape == (3, size, size)
            # The colours beside it shine in over two pixels of the picture, as bicubic has it.
            border = size // 5
            inner = pixels[:, border:-border, border:-border]
            assert np.array_equal(inner, np.broadcast_to([[[0]], [[200]], [[0]]], inner.shape))


@pytest.mark.parametrize("side, size", [(20, 32), (48, 32), (49, 64), (300, 64)])
def test_the_size_is_chosen_by_the_median_and_printed(side, size, capsys):
    """The medium one of three, whose other side is longer."""
    for part in ("train", "test"):
        put(f"my/{part}/a", *reds(1, width=8), *reds(1, width=side, height=400))
        put(f"my/{part}/b", *reds(1, width=500, height=400))
    assert data.load_images("my")[0].shape == (3, 3, size, size)
    line = f"my: the pictures are scaled to {size}x{size} (--image-size sets it)\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    "mode, colour, format, expected",
    [
        ("RGB", (10, 20, 30), "PNG", [10, 20, 30]),
        ("RGB", (10, 20, 30), "BMP", [10, 20, 30]),
        ("RGBA", (10, 20, 30, 40), "PNG", [10, 20, 30]),
        ("L", 10, "PNG", [10, 10, 10]),
        ("LA", (10, 20), "PNG", [10, 10, 10]),
        ("1", 1, "PNG", [255, 255, 255]),
        ("P", 0, "GIF", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 0), "TIFF", [255, 255, 255]),
    ],
)
def test_every_kind_of_picture_becomes_rgb(mode, colour, format, expected):
    pixels = datasets.decode(picture(9, 7, colour, mode, format), "a", 5)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 5, 5)
    assert pixels.reshape(3, 25).T.tolist() == [expected] * 25


def test_a_picture_that_cannot_be_read_is_named(monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    put("my/train/a", *reds(1))
    put("my/test/a", *reds(1))
    put("my/test/b", *reds(1))
    good = picture(format="PNG")

    def message(content):
        [path] = put("my/train/b", content)
        found = wrong(data.load_images, "my", image_size=8)
        assert found.startswith(f"{path} is no picture that can be read (")
        return found

    message(b"")
    message(b"a letter to my mother")
    message(good[:-20])
    message(picture(width=400, height=400)[:-500])
    assert "more than 8 bits" in message(picture(colour=40_000, mode="I;16", format="PNG"))
    # Pillow warns of a bomb above this number of pixels, and raises an error above twice of it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    assert "decompression bomb" in message(picture(width=80, height=80, format="PNG"))
    assert "decompression bomb" in message(picture(width=800, height=800, format="PNG"))
    assert "decompression bomb" in wrong(data.load_images, "my")


def test_a_folder_that_is_not_as_it_must_be_is_named():
    pytest.importorskip("PIL")
    os.mkdir("my")
    assert wrong(data.load_images, "my") == "my holds no folders of pictures, one for each class"
    put("my/cat", *reds(1, 2))
    assert wrong(data.load_images, "my") == "my has only the class cat, but needs two or more"
    os.mkdir("my/dog")
    assert wrong(data.load_images, "my") == "my/dog is a class without pictures"
    put("my/dog", *reds(1))
    message = "my/dog/0.jpg is the only picture of its class, but a test needs another"
    assert wrong(data.load_images, "my") == message

    message = "yours must have the folders train and test (or val), but has only one"
    put("yours/train/cat", *reds(1))
    assert wrong(data.load_images, "yours") == message
    put("yours/val/cat", *reds(1))
    put("yours/val/dog", *reds(1))
    message = "the class dog is in yours/val, but not in yours/train"
    assert wrong(data.load_images, "yours") == message
    put("yours/train/dog", *reds(1))
    message = "image_size must be 1 or more, but it is 0"
    assert wrong(data.load_images, "yours", image_size=0) == message
    os.mkdir("yours/test")
    message = "yours/test holds no folders of pictures, one for each class"
    assert wrong(data.load_images, "yours") == message


def test_a_folder_larger_than_memory_is_refused_before_a_picture_is_read(monkeypatch):
    """Four pictures of a million pixels, in three bytes each, need 12 MB."""
    pytest.importorskip("PIL")
    real = datasets.available_memory
    for part in ("train", "test"):
        put(f"my/{part}/a", b"no picture")
        put(f"my/{part}/b", b"no picture")
    monkeypatch.setattr(datasets, "available_memory", lambda: 11_999_999)
    message = wrong(data.load_images, "my", image_size=1000)
    assert message.startswith("4 pictures of 1000x1000 need 0.0 GB of memory, but 0.0 GB are ")
    monkeypatch.setattr(datasets, "available_memory", lambda: 12_000_000)
    assert "is no picture that can be read" in wrong(data.load_images, "my", image_size=1000)
    monkeypatch.setattr(datasets, "available_memory", lambda: None)
    assert "is no picture that can be read" in wrong(data.load_images, "my", image_size=1000)
    monkeypatch.setattr(datasets, "available_memory", real)
    message = wrong(data.load_images, "my", image_size=10**6)
    assert message.startswith("4 pictures of 1000000x1000000 need 12000.0 GB of memory, but ")


@given(change=st.data(), format=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))
@settings(max_examples=150)
def test_a_damaged_picture_is_refused_or_decoded(change, format):
    content = picture(12, 9, (10, 200, 30), format=format)
    content = mutated(content, change.draw(mutations(len(content))))
    try:
        pixels = datasets.decode(content, "a.file", 6)
    except ValueError as error:
        assert str(error).startswith("a.file is no picture") and "\n" not in str(error)
    else:
        assert pixels.shape == (3, 6, 6) and pixels.dtype == np.uint8


# ---------------------------------------------------------------------------------------------
# Augmentation and normalisation


@given(
    size=st.integers(8, 40),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    flip=st.booleans(),
)
@settings(max_examples=15)
def test_augmented_images_are_crops_of_the_padded_ones(size, channels, seed, flip):
    """Each comes out of its own image, by one shift in all channels, mirrored or not. All shifts
    and both sides turn up as often as chance has it.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (400, channels, size, size), generator=generator)
    images = images.to(torch.uint8)
    draws = torch.from_numpy(np.random.default_rng(seed).random((400, 3), np.float32))
    made = data.augment(images, draws, flip)
    assert made.shape == images.shape and made.dtype == torch.uint8

    pad = size // 8
    choices = 2 * pad + 1
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    seen = []
    for image, result in zip(padded, made.numpy(), strict=True):
        fits = []
        for row in range(choices):
            for column in range(choices):
                crop = image[:, row : row + size, column : column + size]
                for side in (1, -1):
                    if np.array_equal(crop[:, :, ::side], result):
                        fits.append((row, column, side))
        assert len(fits) == 1
        seen += fits
    rows, columns, sides = np.array(seen).T
    assert set(sides) == ({1, -1} if flip else {1})
    # Six standard deviations of the mean of 400 coins, and of the count of one choice of many.
    assert abs((sides == -1).mean() - 0.5 * flip) <= 6 * 0.5 / np.sqrt(400)
    spread = 6 * np.sqrt(400 / choices * (1 - 1 / choices))
    for shifts in (rows, columns):
        counts = np.bincount(shifts, minlength=choices)
        assert np.abs(counts - 400 / choices).max() <= spread


def test_the_largest_draws_stay_inside_the_padded_image():
    """The largest float32 below 1 makes the last crop, and no index beyond it, at any size."""
    for size in range(8, 200, 8):
        images = torch.randint(1, 256, (1, 1, size, size)).to(torch.uint8)
        made = data.augment(images, torch.full((1, 3), 1 - 2.0**-24), flip=False)
        pad = size // 8
        padded = torch.nn.functional.pad(images, (0, pad, 0, pad))
        assert torch.equal(made, padded[..., pad:, pad:])


def test_mean_and_std_are_those_of_numpy():
    """More images than are summed at once, and one channel that is the same everywhere."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2500, 3, 4, 4), dtype=np.uint8)
    images[:, 1] = 7
    mean, std = data.mean_and_std(torch.from_numpy(images))
    assert mean.shape == std.shape == (3, 1, 1)
    assert mean.dtype == std.dtype == torch.float32
    expected = images.astype(float).std((0, 2, 3))
    expected[1] = 1.0
    # The sums are exact, so what is left is the rounding to float32, of 2^-24 relatively.
    assert np.allclose(mean.ravel(), images.astype(float).mean((0, 2, 3)), rtol=2**-23, atol=0)
    assert np.allclose(std.ravel(), expected, rtol=2**-23, atol=0)


def images_of_train_vit(**changes):
    """What train_vit.py makes of my.npz."""
    options = dict(data="my.npz", limit=None, data_dir=None, image_size=None, device="cpu")
    return train_vit.Images(
        SimpleNamespace(**options | dict(augment="none", batch_size=10) | changes)
    )


def test_images_are_normalised_and_augmented_as_told():
    """Three channels of different sizes: a batch is what NumPy makes of the file."""
    random = np.random.default_rng(5)
    scale = np.array([3, 40, 255])
    train = (random.random((40, 8, 8, 3)) * scale).astype(np.uint8)
    test = (random.random((7, 8, 8, 3)) * scale).astype(np.uint8)
    npz(
        train_images=train,
        train_labels=np.arange(40) % 4,
        test_images=test,
        test_labels=np.arange(7) % 4,
    )
    pixels = train.astype(float)
    mean = pixels.mean((0, 1, 2))
    std = pixels.std((0, 1, 2))
    images = images_of_train_vit()
    # Float32 rounds numbers of size 3 by about 1e-7 a step, and there are a few steps.
    found = images.normalise(images.test).numpy().transpose(0, 2, 3, 1)
    assert np.allclose(found, (test - mean) / std, rtol=0, atol=1e-5)

    # An epoch is every image once, with its label.
    seen = []
    for step in range(4):
        batch, labels = images.batch(3, step)
        for image, label in zip(batch.numpy().transpose(0, 2, 3, 1), labels.tolist(), strict=True):
            distances = np.abs(image - (train - mean) / std).max((1, 2, 3))
            assert distances.min() < 1e-5 and distances.argmin() % 4 == label
            seen.append(distances.argmin())
    assert sorted(seen) == list(range(40))

    # A ninth of the crops is the image itself.
    plain = torch.cat([images.batch(3, step)[0] for step in range(4)])
    augmented = images_of_train_vit(augment="crop")
    changed = torch.cat([augmented.batch(3, step)[0] for step in range(4)])
    same = [bool(torch.equal(a, b)) for a, b in zip(plain, changed, strict=True)]
    assert 0 < sum(same) < 40


def test_natural_images_are_augmented_unless_told_otherwise_and_digits_are_not(monkeypatch):
    few_images("cifar10", monkeypatch)
    write_cifar("here", cifar_files("cifar10"))
    cifar = dict(data="cifar10", data_dir="here")
    assert images_of_train_vit(**cifar, augment=None).augment == "crop+flip"
    assert images_of_train_vit(**cifar, augment="none").augment == "none"
    # A mirrored house number is none.
    assert train_vit.AUGMENT["svhn"] == "crop"
    npz()
    for source in ("digits", "shifted-digits", "my.npz"):
        assert images_of_train_vit(data=source, augment=None, batch_size=2).augment == "none"


def test_the_fingerprint_tells_data_from_others():
    digits = data.load_images("digits")
    found = data.fingerprint(*digits)
    assert found == data.fingerprint(*data.load_images("digits"))
    for changed in range(4):
        others = [tensor.clone() for tensor in digits]
        others[changed][-1] += 1
        assert data.fingerprint(*others) != found
    # Of a long array it looks at the first million and at the last.
    long = np.zeros(1 << 28, np.uint8)
    found = data.fingerprint(long)
    for place in (0, -1):
        long[place] = 1
        assert data.fingerprint(long) != found
        long[place] = 0


# ---------------------------------------------------------------------------------------------
# Text


def test_text_is_bytes_split_nine_to_one():
    Path("my.txt").write_bytes(bytes(range(250)))
    train, validation = data.load_text("my.txt", context=24)
    assert train.tolist() == list(range(225))
    assert validation.tolist() == list(range(225, 250))
    train, validation = data.load_text("docs", context=64)
    assert len(train) > 9 * len(validation) - 10 > 300_000
    assert b"statement" in train.tobytes()


def test_enwik8_is_split_90_to_5_to_5(serve):
    text = bytes(range(100)) * 10
    serve("enwik8", zip_of({"enwik8": text}))
    for data_dir in (None, "data"):
        train, validation = data.load_text("enwik8", 8, data_dir)
        assert train.dtype == validation.dtype == np.uint8
        assert train.tobytes() == text[:900]
        assert validation.tobytes() == text[900:950]
    assert os.listdir("data") == ["enwik8.zip"]


def test_wikitext_has_its_own_parts(serve):
    parts = {"train": b"training " * 9, "valid": b"validation " * 9, "test": b"test " * 9}
    members = {f"wikitext-103-raw/wiki.{name}.raw": text for name, text in parts.items()}
    serve("wikitext-103", zip_of(members))
    train, validation = data.load_text("wikitext-103", 8)
    assert train.tobytes() == parts["train"]
    assert validation.tobytes() == parts["valid"]


@given(content=st.binary(max_size=400), context=st.integers(1, 50))
@example(content=b"", context=1)
@settings(max_examples=100)
def test_any_bytes_are_a_text_if_they_are_enough(content, context):
    """A tenth of at least context + 1 bytes is for validation, or one line says what is missing."""
    Path("my.txt").write_bytes(content)
    validation_bytes = len(content) - len(content) * 9 // 10
    if validation_bytes > context:
        train, validation = data.load_text("my.txt", context)
        assert train.tobytes() + validation.tobytes() == content
        assert len(validation) == validation_bytes
    else:
        message = wrong(data.load_text, "my.txt", context)
        assert f"longer than the context of {context} bytes, but those of my.txt" in message
        assert message.endswith(f" and {validation_bytes} bytes")


def test_a_text_that_cannot_be_read_is_one_line():
    assert wrong(data.load_text, ".", 8) == ". cannot be read (Is a directory)"


@pytest.mark.slow
def test_a_file_larger_than_memory_is_trained_on():
    """A file of 8 GiB, which is a hole on the disk, in a process that may have 4 GiB."""
    with open("large", "wb") as file:
        file.truncate(8 << 30)

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))

    def run(*words):
        command = [sys.executable, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, preexec_fn=limit, env=environment, capture_output=True)

    model = "--dim 8 --heads 1 --depth 1 --context 8".split()
    done = run(
        PROJECT / "train_lm.py", "--data", "large", "--init", "default", "--steps", "8", *model
    )
    assert done.returncode == 0, done.stderr
    # The limit holds: read as a whole, the file does not fit.
    assert run("-c", "import numpy; numpy.fromfile('large', numpy.uint8)").returncode == 1
