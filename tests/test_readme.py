"""The snippets of the README and of the docs run as they are pasted, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stif_rt.video.reader import read_image

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_snippets_run_as_pasted(tmp_path, page):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    assert page != "README.md" or all(len(snippet.splitlines()) <= 10 for snippet in snippets)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", "\n".join(snippets)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = (path for path in tmp_path.iterdir() if path.suffix == ".png")
    picture = torch.from_numpy(read_image(written)).float()
    assert picture.shape[2] == 3
    assert picture.std() > 10
