"""The console script has the pipelines' commands."""

import shutil
import subprocess
import sys
from pathlib import Path

from graftline.cluster import main
from graftline.pipelines.main import app


def test_it_is_the_pipelines_command_line():
    assert main.app is app


def test_it_is_installed_as_graftline():
    command = shutil.which("graftline", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command, "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and "No such command" in done.stderr
