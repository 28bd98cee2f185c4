// The colours of tokens: what each way of looking at them says, as a class with a strength, and its legend.

import { number } from "./format.js";

const STRONGEST = 55;
const NAMES = { policy: "policy", hint: "hint", demonstration: "demonstration" };

export const LOOKS = [
  { name: "source", title: "Source" },
  { name: "version", title: "Version" },
  { name: "ratio", title: "Ratio" },
  { name: "advantage", title: "Advantage" },
];

// A scale for one group: paint(trajectory, i) -> {className, strength in %}, and its legend [{className, strength, text}].
export function scaleOf(look, trajectories) {
  return { source: bySource, version: byVersion, ratio: byRatio, advantage: byAdvantage }[look](trajectories);
}

function bySource(trajectories) {
  const present = Object.keys(NAMES).filter((name) => trajectories.some((t) => t.tokens.source.includes(name)));
  return {
    paint: ({ tokens }, i) => (tokens.source[i] in NAMES ? { className: `source-${tokens.source[i]}`, strength: 26 } : {}),
    legend: present.map((name) => ({ className: `source-${name}`, strength: 26, text: NAMES[name] })),
  };
}

// Newer versions are stronger; a token that nobody sampled in this run has none.
function byVersion(trajectories) {
  const versions = [...new Set(trajectories.flatMap((t) => t.tokens.version))].filter((v) => v !== null && v !== undefined).sort((a, b) => a - b);
  const strength = (version) => (versions.length < 2 ? 30 : 10 + (45 * versions.indexOf(version)) / (versions.length - 1));
  const shown = versions.length <= 6 ? versions : [versions[0], versions[Math.floor(versions.length / 2)], versions.at(-1)];
  return {
    paint: ({ tokens }, i) => (versions.includes(tokens.version[i]) ? { className: "newer", strength: strength(tokens.version[i]) } : {}),
    legend: [...shown.map((version) => ({ className: "newer", strength: strength(version), text: `version ${version}` })),
      { className: "", strength: 0, text: "not sampled here" }],
  };
}

// Blue became less likely, red more. Twice or half is as strong as it gets.
function byRatio() {
  return {
    paint: ({ tokens }, i) => diverging(tokens.ratio[i] ? Math.log2(tokens.ratio[i]) : null, 1),
    legend: [[-1, "½ or less"], [-0.4, "¾"], [0, "1: as likely as when it was made"], [0.4, "1⅓"], [1, "2 or more"]]
      .map(([value, text]) => ({ ...diverging(value, 1), text })),
  };
}

// Green is taught, red is taught against.
function byAdvantage(trajectories) {
  const largest = Math.max(1e-9, ...trajectories.map((t) => Math.abs(t.advantage ?? 0)));
  const values = [...new Set(trajectories.map((t) => t.advantage).filter((a) => a !== null))].sort((a, b) => a - b);
  const shown = values.length <= 5 ? values : [values[0], 0, values.at(-1)];
  return {
    paint: (trajectory, i) => (trajectory.tokens.source[i] === "prompt" ? {} : diverging(trajectory.advantage, largest, ["lowered", "raised"])),
    legend: [...shown.map((value) => ({ ...diverging(value, largest, ["lowered", "raised"]), text: number(value) })),
      ...(trajectories.some((t) => t.advantage === null) ? [{ className: "", strength: 0, text: "not admitted by the algorithm" }] : [])],
  };
}

function diverging(value, largest, [below, above] = ["low", "high"]) {
  if (value === null || value === undefined || !Number.isFinite(value)) return {};
  return { className: value < 0 ? below : above, strength: STRONGEST * Math.min(1, Math.abs(value) / largest) };
}
