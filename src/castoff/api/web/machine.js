// One machine: what it is, how its create went, how much of its rootfs is here, what happened to it.

import { duration, empty, facts, h, panel, pill, short, when } from "/page/dom.js";
import { Missing } from "/page/live.js";
import { hydration } from "/page/hydration.js";
import { waterfall } from "/page/waterfall.js";

const OFTEN = 500;

export function machineView({ main, live, get, signal, argument: id }) {
  const head = h("div");
  const create = h("div");
  const rootfs = h("div");
  const events = h("div");
  let timer = 0;
  let looking = false;
  let again = false;
  main.append(h("a", { class: "back", href: "#/machines" }, "← Machines"), head, create, rootfs, events);
  live.addEventListener("machines", (event) => { if (event.detail.has(id)) look(); }, { signal });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); }, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  look();

  async function look() {
    if (looking) { again = true; return; }
    looking = true;
    clearTimeout(timer);
    try {
      const [found, made, chunks] = await Promise.all([get(`/page/machines/${id}`), get(`/page/machines/${id}/create`).catch(missing), get(`/page/machines/${id}/rootfs`).catch(String)]);
      if (signal.aborted) return;
      head.replaceChildren(...about(found));
      create.replaceChildren(panel("Create", made ? told(made) : "", made ? waterfall(made) : empty("Not lately", "The agent remembers the last creates since it started.")));
      rootfs.replaceChildren(panel("Root filesystem", "", typeof chunks === "string" ? h("p", { class: "failure" }, chunks) : hydration(chunks)));
      events.replaceChildren(panel("Events", "", history(found.events)));
      if ((made?.state === "running" || chunks.complete === false) && !document.hidden) timer = setTimeout(look, OFTEN);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Missing) main.replaceChildren(h("a", { class: "back", href: "#/machines" }, "← Machines"), empty("This machine is gone", `No machine has the id ${id} any more.`));
      else timer = setTimeout(look, 3000);
    } finally {
      looking = false;
      if (again && !signal.aborted) { again = false; look(); }
    }
  }
}

function missing(error) {
  if (error instanceof Missing) return null;
  throw error;
}

function told(create) {
  if (create.state === "failed") return `Failed after ${duration(create.ended)}: ${create.error}`;
  return create.state === "running" ? `Since ${duration(create.now)}` : `Its command ran after ${duration(create.ended)}`;
}

function about({ machine, config }) {
  const guest = [config.cpus && `${config.cpus} CPU`, config.memory_mb && `${config.memory_mb} MB`].filter(Boolean).join(", ");
  return [
    h("div", { class: "title" }, h("h1", null, machine.name || machine.id), pill(machine.state), machine.cordoned ? h("span", { class: "pill" }, "cordoned") : null),
    facts([
      ["Image", h("span", { class: "mono" }, machine.image)],
      ["Digest", machine.digest ? h("span", { class: "mono", title: machine.digest }, short(machine.digest)) : ""],
      ["App", machine.app],
      ["Id", h("span", { class: "mono" }, machine.id)],
      ["Guest", guest],
      ["Region", machine.region],
      ["Created", when(machine.created)],
      ["Version", h("span", { class: "mono" }, machine.version)],
      ["Restart", config.restart],
      ["Schedule", config.schedule],
      ["Volumes at", config.mounts.join(", ")],
      ["Services", config.services.join(", ")],
    ]),
    machine.checks.length ? panel("Checks", passing(machine.checks), h("ul", { class: "events" }, machine.checks.map((check) =>
      h("li", { class: `s-${check.status}` }, h("i", { "aria-hidden": "true" }),
        h("span", null, h("strong", null, check.name), ` ${check.status}`, h("small", null, check.output)))))) : h("div"),
  ];
}

function passing(checks) {
  return `${checks.filter((check) => check.status === "passing").length} of ${checks.length} pass`;
}

function history(events) {
  if (!events.length) return empty("Nothing yet", "What happens to the machine stands here.");
  return h("ol", { class: "events" }, events.map((event) => h("li", { class: `s-${event.status.replace(/[^a-z_]/g, "")}` },
    h("i", { "aria-hidden": "true" }),
    h("span", null, h("strong", null, event.type), ` ${event.status.replaceAll("_", " ")}`, because(event.request)),
    h("span", { class: "by" }, `${event.source === "flyd" ? "agent" : event.source} · `, when(event.timestamp)))));
}

function because(request) {
  if (request?.check) return h("small", null, `${request.check.name}: ${request.check.output}`);
  const exit = request?.exit_event ?? request?.MonitorEvent?.exit_event;
  if (!exit) return null;
  const words = [`exit code ${exit.exit_code}`];
  if (exit.signal > 0 || exit.guest_signal > 0) words.push(`signal ${exit.guest_signal || exit.signal}`);
  if (exit.oom_killed) words.push("out of memory");
  if (exit.requested_stop) words.push("asked to stop");
  return h("small", null, words.join(", "));
}
