// Changes of a configuration, told as lines: path, what was, what becomes.

import { difference } from "./draft.js";
import { element, literal } from "./format.js";
import { guardSentence } from "./guards.js";

// The lines of changes as the server tells them, in which a list is one value.
export function changeLines(changes) {
  return changes.flatMap((change) => (isList(change) ? difference(change.before, change.after, change.path) : [change])).map(changeLine);
}

function changeLine({ path, before, after }) {
  return element("li", {}, element("code", {}, path), " ",
    element("del", {}, told(before)), element("span", { class: "arrow", "aria-label": "becomes" }, " → "), element("ins", {}, told(after)));
}

function told(value) {
  return value?.watch ? guardSentence(value) : literal(value);
}

function isList({ before, after }) {
  return Array.isArray(before) || Array.isArray(after);
}
