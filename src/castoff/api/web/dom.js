// Elements, and how numbers and times are said. Everything that comes from a client becomes text here, never markup.

export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "css") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  let value = bytes;
  while (value >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 0.00005) return "< 0.1 ms";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export function age(milliseconds) {
  const seconds = Math.max(0, (Date.now() - milliseconds) / 1000);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

export function when(milliseconds) {
  const text = () => age(milliseconds);
  const element = h("time", { datetime: new Date(milliseconds).toISOString(), title: new Date(milliseconds).toLocaleString() }, text());
  element.dataset.since = String(milliseconds);
  return element;
}

// Times that stand on the page go on.
export function ageAll() {
  for (const element of document.querySelectorAll("time[data-since]")) {
    const text = age(Number(element.dataset.since));
    if (element.textContent !== text) element.textContent = text;
  }
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function short(digest) {
  const [, hex] = digest.split(":");
  return (hex ?? digest).slice(0, 12);
}

export function pill(state) {
  return h("span", { class: `pill s-${/^[a-z_]+$/.test(state) ? state : "other"}` }, h("i", { "aria-hidden": "true" }), state.replaceAll("_", " "));
}

export function facts(rows) {
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value !== null && value !== undefined && value !== "").map(
    ([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

export function panel(title, note, ...body) {
  return h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", null, title), note ? h("p", null, note) : null), ...body);
}

export function tile(name, value, kind = "") {
  return h("div", { class: `tile ${kind}` }, h("span", null, name), h("strong", null, value));
}

export function empty(title, text) {
  return h("div", { class: "empty" }, h("strong", null, title), h("p", null, text));
}
