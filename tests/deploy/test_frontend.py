"""The front end of docker-compose.yml, against its configuration and the code; tests/e2e/test_frontend.py runs it."""

import json
import re
from ipaddress import IPv4Address, IPv4Network

import pytest

from runtape.api.gate import MAX_BODY_BYTES
from runtape.api.health import READY
from runtape.api.problems import BodyTooLarge, Unavailable, encode, problem, refusal
from runtape.runtime.serving import KEEP_ALIVE_S
from runtape.runtime.settings import StreamSettings
from tests.deploy.composition import GIVEN, PROJECT, compose, environment, resolved, services
from tests.rig.nginx import TEMPLATE

SERVICE = services()["frontend"]
TEXT = TEMPLATE.read_text()


def only(name: str) -> str:
    """Return the value of a directive that is there once."""
    (value,) = re.findall(rf"^\s*{name} (.+);$", TEXT, re.MULTILINE)
    return value


def seconds(name: str) -> int:
    return int(only(name).removesuffix("s"))


def problems() -> dict[str, dict[str, object]]:
    """Return the bodies of the answers that it makes itself, by code."""
    found = [(int(status), json.loads(body)) for status, body in re.findall(r"return (\d+) '(\{.+\})';", TEXT)]
    assert all(status == body["status"] for status, body in found)
    return {body["code"]: body for _, body in found}


def test_every_variable_of_the_template_is_put_in_and_no_other() -> None:
    used = set(re.findall(r"\$\{(\w+)\}", TEXT))
    named, _, _ = resolved(SERVICE["entrypoint"][2]).partition("<")
    assert set(re.findall(r"\$\{(\w+)\}", named)) == environment("frontend").keys() == used
    assert all(name.startswith("FRONTEND_") for name in used)


def test_it_listens_where_it_is_published_and_asks_the_api_where_that_listens() -> None:
    values = environment("frontend")
    published = {port.split(":")[-1] for port in map(resolved, SERVICE["ports"])}
    assert published == {values["FRONTEND_HTTP"], values["FRONTEND_HTTPS"]}
    assert all(int(port) >= 1024 for port in published)  # an ordinary user may have them
    api = services()["api"]["command"]
    assert values["FRONTEND_API"] == f"api:{api[api.index('--port') + 1]}"
    assert values["FRONTEND_HEALTH"].replace(":", "/") in SERVICE["healthcheck"]["test"][-1]
    given = {**GIVEN, "RUNTAPE_HTTPS_PORT": "8443", "RUNTAPE_ADDRESS": "127.0.0.1"}
    assert environment("frontend", given)["FRONTEND_PORT"] == "8443"
    assert [resolved(port, given) for port in SERVICE["ports"]] == ["127.0.0.1:8443:8443", "127.0.0.1:80:8080"]


@pytest.mark.parametrize("given", [GIVEN, {**GIVEN, "RUNTAPE_FRONT": "10.1.2"}])
def test_the_api_believes_the_front_end_alone(given: dict[str, str]) -> None:
    address = resolved(SERVICE["networks"]["front"]["ipv4_address"], given)
    assert environment("api", given)["RUNTAPE_TRUSTED_PROXIES"] == address
    (config,) = compose()["networks"]["front"]["ipam"]["config"]
    subnet, gateway, others = (resolved(config[name], given) for name in ("subnet", "gateway", "ip_range"))
    assert IPv4Address(address) in IPv4Network(subnet) and IPv4Network(others).subnet_of(IPv4Network(subnet))
    # Neither the machine itself nor another container has it.
    assert address != gateway and IPv4Address(address) not in IPv4Network(others)


def test_its_nginx_is_new_enough_for_its_configuration() -> None:
    found = re.fullmatch(r"nginx:(\d+)\.(\d+)\.(\d+)-[a-z]+", SERVICE["image"])
    assert found
    assert tuple(map(int, found.groups())) >= (1, 29, 3)


def test_it_writes_to_no_disk_and_is_nobody() -> None:
    assert SERVICE["read_only"] and SERVICE["user"] == "101:101"
    run = environment("frontend")["FRONTEND_RUN"]
    assert [each.partition(":")[0] for each in SERVICE["tmpfs"]] == [run]
    assert '>"$FRONTEND_RUN/nginx.conf" && exec nginx -e stderr -c "$FRONTEND_RUN/nginx.conf"' in resolved(
        SERVICE["entrypoint"][2]
    )
    assert (only("proxy_buffering"), only("proxy_request_buffering")) == ("off", "off")


def test_certificates_are_the_users_and_have_to_be_there() -> None:
    template, certificates = SERVICE["volumes"]
    assert template == f"./{TEMPLATE.relative_to(PROJECT)}:/{TEMPLATE.name}:ro"
    assert resolved(certificates["source"]) == "./certs/made/frontend"
    assert certificates["target"] == environment("frontend")["FRONTEND_CERTIFICATES"]
    assert certificates["read_only"] and certificates["bind"] == {"create_host_path": False}
    assert "/certs/made/" in (PROJECT / ".gitignore").read_text().splitlines()


def test_its_limits_are_not_below_those_of_the_api() -> None:
    assert only("client_max_body_size") == f"{MAX_BODY_BYTES >> 20}m" and MAX_BODY_BYTES % (1 << 20) == 0
    streams = StreamSettings()
    assert seconds("proxy_read_timeout") > 2 * streams.heartbeat_s
    assert seconds("send_timeout") == streams.send_timeout_s
    assert seconds("keepalive_timeout") < KEEP_ALIVE_S
    assert seconds("worker_shutdown_timeout") < 10  # what Compose gives a service to stop


def test_its_own_problems_are_worded_as_those_of_the_api() -> None:
    wait_s = int(only("add_header Retry-After").removesuffix(" always"))
    expected = [
        refusal(BodyTooLarge(MAX_BODY_BYTES), "$request_id"),
        refusal(Unavailable(wait_s), "$request_id"),
        problem("not_found", f"there is nothing at {READY}", request_id="$request_id"),
    ]
    assert problems() == {each.code: json.loads(encode(each)) for each in expected}
