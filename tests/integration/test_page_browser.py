"""The page in Debian's Chromium: what a person sees and does, on a phone and a desktop, by light and dark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.chromium import Tab, chromium, tab
from tests.lifecycle import settled, wanted
from tests.pages import Served, lazy_rootfs, served

from castoff.lifecycle.states import State

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"),
]
LOOKS = {"phone-light": (390, 844, False), "desktop-dark": (1280, 860, True), "desktop-light": (1280, 860, False)}
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Served]:
    """A page over three machines, one of which failed."""
    async with served(tmp_path, slow=0.02) as found:
        found.world.failing.add(HOSTILE)
        for name, image in (("front", "nginx:1.27"), ("back", "api:2"), ("broken", HOSTILE)):
            machine = await found.machines.create("mine", wanted(image, name=name, restart={"policy": "no"}))
            await settled(found.machines, machine, State.STARTED, State.FAILED, State.STOPPED)
        yield found


@pytest.fixture
async def browser() -> AsyncIterator[Tab]:
    """A fresh browser."""
    async with tab() as found:
        yield found


async def sign_in(browser: Tab, page: Served) -> None:
    """As a person does: with the keyboard."""
    await browser.open(page.url)
    await browser.until("document.activeElement.id === 'token'")
    await browser.type("operator")
    await browser.press("Enter")
    await browser.until("document.querySelectorAll('.machines a').length === 3")


def complaints(browser: Tab) -> list[str]:
    """What the console said, but for the look without a token that a fresh page begins with."""
    return [line for line in browser.said if "401" not in line]


async def test_machines_are_live(browser: Tab, page: Served) -> None:
    """A wrong token is told; the right one shows every machine; what changes shows without a reload, what is destroyed goes."""
    await browser.open(page.url)
    await browser.until("document.activeElement.id === 'token'")
    await browser.type("wrong")
    await browser.press("Enter")
    await browser.until("document.querySelector('[role=alert]')")
    await sign_in(browser, page)
    assert await browser.run("document.querySelector('#link').textContent") == "Live"
    made = await page.machines.create("other", wanted("redis:7", name="late"))
    await browser.until("[...document.querySelectorAll('.machines strong')].some((one) => one.textContent === 'late')")
    await browser.until("document.querySelector('.machines a .pill').textContent === 'started'")  # the newest is the first
    await page.machines.destroy(None, made.id, force=True)
    await browser.until("document.querySelectorAll('.machines a').length === 3")
    await browser.run("document.querySelector('input[type=search]').focus()")
    await browser.type("back")
    await browser.until("document.querySelectorAll('.machines a').length === 1")
    assert complaints(browser) == []


async def test_a_machine_is_shown_whole(browser: Tab, page: Served) -> None:
    """By keyboard to a machine: its create as a waterfall down to the guest, the map of its chunks, its events."""
    front = next(machine for machine in page.machines.list() if machine.name == "front")
    lazy_rootfs(page.store, front.id, layers=(30, 120), present=60, filling=6)
    await sign_in(browser, page)
    await browser.run("[...document.querySelectorAll('.machines a')].at(-1).focus()")
    await browser.press("Enter")
    await browser.until("document.querySelector('h1')?.textContent === 'front'")
    names = await browser.run("[...document.querySelectorAll('.waterfall .name')].map((one) => one.textContent)")
    assert {"agent.launch", "layers.convert", "machine.boot", "guest.kernel", "guest.init"} <= set(names)
    widths = await browser.run(
        "[...document.querySelectorAll('.waterfall .span')].map((one) => one.getBoundingClientRect().width)"
    )
    assert min(widths) >= 2
    assert await browser.run("document.querySelector('canvas').getAttribute('aria-label')") == "40 percent of 150 chunks are here"
    pixels = """(() => { const canvas = document.querySelector('canvas'); const found = new Set();
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) found.add([data[i], data[i + 1], data[i + 2]].join());
        return found.size; })()"""
    assert await browser.run(pixels) == 4  # absent, filling, present, and what the profile wants and is not here
    state = page.store / "machines" / front.id / "lazy.state"
    state.write_bytes(b"\2" * 150)
    await browser.until("document.querySelector('.progress strong').textContent === '100 %'")  # it looks again by itself
    assert await browser.run("[...document.querySelectorAll('.events strong')].map((one) => one.textContent)") == [
        "start",
        "start",
        "launch",
    ]
    assert complaints(browser) == []


async def test_what_clients_name_is_text(browser: Tab, page: Served) -> None:
    """An image named like markup is shown as it is named, in every view; no script, no request comes of it."""
    await sign_in(browser, page)
    broken = next(machine for machine in page.machines.list() if machine.name == "broken")
    for view in ("machines", f"machines/{broken.id}", "creates"):
        await browser.run(f"location.hash = '#/{view}'")
        await browser.until("document.querySelector('main').innerText.includes('<img src=x onerror=alert(1)>')")
        assert await browser.run("document.querySelectorAll('main img').length") == 0
    await browser.run(f"location.hash = '#/machines/{broken.id}'")
    await browser.until("document.querySelector('.waterfall .failure')")
    assert complaints(browser) == []


@pytest.mark.parametrize("name", LOOKS)
async def test_every_view_fits(browser: Tab, page: Served, name: str, tmp_path: Path) -> None:
    """Nothing is wider than the window; text has contrast enough (WCAG AA); light is light and dark is dark."""
    width, height, dark = LOOKS[name]
    front = page.machines.list()[0]
    lazy_rootfs(page.store, front.id)
    await browser.look(width, height, dark=dark)
    await sign_in(browser, page)
    views = {
        "machines": ".machines a",
        f"machines/{front.id}": ".waterfall li",
        "creates": ".creates a",
        "store": ".store li",
    }
    for view, shown in views.items():
        await browser.run(f"location.hash = '#/{view}'")
        await browser.until(f"document.querySelector('{shown}')")
        assert await browser.run("document.documentElement.scrollWidth") <= width
        assert await browser.run(CONTRAST) == []
        assert len(await browser.shoot(tmp_path / f"{name}-{view.partition('/')[0]}.png", whole=True)) > 10_000
    ground = await browser.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(14, 17, 24)") is dark
    assert complaints(browser) == []


async def test_the_page_comes_back_when_the_agent_does(browser: Tab, page: Served) -> None:
    """Browsers that are cut off come back by themselves, and show what is then."""
    await sign_in(browser, page)
    async with asyncio.timeout(60):
        while not len(page.stream):
            await asyncio.sleep(0.01)
    page.stream.drop_all()
    made = await page.machines.create("mine", wanted(name="meanwhile"))
    await browser.until("[...document.querySelectorAll('.machines strong')].some((one) => one.textContent === 'meanwhile')")
    await page.machines.stop(None, made.id)
    await browser.until("document.querySelector('.machines a .pill').textContent === 'stopped'")


CONTRAST = """(() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
  const plain = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at).backgroundColor;
      if (style.startsWith("color(")) return null;
      const colour = parse(style);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, colour) => over(colour, below), [255, 255, 255]);
  };
  const linear = (part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const weights = [0.2126, 0.7152, 0.0722];
  const light = (rgb) => rgb.reduce((sum, part, i) => sum + linear(part / 255) * weights[i], 0);
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (element.closest(".skip, [hidden], noscript") || !element.getClientRects().length) continue;
    const ground = plain(element);
    if (!ground) continue;
    const [one, other] = [light(parse(getComputedStyle(element).color)), light(ground)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) poor.push(`${element.className}: ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
})()"""
