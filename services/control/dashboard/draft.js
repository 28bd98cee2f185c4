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
      if (difference(this.base[part], edits).length === 0) delete this.edits[part];
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

// What differs between two documents, leaf by leaf: [{path, before, after}]. Entries of lists are told apart by their names.
export function difference(before, after, path = "") {
  if (Array.isArray(before) || Array.isArray(after)) return difference(named(before), named(after), path);
  if (!(isTable(before) && isTable(after)) || isNamed(before, after)) {
    return same(before, after) ? [] : [{ path, before: before ?? null, after: after ?? null }];
  }
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

export function isTable(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

export function same(one, other) {
  if (Array.isArray(one) && Array.isArray(other)) return one.length === other.length && one.every((value, i) => same(value, other[i]));
  if (!isTable(one) || !isTable(other)) return (one ?? null) === (other ?? null);
  return [...new Set([...Object.keys(one), ...Object.keys(other)])].every((key) => same(one[key], other[key]));
}

function named(list) {
  const entries = {};
  for (const [i, entry] of (list || []).entries()) {
    const name = entry?.name || `${i + 1}`;
    entries[name in entries ? `${name} (${i + 1})` : name] = entry;
  }
  return entries;
}

// What has a name of its own is shown whole, not value by value.
function isNamed(before, after) {
  return typeof before?.name === "string" || typeof after?.name === "string";
}
