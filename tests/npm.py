"""The npm packages of the browser tests, and what is made of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIST = Path(__file__).resolve().parent / "browser" / "package.json"

_INSTALL = "install --prefer-offline --no-audit --no-fund --no-package-lock --no-update-notifier"
# Two majors of React satisfy no peer at once, and nothing needs a script to run.
_AS_LISTED = "--legacy-peer-deps --ignore-scripts --loglevel=error"
_BUNDLE = (
    "--bundle",
    "--format=esm",
    "--log-level=error",
    "--define:process.env.NODE_ENV='development'",
)


def install(npm: str) -> Path:
    """Return the folder that holds the packages; once they are there it needs no network.

    They live with the Python packages of the tests, one folder for each list.
    """
    listed = LIST.read_bytes()
    home = Path(sys.prefix) / "npm" / hashlib.sha256(listed).hexdigest()[:16]
    if home.exists():
        return home
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        shutil.copy(LIST, made)
        run([npm, *_INSTALL.split(), *_AS_LISTED.split()], made)
        # Whole or not at all: another run may install the same.
        try:
            os.rename(made, home)
        except OSError:
            if not home.exists():
                raise
    return home


def run(command: list[str], directory: Path, stdin: str = "", **environ: str) -> str:
    """Return what a tool printed.

    :raises RuntimeError: with what it said, when it fails.
    """
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def bundle(home: Path, source: str, *options: str) -> str:
    """Return an ES module with all that *source* imports from the packages.

    :param options: of esbuild.
    """
    command = [str(home / "node_modules" / ".bin" / "esbuild"), *_BUNDLE, *options]
    return run(command, home, source, NODE_PATH=str(home / "node_modules"))


if __name__ == "__main__":
    print(install("npm"))
