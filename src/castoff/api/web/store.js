// The store by layer: what each takes on disk, and which root filesystems and machines share it.

import { count, empty, facts, h, panel, short, size, tile, when } from "/page/dom.js";

export function storeView({ main, get, signal }) {
  const body = h("div");
  main.append(h("div", { class: "title" }, h("h1", null, "Store")), body);
  body.append(h("p", { class: "note" }, "Looking…"));
  get("/page/store").then(draw, (error) => { if (!signal.aborted) body.replaceChildren(h("p", { class: "failure" }, error.message)); });

  function draw(usage) {
    if (signal.aborted) return;
    const layers = [...usage.layers].sort((one, other) => other.allocated - one.allocated);
    const alone = layers.reduce((sum, layer) => sum + layer.allocated * Math.max(1, layer.rootfs.length), 0) + usage.machines.reduce((sum, one) => sum + one.allocated, 0);
    const names = new Map(usage.rootfs.map((one) => [one.name, one.reference || one.name]));
    body.replaceChildren(
      h("div", { class: "tiles" },
        tile("on disk", size(usage.total)),
        tile("layers and rootfs", size(usage.cached)),
        tile("without sharing", size(alone)),
        tile("free", size(usage.free)),
        usage.limit ? tile("limit", size(usage.limit)) : null),
      panel("Layers", count(layers.length, "layer"), layers.length ? layerList(layers, names) : empty("No layers yet", "The first machine of an image brings them.")),
      panel("Root filesystems", "Solid: its own. Pale: shared with layers, machines and others.", usage.rootfs.length ? rootfsList(usage.rootfs) : empty("None yet", "The first machine of an image leaves one here.")));
  }
}

function layerList(layers, names) {
  const largest = Math.max(...layers.map((layer) => layer.allocated), 1);
  return h("ul", { class: "store" }, layers.map((layer) => h("li", null, h("details", null,
    h("summary", null,
      h("span", { class: "mono", title: layer.diff_id }, short(layer.diff_id)),
      h("span", { class: "meter", "aria-hidden": "true" }, h("span", { css: { "--long": `${(layer.allocated / largest) * 100}%` } })),
      h("span", { class: "amount" }, size(layer.allocated)),
      h("span", { class: "sharers" },
        layer.hydrated < 1 ? h("span", { class: "chip warm" }, `${Math.floor(layer.hydrated * 100)} % here`) : null,
        h("span", { class: `chip${layer.rootfs.length > 1 ? " many" : ""}` }, count(layer.rootfs.length, "rootfs", "rootfs")),
        h("span", { class: `chip${layer.machines.length ? " many" : ""}` }, count(layer.machines.length, "machine")))),
    facts([
      ["diffID", h("span", { class: "mono" }, layer.diff_id)],
      ["Last used", when(layer.last_used * 1000)],
      ["Root filesystems", layer.rootfs.map((name) => h("span", { class: "row", title: name }, names.get(name) ?? name))],
      ["Machines", layer.machines.slice(0, 50).map((id) => h("a", { class: "row mono", href: `#/machines/${id}` }, id))],
    ].map(([name, value]) => [name, Array.isArray(value) ? (value.length ? h("span", null, value) : "none") : value]))))));
}

function rootfsList(all) {
  const largest = Math.max(...all.map((one) => one.allocated), 1);
  return h("ul", { class: "store" }, [...all].sort((one, other) => other.last_used - one.last_used).map((one) => h("li", { class: "flat" },
    h("span", { class: "ref", title: one.name }, one.reference || one.name),
    h("span", { class: "meter", "aria-hidden": "true" },
      h("span", { css: { "--long": `${(one.own / largest) * 100}%` } }),
      h("span", { class: "shared", css: { "--long": `${(Math.max(0, one.allocated - one.own) / largest) * 100}%` } })),
    h("span", { class: "amount" }, size(one.own), h("small", null, ` of ${size(one.allocated)}`)),
    h("span", { class: "sharers" },
      one.hydrated < 1 ? h("span", { class: "chip warm" }, `${Math.floor(one.hydrated * 100)} % here`) : null,
      h("span", { class: "chip" }, count(one.layers.length, "layer")),
      h("span", { class: `chip${one.machines.length ? " many" : ""}` }, count(one.machines.length, "machine"))))));
}
