"""Every recipe of the documentation runs, in a real shell."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.program import environment
from harness.shell_command import shell_command
from tests.conftest import ROOT
from tests.servers import Server, running_server

RECIPES = re.findall(
    r"^## (\d+\. [^\n]+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/recipes.md").read_text(), re.M | re.S
)
BLOCKS = {
    title: "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)) for title, text in RECIPES
}
TOOLS = ("git", "make", "jq", "curl", "tmux")
FILES = {
    "page.txt": "The cat in the hat was written by Theodor Geisel.\nIt appeared in 1957.\n",
    "mail.txt": "Could you send me the report?\n",
    "reviews.txt": "I love it\nIt broke\n",
    "words.txt": "cat\nhat\n",
    "server.log": "GET / 200\nGET /x 500 disk full\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gguf_model: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), gguf_model) as running:
        yield running


def test_there_are_recipes_for_all_that_is_promised() -> None:
    assert len(BLOCKS) >= 25
    assert all(BLOCKS.values())


@pytest.mark.parametrize("title", BLOCKS)
def test_a_recipe_runs(title: str, tmp_path: Path, server: Server, gguf_model: Path) -> None:
    script = BLOCKS[title]
    for tool in TOOLS:
        if re.search(rf"\b{tool} ", script) and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    program = Path(tempfile.mkdtemp(prefix="recipe-"))  # the path of a socket must be short
    ours = environment(
        tmp_path,
        LLAMA_CHAT_MODEL=str(gguf_model),
        LLAMA_CHAT_MAX_TOKENS="8",
        LLAMA_CHAT_SEED="1",
        XDG_RUNTIME_DIR=server.runtime,
    )
    env = ours | {
        "PATH": f"{program}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SERVER": server.url,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    if "git " in script:
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, env=env, check=True)
        subprocess.run(["git", "add", "page.txt"], cwd=tmp_path, env=env, check=True)
    with shell_command(program, ours):
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    shutil.rmtree(program)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()
    assert b"Traceback" not in done.stderr
