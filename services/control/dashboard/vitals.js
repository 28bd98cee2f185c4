// The state of the run in words and figures: the header and the tiles.

import { byId, element, number, percent } from "./format.js";

export function showConnection(state) {
  const place = byId("connection");
  place.dataset.state = state;
  place.textContent = { live: "live", away: "reconnecting", waiting: "connecting" }[state];
}

export function showStatus(status, titles) {
  const { revision, version, learner } = status;
  byId("run").textContent = status.run.name;
  const step = learner.max_steps ? `${learner.step} / ${learner.max_steps}` : String(learner.step);
  byId("step").replaceChildren(step, " ", element("small", { class: "pending" }, learner.paused ? "paused" : ""));
  const place = byId("revision");
  place.replaceChildren(`${revision.asked}`, " ", element("small", {}, forceOf(revision)));
  place.dataset.state = revision.settled ? "settled" : "pending";
  const behind = Object.values(version.generators).map((held) => version.published - held);
  const lag = Math.max(0, ...behind);
  byId("version").replaceChildren(`${version.published}`, " ", element("small", {}, lag > 0 ? `generators ${lag} behind` : ""));
  byId("algorithm").replaceChildren(titles[status.algorithm] || status.algorithm || "–", " ", element("small", {}, status.hints ? `hints: ${status.hints}` : ""));
  showTiles(status);
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
  tiles.push(["Trained", number(rates.trained_tokens_per_s), learner.paused ? "tokens/s · paused" : learner.waiting ? "tokens/s · waiting" : "tokens/s"]);
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
