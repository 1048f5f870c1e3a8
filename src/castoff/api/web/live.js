// The agent's answers: one look (get), and the machines as they change (Live). EventSource cannot send a token, so the stream
// is read with fetch; the rest is as EventSource has it: ids, comments, and coming back with the last id.

const KEY = "castoff.token";

export class Refused extends Error {}
export class Missing extends Error {}

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text),
  clear: () => sessionStorage.removeItem(KEY),
};

function ask(path, headers, signal) {
  const authorization = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  return fetch(path, { headers: { ...authorization, ...headers }, signal, cache: "no-store", credentials: "omit", redirect: "error" });
}

async function checked(response) {
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const text = String(said.error ?? said.message ?? `the agent answers ${response.status}`);
  if (response.status === 401) throw new Refused(text);
  throw response.status === 404 ? new Missing(text) : new Error(text);
}

export async function get(path, signal) {
  return (await checked(await ask(path, {}, signal))).json();
}

// The events of a stream, until it ends.
export async function* events(path, headers, signal, watched = (answer) => answer) {
  const response = await watched(ask(path, headers, signal).then(checked));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = {};
      for (const line of block.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (event.event) yield event;
    }
  }
}

export class Live extends EventTarget {
  machines = new Map();
  #abort = null;
  #last = "";
  #wait = 0;

  start() {
    if (!this.#abort) { this.#abort = new AbortController(); this.#run(this.#abort.signal); }
  }

  stop() {
    this.#abort?.abort();
    this.#abort = null;
    this.#last = "";
    this.machines.clear();
  }

  async #run(signal) {
    while (!signal.aborted) {
      try {
        await this.#read(signal);
        this.#wait = 0;
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused) { this.stop(); this.#tell("refused", error.message); return; }
        this.#tell("link", "offline");
      }
      await new Promise((resolve) => setTimeout(resolve, this.#wait * (0.5 + Math.random() / 2)));
      this.#wait = Math.min(10000, this.#wait * 2 || 500);
    }
  }

  async #read(signal) {
    const headers = this.#last ? { "Last-Event-ID": this.#last } : {};
    for await (const event of events("/page/stream", headers, signal)) this.#take(event);
  }

  #take(event) {
    this.#last = event.id ?? this.#last;
    this.#wait = 0;
    const rows = JSON.parse(event.data) ?? [];
    if (event.event === "machines") this.machines.clear();
    for (const row of rows) {
      if (row.state === "destroyed") this.machines.delete(row.id);
      else this.machines.set(row.id, row);
    }
    this.#tell("link", "live");
    this.#tell("machines", new Set(rows.map((row) => row.id)));
  }

  #tell(kind, detail) { this.dispatchEvent(new CustomEvent(kind, { detail })); }
}
