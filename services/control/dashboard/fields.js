// Fields of a form, built from a JSON schema: one labelled input for each value, its meaning, and a place for its error.

import { isTable, resolved } from "./draft.js";
import { element, plain, words } from "./format.js";

// The fields of a value, or one for each value of a table. change(path, value) is called with what was typed, and
// choose(path, value) with a table of another kind, which has other fields.
export function fieldsOf(path, definition, value, way) {
  if (definition.discriminator) return kindFields(path, definition, value, way);
  if (!definition.properties) return [field(path, definition, value, way.change)];
  return Object.entries(definition.properties).flatMap(([key, inner]) =>
    fieldsOf([...path, key], resolved(inner, way.root), value?.[key], way));
}

// A choice among kinds, and the fields of the chosen one.
function kindFields(path, definition, value, way) {
  const id = [...path, "kind"].join(".");
  const schemas = Object.entries(definition.discriminator.mapping).map(([kind, ref]) => [kind, way.root.$defs[ref.split("/").at(-1)]]);
  const beginning = ([kind, { properties }]) =>
    ({ ...Object.fromEntries(Object.entries(properties).map(([key, property]) => [key, property.default ?? null])), kind });
  const select = choice({ id, "aria-describedby": `${id}-about`, "data-key": id }, schemas.map(([kind]) => [kind, words(kind)]), value?.kind,
    (kind) => way.choose(path, beginning(schemas.find(([name]) => name === kind))));
  const about = element("div", { class: "about-place" }, element("small", { id: `${id}-about`, class: "about" }, definition.description || ""));
  const { kind: _, ...properties } = schemas.find(([kind]) => kind === value?.kind)?.[1].properties || {};
  return [
    element("div", { class: "field", "data-path": id }, element("label", { for: id }, words(path.slice(1).join(": "))), select, about, errorPlace(id)),
    ...fieldsOf(path, { properties }, value, way),
  ];
}

export function field(path, definition, value, change, label = words(path.slice(path.length > 1 ? 1 : 0).join(": "))) {
  const id = path.join(".");
  const input = inputFor({ id, "aria-describedby": `${id}-about`, "data-key": id }, definition, value, (next) => change(path, next));
  const about = element("div", { class: "about-place" }, element("small", { id: `${id}-about`, class: "about" }, definition.description || ""));
  const kind = definition.type === "boolean" ? "field check" : definition.type === "object" ? "field whole" : "field";
  return element("div", { class: kind, "data-path": id }, element("label", { for: id }, label), input, about, errorPlace(id));
}

function inputFor(shared, definition, value, change) {
  if (definition.type === "boolean") {
    return element("input", { ...shared, type: "checkbox", checked: value === true, onchange: (e) => change(e.target.checked) });
  }
  if (definition.enum) return choice(shared, definition.enum.map((option) => [option, words(String(option))]), value, change);
  if (definition.type === "object") {
    const text = value === undefined || value === null ? "" : JSON.stringify(value, null, 1);
    return element("textarea", { ...shared, rows: "3", spellcheck: "false", oninput: (e) => change(parsed(e.target.value)) }, text);
  }
  const shown = typeof value === "number" ? plain(value) : value ?? "";
  const mode = definition.type === "string" ? "text" : "decimal";
  const placeholder = definition.nullable ? "not set" : "";
  return element("input", { ...shared, type: "text", inputmode: mode, placeholder, value: shown, oninput: (e) => change(typed(e.target.value, definition)) });
}

// options: [[value, text]].
export function choice(shared, options, value, change) {
  const made = options.map(([option, text]) => element("option", { value: option, selected: option === value }, text));
  return element("select", { ...shared, onchange: (e) => change(options[e.target.selectedIndex][0]) }, made);
}

export function errorPlace(id) {
  return element("p", { class: "error field-error", id: `${id}-error`, role: "alert" });
}

// Where the error of a path is shown. The server's paths may name the members of a union, which have no fields here.
export function placeOf(path) {
  const steps = path.split(".");
  const without = steps.map((_, i) => steps.filter((__, j) => j !== i).join("."));
  const above = steps.map((_, i) => steps.slice(0, steps.length - i).join("."));
  const known = [path, ...without.slice(1), ...above.flatMap((p) => [p, `${p}.kind`])];
  return known.find((id) => document.getElementById(`${id}-error`));
}

// What was typed, as JSON: text that is no number is sent as text, so that the server says what is wrong with it.
function typed(text, definition) {
  const trimmed = text.trim();
  if (trimmed === "") return definition.nullable ? null : "";
  return definition.type !== "string" && Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return isTable(value) ? value : text;
  } catch {
    return text;
  }
}
