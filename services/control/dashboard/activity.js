// The activity of the run: notices, revisions, orders, starts and ends of processes, additions, quarantined messages, newest first.

import { byId, element, moment } from "./format.js";

export const KINDS = ["notice", "revision", "order", "process", "addition", "quarantine"];
const KEPT = 60;
const SENTENCES = {
  notice: (data) => data.text,
  revision: (data) => `revision ${data.revision} by ${data.author}${data.reason ? `: ${data.reason}` : ""}`,
  order: (data) => `${data.by} ordered: ${data.order} ${data.target}`,
  process: (data) => `${data.name} is ${data.state}`,
  addition: (data) => `demonstration for ${data.prompt_id} by ${data.by}: ${data.state}${data.reason ? ` (${data.reason})` : ""}`,
  quarantine: (data) => `a message of ${data.stream} was put into quarantine: ${data.reason}`,
};

export class Activity {
  constructor() {
    this.root = byId("activity");
    this.events = [];
  }

  start(events) {
    this.events = events.slice(-KEPT).reverse();
    this.#show();
  }

  take(event) {
    if (!KINDS.includes(event.kind)) return;
    this.events = [event, ...this.events].slice(0, KEPT);
    this.#show();
  }

  #show() {
    if (!this.events.length) {
      this.root.replaceChildren(element("li", { class: "quiet-text" }, "Nothing yet."));
      return;
    }
    this.root.replaceChildren(...this.events.map(({ kind, at_s: at, data }) => element("li", { "data-kind": kind },
      element("time", { class: "quiet-text", datetime: new Date(1000 * at).toISOString() }, moment(at)), element("span", {}, SENTENCES[kind](data)))));
  }
}
