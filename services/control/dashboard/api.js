// The public API, as this page uses it: JSON calls, problems, the token, and the event feed.

const TOKEN = "tributary-token";
const SILENCE_MS = 15_000;
const LIMIT_MS = 10_000;
const TRIES = 4;
const LONGEST_WAIT_S = 10;

export class Problem extends Error {
  constructor(details, status, retryAfterS = 0) {
    super(details.detail || `the control plane answered ${status}`);
    this.status = status;
    this.errors = details.errors || [];
    this.retryAfterS = retryAfterS;
  }
}

let askForToken = null;

function headers(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

// Who asks: a token says it by itself, and nobody may say otherwise.
function author() {
  return sessionStorage.getItem(TOKEN) ? {} : { "X-Tributary-Author": "dashboard" };
}

async function answered(response) {
  if (response.ok) return response;
  const details = await response.json().catch(() => ({}));
  throw new Problem(details, response.status, Number(response.headers.get("Retry-After")) || 1);
}

async function guarded(attempt) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (problem) {
      if (problem.status === 401) {
        askForToken ??= showTokenDialog().finally(() => { askForToken = null; });
        await askForToken;
      } else if (problem.status === 429 && tries < TRIES) {
        await sleep(1000 * Math.min(LONGEST_WAIT_S, problem.retryAfterS));
      } else throw problem;
    }
  }
}

function showTokenDialog() {
  const dialog = document.getElementById("token-dialog");
  const input = document.getElementById("token");
  const known = sessionStorage.getItem(TOKEN);
  document.getElementById("token-error").textContent = known ? "This token was not accepted." : "";
  input.select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, input.value.trim());
      resolve();
    }, { once: true });
    dialog.showModal();
  });
}

export function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

// `limitMs` bounds each call: a control plane that hangs is shown as one that is away.
export function get(path, limitMs = LIMIT_MS) {
  return guarded(async () => {
    const response = await fetch(path, { headers: headers(), signal: AbortSignal.timeout(limitMs) });
    return (await answered(response)).json();
  });
}

export function send(method, path, body, { more = {}, limitMs = LIMIT_MS } = {}) {
  return guarded(async () => {
    const response = await fetch(path, {
      method,
      headers: headers({ ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...author(), ...more }),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(limitMs),
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
    await sleep(Math.min(5000, 500 * 2 ** failures));
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
