"""`python -m graftline.pipelines` is the command line."""

import subprocess
import sys


def test_the_module_runs_the_command_line():
    run = subprocess.run(
        [sys.executable, "-m", "graftline.pipelines", "methods", "--json"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert '"select.top_k"' in run.stdout
