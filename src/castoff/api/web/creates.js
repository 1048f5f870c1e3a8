// The last creates, on one scale.

import { count, duration, empty, h, when } from "/page/dom.js";

export function createsView({ main, get, live, signal }) {
  const body = h("div");
  let timer = 0;
  main.append(h("div", { class: "title" }, h("h1", null, "Creates")), body);
  live.addEventListener("machines", () => { clearTimeout(timer); timer = setTimeout(look, 300); }, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  look();

  async function look() {
    const rows = await get("/page/creates").catch(() => null);
    if (!rows || signal.aborted) return;
    if (!rows.length) { body.replaceChildren(empty("No creates yet", "Since the agent started, no machine was launched.")); return; }
    const longest = Math.max(...rows.map((row) => row.ended ?? 0), 0.001);
    const done = rows.filter((row) => row.state === "complete").map((row) => row.ended).sort((one, other) => one - other);
    const middle = done.length ? `median ${duration(done[Math.floor(done.length / 2)])}` : "";
    body.replaceChildren(
      h("p", { class: "note" }, [`The last ${count(rows.length, "create")}`, middle].filter(Boolean).join(", ")),
      h("ol", { class: "creates" }, rows.map((row) => h("li", { class: row.state }, h("a", { href: `#/machines/${row.machine}` },
        h("span", { class: "who" }, h("strong", null, row.image), h("span", { class: "mono" }, `${row.app} · ${row.machine}`)),
        h("span", { class: "track", "aria-hidden": "true" }, h("span", { class: `span${row.state === "running" ? " on" : ""}`, css: { "--from": "0%", "--long": `${((row.ended ?? longest) / longest) * 100}%` } })),
        h("span", { class: "time" }, row.state === "running" ? "running" : duration(row.ended), h("small", null, when(row.began * 1000))),
        row.error ? h("span", { class: "failure" }, row.error) : null)))));
  }
}
