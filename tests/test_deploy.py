"""The files of deploy/ beside nginx's: each is started, with other ports and paths, and judged by its own tool."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from .support.documentation import ENVIRONMENT, Project, arguments, blocks
from .support.fixtures import StartSite
from .support.fronts import apache, changed, get, haproxy, recorder
from .support.servers import HTTP_PROBE, ROOT, Server, executable, free_port
from .support.waiting import eventually

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"
KUBERNETES = "1.31"  # the version whose schema the manifests must follow; newer ones add fields
EXPOSURE = 20  # tenths, as `systemd-analyze security` counts: below 2 of 10 is "OK"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
CONFIGURATION = (DEPLOY / "websocket.conf.py").read_text()
GRACEFUL = int(re.findall(r"^graceful_timeout = (\d+)", CONFIGURATION, re.M)[0])
Front = Callable[[int, int], AbstractContextManager[Server]]


def tool(*command: str | Path) -> str:
    """Run a program that judges a file, and return what it says."""
    result = subprocess.run(
        [executable(str(command[0])), *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    return said


# --- HAProxy and Apache -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[haproxy, apache], ids=["HAProxy", "Apache"])
def start_front(request: pytest.FixtureRequest) -> Front:
    front: Front = request.param
    return front


@pytest.fixture(scope="module")
def front(start_front: Front) -> Iterator[Server]:
    """One of them, before two servers that report what reached them."""
    with recorder("django") as django, recorder("websockets") as websockets, start_front(django, websockets) as server:
        assert eventually(lambda: get(server, "/", UPGRADE)[0].status == 200)  # it has asked whether that is ready
        yield server


@pytest.fixture(scope="module")
def served(start_site: StartSite) -> Iterator[Server]:
    """The test site."""
    with start_site({"WEBSOCKET_HEALTH": True}, args=["-c", DEPLOY / "websocket.conf.py"]) as server:
        yield server


@pytest.fixture(scope="module")
def site(start_front: Front, served: Server) -> Iterator[Server]:
    """One of them, before the test site."""
    with start_front(served.port, served.port) as server:
        assert eventually(lambda: get(server, "/echo/", UPGRADE | {"Origin": "x"})[0].status == 403)
        yield server


@pytest.mark.parametrize(
    ("headers", "receiver"),
    [
        ({}, "django"),
        (UPGRADE, "websockets"),
        (UPGRADE | {"Upgrade": "WebSocket"}, "websockets"),
        (UPGRADE | {"Upgrade": "h2c"}, "django"),
    ],
)
def test_only_an_upgrade_to_websocket_goes_to_the_websocket_server(
    front: Server, headers: dict[str, str], receiver: str
) -> None:
    claims = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    said = {"Host": front.address, "Origin": "http://page.example", **claims}
    received = json.loads(get(front, "/a%20b/?q=%2Fx", headers | said)[1])
    assert (received["server"], received["path"]) == (receiver, "/a%20b/?q=%2Fx")
    got = {name.lower(): value for name, value in received["headers"].items()}
    assert got["host"] == front.address and got["origin"] == "http://page.example"
    assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert "x-forwarded-host" not in got
    if receiver == "websockets":
        assert got["upgrade"].lower() == "websocket"
        assert got["connection"].lower() == "upgrade"
        assert got["sec-websocket-key"] == UPGRADE["Sec-WebSocket-Key"]


def test_conversation_and_page_share_the_address(site: Server) -> None:
    origin = Origin(f"http://{site.address}")
    with connect(f"ws://{site.address}/echo/", origin=origin, open_timeout=10, proxy=None) as client:
        for message in ("hello", b"\0" * 100_000):
            client.send(message)
            assert client.recv(timeout=10) == message
    assert get(site, "/page/")[0].status == HTTPStatus.OK
    assert client.close_code == 1000


@pytest.mark.parametrize(
    ("path", "origin", "status"), [("/missing/", None, 404), ("/echo/", "http://example.net", 403)]
)
def test_refusal_keeps_its_status(site: Server, path: str, origin: str | None, status: int) -> None:
    said = None if origin is None else Origin(origin)
    with (
        pytest.raises(InvalidStatus) as refusal,
        connect(f"ws://{site.address}{path}", origin=said, open_timeout=10, proxy=None),
    ):
        pass
    assert refusal.value.response.status_code == status


def test_apache_serves_static_files_itself() -> None:
    with recorder("django") as django, apache(django, django) as server:
        assert get(server, "/static/site.css")[1] == b"body { color: black }"


def test_haproxy_sends_no_client_to_a_server_that_is_not_ready() -> None:
    more = {"# server two 10.0.0.2:8001": f"server two 127.0.0.1:{free_port()}"}
    with recorder("django") as django, recorder("websockets") as ready, haproxy(django, ready, more) as server:
        assert eventually(lambda: "Server websockets/two is DOWN" in server.log)
        for _ in range(5):
            assert json.loads(get(server, "/", UPGRADE)[1])["server"] == "websockets"


def test_haproxy_judges_its_file(tmp_path: Path) -> None:
    assert "warning" not in tool("haproxy", "-c", "-f", DEPLOY / "haproxy.cfg").lower()


@pytest.mark.parametrize(
    ("file", "line"), [("haproxy.cfg", r"timeout tunnel (\d+)s"), ("apache.conf", r"upgrade=websocket timeout=(\d+)")]
)
def test_silence_is_allowed_for_longer_than_the_server_itself_allows(file: str, line: str) -> None:
    (seconds,) = re.findall(line, (DEPLOY / file).read_text())
    assert int(seconds) > 20 + 20


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program and a user that this machine has."""
    gunicorn = str(Path(sys.executable).parent / "gunicorn")
    service = changed("websocket.service", {"/srv/example/.venv/bin/gunicorn": gunicorn})
    (tmp_path / "websocket.service").write_text(service)
    (tmp_path / "websocket.socket").write_text((DEPLOY / "websocket.socket").read_text())
    return sorted(tmp_path.glob("websocket.*"))


def test_systemd_judges_its_units(units: list[Path]) -> None:
    said = tool("systemd-analyze", "verify", "--man=no", *units)
    assert "websocket." not in said, said  # it may find fault with this machine's own


def test_service_can_do_little_but_serve(units: list[Path]) -> None:
    tool("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", units[0])


@pytest.fixture(scope="module")
def project(readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of README.md, with what these files expect in one: pages and WebSockets, a place for static files."""
    copy = readme.copy(tmp_path_factory.mktemp("deploy") / "mysite")
    copy.write("mysite/settings.py", 'ALLOWED_HOSTS = ["*"]\nWEBSOCKET_DRAIN_WINDOW = 0.5\n', add=True)
    copy.write("mysite/wsgi.py", "application = get_wsgi_websocket_application(http=get_wsgi_application())", add=True)
    copy.write("websocket.conf.py", CONFIGURATION)
    (settings,) = [block for block in blocks("docs/deployment.md") if block.code.startswith("# mysite/containers.py")]
    copy.write(settings.file, settings.code)
    return copy


CHAT = {**UPGRADE, "Host": "localhost"}


def open_chat(port: int) -> socket.socket:
    """Return a client of the chat that has sent its handshake and not read the answer."""
    client = socket.create_connection(("127.0.0.1", port), 10)
    head = "".join(f"{name}: {value}\r\n" for name, value in CHAT.items())
    client.sendall(f"GET /chat/lobby/ HTTP/1.1\r\n{head}\r\n".encode())
    return client


def status(client: socket.socket) -> int:
    """Return the status of the answer that a client gets."""
    return int(client.recv(4096).split()[1])


# The number of the process is known to itself alone, before gunicorn takes its place.
LIKE_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_socket_of_systemd_has_clients_wait_while_the_service_restarts(project: Project, units: list[Path]) -> None:
    (line,) = re.findall(r"^ExecStart=/srv/example/.venv/bin/(.*)", (DEPLOY / "websocket.service").read_text(), re.M)
    (address,) = re.findall(r"^ListenStream=(.*)", units[1].read_text(), re.M)
    assert f'bind = "{address}"' in CONFIGURATION  # the address that nginx.conf has
    words = arguments(line.replace("example.wsgi", "mysite.wsgi"))
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        server = Server(
            [sys.executable, "-c", LIKE_SYSTEMD, str(listener.fileno()), *words],
            port=listener.getsockname()[1],
            probe=HTTP_PROBE,
            cwd=project.directory,
            env=ENVIRONMENT,
            pass_fds=[listener.fileno()],
        )
        with server:
            assert "Listening at" in server.log and ":8001" not in server.log
            with open_chat(server.port) as client:
                assert status(client) == 101
                server.send_signal(signal.SIGHUP)
                assert client.recv(100)[:4] == b"\x88\x09\x03\xf4"  # 1012
                with open_chat(server.port) as again:
                    assert status(again) == 101
            server.stop()
            with open_chat(server.port) as waits:  # in the socket, which nobody serves now
                server.start()
                assert status(waits) == 101


# --- a Procfile, containers -------------------------------------------------------------------------------------------


def started(words: str, project: Project, port: int, env: Mapping[str, str] | None = None) -> Server:
    """Return the server that a line for the shell starts."""
    program = str(Path(sys.executable).parent)
    env = {**ENVIRONMENT, "PATH": f"{program}:{os.environ['PATH']}", **(env or {})}
    return Server(["/bin/sh", "-c", f"exec {words}"], port=port, probe=HTTP_PROBE, cwd=project.directory, env=env)


def talks(port: int, origin: str) -> bool:
    """Whether the chat of the project answers."""
    said = Origin(origin)
    with connect(f"ws://127.0.0.1:{port}/chat/lobby/", origin=said, open_timeout=10, proxy=None) as client:
        client.send("hello")
        return client.recv(timeout=10) == "hello"


def test_procfile_serves_pages_and_websockets_on_the_port_that_it_is_given(project: Project) -> None:
    lines = dict(re.findall(r"^([a-z]+): (.*)$", (DEPLOY / "Procfile").read_text(), re.M))
    project.run(lines["release"])
    port = free_port()
    with started(lines["web"].replace("0.0.0.0", "127.0.0.1"), project, port, {"PORT": str(port)}) as server:
        assert get(server, "/chat/lobby/")[0].status == HTTPStatus.OK
        # The platform says that the page was loaded by https, and is believed.
        headers = {"X-Forwarded-Proto": "https"}
        with connect(
            f"ws://127.0.0.1:{port}/chat/lobby/",
            origin=Origin(f"https://127.0.0.1:{port}"),
            additional_headers=headers,
            open_timeout=10,
            proxy=None,
        ):
            pass
    seconds = int(re.findall(r"--graceful-timeout (\d+)", lines["web"])[0])
    assert seconds < 30  # until the platform kills


def instructions(stage: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    found, here = [], ""
    for instruction, rest in lines:
        if instruction == "FROM":
            here = rest.split(" AS ")[1]
        elif here == stage:
            found.append((instruction, rest))
    return found


def commands_of_containers() -> Iterator[tuple[str, list[str]]]:
    """Yield the command of each container of the site, by its service."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    yield "pages", services["pages"]["command"]
    assert "command" not in services["websockets"]
    yield "websockets", json.loads(dict(instructions("site"))["CMD"])


def probes() -> dict[str, Any]:
    """Return the container of the manifests, with its probes."""
    (container,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def variables() -> dict[str, str]:
    """Return what the environment of a container has."""
    return dict(part.split("=") for part in dict(instructions("site"))["ENV"].split()) | {"SECRET_KEY": "x" * 50}


def test_image_has_the_static_files_where_nginx_takes_them_from(project: Project) -> None:
    (line,) = [rest for kind, rest in instructions("site") if kind == "RUN" and "collectstatic" in rest]
    build = line.partition(" && ")[0].replace("python", shlex.quote(sys.executable), 1)
    env = {**os.environ, **ENVIRONMENT, **variables()}
    subprocess.run(["/bin/sh", "-c", build], cwd=project.directory, env=env, check=True, stdout=subprocess.DEVNULL)
    (source,) = [rest.split()[1] for kind, rest in instructions("front") if "--from=site" in rest]
    folder = source.removeprefix(dict(instructions("site"))["WORKDIR"] + "/")
    assert (project.directory / folder / "django_websocket" / "client.js").exists()


@pytest.mark.parametrize(("service", "command"), [*commands_of_containers()], ids=["pages", "websockets"])
def test_commands_of_the_containers_serve(project: Project, service: str, command: list[str]) -> None:
    port = free_port()
    published = {"pages": 8000, "websockets": 8001}[service]
    where = command.index("-b") + 1
    assert command[where] == f"0.0.0.0:{published}"
    words = [*command[:where], f"127.0.0.1:{port}", *command[where + 1 :]]
    words.insert(1, "--no-control-socket")
    with started(shlex.join(words), project, port, variables() | {"ALLOWED_HOSTS": "127.0.0.1"}) as server:
        if service == "pages":
            assert get(server, "/chat/lobby/")[0].status == HTTPStatus.OK
        else:
            assert talks(port, f"http://127.0.0.1:{port}")
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert get(server, probes()[kind]["httpGet"]["path"])[0].status == HTTPStatus.OK


def test_checks_of_the_containers_tell_whether_they_serve(project: Project) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    of_pages = services["pages"]["healthcheck"]["test"]
    of_websockets = json.loads(dict(instructions("site"))["HEALTHCHECK"].partition(" CMD ")[2])
    assert of_pages[0] == "CMD"
    with recorder("health") as port:
        for there in (True, False):
            at = port if there else free_port()
            for words, usual in ((of_pages[1:], "8000"), (of_websockets, "8001")):
                program, option, code = words
                assert (program, option) == ("python", "-c") and usual in code
                command = [sys.executable, option, code.replace(usual, str(at))]
                result = subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
                assert (result.returncode == 0) is there


def test_nginx_accepts_what_the_image_makes_of_its_file(tmp_path: Path) -> None:
    (edit,) = [rest for kind, rest in instructions("front") if kind == "RUN"]
    file = tmp_path / "nginx.conf"
    file.write_text((DEPLOY / "nginx.conf").read_text())
    subprocess.run(["/bin/sh", "-c", edit.replace("/etc/nginx/nginx.conf", str(file))], check=True)
    text = file.read_text()
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for server in re.findall(r"^\s*server ([\w.]+):\d+;", text, re.M):
        assert server in services
        text = text.replace(f"server {server}:", "server 127.0.0.1:")  # nginx wants to look it up
    assert "user nginx;" in text and "server_name _;" in text
    for old, new in {"user nginx;": "", "/run/nginx.pid": "nginx.pid", "/var/log/nginx/": ""}.items():
        text = text.replace(old, new)
    file.write_text(text)
    tool("nginx", "-t", "-p", tmp_path, "-c", file, "-e", "stderr")


def test_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    assert tool(str(Path(sys.executable).parent / "hadolint"), DEPLOY / "Dockerfile") == ""


def test_what_redis_has_outlives_its_container() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (volume,) = compose["services"]["redis"]["volumes"]
    name, _, path = volume.partition(":")
    assert path == "/data"  # where its image writes
    assert name in compose["volumes"]


def test_compose_file_follows_its_schema() -> None:
    program = str(Path(sys.executable).parent / "check-jsonschema")
    tool(program, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def manifests() -> dict[str, Any]:
    """Return the manifests by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def test_manifests_follow_the_schema_of_kubernetes() -> None:
    import kubernetes_validate  # which environments without the slow tests do not have

    for manifest in manifests().values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_manifests_mean_the_same_pods_and_the_port_of_the_image() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert dict(instructions("site"))["EXPOSE"] == str(port["containerPort"])
    (published,) = found["Service"]["spec"]["ports"]
    assert published["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]


# --- times ------------------------------------------------------------------------------------------------------------


def test_each_way_to_stop_waits_for_longer_than_gunicorn() -> None:
    (of_systemd,) = re.findall(r"^TimeoutStopSec=(\d+)", (DEPLOY / "websocket.service").read_text(), re.M)
    of_compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["websockets"]["stop_grace_period"]
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    _, pause = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert int(of_systemd) > GRACEFUL
    assert int(of_compose.removesuffix("s")) > GRACEFUL
    assert GRACEFUL + int(pause) < pod["terminationGracePeriodSeconds"]
