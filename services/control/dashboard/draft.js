// A draft: the current configuration with an operator's edits, kept apart so that a newer revision can slide in beneath.

export const TAGGED = ["algorithm", "hints"];

export class Draft {
  // kinds: {algorithm: {kind: document}, hints: {kind: document}}, each a valid beginning of its kind.
  constructor(kinds) {
    this.kinds = kinds;
    this.revision = 0;
    this.base = {};
    this.edits = {};
  }

  rebase(revision, config) {
    this.revision = revision;
    this.base = config;
    for (const [part, edits] of Object.entries(this.edits)) this.#forgetSame(part, edits);
  }

  discard() {
    this.edits = {};
  }

  choose(part, kind) {
    if (kind === this.base[part].kind) delete this.edits[part];
    else this.edits[part] = { kind };
  }

  // path: a top-level key, then keys inside it: ["publish_every"], ["algorithm", "corrections", "decoupled"].
  set([part, key, ...inner], value) {
    if (key === undefined) this.edits[part] = value;
    else this.edits[part] = { ...this.edits[part], [key]: within(this.document()[part][key], inner, value) };
    this.#forgetSame(part, this.edits[part]);
  }

  document() {
    const document = structuredClone(this.base);
    for (const [part, edits] of Object.entries(this.edits)) {
      document[part] = isTable(edits) ? { ...this.#beginning(part), ...edits } : edits;
    }
    return document;
  }

  changes() {
    return difference(this.base, this.document());
  }

  #beginning(part) {
    const kind = this.edits[part]?.kind;
    return kind && kind !== this.base[part].kind ? this.kinds[part][kind] : this.base[part];
  }

  #forgetSame(part, edits) {
    if (!isTable(edits)) {
      if (edits === this.base[part]) delete this.edits[part];
      return;
    }
    if (edits.kind === this.base[part].kind) delete edits.kind;
    const beginning = this.#beginning(part);
    for (const [key, value] of Object.entries(edits)) if (key !== "kind" && difference(value, beginning[key]).length === 0) delete edits[key];
    if (Object.keys(edits).length === 0) delete this.edits[part];
  }
}

// A table with the value at `path` inside it replaced; the value itself if the path is empty.
function within(table, [key, ...inner], value) {
  return key === undefined ? value : { ...table, [key]: within(table?.[key], inner, value) };
}

// What differs between two documents, leaf by leaf: [{path, before, after}].
export function difference(before, after, path = "") {
  if (!(isTable(before) && isTable(after))) return before === after ? [] : [{ path, before, after }];
  const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort((a, b) => (b === "kind") - (a === "kind"));
  return keys.flatMap((key) => difference(before[key], after[key], path ? `${path}.${key}` : key));
}

// The schema of a property with references and "or null" resolved: {type, enum, nullable, description, ...}.
export function resolved(property, root) {
  const options = property.anyOf || [property];
  const main = options.find((option) => option.type !== "null") || {};
  const target = main.$ref ? root.$defs[main.$ref.split("/").at(-1)] : main;
  return { ...target, ...main, ...property, description: property.description, nullable: options.length > 1 };
}

function isTable(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}
