// The state of the run in words and figures: the header, the tiles, and the table of processes.

import { age, element, number, percent } from "./format.js";

const byId = (id) => document.getElementById(id);

export function showConnection(state) {
  const place = byId("connection");
  place.dataset.state = state;
  place.textContent = { live: "live", away: "reconnecting", waiting: "connecting" }[state];
}

export function showStatus(status, titles) {
  const { revision, version, learner } = status;
  document.title = `${status.run.name} · Tributary`;
  byId("run").textContent = status.run.name;
  byId("step").textContent = learner.max_steps ? `${learner.step} / ${learner.max_steps}` : String(learner.step);
  const place = byId("revision");
  place.replaceChildren(`${revision.asked}`, " ", element("small", {}, forceOf(revision)));
  place.dataset.state = revision.settled ? "settled" : "pending";
  const behind = Object.values(version.generators).map((held) => version.published - held);
  const lag = Math.max(0, ...behind);
  byId("version").replaceChildren(`${version.published}`, " ", element("small", {}, lag > 0 ? `generators ${lag} behind` : ""));
  byId("algorithm").replaceChildren(titles[status.algorithm] || status.algorithm || "–", " ", element("small", {}, status.hints ? `hints: ${status.hints}` : ""));
  showTiles(status);
  showProcesses(status);
}

function forceOf(revision) {
  if (revision.in_force === null) return "asked · nobody follows";
  return revision.settled ? "in force" : `asked · ${revision.in_force} in force`;
}

function showTiles(status) {
  const { rates, backlog, learner } = status;
  const step = status.last_step || {};
  const tiles = [["Reward", number(step.reward), "newest step"]];
  for (const [name, evaluation] of Object.entries(status.evaluations)) {
    tiles.push([`Held-out ${name}`, percent(evaluation.accuracy), `version ${evaluation.version}`]);
  }
  tiles.push(["Generated", number(rates.generated_tokens_per_s), "tokens/s"]);
  tiles.push(["Trained", number(rates.trained_tokens_per_s), learner.waiting ? "tokens/s · waiting" : "tokens/s"]);
  tiles.push(["Staleness", number(learner.staleness, 2), "versions"]);
  tiles.push(["In flight", `${backlog.outstanding} / ${backlog.credit ?? "–"}`, "groups of credit"]);
  if (status.hint_schedule) tiles.push(["Hint schedule", percent(status.hint_schedule.phase), scheduleOf(status.hint_schedule)]);
  if (status.rehearsal) tiles.push(["Rehearsal buffer", number(status.rehearsal.waiting), "demonstrations"]);
  if (backlog.quarantined) tiles.push(["Quarantine", number(backlog.quarantined), "messages", "bad"]);
  byId("tiles").replaceChildren(...tiles.map(([name, value, unit, mood]) =>
    element("div", { class: mood || null }, element("dt", {}, name), element("dd", {}, value), element("dd", { class: "unit" }, unit))));
}

// What the schedule is at: p of UFT, the least share of Prefix-RFT, and how long hints are of late.
function scheduleOf({ p, low, mean_hint_length: length }) {
  const level = p !== null ? `p ${number(p, 2)}` : low !== null ? `from ${percent(low)}` : "";
  return [level, length === null ? "" : `${number(length)} tokens`].filter(Boolean).join(" · ");
}

function showProcesses(status) {
  byId("processes").replaceChildren(...status.processes.map((process) => {
    const state = process.alive ? process.state : ["stopped", "failed"].includes(process.state) ? process.state : "lost";
    const follows = process.role !== "control";
    const lags = follows && process.alive && process.revision !== status.revision.asked;
    return element("tr", {},
      element("th", { scope: "row" }, process.name),
      element("td", {}, element("span", { class: "state", "data-state": process.trouble ? "failed" : state }, state),
        process.trouble ? element("span", { class: "error" }, ` ${process.trouble}`) : ""),
      element("td", { class: lags ? "number pending" : "number" }, follows ? String(process.revision) : "–"),
      element("td", { class: "number" }, ["generator", "learner"].includes(process.role) ? String(process.version) : "–"),
      element("td", {}, doing(process)),
      element("td", { class: "number" }, `${age(process.age_s)} ago`));
  }));
}

function doing(process) {
  const parts = {
    generator: () => `${number(process.tokens_per_s)} tokens/s, ${number(process.running)} sequences, ${number(process.requests)} requests`,
    learner: () => `step ${number(process.step)}, ${number(process.tokens_per_s)} tokens/s${process.waiting ? ", waiting for groups" : ""}`,
    curriculum: () => `${number(process.outstanding)} of ${number(process.credit)} groups outstanding, epoch ${number(process.epoch)}`
      + (process.evaluating ? `, evaluating ${process.evaluating}` : ""),
  }[process.role];
  return parts && process.alive ? parts() : "–";
}
