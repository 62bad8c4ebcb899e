"""Which version of the C++ sources this is. The build (``hatch_build.py``) runs this file alone: no imports of ours."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path


def digest(folder: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all names and bytes in ``folder``.

    Hidden files and an editor's backups do not count. Raises OSError: a file cannot be read.
    """
    found = sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*")):
        if file.is_file() and not name.endswith("~") and not any(part.startswith(".") for part in name.split("/")):
            content = file.read_bytes()
            found.update(f"{name}\n{len(content)}\n".encode())
            found.update(content)
    return found.hexdigest()[:16]
