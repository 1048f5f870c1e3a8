"""The chain of providers: order, None against errors, laziness, and entry points."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from castoff.errors import CastoffError, LimitExceeded, NotFound, Unsupported
from castoff.fakes.image_source import FakeImageSource
from castoff.image.digest import Digest
from castoff.image.image import Image, ImageConfig, Platform
from castoff.rootfs.chain import ProviderChain, configured_chain
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.plugins import load_plugin
from castoff.rootfs.prepared import PreparedProvider
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.rootfs.settings import RootfsSettings
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

IMAGE = Image("image:latest", Digest.of(b"manifest"), Platform(), ImageConfig(), ())
REQUEST = RootfsRequest(IMAGE, FakeImageSource(IMAGE, {}))


@dataclass
class Recorded:
    """A provider that answers what it is told to, and tells that it was asked."""

    name: str
    answer: Rootfs | CastoffError | None
    asked: list[str] = field(default_factory=list)

    async def locate(self, request: RootfsRequest) -> Rootfs | None:
        self.asked.append(self.name)
        if isinstance(self.answer, CastoffError):
            raise self.answer
        return self.answer


@dataclass(frozen=True)
class Ready:
    """A rootfs of nothing."""

    provider: str

    async def clone(self, machine_id: str, directory: Path) -> list:
        return []

    async def release(self, machine_id: str) -> None: ...


def chain_of(*answers: Rootfs | CastoffError | None) -> tuple[ProviderChain, list[str]]:
    """A chain of providers a, b, ... and who was asked."""
    asked: list[str] = []
    providers = [Recorded(name, answer, asked) for name, answer in zip("abcdef", answers, strict=False)]
    return ProviderChain([(provider.name, lambda provider=provider: provider) for provider in providers]), asked


@pytest.fixture
def context(tmp_path: Path) -> ProviderContext:
    return ProviderContext(Store.open(tmp_path / "state", StoreSettings(backing="native")))


async def test_the_first_that_has_one_answers() -> None:
    """Those before it said None; those after it are not asked."""
    chain, asked = chain_of(None, Ready("b"), Ready("c"))
    found = await chain.locate(REQUEST)
    assert found is not None
    assert (found.provider, asked) == ("b", ["a", "b"])


async def test_nobody_has_one() -> None:
    """A chain is a provider: it says None, too."""
    chain, asked = chain_of(None, None)
    assert await chain.locate(REQUEST) is None
    assert asked == ["a", "b"]
    assert await ProviderChain([]).locate(REQUEST) is None


async def test_an_error_ends_the_search_and_names_its_provider() -> None:
    """The class and the data are the provider's own."""
    chain, asked = chain_of(None, LimitExceeded("entries", limit=5, setting="layers.max_entries"), Ready("c"))
    with pytest.raises(LimitExceeded, match=r"^b: entries is over the limit of 5; raise `layers\.max_entries`") as caught:
        await chain.locate(REQUEST)
    assert caught.value.limit == 5
    assert asked == ["a", "b"]


async def test_a_provider_is_made_when_it_is_asked_and_once() -> None:
    """What comes after the one that answers is never imported."""
    made: list[str] = []

    def maker(name: str, answer: Rootfs | None) -> tuple[str, object]:
        def make() -> Recorded:
            made.append(name)
            return Recorded(name, answer)

        return name, make

    chain = ProviderChain([maker("a", None), maker("b", Ready("b")), maker("c", None)])  # type: ignore[list-item]
    for _ in range(2):
        await chain.locate(REQUEST)
    assert made == ["a", "b"]
    assert chain.provider("c").name == "c"
    with pytest.raises(NotFound, match=r"no provider 'd' is configured"):
        chain.provider("d")


async def test_the_settings_say_who_and_in_which_order(context: ProviderContext) -> None:
    """By the names of entry points; an unknown one is an error that lists those that are known."""
    chain = configured_chain(ProviderContext(context.store, RootfsSettings(providers=("prepared",))))
    assert isinstance(chain.provider("prepared"), PreparedProvider)
    assert await chain.locate(REQUEST) is None
    unknown = configured_chain(ProviderContext(context.store, RootfsSettings(providers=("nonsuch",))))
    with pytest.raises(NotFound, match=r"provides 'nonsuch'.*there are: .*layered"):
        await unknown.locate(REQUEST)


def test_anybodys_package_adds_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with our entry point group is enough; its module is imported when it is asked for."""
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "entry_points.txt").write_text(
        "[console_scripts]\nlocal = wrong:main\n\n[castoff.rootfs_providers]\n# ours\nlocal = theirs_module:Factory.make [more]\n"
    )
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (tmp_path / "theirs_module.py").write_text("class Factory:\n    make = 'the provider'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("local") == "the provider"


@pytest.mark.parametrize("value", ["no_such_module_anywhere:X", "json:no_such_attribute"])
def test_one_that_cannot_be_imported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """With what it is and why."""
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "entry_points.txt").write_text(f"[castoff.rootfs_providers]\nbroken = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unsupported, match=value):
        load_plugin("broken")


def test_finding_a_provider_imports_nothing_heavy() -> None:
    """The warm path has no time for importlib.metadata, nor for what providers need only when they work."""
    script = (
        "import sys\n"
        "from castoff.rootfs.plugins import load_plugin\n"
        "load_plugin('prepared'); load_plugin('layered')\n"
        "heavy = {'importlib.metadata', 'numpy', 'aiohttp', 'rich', 'zstandard', 'grpc', 'blake3', 'isal'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
