// The prompts view: how often each prompt is solved, and a way to show the policy how.

import { get } from "./api.js";
import { byId, count, element, moment, number, percent } from "./format.js";
import { Table } from "./table.js";

const SHOWN = 50;
const RANGES = { never: { solve_rate: 0 }, sometimes: { solve_rate_min: 0.000001, solve_rate_max: 0.999999 }, always: { solve_rate: 1 }, all: {} };
const NONE = "No prompt is like that so far.";

export class Prompts {
  // demonstrations: where one is added.
  constructor(demonstrations, quietly) {
    this.demonstrations = demonstrations;
    this.quietly = quietly;
    this.entries = [];
    this.table = new Table(byId("prompt-table"), [
      { label: "Prompt", head: true, cell: (p) => p.prompt_id },
      { label: "Text", wide: true, cell: (p) => (p.text === null ? element("span", { class: "quiet-text" }, "text not known yet") : element("span", { class: "clamp", title: p.text }, p.text)) },
      { label: "Solved", number: true, cell: (p) => [solveBar(p.solve_rate), element("span", { class: "solved" }, `${number(p.solved)} of ${number(p.attempts)}`)] },
      { label: "With hints", number: true, cell: (p) => (p.hinted?.attempts ? `${number(p.hinted.solved)} of ${number(p.hinted.attempts)}` : "–") },
      { label: "Last reward", number: true, cell: (p) => number(p.last, 2) },
      { label: "", number: true, cell: (p) => this.#actions(p) },
    ], NONE);
    this.form = byId("prompt-filter");
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("change", () => this.quietly(this.#load()));
    this.more = byId("prompts-more");
    this.more.addEventListener("click", () => this.quietly(this.#load(this.next)));
    byId("prompts-refresh").addEventListener("click", () => this.quietly(this.#load()));
  }

  show() {
    this.quietly(this.#load());
    this.quietly(this.demonstrations.refresh());
  }

  async #load(after = null) {
    const chosen = new FormData(this.form);
    const attempts = Math.max(1, Math.round(Number(chosen.get("attempts"))) || 1);
    const query = new URLSearchParams({ ...RANGES[chosen.get("range")], min_attempts: attempts, limit: SHOWN, ...(after ? { after } : {}) });
    const { total, prompts, next } = await get(`/v1/prompts?${query}`);
    this.entries = after ? [...this.entries, ...prompts] : prompts;
    this.next = next;
    this.more.hidden = next === null;
    this.table.show(this.entries);
    byId("prompt-total").textContent = `${count(total, "prompt")}, as of ${moment(Date.now() / 1000)}`;
  }

  #actions(prompt) {
    const name = `Add a demonstration for ${prompt.prompt_id}`;
    return element("span", { class: "row-actions" },
      element("a", { href: `#groups/of/${prompt.prompt_id}`, "aria-label": `Groups of ${prompt.prompt_id}`, "data-key": `groups ${prompt.prompt_id}` }, "Groups"),
      element("button", { type: "button", class: "small", "aria-label": name, "data-key": name, onclick: () => this.demonstrations.ask(prompt) }, "Demonstrate"));
  }
}

function solveBar(rate) {
  const bar = element("span", { class: "solve-bar", role: "img", "aria-label": `solve rate ${percent(rate)}` }, element("i"));
  bar.firstChild.style.width = `${100 * rate}%`;
  return bar;
}
