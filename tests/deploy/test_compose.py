"""docker-compose.yml, held against the Compose Specification, the settings, the pages and the files that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from opentelemetry.sdk import environment_variables

from app.settings import Settings, Telemetry
from deploy import compose, stack

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("docker-compose*.yml"))
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GRAFANA_PASSWORD")
OURS = ("frontend", "migrate", "worker", "bucket")
PUBLISHED = {"frontend": "public", "grafana": "admin"}
Services = dict[str, dict[str, Any]]


class Loader(yaml.SafeLoader):
    """Knows `!reset`, by which an override takes a member away."""


Loader.add_constructor("!reset", lambda loader, node: None)


def loaded(file: Path) -> dict[str, Any]:
    return yaml.load(file.read_text(), Loader)


def text(name: str) -> str:
    return (ROOT / name).read_text()


def is_one_shot(service: dict[str, Any]) -> bool:
    return service["restart"] == "no"


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_every_file_is_what_the_compose_specification_asks_for(file: Path) -> None:
    jsonschema.validate(loaded(file), get_builtin_schema("vendor.compose-spec"))


def test_an_override_changes_services_that_are_there(services: Services) -> None:
    assert len(FILES) == 3
    for file in FILES:
        assert loaded(file)["services"].keys() <= services.keys()


def test_every_setting_is_one_of_the_settings_and_its_value_is_taken(services: Services) -> None:
    for name in OURS:
        given = {key.removeprefix("MODALBRIDGE_").lower(): value for key, value in services[name]["environment"].items()}
        ours = {key: value for key, value in given.items() if not key.startswith(("aws_", "otel_"))}
        assert ours.keys() - Settings.model_fields.keys() == set()
        Settings(**ours)


def test_front_end_and_worker_are_told_alike_where_traces_go_and_nobody_else(services: Services) -> None:
    told = {name: {key: value for key, value in services[name].get("environment", {}).items() if key.startswith("OTEL_")} for name in services}  # fmt: skip
    assert told["frontend"] == told["worker"] != {}
    assert {name for name in services if told[name]} == {"frontend", "worker"}
    assert told["worker"].keys() <= {value for name, value in vars(environment_variables).items() if name.startswith("OTEL_")}
    given = {name.removeprefix("OTEL_").lower(): value for name, value in told["worker"].items()}
    assert not Telemetry(**{name: value for name, value in given.items() if name in Telemetry.model_fields}).traces
    assert "monitoring" in {*services["frontend"]["networks"]} & {*services["worker"]["networks"]}


def test_the_names_that_a_proxy_passes_on_come_from_env(services: Services) -> None:
    """By default none but addresses, localhost and the containers' own."""
    assert services["frontend"]["environment"]["MODALBRIDGE_HOSTS"] == ""
    named = compose.read(stack.SECRETS | {"MODALBRIDGE_DATA": "/images", "MODALBRIDGE_HOSTS": "bridge.example.org,other"})
    given = named["services"]["frontend"]["environment"]["MODALBRIDGE_HOSTS"]
    assert Settings(hosts=given).hosts == ("bridge.example.org", "other")


@pytest.mark.parametrize("secret", SECRETS)
def test_it_refuses_to_start_without_a_secret(secret: str) -> None:
    known = stack.SECRETS | {"MODALBRIDGE_DATA": "/images"}
    for variables in (known | {secret: ""}, {name: value for name, value in known.items() if name != secret}):
        with pytest.raises(ValueError, match=f"{secret} is not set: set it in .env"):
            compose.read(variables)


def test_the_example_of_env_names_every_variable_and_gives_away_no_secret() -> None:
    used = {found["name"]: found["how"] for found in compose.VARIABLE.finditer(text("docker-compose.yml")) if found["name"]}
    told = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text(".env.example"), re.MULTILINE))
    assert used.keys() == told.keys() - {"COMPOSE_FILE"}
    assert {name for name, how in used.items() if how == ":?"} == {*SECRETS, "MODALBRIDGE_DATA"}
    assert {told[name] for name in (*SECRETS, "MODALBRIDGE_DATA")} == {""}
    assert not re.search(r"^[A-Z_]*(PASSWORD|SECRET|KEY)\w*:(?!\s*\$\{)", text("docker-compose.yml"), re.MULTILINE)


def test_every_file_that_is_mounted_or_built_is_there(services: Services) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            if isinstance(volume, str) and volume.startswith("./"):
                source, _, mode = volume.split(":")
                assert (ROOT / source).exists(), f"{name} mounts {source}"
                assert mode == "ro"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_each_part_has_a_health_check_or_is_done_at_once(services: Services) -> None:
    assert [name for name, service in services.items() if is_one_shot(service)] == ["migrate", "bucket"]
    for name, service in services.items():
        assert is_one_shot(service) != ("healthcheck" in service), name
        if not is_one_shot(service):
            assert service["restart"] == "unless-stopped"


def test_nothing_begins_before_what_it_needs(services: Services) -> None:
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if is_one_shot(services[needed]) else "service_healthy"
            assert how == {"condition": wanted}
    for name in ("frontend", "worker"):
        assert {"migrate", "bucket", "redis"} <= services[name]["depends_on"].keys()


def test_each_container_can_do_little_and_is_nobody(services: Services) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert int(service["user"].split(":")[0]) > 0, name
        assert "cap_add" not in service and "privileged" not in service, name


def test_every_image_has_a_version(services: Services) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), name


def test_only_the_front_end_and_grafana_can_be_reached(services: Services) -> None:
    document = compose.read(stack.SECRETS | {"MODALBRIDGE_DATA": "/images"})
    closed = {name for name, network in document["networks"].items() if network.get("internal")}
    assert closed == {"backend", "monitoring"}
    for name, service in services.items():
        assert ("ports" in service) == (name in PUBLISHED)
        assert set(service["networks"]) - closed == ({PUBLISHED[name]} if name in PUBLISHED else set())
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "unless .env says otherwise"
    for name in ("prometheus", "grafana"):
        assert "backend" not in services[name]["networks"]


def test_a_worker_is_given_the_time_to_hand_its_job_back(services: Services) -> None:
    grace = float(services["worker"]["environment"]["MODALBRIDGE_CANCEL_GRACE_S"])
    # For its process to stop, for the last checkpoint to reach the store, and for the rest.
    assert compose.seconds(services["worker"]["stop_grace_period"]) >= 2 * grace + 20
    command = services["frontend"]["command"]
    graceful = int(command[command.index("--timeout-graceful-shutdown") + 1])
    assert compose.seconds(services["frontend"]["stop_grace_period"]) > graceful


def test_the_images_are_mounted_where_they_lie_and_cannot_be_written(services: Services) -> None:
    for name in ("frontend", "worker"):
        (mount,) = [volume for volume in services[name]["volumes"] if isinstance(volume, dict)]
        assert (mount["source"], mount["target"], mount["read_only"]) == ("/images", "/images", True)
        assert services[name]["environment"]["MODALBRIDGE_DATA_ROOTS"] == "/images"


def test_the_worker_has_a_gpu_and_does_without_by_the_override(services: Services) -> None:
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert services["worker"]["environment"]["MODALBRIDGE_TAKES_CUDA"] == "true"
    without = loaded(ROOT / "docker-compose.cpu.yml")["services"]["worker"]
    assert without["deploy"] is None
    assert without["environment"] == {"MODALBRIDGE_TAKES_CUDA": "false"}


def test_the_worker_has_shared_memory_for_nccl(services: Services) -> None:
    """Docker's 64 MB are too little for several processes at one job."""
    assert services["worker"]["shm_size"] == "1g"


def lines_with(page: str, program: str) -> list[list[str]]:
    """Commands of a page or of the Makefile, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", "", text(page)).replace("$(BIN)/", "")
    return [shlex.split(line) for line in re.findall(rf"^\s+@?({program} .*)$", joined, re.MULTILINE)]


def test_the_commands_are_those_of_the_makefile_the_images_and_the_page(services: Services) -> None:
    for program, service, file in (("uvicorn", "frontend", "Dockerfile"), ("celery", "worker", "Dockerfile.gpu")):
        command = services[service]["command"]
        (last,) = re.findall(r"^CMD (\[.*?\])$", re.sub(r"\\\n\s*", "", text(file)), re.MULTILINE)
        assert yaml.safe_load(last) == command
        for page in ("Makefile", "docs/operating.md"):
            (written,) = lines_with(page, program)
            where = {written.index(f"--{name}") + 1 for name in ("host", "port")} if program == "uvicorn" else set()
            theirs = [command[n] if n in where else word for n, word in enumerate(written)]
            assert theirs == command, f"{page}, but for where it listens"
    for page in ("Makefile", "docs/operating.md"):
        assert lines_with(page, "alembic") == [services["migrate"]["command"]]


def test_prometheus_asks_for_what_is_there(services: Services) -> None:
    asked = yaml.safe_load(text("deploy/prometheus.yml"))
    by_name = {job["job_name"]: job for job in asked["scrape_configs"]}
    assert by_name["frontend"]["static_configs"] == [{"targets": ["frontend:8000"]}]
    (found,) = by_name["worker"]["dns_sd_configs"]
    assert (found["names"], str(found["port"])) == (["worker"], services["worker"]["environment"]["MODALBRIDGE_METRICS_PORT"])
    mounts = {volume.split(":")[1] for volume in services["prometheus"]["volumes"] if volume.startswith("./")}
    assert set(asked["rule_files"]) <= mounts
    source = yaml.safe_load(text("deploy/grafana/provisioning/datasources/prometheus.yml"))["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    folder = yaml.safe_load(text("deploy/grafana/provisioning/dashboards/modalbridge.yml"))["providers"][0]["options"]["path"]
    assert f"{folder}/modalbridge.json" in {volume.split(":")[1] for volume in services["grafana"]["volumes"]}


def test_variables_are_filled_in_as_compose_fills_them(tmp_path: Path) -> None:
    file = tmp_path / "compose.yml"
    file.write_text("a: [$$HOME, '${A}-${B:-b}', '${C:-c}']\nn: 3\n")
    assert compose.read({"A": "1", "C": "2"}, file) == {"a": ["$HOME", "1-b", "2"], "n": 3}


def test_periods() -> None:
    assert [compose.seconds(period) for period in ("90s", "2m", "1m30s")] == [90, 120, 90]
    for wrong in ("", "90", "1h"):
        with pytest.raises(ValueError, match="not a period"):
            compose.seconds(wrong)
