"""Fetches the chat templates that TRL has not (Kimi K2, GLM 4.7, DeepSeek V3.1) out of llama-cpp-python's source distribution.

    python tests/rendering/fetch_templates.py [DIRECTORY]      # default: ~/.cache/callsheet/templates, where the tests look

76 MB are downloaded once; the tests that want these templates are skipped without them.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"


def main(place: Path) -> None:
    """Downloads, takes the templates out, forgets the rest."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "-d",
            scratch,
        ]
        subprocess.run([*command, f"llama-cpp-python=={VERSION}"], check=True)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            for member in archive:
                name = Path(member.name)
                if name.parent.name == "templates" and name.suffix == ".jinja":
                    source = archive.extractfile(member)
                    if source is not None:
                        (place / name.name).write_bytes(source.read())
    print(f"{len(list(place.glob('*.jinja')))} templates in {place}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.home() / ".cache" / "callsheet" / "templates")
