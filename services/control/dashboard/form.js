// The switch form: built from the JSON schemas, shows what will change, applies it, and puts each error at its field.

import { send } from "./api.js";
import { Draft, resolved, TAGGED } from "./draft.js";
import { element, literal, plain, words } from "./format.js";

export class SwitchForm {
  // catalogue: {algorithms, policies}; schema: of the whole live configuration.
  constructor(form, catalogue, schema, onApplied) {
    this.form = form;
    this.schema = schema;
    this.onApplied = onApplied;
    this.choices = { algorithm: catalogue.algorithms, hints: catalogue.policies };
    const beginnings = (list, field) => Object.fromEntries(list.map((entry) => [entry.kind, entry[field]]));
    this.draft = new Draft({
      algorithm: beginnings(catalogue.algorithms, "defaults"),
      hints: beginnings(catalogue.policies, "suggestion"),
    });
    this.note = "";
    this.#frame();
  }

  // A newer revision arrives: it becomes the base, and edits under way stay.
  rebase(revision, config) {
    if (revision === this.draft.revision) return;
    const edited = this.draft.changes().length > 0;
    this.draft.rebase(revision, config);
    this.note = edited && this.draft.changes().length ? `Revision ${revision} came in meanwhile; your edits are kept on top of it.` : "";
    this.#build();
  }

  #frame() {
    this.parts = element("div", { class: "parts" });
    this.diff = element("ul", { class: "diff", "aria-live": "polite", "aria-label": "What will change" });
    this.alert = element("p", { class: "error", role: "alert" });
    this.done = element("p", { class: "done", role: "status" });
    this.reason = element("input", { id: "reason", type: "text", maxlength: "500", placeholder: "kept in the history" });
    this.apply = element("button", { class: "primary", type: "submit" }, "Apply");
    this.undo = element("button", { type: "button", onclick: () => this.#discard() }, "Discard");
    this.form.replaceChildren(
      this.parts,
      this.decide = element("div", { class: "decide" },
        element("h3", {}, "What will change"), this.diff,
        element("label", { class: "field wide", for: "reason" }, element("span", {}, "Reason (optional)"), this.reason),
        this.alert,
        element("div", { class: "buttons" }, this.apply, this.undo), this.done),
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#apply();
    });
  }

  #build() {
    const focused = document.activeElement?.id;
    const open = new Set([...this.parts.querySelectorAll("details[open]")].map((details) => details.id));
    const groups = TAGGED.map((part) => this.#tagged(part));
    groups.push(this.#general());
    this.parts.replaceChildren(...groups);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused && this.form.contains(document.getElementById(focused))) document.getElementById(focused).focus();
    this.#show();
  }

  #tagged(part) {
    const document_ = this.draft.document();
    const kind = document_[part].kind;
    const chosen = this.choices[part].find((entry) => entry.kind === kind);
    const options = this.choices[part].map((entry) => element("option", { value: entry.kind, selected: entry.kind === kind }, entry.title));
    const id = `${part}.kind`;
    const select = element("select", { id, onchange: (event) => this.#choose(part, event.target.value) }, options);
    const properties = Object.entries(chosen?.schema.properties || {}).filter(([key]) => key !== "kind");
    const fields = properties.flatMap(([key, property]) => this.#fields([part, key], resolved(property, chosen.schema), document_[part][key], chosen.schema));
    return element("fieldset", {},
      element("legend", {}, part === "algorithm" ? "Algorithm" : "Hint policy"),
      element("label", { class: "quiet", for: id }, part === "algorithm" ? "Algorithm" : "Hint policy"), select, errorPlace(id),
      element("p", { class: "quiet-text" }, (chosen?.summary || "").split("\n\n")[0], " ", paper(chosen)),
      element("div", { class: "fields" }, fields));
  }

  #general() {
    const document_ = this.draft.document();
    const properties = Object.entries(this.schema.properties).filter(([part]) => !TAGGED.includes(part));
    const fields = properties.flatMap(([part, property]) => this.#fields([part], resolved(property, this.schema), document_[part], this.schema));
    return element("fieldset", {}, element("legend", {}, "Sampling, optimiser, pacing"), element("div", { class: "fields" }, fields));
  }

  // The fields of a value, or one for each value of a table.
  #fields(path, definition, value, root) {
    if (!definition.properties) return [this.#field(path, definition, value)];
    return Object.entries(definition.properties).flatMap(([key, inner]) => this.#fields([...path, key], resolved(inner, root), value?.[key], root));
  }

  #field(path, definition, value) {
    const id = path.join(".");
    const change = (next) => {
      this.draft.set(path, next);
      this.#show();
    };
    const shared = { id, "aria-describedby": `${id}-about` };
    let input;
    if (definition.type === "boolean") {
      input = element("input", { ...shared, type: "checkbox", checked: value === true, onchange: (e) => change(e.target.checked) });
    } else if (definition.enum) {
      const options = definition.enum.map((option) => element("option", { value: option, selected: option === value }, words(String(option))));
      input = element("select", { ...shared, onchange: (e) => change(definition.enum[e.target.selectedIndex]) }, options);
    } else {
      const shown = typeof value === "number" ? plain(value) : value ?? "";
      const placeholder = definition.nullable ? "not set" : "";
      input = element("input", { ...shared, type: "text", inputmode: "decimal", placeholder, value: shown, oninput: (e) => change(typed(e.target.value, definition)) });
    }
    const about = element("small", { id: `${id}-about`, class: "about" }, definition.description || "");
    return element("div", { class: definition.type === "boolean" ? "field check" : "field", "data-path": id },
      element("label", { for: id }, words(path.slice(path.length > 1 ? 1 : 0).join(": "))), input, about, errorPlace(id));
  }

  #choose(part, kind) {
    this.draft.choose(part, kind);
    this.note = "";
    if (part === "algorithm") this.#fitHints(kind);
    this.#clearErrors();
    this.#build();
    document.getElementById(`${part}.kind`).focus();
  }

  // With an algorithm comes the hint policy that its authors fed it with; back at the current one, the current policy.
  #fitHints(kind) {
    const before = this.#policy(this.draft.document().hints.kind);
    const current = kind === this.draft.base.algorithm.kind;
    const algorithm = this.choices.algorithm.find((entry) => entry.kind === kind);
    const { kind: proposed, ...rest } = current ? this.draft.base.hints : algorithm.published_hints;
    if (proposed === before?.kind) return;
    this.draft.choose("hints", proposed);
    if (current) return;
    for (const [key, value] of Object.entries(rest)) this.draft.set(["hints", key], value);
    const why = before && fits(algorithm, before) ? "the published one" : `“${before?.title}” does not suit ${algorithm.title}`;
    this.note = `The hint policy changes to “${this.#policy(proposed)?.title}” as well: ${why}.`;
  }

  #policy(kind) {
    return this.choices.hints.find((entry) => entry.kind === kind);
  }

  #show() {
    const changes = this.draft.changes();
    const touched = new Set(changes.map((change) => change.path));
    for (const field of this.parts.querySelectorAll("[data-path]")) field.classList.toggle("changed", touched.has(field.dataset.path));
    this.diff.replaceChildren(...(changes.length ? changes.map(changeLine) : [element("li", { class: "quiet-text" }, "Nothing yet: change a value above.")]));
    if (this.note) this.diff.append(element("li", { class: "note" }, this.note));
    this.decide.classList.toggle("pending-changes", changes.length > 0);
    this.apply.disabled = changes.length === 0;
    this.undo.disabled = changes.length === 0;
    if (changes.length) this.done.textContent = "";
  }

  #discard() {
    this.draft.discard();
    this.note = "";
    this.#clearErrors();
    this.#build();
  }

  async #apply() {
    this.#clearErrors();
    this.apply.disabled = true;
    const reason = this.reason.value.trim();
    const path = `/v1/config${reason ? `?reason=${encodeURIComponent(reason)}` : ""}`;
    try {
      const decision = await send("PUT", path, this.draft.document(), { "If-Match": `"${this.draft.revision}"`, "X-Tributary-Author": "dashboard" });
      this.draft.discard();
      this.note = "";
      this.reason.value = "";
      this.rebase(decision.revision, decision.config);
      this.done.textContent = `Revision ${decision.revision} is asked for; it takes effect at the learner's next step.`;
      this.onApplied(decision);
    } catch (problem) {
      this.#refused(problem);
    }
  }

  #refused(problem) {
    this.apply.disabled = false;
    if (problem.status === 412) {
      this.alert.textContent = "Somebody changed the configuration first. Look at what will change now, then apply again.";
      this.onApplied(null);
      return;
    }
    const homeless = [];
    for (const { path, message } of problem.errors || []) {
      const place = document.getElementById(`${path}-error`) || document.getElementById(`${path}.kind-error`);
      if (!place) homeless.push(path ? `${path}: ${message}` : message);
      else {
        place.textContent = message;
        document.getElementById(path)?.setAttribute("aria-invalid", "true");
      }
    }
    this.alert.textContent = homeless.join(" ") || (problem.errors?.length ? "The marked values were refused." : problem.message);
    this.form.querySelector("[aria-invalid]")?.focus();
  }

  #clearErrors() {
    this.alert.textContent = "";
    this.done.textContent = "";
    for (const place of this.form.querySelectorAll(".field-error")) place.textContent = "";
    for (const input of this.form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  }
}

function fits(algorithm, policy) {
  return algorithm.requires.every((m) => policy.provides.includes(m)) && policy.provides.every((m) => algorithm.accepts.includes(m));
}

export function changeLine({ path, before, after }) {
  return element("li", {}, element("code", {}, path), " ",
    element("del", {}, literal(before)), element("span", { class: "arrow", "aria-label": "becomes" }, " → "), element("ins", {}, literal(after)));
}

function errorPlace(id) {
  return element("p", { class: "error field-error", id: `${id}-error`, role: "alert" });
}

function paper(entry) {
  if (!entry?.paper?.startsWith("https://")) return null;
  return element("a", { href: entry.paper, rel: "noreferrer", target: "_blank" }, "Paper");
}

// What was typed, as JSON: text that is no number is sent as text, so that the server says what is wrong with it.
function typed(text, definition) {
  const trimmed = text.trim();
  if (trimmed === "") return definition.nullable ? null : "";
  return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}
