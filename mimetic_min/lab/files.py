"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path


def write(path, content):
    """Write the bytes `content` to `path`. What stood there before stays until all of them are on
    the disk.

    The bytes go to a temporary file beside it, which then takes its name. So a reader never finds
    half a file, whenever the process is killed. Raises OSError, with a sentence, if the file cannot
    be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    finally:
        # It is still there after an error or a Ctrl-C.
        with suppress(OSError):
            temporary.unlink()
