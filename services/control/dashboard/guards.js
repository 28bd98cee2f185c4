// The guards of a draft: a list whose entries read as sentences and open into fields, built from the schema of a guard.

import { resolved } from "./draft.js";
import { choice, errorPlace, field } from "./fields.js";
import { element, literal, words } from "./format.js";

const PER_SOURCE = ["effective_sample_size", "ratio", "clip_fraction"];
const ACTIONS = { rollback: "Roll back", set: "Set values", pause: "Pause the learner" };

// edit(update, restructured): takes what makes the new list of the old one; restructured: there are other fields now.
export function guardFields(schema, guards, edit) {
  const list = Array.isArray(guards) ? guards : [];
  const replace = (i, values, restructured) => edit((old) => old.map((guard, j) => (i === j ? { ...guard, ...values } : guard)), restructured);
  const entries = list.map((guard, i) => entry(schema, guard, i, {
    set: (key, value) => replace(i, { [key]: value }, false),
    act: (action) => replace(i, { action }, true),
    remove: () => edit((old) => old.filter((_, j) => j !== i), true),
  }));
  const add = element("button", { type: "button", class: "small", "data-key": "guards.add", onclick: () => edit((old) => [...old, fresh(old)], true) }, "Add a guard");
  return element("fieldset", { class: "guards" },
    element("legend", {}, "Guards"),
    element("p", { class: "quiet-text" }, list.length ? "Each fires once per revision, as a revision of its own."
      : "None: nothing changes without an operator. A guard acts when a figure leaves its range."),
    errorPlace("guards"), entries, add);
}

function entry(schema, guard, i, { set, act, remove }) {
  const definition = schema.$defs.Guard;
  const at = `guards.${i}`;
  const summary = element("summary", { "data-key": at }, guardTitle(guard));
  const now = { ...guard };
  const change = ([, , key], value) => {
    now[key] = value;
    summary.replaceChildren(...guardTitle(now));
    set(key, value);
  };
  const fields = Object.entries(definition.properties).filter(([key]) => key !== "action")
    .map(([key, property]) => field(["guards", i, key], resolved(property, schema), guard[key], change, words(key)));
  return element("details", { id: at, class: "guard", "data-path": `guards.${guard.name || i + 1}` }, summary, errorPlace(at),
    element("div", { class: "fields" }, fields, actionFields(schema, guard, i, { act, set: (value) => change(["", "", "action"], value) })),
    element("button", { type: "button", class: "small", onclick: remove }, "Remove this guard"));
}

function actionFields(schema, guard, i, { act, set }) {
  const id = `guards.${i}.action.kind`;
  const kinds = Object.entries(schema.$defs.Guard.properties.action.discriminator.mapping);
  const kind = guard.action?.kind;
  const options = kinds.map(([name]) => [name, ACTIONS[name] || words(name)]).sort((a, b) => (b[0] === "rollback") - (a[0] === "rollback"));
  const begin = (name) => act(name === "set" ? { kind: name, patch: { optimizer: { learning_rate: 5e-7 } } } : { kind: name });
  const chosen = kinds.find(([name]) => name === kind)?.[1];
  const properties = Object.entries(schema.$defs[chosen?.split("/").at(-1)]?.properties || {}).filter(([key]) => key !== "kind");
  return [
    element("div", { class: "field whole" }, element("label", { for: id }, "Action"),
      choice({ id, "data-key": id }, options, kind, begin), errorPlace(id)),
    ...properties.map(([key, property]) => field(["guards", i, "action", key],
      { ...resolved(property, schema), description: "a JSON merge patch of the live configuration" }, guard.action[key],
      (_, value) => set({ ...guard.action, [key]: value }), words(key))),
  ];
}

function fresh(list) {
  const taken = new Set(list.map((guard) => guard.name));
  const name = ["guard", ...list.map((_, i) => `guard-${i + 2}`)].find((candidate) => !taken.has(candidate));
  return { name, watch: "effective_sample_size", source: "policy", below: 0.3, above: null, steps: 3, action: { kind: "rollback" } };
}

function guardTitle(guard) {
  return [element("b", {}, guard.name || "unnamed"), " ", element("span", {}, guardSentence(guard))];
}

// A guard in words: "effective sample size of policy < 0.3 in 3 steps: roll back".
export function guardSentence({ watch, source, below, above, steps, action }) {
  const figure = String(watch).replaceAll("_", " ") + (PER_SOURCE.includes(watch) ? ` of ${source}` : "");
  const bound = below !== null && below !== undefined ? `< ${literal(below)}` : `> ${literal(above)}`;
  const what = action?.kind === "set" ? `set ${literal(action.patch)}` : (ACTIONS[action?.kind] || "").toLowerCase();
  return `${figure} ${bound} in ${steps} step${steps === 1 ? "" : "s"}: ${what}`;
}
