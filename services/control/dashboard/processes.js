// The processes of the run: generators, which can be drained and admitted, and all others, as their heartbeats tell.

import { send } from "./api.js";
import { actionButton } from "./buttons.js";
import { age, byId, element, moment, number } from "./format.js";
import { Table } from "./table.js";

export class Processes {
  constructor(onOrder) {
    this.onOrder = onOrder;
    this.generators = new Table(byId("generators"), [
      { label: "Generator", head: true, cell: (p) => p.name },
      { label: "State", long: true, cell: (p) => stateOf(p) },
      { label: "Tokens/s", number: true, cell: (p) => number(p.alive ? p.tokens_per_s : 0) },
      { label: "Sequences", number: true, cell: (p) => number(p.running) },
      { label: "Requests", number: true, cell: (p) => number(p.requests) },
      { label: "Weights", number: true, cell: (p) => versionOf(p, this.status.version.published) },
      { label: "Revision", number: true, cell: (p) => behind(p.revision, this.status.revision.asked) },
      { label: "Heartbeat", number: true, cell: (p) => `${age(p.age_s)} ago` },
      { label: "", number: true, cell: (p) => this.#admission(p) },
    ], "No generator has ever beaten: start one and it joins by itself.");
    this.others = new Table(byId("others"), [
      { label: "Process", head: true, cell: (p) => p.name },
      { label: "State", cell: (p) => stateOf(p) },
      { label: "Revision", number: true, cell: (p) => (p.role === "control" ? "–" : behind(p.revision, this.status.revision.asked)) },
      { label: "Doing", wide: true, cell: doing },
      { label: "Heartbeat", number: true, cell: (p) => `${age(p.age_s)} ago` },
    ], "No process has ever beaten.");
  }

  take(status) {
    this.status = status;
    for (const process of status.processes) process.order = status.drained[process.name] ?? null;
    const generates = (process) => process.role === "generator";
    this.generators.show(status.processes.filter(generates));
    this.others.show(status.processes.filter((process) => !generates(process)));
  }

  #admission(process) {
    const { name } = process;
    const order = (what) => async () => {
      await send("POST", `/v1/generators/${encodeURIComponent(name)}/${what}`);
      this.onOrder();
    };
    if (process.order) return actionButton({ label: "Admit", name: `Admit ${name}`, className: "small primary", act: order("admit") });
    return actionButton({ label: "Drain", name: `Drain ${name}`, sure: "Really?", act: order("drain") });
  }
}

function stateOf(process) {
  const { alive, state, trouble, order } = process;
  const shown = !alive ? (["stopped", "failed"].includes(state) ? state : "lost") : order ? (process.drained ? "drained" : "draining") : state;
  const mark = element("span", { class: "state", "data-state": trouble ? "failed" : shown }, shown);
  if (trouble) return [mark, element("span", { class: "error" }, ` ${trouble}`)];
  return order ? [mark, element("span", { class: "quiet-text" }, ` by ${order.by}, ${moment(order.at_s)}`)] : mark;
}

function behind(held, newest) {
  return held === newest ? String(held) : element("span", { class: "pending", title: `${newest} is the newest` }, `${held} of ${newest}`);
}

// One version behind is how it works: weights are fetched while the next ones are made.
function versionOf({ version }, newest) {
  return newest - version > 1 ? behind(version, newest) : String(version);
}

function doing(process) {
  const parts = {
    learner: () => `step ${number(process.step)}, ${number(process.tokens_per_s)} tokens/s${process.waiting ? ", waiting for groups" : ""}`,
    curriculum: () => `${number(process.outstanding)} of ${number(process.credit)} groups outstanding, epoch ${number(process.epoch)}`
      + (process.evaluating ? `, evaluating ${process.evaluating}` : ""),
    control: () => "serves this page",
  }[process.role];
  return parts && process.alive ? parts() : "–";
}
