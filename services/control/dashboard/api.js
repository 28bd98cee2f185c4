// The public API, as this page uses it: JSON calls, problems, the token, and the event feed.

const TOKEN = "tributary-token";
const SILENCE_MS = 15_000;

export class Problem extends Error {
  constructor(details, status) {
    super(details.detail || `the control plane answered ${status}`);
    this.status = status;
    this.errors = details.errors || [];
  }
}

let askForToken = null;

function headers(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}`, ...more } : more;
}

async function answered(response) {
  if (response.ok) return response;
  const details = await response.json().catch(() => ({}));
  throw new Problem(details, response.status);
}

async function guarded(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (problem) {
      if (problem.status !== 401) throw problem;
      askForToken ??= showTokenDialog().finally(() => { askForToken = null; });
      await askForToken;
    }
  }
}

function showTokenDialog() {
  const dialog = document.getElementById("token-dialog");
  const input = document.getElementById("token");
  const known = sessionStorage.getItem(TOKEN);
  document.getElementById("token-error").textContent = known ? "This token was not accepted." : "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, input.value.trim());
      resolve();
    }, { once: true });
    dialog.showModal();
  });
}

// `timeout` bounds each call: a control plane that hangs is shown as one that is away.
export function get(path) {
  return guarded(async () => {
    const response = await fetch(path, { headers: headers(), signal: AbortSignal.timeout(10_000) });
    return (await answered(response)).json();
  });
}

export function send(method, path, body, more = {}) {
  return guarded(async () => {
    const response = await fetch(path, {
      method,
      headers: headers({ "Content-Type": "application/json", ...more }),
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(10_000),
    });
    return (await answered(response)).json();
  });
}

// Follows the event feed for ever, from the event `after` on. EventSource cannot send a token, so the stream is read here.
export async function follow(after, onEvent, onState) {
  let last = after;
  let failures = 0;
  for (;;) {
    const abort = new AbortController();
    let watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      const response = await guarded(async () => answered(
        await fetch("/v1/events", { headers: headers({ "Last-Event-ID": last }), signal: abort.signal }),
      ));
      failures = 0;
      onState("live");
      for await (const message of messages(response.body)) {
        clearTimeout(watchdog);
        watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
        if (message.id) last = message.id;
        if (message.data) onEvent(JSON.parse(message.data));
      }
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof Problem || error.name === "AbortError")) throw error;
    } finally {
      clearTimeout(watchdog);
    }
    failures += 1;
    onState("away");
    await new Promise((resolve) => setTimeout(resolve, Math.min(5000, 500 * 2 ** failures)));
  }
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield fields(block);
  }
}

function fields(block) {
  const message = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) message[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  return message;
}
