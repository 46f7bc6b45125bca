"""The command line, called from tests."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from isthmus import progress
from isthmus.cli import main

#: A small architecture.
ARCH = ["--arch", "isthmus.zoo:demo_vgg", "base=4"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call the program in this process, in a folder: importing torch for each call would take minutes.

    Modules that it imported from that folder are forgotten, for the next test has others of the same names.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    here, before, path, known = Path.cwd(), sys.argv, list(sys.path), set(sys.modules)
    sys.argv = ["isthmus", *arguments]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        progress.disable()
        os.chdir(here)
        sys.argv, sys.path[:] = before, path
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(cwd):
                del sys.modules[name]
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())
