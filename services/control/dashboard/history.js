// The revision history: who asked for what, when, why, where it took force, what the figures did then, and the way back.

import { get, send } from "./api.js";
import { actionButton, isBusy, rebuild } from "./buttons.js";
import { changeLines } from "./changes.js";
import { count, element, moment, number, percent } from "./format.js";

const SHOWN_CHANGES = 4;
const SHOWN = 50;
const MOST = 1000;
const FIGURES = [
  ["reward", "Reward", number], ["entropy", "Entropy", number], ["loss", "Loss", number], ["grad_norm", "Gradient norm", number],
  ["effective_sample_size", "Effective sample size", percent], ["staleness", "Staleness", number], ["tokens_per_s", "Tokens/s", number],
];

export class History {
  // onChange: has the history asked for again, `limit` revisions of it.
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.audits = new Map();
    this.limit = SHOWN;
    this.more = element("button", { type: "button", class: "small", hidden: true, onclick: () => this.#extend() }, "Older revisions");
    root.after(this.more);
  }

  #extend() {
    this.limit = Math.min(MOST, this.limit + SHOWN);
    this.onChange();
  }

  show({ current, revisions }) {
    // Rebuilding would take a half-made decision away from under the operator's finger.
    if (isBusy(this.root)) return;
    const open = new Set([...this.root.querySelectorAll("details[open]")].map((details) => details.dataset.key));
    rebuild(this.root, ...revisions.map((revision) => this.#entry(revision, revision.revision === current)));
    this.more.hidden = revisions.length < this.limit || this.limit === MOST;
    for (const details of this.root.querySelectorAll("details")) details.open = open.has(details.dataset.key);
  }

  #entry(revision, isCurrent) {
    const { revision: n, author } = revision;
    const changes = n === 1 ? [] : changeLines(revision.changes);
    const rest = changes.splice(SHOWN_CHANGES);
    return element("li", { class: isCurrent ? "current" : "", "data-revision": n },
      element("div", { class: "entry-head" },
        element("b", {}, `r${n}`),
        element("span", { class: "badge" }, revision.config.algorithm.kind),
        author.startsWith("guard:") ? element("span", { class: "badge warn" }, "guard") : null,
        isCurrent ? element("span", { class: "badge now" }, "current") : this.#rollBack(n)),
      element("p", { class: "quiet-text" }, `${moment(revision.at_s)} · ${author} · ${forceOf(revision, isCurrent)}`),
      revision.reason ? element("p", { class: "reason" }, revision.reason) : null,
      changes.length ? element("ul", { class: "diff" }, changes) : null,
      rest.length ? folded(`r${n}-changes`, `${rest.length} more`, element("ul", { class: "diff" }, rest)) : null,
      revision.step === null ? null : this.#around(n));
  }

  #rollBack(n) {
    return actionButton({
      label: "Roll back", name: `Roll back to revision ${n}`, sure: "Really?", act: async () => {
        await send("POST", "/v1/config/rollback", { revision: n });
        this.onChange();
      },
    });
  }

  // The figures before and after it came into force, fetched when somebody looks.
  #around(n) {
    const place = element("div", {}, this.audits.get(n) || "");
    const details = folded(`r${n}-around`, "Figures before and after", place);
    details.addEventListener("toggle", async () => {
      if (!details.open) return;
      try {
        this.audits.set(n, audit(await get(`/v1/config/revisions/${n}`)));
      } catch (problem) {
        this.audits.set(n, element("p", { class: "error" }, problem.message));
      }
      place.replaceChildren(this.audits.get(n));
    });
    return details;
  }
}

function forceOf({ in_force: marks, step }, isCurrent) {
  if (step !== null) return `in force at step ${step}`;
  return Object.keys(marks).length ? "in force at the generators" : isCurrent ? "asked for" : "never in force";
}

function folded(key, title, ...content) {
  return element("details", { "data-key": key }, element("summary", { "data-key": `${key}-summary` }, title), content);
}

function audit({ before, after, steps_before: past, steps_after: since }) {
  const figures = [...FIGURES, ...Object.keys({ ...before.accuracy, ...after.accuracy }).map((name) => [`accuracy.${name}`, `Held-out ${name}`, percent])];
  const rows = figures.map(([key, title, format]) => [title, format(at(before, key)), format(at(after, key))]).filter((row) => row[1] !== "–" || row[2] !== "–");
  if (!rows.length) return element("p", { class: "quiet-text" }, "No step was recorded around it.");
  const heads = ["Mean of", count(past, "step") + " before", count(since, "step") + " after"];
  return element("table", { class: "figures" },
    element("thead", {}, element("tr", {}, heads.map((head, i) => element("th", { scope: "col", class: i ? "number" : null }, head)))),
    element("tbody", {}, rows.map(([title, ...values]) => element("tr", {}, element("th", { scope: "row" }, title),
      values.map((value) => element("td", { class: "number" }, value))))));
}

function at(figures, key) {
  const [name, inner] = key.split(".");
  return inner === undefined ? figures[name] : figures[name]?.[inner];
}
