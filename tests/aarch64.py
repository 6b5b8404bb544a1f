"""An aarch64 Python on another machine: Debian's packages of it, unpacked into the cache and run by qemu-user, nothing installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libexpat1", "zlib1g", "libssl3", "libffi8"),
    *("libbz2-1.0", "liblzma5", "libuuid1", "libgcc-s1", "libstdc++6", "libcrypt1"),
)
EMULATOR = "qemu-aarch64-static"
# The program's own name is that of this script, so that the processes that it starts are emulated as well.
_SCRIPT = """\
#!/bin/sh
export PYTHONHOME={root}/usr
exec {emulator} -L {root} -0 "$0" {root}/usr/bin/python3.11 "$@"
"""


def python() -> Path:
    """A command that runs aarch64 Python 3.11; the test is skipped, with the reason, where Debian's packages cannot be had."""
    if platform.machine() != "x86_64":
        pytest.skip(f"this machine is {platform.machine()}")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vditc" / "aarch64"
    made = cache / "python"
    if not made.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            pytest.skip("no apt-get and dpkg, which fetch an aarch64 Python")
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as work:
            _unpack(PACKAGES, "arm64", Path(work), Path(work) / "root")
            emulator = shutil.which(EMULATOR)
            if emulator is None:
                _unpack(("qemu-user-static",), "amd64", Path(work), Path(work) / "emulator")
                emulator = f"{cache}/emulator/usr/bin/{EMULATOR}"
            (Path(work) / "python").write_text(_SCRIPT.format(root=cache / "root", emulator=emulator))
            (Path(work) / "python").chmod(0o755)
            if not cache.exists():
                Path(work).rename(cache)
                Path(work).mkdir()
    return made


def _unpack(packages: tuple[str, ...], architecture: str, work: Path, to: Path) -> None:
    """By apt with lists of its own, so that this machine's stay as they are."""
    state = work / f"apt-{architecture}"
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    for command in (["update"], ["download", *packages]):
        done = subprocess.run([*apt, *command], cwd=state / "debs", capture_output=True, text=True, check=False)
        if done.returncode or "Failed to fetch" in done.stderr:
            pytest.skip(f"apt-get {command[0]} for {architecture}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    for package in sorted((state / "debs").glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, to], check=True)
    shutil.rmtree(state)
