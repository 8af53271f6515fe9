"""The package as a whole: its layers, its import, its names and its distributions."""

from __future__ import annotations

import ast
import configparser
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import flask_noc_realtime
from tests.conftest import require

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "flask_noc_realtime"

PURE = ("errors", "event", "frame", "eventlog", "audience", "cursor")
PURE += ("ingest", "notice", "recipe", "rollout", "weight", "wheel")
THREADS = ("combine", "descriptor", "flight", "health", "metrics")
TRANSPORTING = ("broker", "hub", "lease", "transport")
LAYERS = {
    **dict.fromkeys(PURE, 0),
    **dict.fromkeys(THREADS, 1),
    **dict.fromkeys(TRANSPORTING, 2),
}
EDGE = 3

CLOCKS_AND_IO = {"asyncio", "logging", "multiprocessing", "os", "select", "socket"}
CLOCKS_AND_IO |= {"subprocess", "threading", "time"}
WEB = {"flask", "jinja2", "werkzeug"}


def modules() -> list[Path]:
    """Return the source files of the package."""
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def noun(path: Path) -> str:
    """Return the part of the package a file belongs to, for example ``broker``."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of all modules a file imports, those within functions too."""
    package = (PACKAGE, *path.relative_to(ROOT / PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            yield from ([f"{name}.{alias.name}" for alias in node.names] if not node.module else [])
            yield name


def layer(name: str) -> int:
    """Return the layer of one of the package's own modules."""
    return LAYERS.get(name, EDGE)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_its_layer_or_below(path: Path) -> None:
    """Pure modules use the standard library without clocks and I/O; no flask below the edge."""
    own = layer(noun(path))
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == PACKAGE:
            if rest:
                assert layer(rest.partition(".")[0]) <= own, f"imports {name}"
        elif own == 0:
            assert first in sys.stdlib_module_names, f"imports {name}"
            assert first not in CLOCKS_AND_IO, f"imports {name}"
        elif own < EDGE:
            assert first not in WEB, f"imports {name}"


def test_every_pure_module_exists() -> None:
    """A module that was renamed would leave its layer unnoticed."""
    assert set(PURE) | set(TRANSPORTING) <= {noun(path) for path in modules()}


def test_import_and_init_app_start_connect_and_patch_nothing() -> None:
    """What happens before the fork happens to every worker at once."""
    code = f"""
import sys, threading, socket
import flask, {PACKAGE}

def used():
    return {{"gevent", "gunicorn", "redis", "sqlalchemy"}} & set(sys.modules)

assert not used(), used()
plain = socket.socket
app = flask.Flask("app")
app.config["NOC_REALTIME_URL"] = "redis://127.0.0.1:1/0"
{PACKAGE}.NocRealtime(app)
assert not {{"gevent", "gunicorn"}} & set(sys.modules)
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert socket.socket is plain
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("name", flask_noc_realtime.__all__)
def test_every_public_name_exists_and_is_described(name: str) -> None:
    """`__all__` is what the API page shows."""
    assert getattr(flask_noc_realtime, name).__doc__.strip()


def test_the_version_is_one() -> None:
    """The package, its metadata, its npm package and CHANGES agree."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = flask_noc_realtime.__version__
    assert config["metadata"]["version"] == version
    npm = json.loads((ROOT / PACKAGE / "static" / "package.json").read_text())
    assert npm["version"] == version
    assert npm["license"] == config["metadata"]["license"]
    assert (ROOT / "CHANGES.rst").read_text().startswith(f"Version {version}\n")
    try:
        installed = metadata.version("flask-noc-realtime")
    except metadata.PackageNotFoundError:
        return
    assert installed == version


def test_the_wheel_holds_the_package_alone_and_the_sdist_everything(tmp_path: Path) -> None:
    """Who installs gets the typed package; who packages gets the tests and docs too."""
    require("build")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    sources = {str(path.relative_to(ROOT)) for path in modules()}
    statics = {str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE / "static").rglob("*.*")}
    assert sources | statics | {f"{PACKAGE}/py.typed"} <= held
    assert {name.partition("/")[0].partition("-")[0] for name in held} == {PACKAGE}
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert held - packed == {name for name in held if ".dist-info/" in name}
    wanted = {"LICENSE", "CHANGES.rst", "Makefile", "docs/conf.py", "tests/test_package.py"}
    assert wanted | sources <= packed
    assert not [name for name in packed if name.endswith(".pyc") or "_build" in name]
