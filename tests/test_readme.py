"""The README's commands: every one parses, and the block for real logs runs where the real logs are."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from farm import app
from loadtest.process import running_service
from loadtest.redis_servers import valkey, wait_until

ROOT = Path(__file__).parent.parent
RANKING = ["prepare", "train", "evaluate", "export", "materialize", "serve", "rank"]
FRESH = ["materialize", "serve", "ingest"]
REAL = ROOT.parent / "shared" / "data" / "kuairand_pure"


def readme_commands() -> list[list[str]]:
    """The `farm` commands of the README's bash blocks, in order, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("farm ")]


def farm(words: list[str], folder: Path, **environment: str) -> str:
    """Run a verb in `folder`; its output."""
    command = [sys.executable, "-m", "farm", *words]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_readme_shows_the_way_from_logs_to_a_ranking() -> None:
    verbs = [words[0] for words in readme_commands()]
    assert verbs == RANKING + FRESH + ["study", "report"]


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: words[0])
def test_the_commands_parse(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    command.commands[words[0]].make_context(words[0], words[1:])


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`|=1 )make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.skipif(not REAL.is_dir(), reason="the real logs (../shared/data/kuairand_pure) are not here")
def test_the_readmes_commands_take_real_logs_to_a_ranking(tmp_path: Path) -> None:
    (tmp_path / "KuaiRand-Pure").symlink_to(REAL)
    *offline, serve, rank = readme_commands()[: len(RANKING)]
    for words in offline:
        farm(words, tmp_path, FARM_EPOCHS="1")  # the same commands, in a minute
    options = dict(zip(serve[1::2], serve[2::2], strict=True))
    store = options["--store"].replace("lmdb://", f"lmdb://{tmp_path}/")
    with running_service(tmp_path / options["--artifact"], store) as service:
        rank[rank.index("--url") + 1] = service.url
        shown = farm(rank, tmp_path, COLUMNS="200")
    for candidate in rank[rank.index("--candidates") + 1].split(","):
        assert candidate.partition(":")[0] in shown
    assert "wtr" in shown
    assert "degraded" not in shown


def test_the_readmes_event_reaches_the_history(workshop: Path, artifact: Path, tmp_path: Path) -> None:
    """The block about Redis, with a server of its own and the small model."""
    materialize, serve, work = readme_commands()[len(RANKING) : len(RANKING) + len(FRESH)]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "prepared").symlink_to(workshop / "prepared")
    (event,) = re.findall(r"/events .*? -d '(.*?)'", (ROOT / "README.md").read_text(), re.DOTALL)
    with valkey() as server:

        def at_server(words: list[str]) -> list[str]:
            return [word.replace("redis://127.0.0.1:6379", server.url) for word in words]

        farm(at_server(materialize), tmp_path)
        worker = subprocess.Popen([sys.executable, "-m", "farm", *at_server(work)], cwd=ROOT)
        try:
            with running_service(artifact, at_server(serve)[serve.index("--store") + 1]) as service:
                answer = httpx.post(
                    f"{service.url}/events", content=event, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 202, answer.text
                user = str(json.loads(event)["events"][0]["user_id"])
                words = at_server(["store", "get", "--store", "redis://127.0.0.1:6379", "--user", user])
                wait_until(lambda: '"view_id": 981' in farm(words, tmp_path), "the event is in the history")
        finally:
            worker.terminate()
            assert worker.wait(20) == 0
