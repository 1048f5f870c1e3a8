// A create's steps as a waterfall: parents before children, siblings by their start, a bar for when each ran.

import { duration, h, size } from "/page/dom.js";

function inOrder(steps) {
  const children = new Map();
  const ids = new Set(steps.map((step) => step.id));
  for (const step of steps) {
    const parent = ids.has(step.parent) && step.parent < step.id ? step.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), step]);
  }
  const rows = [];
  const walk = (parent, depth) => (children.get(parent) ?? []).sort((one, other) => one.started - other.started).forEach((step) => {
    rows.push([depth, step]);
    walk(step.id, depth + 1);
  });
  walk(null, 0);
  return rows;
}

export function waterfall(create) {
  const now = create.state === "running" ? create.now : create.ended;
  // Its data may come in long after the command runs: the scale is that of the create, and what goes on leaves at the right.
  const end = Math.max(now, 1e-6);
  const rows = inOrder(create.steps).filter(([, step]) => step.started <= end);
  return h("div", { class: "waterfall" },
    h("div", { class: "scale", "aria-hidden": "true" }, [0, 0.25, 0.5, 0.75, 1].map((part) => h("span", null, part ? duration(end * part) : "0"))),
    h("ol", null, rows.map(([depth, step]) => bar(depth, step, end))));
}

function bar(depth, step, end) {
  const goesOn = step.ended === undefined || step.ended > end;
  const ended = Math.min(step.ended ?? end, end);
  const spent = (step.ended ?? end) - step.started;
  const failed = step.state === "failed";
  const worked = step.total && spent > 0.05 ? ` ${size(step.total)}, ${size(step.total / spent)}/s` : "";
  const said = `${failed ? "failed after " : step.ended === undefined ? "running for " : ""}${duration(spent)}`;
  const kind = step.name.split(".")[0].replace(/[^a-z0-9]/g, "");
  return h("li", { class: `k-${kind}${failed ? " failed" : ""}`, title: `${step.name}: ${duration(step.started)} + ${duration(spent)}${worked}` },
    h("span", { class: "name", css: { "--depth": String(Math.min(depth, 8)) } }, step.name),
    h("span", { class: "track", "aria-hidden": "true" }, h("span", {
      class: `span${goesOn ? " on" : ""}`,
      css: { "--from": `${(step.started / end) * 100}%`, "--long": `${(Math.max(0, ended - step.started) / end) * 100}%` },
    })),
    h("span", { class: "time" }, said, worked ? h("small", null, worked) : null),
    failed ? h("span", { class: "failure" }, step.error ?? "failed") : null);
}
