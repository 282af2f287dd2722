"""The compose file keeps the promises of deploy/README.md, and every file it names says the same as the
others.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_a_read_only_root_and_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_to_loopback_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_named_volume_is_declared_and_every_mounted_file_exists(name: str) -> None:
    for mount in SERVICES[name]["volumes"]:
        source = mount.split(":")[0]
        assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


def test_the_prompts_volume_stands_where_the_image_keeps_its_store() -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    (mount,) = SERVICES["service"]["volumes"]
    assert f"ROBUSTCLIP_STORE__PATH={mount.partition(':')[2]}\n" in dockerfile


def test_the_health_check_is_the_image_s_and_asks_readiness() -> None:
    check = SERVICES["service"]["healthcheck"]["test"]
    assert "/readyz" in check[-1]
    assert check[-1] in (DEPLOY.parent / "Dockerfile").read_text()


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    host, _, port = target.partition(":")
    assert host in SERVICES
    assert SERVICES[host]["ports"][0].endswith(f":{port}")


def test_docker_compose_accepts_the_file() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("docker compose is not installed")
    checked = subprocess.run(
        ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
