"""Other projects, each in a venv of its own that borrows everything else from the one that runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "build"


def borrowing_venv(package: str, version: str, others: Sequence[str] = ()) -> Path:
    """The Python of ``build/PACKAGE-venv``, made once: ``package`` at ``version`` and ``others``, without what they
    depend on. All else comes from the venv that runs this; a bare torch must not come with them."""
    home = HOME / f"{package}-venv"
    inner = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    python = home / "bin" / "python"
    if not (inner / f"{package}-{version}.dist-info").exists():
        venv.create(home, clear=True, symlinks=True)
        site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        # A line that begins with import is run; addsitedir also finds packages that are installed for editing.
        (inner / "borrowed.pth").write_text(f"import site; site.addsitedir({str(site)!r})\n", encoding="utf-8")
        asked = [*others, f"{package}=={version}", "--no-deps", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *asked], check=True)
    return python


def compare_beside(
    compare: Callable[[bool], None], about: str | None, script: str, package: str, version: str,
    others: Sequence[str] = (),
) -> None:  # fmt: skip
    """The command line of a benchmark that calls ``compare(quick)`` in the venv of ``package``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, to try the script; writes no result")
    parser.add_argument("--inside", action="store_true", help=f"this is the venv that has {package}")
    arguments = parser.parse_args()
    if arguments.inside:
        compare(arguments.quick)
        return
    command = [str(borrowing_venv(package, version, others)), script, "--inside"]
    command += ["--quick"] if arguments.quick else []
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    sys.exit(subprocess.run(command, check=False, env=quiet).returncode)
