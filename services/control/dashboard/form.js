// The switch form: built from the JSON schemas, shows what will change, tries it, applies it, and puts each error at its field.

import { send } from "./api.js";
import { rebuild } from "./buttons.js";
import { changeLines } from "./changes.js";
import { Draft, resolved, TAGGED } from "./draft.js";
import { choice, errorPlace, fieldsOf, placeOf } from "./fields.js";
import { byId, element } from "./format.js";
import { guardFields } from "./guards.js";
import { Preview } from "./preview.js";

const NAMES = { algorithm: "Algorithm", hints: "Hint policy" };

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
    this.try = element("button", { type: "button", onclick: () => this.#preview() }, "Preview");
    this.undo = element("button", { type: "button", onclick: () => this.#discard() }, "Discard");
    this.preview = new Preview(element("section", { class: "preview", "aria-label": "Preview", hidden: true }));
    this.form.replaceChildren(
      this.parts,
      this.decide = element("div", { class: "decide" },
        element("h3", {}, "What will change"), this.diff,
        this.preview.root,
        element("label", { class: "field wide", for: "reason" }, element("span", {}, "Reason (optional)"), this.reason),
        this.alert,
        element("div", { class: "buttons" }, this.apply, this.try, this.undo), this.done),
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.apply.disabled) this.#apply();
    });
  }

  #build() {
    const open = new Set([...this.parts.querySelectorAll("details[open]")].map((details) => details.id));
    rebuild(this.parts, ...TAGGED.map((part) => this.#tagged(part)), this.#general(), this.#guards());
    for (const id of open) byId(id)?.setAttribute("open", "");
    this.#show();
  }

  #tagged(part) {
    const document_ = this.draft.document();
    const kind = document_[part].kind;
    const chosen = this.choices[part].find((entry) => entry.kind === kind);
    const id = `${part}.kind`;
    const options = this.choices[part].map((entry) => [entry.kind, entry.title]);
    const select = choice({ id, "data-key": id }, options, kind, (next) => this.#choose(part, next));
    const properties = Object.entries(chosen?.schema.properties || {}).filter(([key]) => key !== "kind");
    const fields = properties.flatMap(([key, property]) => this.#fields([part, key], property, document_[part][key], chosen.schema));
    return element("fieldset", {},
      element("legend", {}, NAMES[part]),
      element("label", { class: "quiet", for: id }, NAMES[part]), select, errorPlace(id),
      element("p", { class: "quiet-text" }, (chosen?.summary || "").split("\n\n")[0], " ", paper(chosen)),
      element("div", { class: "fields" }, fields));
  }

  #general() {
    const document_ = this.draft.document();
    const properties = Object.entries(this.schema.properties).filter(([part]) => ![...TAGGED, "guards"].includes(part));
    const fields = properties.flatMap(([part, property]) => this.#fields([part], property, document_[part], this.schema));
    return element("fieldset", {}, element("legend", {}, "Sampling, optimiser, pacing"), element("div", { class: "fields" }, fields));
  }

  #guards() {
    if (!this.schema.properties.guards) return "";
    const guards = () => this.draft.document().guards || [];
    return guardFields(this.schema, guards(), (update, restructured) => {
      const before = guards();
      this.draft.set(["guards"], update(before));
      if (!restructured) return this.#show();
      this.#build();
      if (guards().length > before.length) this.#open(`guards.${before.length}`);
    });
  }

  #open(id) {
    byId(id).open = true;
    byId(`${id}.name`)?.select();
  }

  #fields(path, property, value, root) {
    const change = (at, next) => {
      this.draft.set(at, next);
      this.#show();
    };
    const choose = (at, next) => {
      const now = at.reduce((table, key) => table[key], this.draft.base);
      this.draft.set(at, next.kind === now.kind ? now : next);
      this.#build();
    };
    return fieldsOf(path, resolved(property, root), value, { root, change, choose });
  }

  #choose(part, kind) {
    this.draft.choose(part, kind);
    this.note = "";
    if (part === "algorithm") this.#fitHints(kind);
    this.#clearErrors();
    this.#build();
    byId(`${part}.kind`).focus();
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
    this.diff.replaceChildren(...(changes.length ? changeLines(changes) : [element("li", { class: "quiet-text" }, "Nothing yet: change a value above.")]));
    if (this.note) this.diff.append(element("li", { class: "note" }, this.note));
    this.decide.classList.toggle("pending-changes", changes.length > 0);
    for (const button of [this.apply, this.try, this.undo]) button.disabled = changes.length === 0;
    if (changes.length) this.done.textContent = "";
    this.preview.compareWith(this.draft.document());
  }

  #discard() {
    this.draft.discard();
    this.note = "";
    this.#clearErrors();
    this.preview.close();
    this.#build();
  }

  async #preview() {
    this.#clearErrors();
    try {
      await this.preview.ask(this.draft.document(), this.draft.revision);
    } catch (problem) {
      this.preview.close();
      this.#refused(problem);
    }
  }

  async #apply() {
    this.#clearErrors();
    this.apply.disabled = true;
    const reason = this.reason.value.trim();
    const path = `/v1/config${reason ? `?reason=${encodeURIComponent(reason)}` : ""}`;
    try {
      const decision = await send("PUT", path, this.draft.document(), { more: { "If-Match": `"${this.draft.revision}"` } });
      this.draft.discard();
      this.note = "";
      this.reason.value = "";
      this.preview.close();
      this.rebase(decision.revision, decision.config);
      this.#show();
      this.done.textContent = `Revision ${decision.revision} is asked for; it takes effect at the learner's next step.`;
      this.onApplied(decision);
    } catch (problem) {
      this.apply.disabled = false;
      this.#refused(problem);
    }
  }

  #refused(problem) {
    if (problem.status === 412) {
      this.alert.textContent = "Somebody changed the configuration first. Look at what will change now, then apply again.";
      this.onApplied(null);
      return;
    }
    const homeless = [];
    for (const error of problem.errors || []) {
      const path = error.path.replace(/^candidates\.0\.(patch\.|config\.)?/, "");
      const id = placeOf(path);
      if (!id) homeless.push(path ? `${path}: ${error.message}` : error.message);
      else {
        byId(`${id}-error`).textContent = error.message;
        byId(`${id}-error`).closest("details")?.setAttribute("open", "");
        byId(id)?.setAttribute("aria-invalid", "true");
      }
    }
    this.alert.textContent = homeless.join(" ") || (problem.errors?.length ? "The marked values were refused." : problem.message);
    const first = this.form.querySelector("[aria-invalid]");
    first?.focus({ preventScroll: true });
    first?.scrollIntoView({ block: "start" }); // the bar at the bottom may lie over it
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

function paper(entry) {
  if (!entry?.paper?.startsWith("https://")) return null;
  return element("a", { href: entry.paper, rel: "noreferrer", target: "_blank" }, "Paper");
}
