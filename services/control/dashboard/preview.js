// The preview: what the draft would do with the very batch that the learner trains on, beside what is in force (a dry run).

import { get, send, sleep } from "./api.js";
import { difference, same } from "./draft.js";
import { element, number, percent } from "./format.js";

const WAIT_S = 20;
const LIMIT_MS = 1000 * (WAIT_S + 10);
const LOOK_MS = 1500;
const NONE = "–";
const SOURCES = ["policy", "hint", "demonstration"];
const SCALARS = [["loss", "Loss", number], ["entropy", "Entropy", number]];
const BY_NAME = [
  ["gradient_weight", "Gradient weight by term", number],
  ["effective_sample_size", "Effective sample size", percent],
  ["clip_fraction", "Clipped tokens", percent],
  ["ratio", "Importance ratio", number],
];

export class Preview {
  constructor(root) {
    this.root = root;
    this.asked = null;
    this.turn = 0;
  }

  // Asks the learner about a document; the answer comes with its next step. Only the newest question is answered here.
  async ask(document_, revision) {
    const turn = (this.turn += 1);
    this.asked = document_;
    this.root.hidden = false;
    this.root.classList.remove("stale");
    this.#wait("Asked. The learner answers with its next step …");
    const body = { candidates: [{ label: "draft", patch: document_ }] };
    let answer = await send("POST", `/v1/config/dry-run?wait_s=${WAIT_S}`, body, { limitMs: LIMIT_MS });
    while (answer.state === "waiting" && turn === this.turn) {
      this.#wait(answer.notice || "The learner has not come to its next step yet. The preview appears when it does.");
      await sleep(LOOK_MS);
      if (turn === this.turn) answer = await this.#look(answer);
    }
    if (turn === this.turn) this.#show(answer, revision);
  }

  // What was previewed is told apart from what has been typed since.
  compareWith(document_) {
    if (this.asked) this.root.classList.toggle("stale", !same(document_, this.asked));
  }

  close() {
    this.turn += 1;
    this.asked = null;
    this.root.hidden = true;
    this.root.replaceChildren();
  }

  // A control plane that is away for a moment is asked again.
  async #look(answer) {
    try {
      return { ...answer, ...await get(`/v1/config/dry-run/${encodeURIComponent(answer.id)}`) };
    } catch (problem) {
      if (problem.status) throw problem;
      return answer;
    }
  }

  #wait(sentence) {
    this.root.replaceChildren(element("p", { class: "quiet-text waiting", role: "status" }, sentence));
  }

  #show(answer, revision) {
    const [candidate] = answer.candidates;
    if (!candidate.finding) {
      this.root.replaceChildren(this.#head("Preview", ""), element("p", { class: "error" }, candidate.problem || "The learner found nothing."));
      return;
    }
    const active = answer.active ?? {}; // the learner could not tell: the draft stands alone
    const { finding } = candidate;
    const rows = [
      ...SCALARS.map(([key, title, format]) => row(title, active[key], finding[key], format)),
      ...pullRows(active.pull, finding.pull),
      ...BY_NAME.flatMap(([key, title, format]) => group(title, active[key], finding[key], format)),
    ];
    const heads = ["Figure", `Now (r${answer.revision ?? revision})`, "Draft"];
    const unlike = difference(this.asked, candidate.config).filter(({ path }) => !path.startsWith("guards"));
    const notes = [...unlike.map(({ path, after }) => `${path} was taken as ${after ?? "not set"}: a preview cannot unset it.`), ...finding.notes];
    this.root.replaceChildren(
      this.#head("Preview", `on step ${answer.step}`),
      cosine(finding.cosine),
      element("table", { class: "figures" },
        element("thead", {}, element("tr", {}, heads.map((head, i) => element("th", { scope: "col", class: i ? "number" : "quiet-head" }, head)))),
        element("tbody", {}, rows)),
      element("p", { class: "quiet-text" }, counted(finding)),
      notes.length ? element("ul", { class: "notes" }, notes.map((note) => element("li", {}, note))) : "");
  }

  #head(title, place) {
    const close = element("button", { type: "button", class: "small plain", "aria-label": "Close the preview", onclick: () => this.close() }, "×");
    return element("div", { class: "preview-head" }, element("h3", {}, title), element("span", { class: "quiet-text", role: "status" }, place),
      element("span", { class: "stale-note" }, "of an earlier draft"), close);
  }
}

function row(title, now, draft, format, inner = false) {
  const moved = told(now, format) !== told(draft, format) && told(now, format) !== NONE && told(draft, format) !== NONE;
  return element("tr", { class: inner ? "inner" : null }, element("th", { scope: "row" }, title),
    element("td", { class: "number" }, told(now, format)), element("td", { class: moved ? "number moved" : "number" }, told(draft, format)));
}

function group(title, now, draft, format) {
  const names = [...new Set([...Object.keys(now || {}), ...Object.keys(draft || {})])].sort((a, b) => SOURCES.indexOf(a) - SOURCES.indexOf(b));
  if (names.length === 0) return [];
  if (names.length === 1) return [row(`${title}, ${names[0].replaceAll("_", " ")}`, now?.[names[0]], draft?.[names[0]], format)];
  return [heading(title), ...names.map((name) => row(name.replaceAll("_", " "), now?.[name], draft?.[name], format, true))];
}

// Who moves the policy: the share of each source in Σ|∂L/∂log p|.
function pullRows(now, draft) {
  const shares = [now, draft].map(sharesOf);
  const names = SOURCES.filter((name) => shares.some((share) => share[name] !== undefined));
  if (names.length === 0) return [];
  return [
    element("tr", {}, element("th", { scope: "row" }, "Pull by source"), ...shares.map((share) => element("td", {}, bar(share)))),
    ...names.map((name) => row(name, shares[0][name], shares[1][name], percent, true)),
  ];
}

function sharesOf(pull) {
  const total = Object.values(pull || {}).reduce((sum, value) => sum + value, 0);
  return Object.fromEntries(Object.entries(pull || {}).map(([name, value]) => [name, total ? value / total : 0]));
}

function bar(shares) {
  const parts = SOURCES.filter((name) => shares[name]).map((name) => element("i", { class: `source-${name}`, style: `flex-grow: ${shares[name]}` }));
  return element("span", { class: "share-bar", "aria-hidden": "true" }, parts);
}

function heading(title) {
  return element("tr", {}, element("th", { scope: "rowgroup", colspan: "3" }, title));
}

function told(value, format) {
  return value === null || value === undefined ? NONE : format(value);
}

// How much the draft's gradient points where the one in force does: 1 the same way, 0 across, -1 against it.
function cosine(value) {
  if (value === null || value === undefined) return element("p", { class: "quiet-text" }, "No cosine: one of the two gradients is zero.");
  const word = value > 0.9 ? "much the same way" : value > 0.3 ? "partly the same way" : value > -0.3 ? "another way" : "against it";
  const place = `left: ${50 + 50 * Math.max(-1, Math.min(1, value))}%`;
  return element("div", { class: "cosine" },
    element("p", {}, element("b", {}, value.toFixed(2)), " cosine with what is in force: ", word),
    element("span", { class: "gauge", "aria-hidden": "true" }, element("i", { style: place })));
}

function counted({ trajectories, tokens, missing_trajectories: missing }) {
  const more = missing ? `; ${number(missing)} more would be taught but were not in the batch` : "";
  return `${number(trajectories)} trajectories, ${number(tokens)} tokens${more}`;
}
