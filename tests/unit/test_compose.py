"""The files of the cluster: what the programs that read them say, where they are here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from faas.bus.server import find_server

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {**os.environ, "FAAS_TOKEN": "t0123", "NATS_NAME": "nats-1"}


def test_the_servers_of_the_cluster_take_their_configuration() -> None:
    """A typo in it would be found by whoever deploys."""
    ran = subprocess.run([find_server(), "-t", "-c", str(ROOT / "deploy" / "nats.conf")], env=ENVIRON, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr


def test_everything_names_the_same_servers() -> None:
    """Services, routes and the address of the nodes are three lists in two files."""
    compose = (ROOT / "compose.yaml").read_text()
    services = set(re.findall(r"^  (nats-\d):\n    <<", compose, re.MULTILINE))

    assert len(services) == 3
    assert set(re.findall(r"@(nats-\d):4222", compose)) == services
    assert set(re.findall(r"//(nats-\d):6222", (ROOT / "deploy" / "nats.conf").read_text())) == services
    assert f'FAAS_BUS__REPLICAS: "{len(services)}"' in compose


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_docker_compose_takes_the_file() -> None:
    """Its oldest version that is still around, too; without a token it says what to set."""
    command = ["docker-compose", "-f", str(ROOT / "compose.yaml"), "config", "--quiet"]
    taken = subprocess.run(command, env=ENVIRON, capture_output=True, text=True)
    refused = subprocess.run(command, env={**ENVIRON, "FAAS_TOKEN": ""}, capture_output=True, text=True)

    assert (taken.returncode, taken.stdout) == (0, ""), taken.stderr
    assert refused.returncode != 0
    assert "set it, as in the first lines of compose.yaml" in refused.stderr
