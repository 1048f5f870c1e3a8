// All machines: how many are how, and each with its last event. Rows are kept and changed, so that focus and scrolling stay.

import { empty, h, pill, when } from "/page/dom.js";

const ORDER = ["started", "starting", "creating", "created", "stopping", "stopped", "suspended", "failed", "launch_failed"];

export function machinesView({ main, live, signal }) {
  const rows = new Map();
  const tiles = h("div", { class: "tiles", role: "group", "aria-label": "Machines by state" });
  const search = h("input", { type: "search", placeholder: "Filter by name, app, image, id", "aria-label": "Filter machines", on: { input: draw } });
  const body = h("ul", { class: "machines", "aria-label": "Machines" });
  const note = h("p", { class: "note" });
  let state = "";
  let asked = 0;
  main.append(h("div", { class: "title" }, h("h1", null, "Machines"), search), tiles, body, note);
  live.addEventListener("machines", later, { signal });
  draw();

  function later() {
    if (!asked) asked = requestAnimationFrame(() => { asked = 0; if (!signal.aborted) draw(); });
  }

  function draw() {
    const all = [...live.machines.values()];
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    drawTiles(all);
    const shown = all
      .filter((machine) => !state || machine.state === state)
      .filter((machine) => words.every((word) => `${machine.name} ${machine.app} ${machine.image} ${machine.id} ${machine.state}`.toLowerCase().includes(word)))
      .sort((one, other) => other.created - one.created || (one.id < other.id ? -1 : 1));
    note.textContent = shown.length > 1000 ? `The 1,000 newest of ${shown.length.toLocaleString("en")}: filter to see others.` : "";
    place(shown.slice(0, 1000));
  }

  function drawTiles(all) {
    const counts = new Map();
    for (const machine of all) counts.set(machine.state, (counts.get(machine.state) ?? 0) + 1);
    if (state && !counts.has(state)) counts.set(state, 0);
    const states = [...counts.keys()].sort((one, other) => (ORDER.indexOf(one) + 99) % 99 - (ORDER.indexOf(other) + 99) % 99);
    const wanted = ["", ...states].map((name) => `${name}:${name ? counts.get(name) : all.length}:${name === state}`).join();
    if (tiles.dataset.shown === wanted) return;
    const focused = tiles.contains(document.activeElement) ? document.activeElement.dataset.state : null;
    tiles.dataset.shown = wanted;
    tiles.replaceChildren(...["", ...states].map((name) => {
      const button = h("button", {
        type: "button", class: `tile s-${name || "all"}`, "aria-pressed": String(name === state), "data-state": name,
        on: { click: () => { state = name === state ? "" : name; draw(); } },
      }, h("span", null, name ? h("i", { "aria-hidden": "true" }) : null, name.replaceAll("_", " ") || "all"), h("strong", null, (name ? counts.get(name) : all.length).toLocaleString("en")));
      return button;
    }));
    if (focused !== null) tiles.querySelector(`[data-state="${CSS.escape(focused)}"]`)?.focus();
  }

  function place(shown) {
    const wanted = new Set(shown.map((machine) => machine.id));
    for (const [id, row] of rows) if (!wanted.has(id)) { row.element.remove(); rows.delete(id); }
    body.querySelector(".empty")?.parentElement.remove();
    if (!shown.length) {
      body.replaceChildren(h("li", null, live.machines.size
        ? empty("No machine is like that", "Take the filter away to see them all.")
        : empty("No machines yet", "castoff machine run IMAGE starts one, and so does POST /v1/apps/APP/machines.")));
      return;
    }
    let before = body.firstElementChild;
    for (const machine of shown) {
      let row = rows.get(machine.id);
      if (row?.machine !== machine) {
        const element = line(machine);
        if (row) { const held = row.element.contains(document.activeElement); if (row.element === before) before = element; row.element.replaceWith(element); if (held) element.firstElementChild.focus(); }
        row = { machine, element };
        rows.set(machine.id, row);
      }
      if (row.element === before) before = before.nextElementSibling;
      else body.insertBefore(row.element, before);
    }
  }
}

function troubled(machine) {
  return machine.state === "started" && machine.checks.some((check) => check.status === "critical");
}

function line(machine) {
  const event = machine.event;
  return h("li", null, h("a", { href: `#/machines/${machine.id}` },
    pill(troubled(machine) ? "unhealthy" : machine.state),
    h("span", { class: "who" }, h("strong", null, machine.name || machine.id), h("span", { class: "mono" }, machine.id)),
    h("span", { class: "where" }, h("span", { class: "app" }, machine.app), h("span", { class: "image", title: machine.image }, machine.image)),
    h("span", { class: "last" }, event ? `${event.type} · ` : "", when(event ? event.timestamp : machine.updated))));
}

