// What the run has put down: weight versions as they were announced, and messages that could not be used.

import { get } from "./api.js";
import { byId, bytes, element, moment, number, percent } from "./format.js";
import { Table } from "./table.js";

const SHOWN = 12;
const REFRESH_MS = 5000;

export class Stores {
  constructor(quietly) {
    this.quietly = quietly;
    this.weights = new Table(byId("weights"), [
      { label: "Version", head: true, cell: (w) => String(w.version) },
      { label: "Step", number: true, cell: (w) => String(w.step) },
      { label: "Revision", number: true, cell: (w) => String(w.revision) },
      { label: "Kind", cell: (w) => (w.kind === "delta" ? `delta on ${w.base}` : w.kind) },
      { label: "Size", number: true, cell: (w) => bytes(w.bytes) },
      { label: "In full", number: true, cell: (w) => (w.full_bytes ? bytes(w.full_bytes) : "–") },
      { label: "Changed", number: true, cell: (w) => (w.changed === null ? "–" : percent(w.changed)) },
      { label: "Announced", number: true, cell: (w) => moment(w.at_s) },
    ], "No weights were announced yet: generators serve the base model as version 0.");
    this.quarantine = new Table(byId("quarantine"), [
      { label: "When", head: true, cell: (m) => moment(m.at_s) },
      { label: "Stream", cell: (m) => m.stream },
      { label: "Reason", wide: true, cell: (m) => m.reason },
      { label: "Group", cell: (m) => (m.group_id ? element("code", {}, m.group_id) : "–") },
      { label: "Put there by", cell: (m) => m.by },
      { label: "Size", number: true, cell: (m) => bytes(m.bytes) },
    ], "Nothing: every message could be used.");
  }

  show() {
    this.hide();
    this.timer = setInterval(() => document.hidden || this.quietly(this.refresh()), REFRESH_MS);
    this.quietly(this.refresh());
  }

  hide() {
    clearInterval(this.timer);
  }

  async refresh() {
    const [weights, quarantine] = await Promise.all([get(`/v1/weights?limit=${SHOWN}`), get(`/v1/quarantine?limit=${4 * SHOWN}`)]);
    this.weights.show(weights.versions);
    this.quarantine.show(quarantine.messages);
    byId("quarantine-total").textContent = quarantine.total ? number(quarantine.total) : "";
  }
}
