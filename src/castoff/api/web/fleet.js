// The fleet as it changes: its hosts, and what they send to one another now.

import { count, empty, facts, h, panel, size, tile } from "/page/dom.js";
import { events } from "/page/live.js";

const RETRY = 2000;

export function fleetView({ main, watched, signal }) {
  const body = h("div");
  const open = new Set(); // hosts whose facts are shown, by id
  main.append(h("div", { class: "title" }, h("h1", null, "Fleet")), body);
  body.append(h("p", { class: "note" }, "Looking…"));
  follow();

  async function follow() {
    while (!signal.aborted) {
      try {
        for await (const { data } of events("/v1/fleet/stream", {}, signal, watched)) body.replaceChildren(...draw(JSON.parse(data), open));
      } catch (error) {
        if (signal.aborted) return;
        body.replaceChildren(empty("No fleet to show", error.message));
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
}

function draw(seen, open) {
  const rate = seen.transfers.reduce((sum, one) => sum + one.rate, 0);
  const sum = (field) => seen.hosts.reduce((total, host) => total + host[field], 0);
  return [
    seen.seen ? null : h("p", { class: "failure", role: "alert" }, "This host is cut off from its fleet and goes on alone."),
    h("div", { class: "tiles" },
      tile("hosts", seen.count.toLocaleString("en")),
      tile("machines", sum("machines").toLocaleString("en")),
      tile("CPUs free", `${sum("cpus_free")} of ${sum("cpus")}`),
      tile("memory free", size(sum("memory_free_mb") * 1048576)),
      tile("between hosts", `${size(rate)}/s`)),
    panel("Transfers", "What hosts send to one another now", seen.transfers.length ? transfers(seen.transfers) : empty("Nothing travels", "A host that lacks a layer has it from those that have it.")),
    panel("Hosts", seen.count > seen.hosts.length ? `The first ${seen.hosts.length}` : seen.fleet, hosts(seen.hosts, open)),
  ].filter(Boolean);
}

function transfers(all) {
  const fastest = Math.max(...all.map((one) => one.rate), 1);
  return h("ul", { class: "store transfers" }, all.map((one) => h("li", { class: "flat" },
    h("span", { class: "ref" }, `${one.from} → ${one.to}`),
    h("span", { class: "meter", "aria-hidden": "true" }, h("span", { css: { "--long": `${(one.rate / fastest) * 100}%` } })),
    h("span", { class: "amount" }, `${size(one.rate)}/s`),
    h("span", { class: "sharers" }, h("span", { class: "chip" }, `${size(one.sent)} since its start`)))));
}

function hosts(all, open) {
  return h("ul", { class: "store hosts" }, all.map((host) => h("li", null, h("details", { open: open.has(host.id), on: { toggle: (event) => (event.target.open ? open.add(host.id) : open.delete(host.id)) } },
    h("summary", null,
      h("span", { class: "mono" }, host.name),
      h("span", { class: "meter", "aria-hidden": "true", title: "memory in use" }, h("span", { css: { "--long": `${host.memory_mb ? (1 - host.memory_free_mb / host.memory_mb) * 100 : 0}%` } })),
      h("span", { class: "amount" }, `${host.cpus_free} of ${host.cpus}`, h("small", null, " CPUs")),
      h("span", { class: "sharers" },
        host.this ? h("span", { class: "chip many" }, "this host") : null,
        h("span", { class: "chip" }, [host.region, host.zone].filter(Boolean).join(" · ")),
        h("span", { class: "chip" }, count(host.machines, "machine")),
        h("span", { class: "chip" }, count(host.layers, "layer")))),
    facts([
      ["Id", h("span", { class: "mono" }, host.id)],
      ["Version", host.version],
      ["Memory free", `${size(host.memory_free_mb * 1048576)} of ${size(host.memory_mb * 1048576)}`],
      ["Chunks at", host.peers || "it serves none"],
      ["GPUs", Object.entries(host.gpus).map(([kind, gpus]) => `${kind}: ${gpus.free} of ${gpus.total}`).join(", ")],
      ["Labels", Object.entries(host.labels).map(([name, value]) => `${name}=${value}`).join(", ")],
    ])))));
}
