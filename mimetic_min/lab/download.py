"""Data sets from the network: a file is downloaded once, checked, and stored whole or not at all.

Nothing is unpacked to the disk. A member of an archive is read into memory by its name, so no
archive can write a file, inside its folder or outside. Whatever goes wrong is a ValueError that
says so in one line.
"""

import hashlib
import http.client
import tarfile
import urllib.request
import zipfile
from pathlib import Path
from typing import NamedTuple

from .files import write
from .progress import clear, due, show

FOLDER = Path("data")

# Some servers refuse the name with which Python introduces itself.
HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; mimetic_min)"}


class PublishedFile(NamedTuple):
    """A file on the network, and the checksum by which it is known."""

    name: str  # in data/
    address: str
    checksum: str  # "md5:..." or "sha256:..."


def fetch(files, data_dir=None):
    """Return the paths of the published `files`, in their order.

    With `data_dir` they are in that folder, and are taken as they are. Without it they are in
    data/: those that are missing are downloaded to there, and each counts only if its checksum is
    right. A file that is already there is never overwritten.
    """
    folder = FOLDER if data_dir is None else Path(data_dir)
    paths = [folder / file.name for file in files]
    for file, path in zip(files, paths, strict=True):
        if data_dir is not None:
            if not path.is_file():
                raise ValueError(f"there is no file {file.name} in the folder {folder}")
        elif path.exists():
            check(file, path)
        else:
            download(file, path, wanted=" and ".join(file.name for file in files))
    return paths


def check(file, path):
    """Raise ValueError unless `path` holds the published file."""
    algorithm, expected = file.checksum.split(":")
    try:
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, algorithm).hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if found != expected:
        raise ValueError(
            f"{path} is not the published file: its {algorithm} is {found}, not {expected}; "
            f"move it away, or use it as it is with --data-dir {path.parent}"
        )


def download(file, path, wanted):
    """Download the file to `path`. If that fails, nothing is stored, and the ValueError says what
    to put where instead: the names `wanted`, in the folder of `path`.
    """
    algorithm, expected = file.checksum.split(":")
    content = bytearray()
    try:
        request = urllib.request.Request(file.address, headers=HEADERS)
        with urllib.request.urlopen(request, timeout=60) as response:
            total = f" of {response.length / 1e6:.1f}" if response.length else ""
            while chunk := response.read(1 << 20):
                content += chunk
                if due():
                    size = f"{len(content) / 1e6:.1f}{total} MB"
                    show(f"downloading {file.address}: {size}", done=False)
        found = hashlib.new(algorithm, content).hexdigest()
        wrong = None
        if found != expected:
            wrong = f"its {len(content):,} bytes have the {algorithm} {found}, not {expected}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        wrong = first_line(error)
    if wrong:
        clear()
        raise ValueError(
            f"cannot download {file.address} ({wrong}); try again, or put {wanted} "
            f"into {path.parent}/ or into a folder that --data-dir names"
        )
    try:
        write(path, content)
    except OSError as error:
        raise ValueError(str(error)) from error
    show(f"downloaded {file.address}: {len(content) / 1e6:.1f} MB", done=True)


def first_line(error):
    """What the error says, in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def open_zip(path):
    """The ZipFile at `path`, for reading."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:
        # Whatever zipfile makes of a file that is something else, or broken.
        raise ValueError(f"{path} cannot be read as a zip archive ({first_line(error)})") from error


def read_zip(archive, name, largest):
    """The bytes of the member `name` of a ZipFile, of which there may be no more than `largest`.

    A small archive can hold a member of any size, so the limit is on what comes out.
    """
    try:
        with archive.open(name) as member:
            content = member.read(largest + 1)
    except Exception as error:
        raise ValueError(
            f"{archive.filename} has no member {name} that can be read ({first_line(error)})"
        ) from error
    if len(content) > largest:
        raise ValueError(f"{name} in {archive.filename} is larger than {largest:,} bytes")
    return content


def read_tar(path, sizes):
    """{name: bytes} of those members of a .tar.gz that `sizes` names, each with its size in bytes.

    A member with another size, or a link in the place of a file, does not count.
    """
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isfile() and member.size == sizes.get(member.name):
                    contents[member.name] = archive.extractfile(member).read()
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a .tar.gz ({first_line(error)})") from error
    for name, size in sizes.items():
        if name not in contents:
            raise ValueError(f"{path} has no member {name} of {size:,} bytes")
    return contents
