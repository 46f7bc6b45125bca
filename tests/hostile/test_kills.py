"""A merge that is killed leaves nothing under its name, or all of it; the next one goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("method", ["average", "ties"])
def test_killed_at_random_moments(method: str):
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), "--runs", "6", "--megabytes", "8", "--method", method]
    ran = subprocess.run(
        command, capture_output=True, check=False, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert "all of them ended in the same bytes" in ran.stdout
