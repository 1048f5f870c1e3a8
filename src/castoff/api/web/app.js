// The frame: the token, the views and their addresses.

import { ageAll, h } from "/page/dom.js";
import { Live, Refused, get, token } from "/page/live.js";
import { machinesView } from "/page/machines.js";
import { machineView } from "/page/machine.js";
import { createsView } from "/page/creates.js";
import { storeView } from "/page/store.js";
import { fleetView } from "/page/fleet.js";

const main = document.getElementById("main");
const views = document.getElementById("views");
const link = document.getElementById("link");
const leave = document.getElementById("leave");
const live = new Live();
let close = () => {};

const routes = [
  [/^#\/machines\/([0-9a-f]{14})$/, machineView],
  [/^#\/creates$/, createsView],
  [/^#\/store$/, storeView],
  [/^#\/fleet$/, fleetView],
  [/^/, machinesView],
];

function show() {
  close();
  const [pattern, view] = routes.find(([pattern]) => pattern.test(location.hash));
  const leaving = new AbortController();
  close = () => leaving.abort();
  for (const anchor of views.children) {
    const here = (location.hash || "#/machines").startsWith(anchor.getAttribute("href"));
    here ? anchor.setAttribute("aria-current", "page") : anchor.removeAttribute("aria-current");
  }
  main.replaceChildren();
  view({ main, live, watched, get: (path) => watched(get(path, leaving.signal)), signal: leaving.signal, argument: location.hash.match(pattern)[1] });
}

async function watched(answer) {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof Refused) signIn(error.message);
    throw error;
  }
}

function enter() {
  views.hidden = false;
  leave.hidden = !token.get();
  live.start();
  show();
}

function signIn(failure) {
  close();
  live.stop();
  token.clear();
  views.hidden = leave.hidden = true;
  link.textContent = "";
  link.dataset.state = "";
  const input = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "about" });
  const form = h("form", { class: "signin", on: { submit } },
    h("img", { src: "/page/icon.svg", alt: "", width: "56", height: "56" }),
    h("h1", null, "This host's machines"),
    h("p", { id: "about" }, "A token opens the page. ", h("code", null, "castoff token create --read-only"), " makes one that can only look. It stays in this tab."),
    h("label", { for: "token" }, "Token"),
    input,
    failure ? h("p", { class: "failure", role: "alert" }, failure) : null,
    h("button", { type: "submit" }, "Open"));
  main.replaceChildren(form);
  input.focus();

  function submit(event) {
    event.preventDefault();
    token.set(input.value.trim());
    enter();
  }
}

live.addEventListener("link", (event) => {
  if (link.dataset.state !== event.detail) {
    link.dataset.state = event.detail;
    link.textContent = event.detail === "live" ? "Live" : "Connecting…";
  }
});
live.addEventListener("refused", (event) => signIn(token.get() ? event.detail : ""));
leave.addEventListener("click", () => signIn(""));
window.addEventListener("hashchange", () => { if (!views.hidden) { show(); main.focus({ preventScroll: true }); scrollTo(0, 0); } });
setInterval(ageAll, 5000);
enter();
