"""The files of docs/deployment.md: each is read as its program reads it, and says what it must."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from guides import DOCS, commands
from imageprompt import cli
from imageprompt.cli.serve import add_serve
from imageprompt.core.console import Parser
from imageprompt.core.schema import options
from imageprompt.serve.metrics import Metrics
from imageprompt.serve.settings import Limits, Settings

PAGE = DOCS / "deployment.md"
FILES = DOCS / "deployment"
DRAIN = Settings().drain


def text(name: str) -> str:
    return (FILES / name).read_text("utf-8")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(text(name)))


def kind(name: str, wanted: str) -> Any:
    (found,) = (one for one in documents(name) if one.get("kind") == wanted)
    return found


def served(words: list[str]) -> Settings:
    """The settings of the words after `imageprompt`. The parser ends the test if one is wrong."""
    assert words[0] == "serve"
    parser = Parser(prog="imageprompt serve")
    add_serve(parser)
    given = vars(parser.parse_args(words[1:]))
    names = {field.name for field in options(Settings)}
    return Settings(**{name: v for name, v in given.items() if name in names and v is not None})


def test_every_file_is_on_the_page() -> None:
    included = re.findall(r"\{literalinclude\} deployment/(\S+)", PAGE.read_text("utf-8"))
    assert sorted(included) == sorted(path.name for path in FILES.iterdir())


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [cli.main(command) for command in commands(PAGE)] == [0, 0]


def test_the_unit_of_systemd() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text("imageprompt.service").replace("\\\n", " "))
    service = parser["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "imageprompt"
    settings = served(words)
    assert settings.keys is not None
    kept = (settings.data, settings.library, settings.keys)
    assert all(str(path).startswith("/var/lib/imageprompt/") for path in kept)
    assert service["StateDirectory"] == "imageprompt"
    assert int(service["TimeoutStopSec"]) > DRAIN
    assert service["KillMode"] == "mixed"  # the worker does not get the signal
    assert service["User"] != "root"


def test_the_dockerfile() -> None:
    joined = re.sub(r"\\\n\s*", "", text("Dockerfile"))
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    steps = [line.split(" ", 1) for line in lines]
    known = "ARG FROM RUN COPY ENV USER WORKDIR VOLUME EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD"
    assert {name for name, _ in steps} <= {*known.split()}
    last = dict(steps)
    assert steps[0] == ["ARG", "BASE=python:3.11-slim"]
    assert last["USER"] == "10001"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "/readyz" in last["HEALTHCHECK"]
    assert yaml.safe_load(last["ENTRYPOINT"]) == ["imageprompt"]
    settings = served(yaml.safe_load(last["CMD"]))
    assert settings.host == "0.0.0.0"
    assert settings.keys is not None
    assert yaml.safe_load(last["VOLUME"])[0] == "/data"


@pytest.mark.parametrize("name", ["Caddyfile", "nginx.conf"])
def test_the_proxies(name: str) -> None:
    lines = [line.split("#")[0].strip() for line in text(name).splitlines()]
    depth = 0
    for line in filter(None, lines):
        depth += line.endswith("{") - (line == "}")
        assert depth >= 0
        if name == "nginx.conf":
            assert line.endswith(("{", "}", ";")), line
    assert depth == 0
    plain = "\n".join(lines)
    megabytes = re.search(r"(?:client_max_body_size|max_size) (\d+)(m|MB)", plain)
    assert megabytes is not None
    unit = {"m": 2**20, "MB": 10**6}[megabytes[2]]
    assert int(megabytes[1]) * unit >= Limits().body_bytes
    assert "127.0.0.1:8000" in plain
    assert ("flush_interval -1" if name == "Caddyfile" else "proxy_buffering off;") in plain
    if name == "nginx.conf":
        assert "proxy_set_header Host $http_host;" in plain


def test_one_server_on_kubernetes() -> None:
    spec = kind("kubernetes.yaml", "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["type"] == "Recreate"  # two cannot have one data folder
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > DRAIN
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    settings = served(container["args"])
    assert settings.keys is not None
    assert settings.port == container["ports"][0]["containerPort"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert str(settings.data).startswith(mounts["data"])
    assert str(settings.keys).startswith(mounts["keys"])
    assert {one["name"] for one in pod["volumes"]} == mounts.keys()
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/readyz", "/readyz", "/healthz"]
    service = kind("kubernetes.yaml", "Service")["spec"]
    assert service["selector"] == spec["template"]["metadata"]["labels"]


def test_several_servers_on_kuberay() -> None:
    spec = kind("rayservice.yaml", "RayService")["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    assert application["import_path"] == "imageprompt.serve.ray_app:app"
    arguments = dict(application["args"])
    replicas, gpus = arguments.pop("replicas"), arguments.pop("gpus")
    settings = Settings(host="0.0.0.0", **arguments)
    assert settings.keys is not None
    cluster = spec["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] * gpus >= replicas
    policy = kind("rayservice.yaml", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for group in (cluster["headGroupSpec"], workers):
        labels, pod = group["template"]["metadata"]["labels"], group["template"]["spec"]
        assert labels == policy["podSelector"]["matchLabels"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        mounts = {one["mountPath"] for one in container["volumeMounts"]}
        assert mounts == {"/data", "/keys"}
    pins = (DOCS.parent / "constraints.txt").read_text("utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins


def test_the_alerts_name_metrics_that_there_are() -> None:
    (alerts,) = documents("alerts.yaml")
    rules = alerts["groups"][0]["rules"]
    there = {
        sample.name for family in Metrics().registry.collect() for sample in family.samples
    } | {family.name for family in Metrics().registry.collect()}
    there |= {f"{name}_{end}" for name in there for end in ("total", "bucket")}
    named = re.findall(r"imageprompt_\w+", " ".join(rule["expr"] for rule in rules))
    named += re.findall(r"`(imageprompt_\w+)", PAGE.read_text("utf-8"))
    assert len(named) > 10
    assert set(named) <= there
