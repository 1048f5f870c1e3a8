// A root filesystem's chunks, each a cell: absent, filling, present; those of the boot profile stand out. Layers one below the other.

import { count, h, short, size } from "/page/dom.js";

const STATES = ["absent", "filling", "present"];
const PROFILE = 4;

export function hydration(found) {
  if (!found.lazy) return h("p", { class: "whole" }, h("i", { "aria-hidden": "true" }), "All of it was here before the machine started.");
  if (found.complete) return h("div", null, h("p", { class: "whole" }, h("i", { "aria-hidden": "true" }), `It started before its data was here. Now all of its ${size(found.size)} are, and it is a plain file.`), lines(found));
  const cells = Uint8Array.from(atob(found.chunks), (character) => character.charCodeAt(0));
  const counts = [0, 0, 0];
  let profiled = 0;
  let profiledHere = 0;
  for (const cell of cells) {
    counts[cell & 3] += 1;
    if (cell & PROFILE) { profiled += 1; profiledHere += (cell & 3) === 2; }
  }
  const part = cells.length ? counts[2] / cells.length : 1;
  const canvas = h("canvas", { role: "img", "aria-label": `${Math.floor(part * 100)} percent of ${count(cells.length, "chunk")} are here` });
  const draw = () => paint(canvas, cells, found.layers);
  const watching = new ResizeObserver(draw);
  watching.observe(canvas);
  return h("div", { class: "hydration" },
    h("div", { class: "progress" },
      h("strong", null, `${Math.floor(part * 100)} %`),
      h("span", null, `${size(counts[2] * found.chunk)} of ${size(cells.length * found.chunk)}`)),
    canvas,
    h("ul", { class: "legend" },
      STATES.map((name, state) => h("li", null, h("i", { class: `c-${name}`, "aria-hidden": "true" }), `${name} `, h("b", null, counts[state].toLocaleString("en")))),
      h("li", null, h("i", { class: "c-profile", "aria-hidden": "true" }), "in the boot profile ", h("b", null, profiled ? `${profiledHere.toLocaleString("en")} of ${profiled.toLocaleString("en")}` : "none"))),
    h("ul", { class: "layers" }, found.layers.map(([diffId, first, chunks]) => {
      const here = cells.subarray(first, first + chunks).reduce((sum, cell) => sum + ((cell & 3) === 2), 0);
      return h("li", null, h("span", { class: "mono", title: diffId }, short(diffId)),
        h("span", { class: "meter", "aria-hidden": "true" }, h("span", { css: { "--long": `${(here / chunks) * 100}%` } })),
        h("span", null, `${Math.floor((here / chunks) * 100)} % of ${size(chunks * found.chunk)}`));
    })),
    lines(found));
}

function lines(found) {
  return found.said.length ? h("pre", { class: "said", tabindex: "0", "aria-label": "The hydrator's last words" }, found.said.join("\n")) : null;
}

function paint(canvas, cells, layers) {
  const width = canvas.clientWidth;
  if (!width) return;
  const ratio = devicePixelRatio || 1;
  const gap = 6;
  const apart = layers.length <= 40 ? layers : [["", 0, cells.length]];
  let cell = 14;
  const rowsAt = (side) => apart.reduce((sum, [, , chunks]) => sum + Math.ceil(chunks / Math.floor(width / side)), 0);
  while (cell > 2 && rowsAt(cell) * cell > 260) cell -= 1;
  const across = Math.floor(width / cell);
  const height = rowsAt(cell) * cell + gap * (apart.length - 1);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.setProperty("height", `${height}px`);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const colours = ["absent", "filling", "present", "profile", "wanted"].map((name) => style.getPropertyValue(`--c-${name}`));
  const inner = cell > 4 ? cell - 2 : cell > 2 ? cell - 1 : cell;
  let top = 0;
  for (const [, first, chunks] of apart) {
    for (let index = 0; index < chunks; index += 1) {
      const value = cells[first + index];
      const state = value & 3;
      context.fillStyle = value & PROFILE ? colours[state === 2 ? 3 : state === 1 ? 1 : 4] : colours[state];
      context.fillRect((index % across) * cell, top + Math.floor(index / across) * cell, inner, inner);
    }
    top += Math.ceil(chunks / across) * cell + gap;
  }
}
