"""Who gets in and what is shown to whom: basic and bearer authorization, credential helpers, TLS, proxies."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from aiohttp import web

from castoff.errors import CastoffError, Invalid, Unauthorized, Unavailable
from castoff.image.image import Image, Platform
from castoff.image.opening import open_source
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from castoff.image.verify import Verifier
from daemons import own_mounts
from hostile_registry import Fault, HostileRegistry, answer, break_after, once, only
from oci_builder import Blob, BuiltImage, LayerTar, build_image

AMD64 = Platform("linux", "amd64")
QUICK = {"retry_delay": 0.01, "retry_delay_limit": 0.05, "connect_timeout": 2.0, "read_timeout": 1.0}


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_image([LayerTar().file("big", os.urandom(3 << 20)), LayerTar().file("a"), LayerTar().file("b")])


@pytest.fixture
async def registry(image: BuiltImage) -> AsyncIterator[HostileRegistry]:
    """Has the image as team/app:latest."""
    found = HostileRegistry()
    found.add("team/app", image)
    async with found.running():
        yield found


async def fetched(host: str, cache: Path, name: str = "team/app", **settings: object) -> Image:
    """Resolves and reads all layers at once, verified."""
    source = open_source(parse_reference(f"{host}/{name}"), ImageSettings(**(QUICK | settings)), cache / "cache")  # type: ignore[arg-type]

    async def read(image: Image, number: int) -> None:
        layer = image.layers[number]
        verifier = Verifier("layer", layer.digest, layer.size)
        async with source.open_blob(layer) as pieces:
            async for piece in pieces:
                verifier.update(piece)
        verifier.finish()

    try:
        found = await source.resolve(AMD64)
        await asyncio.gather(*(read(found, number) for number in range(len(found.layers))))
        return found
    finally:
        await source.close()


async def refused(host: str, cache: Path, **settings: object) -> CastoffError:
    """The error that fetching ends in: one line, without a secret."""
    with pytest.raises(CastoffError) as caught:
        await fetched(host, cache, **settings)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "secret" not in text
    return caught.value


def docker_config(directory: Path, **document: object) -> str:
    """Writes Docker's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(document))
    return str(path)


def password(username: str = "user", secret: str = "secret") -> dict[str, str]:
    """An entry as `docker login` writes it."""
    return {"auth": base64.b64encode(f"{username}:{secret}".encode()).decode()}


def basic_only(username: str = "user", secret: str = "secret") -> Fault:
    """Lets in who shows that password."""
    expected = "Basic " + password(username, secret)["auth"]

    async def fault(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == expected:
            return None
        return answer(401, headers={"WWW-Authenticate": 'Basic realm="here"'})

    return fault


class Tokens:
    """A realm and the registry that trusts it: tokens are ``token-N``, and only the newest is good.

    Args:
        realm: Where the registry sends clients; its own /token by default.
    """

    def __init__(self, registry: HostileRegistry, *, realm: str = "", expires_in: object = 300) -> None:
        self.registry = registry
        self.given = 0
        self.good = ""
        self.expires_in = expires_in
        self.realm = realm or f"http://{registry.host}/token"
        self.text: str | None = None
        registry.faults += [only("/token", self._give), only("/v2/", self._check)]

    async def _give(self, request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        await asyncio.sleep(0.05)
        self.given += 1
        self.good = token = f"token-{self.given}" if self.text is None else self.text
        return web.json_response({"token": token, "expires_in": self.expires_in})

    async def _check(self, request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if self.good and request.headers.get("Authorization") == f"Bearer {self.good}":
            return None
        challenge = f'Bearer realm="{self.realm}",service="reg, istry",scope="repository:team/app:pull"'
        return answer(401, headers={"WWW-Authenticate": challenge})

    def requests(self) -> list[object]:
        return [seen for seen in self.registry.requests if seen.path == "/token"]


async def test_basic_credentials_from_dockers_file(registry: HostileRegistry, tmp_path: Path) -> None:
    """Under the host's name, in any of the ways in which it is written there."""
    registry.faults.append(basic_only())
    for name in (registry.host, f"https://{registry.host}", f"http://{registry.host}/v1/"):
        await fetched(
            registry.host, tmp_path / name.replace("/", "_"), docker_config=docker_config(tmp_path, auths={name: password()})
        )
    assert registry.requests[0].authorization is None, "credentials are shown to whom asks, not before"


async def test_wrong_and_missing_credentials(registry: HostileRegistry, tmp_path: Path) -> None:
    """Who was refused where, and `docker login`; the password is in no error."""
    registry.faults.append(basic_only(secret="other"))
    error = await refused(registry.host, tmp_path, docker_config=docker_config(tmp_path, auths={registry.host: password()}))
    assert isinstance(error, Unauthorized)
    assert registry.host in str(error)
    error = await refused(registry.host, tmp_path, docker_config=docker_config(tmp_path))
    assert isinstance(error, Unauthorized)
    assert f"docker login {registry.host}" in error.hint


async def test_other_hosts_credentials_are_not_shown(registry: HostileRegistry, tmp_path: Path) -> None:
    """A mirror gets its own or none, and the registry's are the registry's."""
    mirror = HostileRegistry("127.0.0.2")
    mirror.faults.append(basic_only("nobody"))
    registry.faults.append(basic_only())
    async with mirror.running():
        auths = {registry.host: password()}
        await fetched(
            registry.host, tmp_path, docker_config=docker_config(tmp_path, auths=auths), mirrors={registry.host: (mirror.host,)}
        )
        assert mirror.requests
        assert all(seen.authorization is None for seen in mirror.requests)


async def test_an_anonymous_token_is_fetched_once_for_all_layers(registry: HostileRegistry, tmp_path: Path) -> None:
    """With the scope and service of the challenge, quoted commas and all."""
    tokens = Tokens(registry)
    await fetched(registry.host, tmp_path)
    assert tokens.given == 1
    seen = next(seen for seen in registry.requests if seen.path == "/token")
    assert seen.query == {"scope": "repository:team/app:pull", "service": "reg, istry"}
    assert seen.authorization is None


async def test_a_token_for_credentials(registry: HostileRegistry, tmp_path: Path) -> None:
    """The password goes to the realm, the token to the registry."""
    Tokens(registry)
    await fetched(registry.host, tmp_path, docker_config=docker_config(tmp_path, auths={registry.host: password()}))
    assert {seen.authorization for seen in registry.requests if seen.path == "/token"} == {"Basic " + password()["auth"]}
    assert {seen.authorization for seen in registry.requests if seen.path != "/token"} == {None, "Bearer token-1"}


async def test_a_token_that_is_refused_midway_is_renewed_once(
    registry: HostileRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    """However many layers meet the 401 at the same time; the broken transfer goes on with the new one."""
    tokens = Tokens(registry)

    async def expire(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if "Range" in request.headers and tokens.given == 1:
            tokens.good = ""  # what was given is good no more
        return None

    registry.faults.insert(0, only(image.layers[0].digest, expire))
    registry.faults.append(only(image.layers[0].digest, once(break_after(1 << 20))))
    await fetched(registry.host, tmp_path)
    assert len(tokens.requests()) == 2


async def test_a_token_is_renewed_before_it_expires(registry: HostileRegistry, tmp_path: Path) -> None:
    """A minute is the least that a token lives (token.md), whatever it says."""
    from castoff.image.auth import Authorizer
    from castoff.image.credentials import Keyring
    from castoff.image.transport import Transport
    from castoff.image.url import Url

    settings = ImageSettings(docker_config=str(tmp_path / "none"))
    transport = Transport(settings)
    tokens = Tokens(registry, expires_in=1)
    authorizer = Authorizer(registry.host, "repository:x:pull", Keyring(settings), transport, settings)
    challenge = f'Bearer realm="http://{registry.host}/token"'
    origin = Url.parse(f"http://{registry.host}/").origin
    now = time.monotonic()
    assert await authorizer.renew(origin, [challenge], None) == "Bearer token-1"
    assert authorizer.header() == "Bearer token-1"
    assert 50 < authorizer.expires - now < 60
    assert await authorizer.renew(origin, [challenge], None) == "Bearer token-1", "another task has renewed it"
    assert await authorizer.renew(origin, [challenge], "Bearer token-1") == "Bearer token-2"
    assert tokens.given == 2
    await transport.close()


async def test_an_identity_token_is_exchanged_by_post(registry: HostileRegistry, tmp_path: Path) -> None:
    """OAuth2's refresh_token grant; the token is in the body and in no URL."""
    Tokens(registry)
    auths = {registry.host: {"identitytoken": "the-secret"}}
    await fetched(registry.host, tmp_path, docker_config=docker_config(tmp_path, auths=auths))
    seen = next(seen for seen in registry.requests if seen.path == "/token")
    assert (seen.method, seen.query) == ("POST", {})
    fields = parse_qs(seen.body)
    assert fields["grant_type"] == ["refresh_token"]
    assert fields["refresh_token"] == ["the-secret"]
    assert fields["service"] == ["reg, istry"]


async def test_a_registry_token_is_shown_as_it_is(registry: HostileRegistry, tmp_path: Path) -> None:
    """`registrytoken` in Docker's file."""
    tokens = Tokens(registry)
    tokens.good = "token-7"
    auths = {registry.host: {"registrytoken": "token-7"}}
    await fetched(registry.host, tmp_path, docker_config=docker_config(tmp_path, auths=auths))
    assert tokens.requests() == []


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX-Evil: 1", "ü"])
async def test_tokens_that_could_break_a_header(registry: HostileRegistry, tmp_path: Path, token: str) -> None:
    """Refused, and never sent."""
    Tokens(registry).text = token
    assert isinstance(await refused(registry.host, tmp_path), Unauthorized)


@pytest.mark.parametrize(
    ("realm", "kind"),
    [
        ("", Invalid),
        ("file:///etc/passwd", Invalid),
        ("http://user:secret@127.0.0.1/token", Invalid),
        ("http://127.0.0.1:1/token", Unavailable),
    ],
)
async def test_realms_that_lead_nowhere(registry: HostileRegistry, tmp_path: Path, realm: str, kind: type[CastoffError]) -> None:
    """One clear line."""
    registry.faults.append(only("/v2/", answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})))
    assert isinstance(await refused(registry.host, tmp_path, retries=1), kind)


@pytest.mark.parametrize("header", ["", "Negotiate", "Digest realm=x, nonce=y", "=,=", "Bearer"])
async def test_challenges_that_nobody_can_answer(registry: HostileRegistry, tmp_path: Path, header: str) -> None:
    """Unknown schemes and nonsense."""
    registry.faults.append(only("/v2/", answer(401, headers={"WWW-Authenticate": header})))
    assert isinstance(await refused(registry.host, tmp_path, retries=0), Unauthorized | Invalid)


async def test_a_realm_that_refuses(registry: HostileRegistry, tmp_path: Path) -> None:
    """Whose credentials, and what the realm said."""
    Tokens(registry)
    registry.faults.insert(0, only("/token", answer(401, errors=[{"code": "DENIED", "message": "who are you"}])))
    error = await refused(registry.host, tmp_path, docker_config=docker_config(tmp_path, auths={registry.host: password()}))
    assert isinstance(error, Unauthorized)
    assert "credentials of user" in str(error)
    assert "DENIED who are you" in str(error)


def helper(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch, name: str = "test") -> None:
    """Puts a credential helper on the PATH."""
    path = directory / "bin" / f"docker-credential-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


async def test_a_credential_helper_is_asked(registry: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By credHelpers for its host, by credsStore for all; the host's name on its standard input."""
    registry.faults.append(basic_only())
    script = f"""read host; echo "$1 $host" >> {tmp_path}/log
    echo '{{"ServerURL": "x", "Username": "user", "Secret": "secret"}}'"""
    helper(tmp_path, script, monkeypatch)
    await fetched(registry.host, tmp_path / "a", docker_config=docker_config(tmp_path, credHelpers={registry.host: "test"}))
    await fetched(registry.host, tmp_path / "b", docker_config=docker_config(tmp_path, credsStore="test"))
    assert (tmp_path / "log").read_text() == f"get {registry.host}\n" * 2, "once for each source"


async def test_a_helpers_identity_token(registry: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user name is `<token>`."""
    Tokens(registry)
    helper(tmp_path, """echo '{"Username": "<token>", "Secret": "identity"}'""", monkeypatch)
    await fetched(registry.host, tmp_path, docker_config=docker_config(tmp_path, credsStore="test"))
    assert "refresh_token=identity" in next(seen for seen in registry.requests if seen.path == "/token").body


async def test_a_helper_without_credentials_leaves_the_file(
    registry: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`credentials not found` is an answer and no failure."""
    registry.faults.append(basic_only())
    helper(tmp_path, "echo 'credentials not found in native keychain'; exit 1", monkeypatch)
    await fetched(
        registry.host, tmp_path, docker_config=docker_config(tmp_path, credsStore="test", auths={registry.host: password()})
    )


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("sleep 60", "does not answer within 0.3 s"),
        ("sleep 60 & wait", "does not answer within 0.3 s"),
        ("cat /dev/zero", "answers with over"),
        ("echo 'vault is sealed'; exit 3", "vault is sealed"),
        ("exit 3", "status 3"),
        ("echo nonsense", "cannot be read"),
    ],
)
async def test_helpers_that_fail(
    registry: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, word: str
) -> None:
    """Hang, flood, fail, babble: one clear line, soon."""
    registry.faults.append(basic_only())
    helper(tmp_path, script, monkeypatch)
    start = time.monotonic()
    error = await refused(registry.host, tmp_path, helper_timeout=0.3, docker_config=docker_config(tmp_path, credsStore="test"))
    assert word in str(error)
    assert "docker-credential-test" in str(error)
    assert time.monotonic() - start < 3


async def test_a_helper_that_is_no_program(registry: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as its own failure."""
    registry.faults.append(basic_only())
    helper(tmp_path, "true", monkeypatch)
    (tmp_path / "bin" / "docker-credential-test").write_bytes(b"\x7fELF of another processor")
    error = await refused(registry.host, tmp_path, docker_config=docker_config(tmp_path, credsStore="test"))
    assert isinstance(error, Unavailable)
    assert "docker-credential-test' cannot be run" in str(error) or "docker-credential-test cannot be run" in str(error)


@pytest.mark.parametrize("name", ["nonexistent", "../../bin/sh", "a b", "x;reboot"])
async def test_helpers_that_are_not_there(registry: HostileRegistry, tmp_path: Path, name: str) -> None:
    """A name is a name and never a path or a shell's line."""
    registry.faults.append(basic_only())
    error = await refused(registry.host, tmp_path, docker_config=docker_config(tmp_path, credsStore=name))
    assert isinstance(error, Unavailable)
    assert "not installed" in str(error)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": 5}', '{"auths": {"HOST": {"auth": "%%%"}}}', '{"auths": {"HOST": {"auth": "/w=="}}}']
)
async def test_a_broken_docker_file(registry: HostileRegistry, tmp_path: Path, text: str) -> None:
    """Names the file or the entry."""
    registry.faults.append(basic_only())
    (tmp_path / "config.json").write_text(text.replace("HOST", registry.host))
    error = await refused(registry.host, tmp_path, docker_config=str(tmp_path / "config.json"))
    assert isinstance(error, Invalid)
    assert "config.json" in str(error)


async def test_the_docker_file_is_found_by_the_environment(
    registry: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DOCKER_CONFIG, else the home directory."""
    registry.faults.append(basic_only())
    docker_config(tmp_path, auths={registry.host: password()})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    await fetched(registry.host, tmp_path)
    monkeypatch.delenv("DOCKER_CONFIG")
    (tmp_path / ".docker").mkdir()
    (tmp_path / "config.json").rename(tmp_path / ".docker" / "config.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    await fetched(registry.host, tmp_path / "b")


async def test_plain_http_goes_through_the_environments_proxy(
    registry: HostileRegistry, image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whole URLs and the proxy's credentials; a host in no_proxy does not."""
    proxied: list[tuple[str, str | None]] = []

    async def note(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        proxied.append((request.headers["Host"], request.headers.get("Proxy-Authorization")))
        return None

    registry.faults.append(note)
    monkeypatch.setenv("http_proxy", f"http://me:secret@{registry.host}")
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    await fetched("registry.example", tmp_path, insecure_registries=("registry.example",))
    assert set(proxied) == {("registry.example", "Basic " + base64.b64encode(b"me:secret").decode())}
    monkeypatch.setenv("no_proxy", "registry.example")
    assert isinstance(
        await refused("registry.example", tmp_path / "b", insecure_registries=("registry.example",), retries=0), Unavailable
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA (ca.pem) and a server's certificate by it (server.pem, key.pem) for localhost and 127.0.0.1."""
    directory = tmp_path_factory.mktemp("ca")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    (directory / "ext").write_text("subjectAltName=DNS:localhost,DNS:registry.example,IP:127.0.0.1,IP:127.0.0.2\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=castoff test CA")
    openssl("req", *key, "-keyout", "key.pem", "-out", "server.csr", "-subj", "/CN=localhost")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext"]
    openssl("x509", "-req", "-in", "server.csr", *signing, "-out", "server.pem")
    return directory


def server_tls(authority: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority / "server.pem", authority / "key.pem")
    return context


@pytest.fixture
async def tls_registry(image: BuiltImage, authority: Path) -> AsyncIterator[HostileRegistry]:
    """The same, with TLS."""
    found = HostileRegistry()
    found.add("team/app", image)
    async with found.running(tls=server_tls(authority)):
        yield found


async def test_tls_with_a_further_authority(tls_registry: HostileRegistry, authority: Path, tmp_path: Path) -> None:
    """On loopback TLS is found out by asking; the certificate is checked all the same."""
    await fetched(tls_registry.host, tmp_path, ca_file=str(authority / "ca.pem"))
    error = await refused(tls_registry.host, tmp_path / "b", retries=0)
    assert isinstance(error, Unavailable)
    assert "is not trusted" in str(error)
    assert "image.ca_file" in error.hint


@pytest.mark.parametrize("content", [None, "not PEM"])
async def test_an_authority_file_that_is_none(tls_registry: HostileRegistry, tmp_path: Path, content: str | None) -> None:
    """Names the setting and the file."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    error = await refused(tls_registry.host, tmp_path, ca_file=str(path))
    assert isinstance(error, Invalid)
    assert "image.ca_file" in str(error)


async def test_credentials_do_not_fall_from_tls_to_plain_http(
    tls_registry: HostileRegistry, registry: HostileRegistry, authority: Path, tmp_path: Path
) -> None:
    """Neither to a realm nor by a redirect."""
    ca = str(authority / "ca.pem")
    config = docker_config(tmp_path, auths={tls_registry.host: password()})
    tokens = Tokens(tls_registry, realm=f"http://{registry.host}/token")
    assert isinstance(await refused(tls_registry.host, tmp_path, ca_file=ca, docker_config=config), Unauthorized)
    tls_registry.faults[:] = [
        only("/v2/", answer(307, headers={"Location": f"http://{registry.host}/v2/team/app/manifests/latest"}))
    ]
    assert "from TLS to plain HTTP" in str(await refused(tls_registry.host, tmp_path, ca_file=ca, docker_config=config))
    assert registry.requests == []
    assert tokens.given == 0


async def test_an_interrupted_tls_transfer_goes_on(
    tls_registry: HostileRegistry, image: BuiltImage, authority: Path, tmp_path: Path
) -> None:
    """As over plain HTTP."""
    tls_registry.faults.append(only(image.layers[0].digest, break_after(700_000)))
    await fetched(tls_registry.host, tmp_path, ca_file=str(authority / "ca.pem"))


class Tunnel:
    """An HTTP proxy that opens a tunnel to one place whatever it is asked for."""

    def __init__(self, target: str, status: str = "200 Connection established") -> None:
        self.target = target
        self.status = status
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {self.status}\r\nVia: test\r\n\r\n".encode())
        host, port = self.target.split(":")
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))


async def test_tls_goes_through_a_tunnel(
    tls_registry: HostileRegistry, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONNECT with the proxy's credentials, then TLS with the registry itself, checked against its own name."""
    tunnel = Tunnel(tls_registry.host)
    async with await asyncio.start_server(tunnel.serve, "127.0.0.1", 0) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"me:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await fetched("registry.example", tmp_path, ca_file=str(authority / "ca.pem"))
        assert all(head.startswith("CONNECT registry.example:443 HTTP/1.1\r\n") for head in tunnel.heads)
        assert all("Proxy-Authorization: Basic " in head for head in tunnel.heads)
        tunnel.status = "403 Forbidden"
        error = await refused("registry.example", tmp_path / "b", ca_file=str(authority / "ca.pem"))
        assert isinstance(error, Unavailable)
        assert "403 Forbidden" in str(error)


async def test_a_registry_elsewhere_leads_to_no_service_of_this_host(
    registry: HostileRegistry, tls_registry: HostileRegistry, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as a realm nor by a redirect: it could ask what only this host may."""
    tunnel = Tunnel(tls_registry.host)
    ca = str(authority / "ca.pem")
    async with await asyncio.start_server(tunnel.serve, "127.0.0.1", 0) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        target = f"https://{tls_registry.host}/private"
        tls_registry.faults[:] = [only("/v2/", answer(302, headers={"Location": target}))]
        assert "this host itself" in str(await refused("registry.example", tmp_path, ca_file=ca))
        tls_registry.faults[:] = [only("/v2/", answer(401, headers={"WWW-Authenticate": f'Bearer realm="{target}"'}))]
        assert "this host itself" in str(await refused("registry.example", tmp_path, ca_file=ca))
    assert "/private" not in tls_registry.paths()


def test_ctrl_c_does_not_wait_for_a_silent_name_server(tmp_path: Path) -> None:
    """Its look-up goes on for half a minute; nobody else does."""
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "config.toml").write_text('[store]\nbacking = "native"\n')
    inside = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    castoff = [sys.executable, "-m", "castoff", "--config", str(tmp_path / "config.toml"), "--state", str(tmp_path / "state")]
    words = [*own_mounts(), "sh", "-c", inside, str(tmp_path / "resolv.conf"), *castoff, "image", "inspect", "slow.example/x"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(1)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - begun < 2
