// The revision history: who asked for what, when, why, where it took force, and the way back.

import { send } from "./api.js";
import { changeLine } from "./form.js";
import { clock, element } from "./format.js";

const SHOWN_CHANGES = 4;
const DOUBT_MS = 5000;

export class History {
  constructor(root, onRolledBack) {
    this.root = root;
    this.onRolledBack = onRolledBack;
  }

  show({ current, revisions }) {
    // Rebuilding would take a half-made decision away from under the operator's finger.
    if (this.root.querySelector("[data-armed]")) return;
    this.root.replaceChildren(...revisions.map((revision) => this.#entry(revision, revision.revision === current)));
  }

  #entry(revision, isCurrent) {
    const places = Object.entries(revision.in_force);
    const learner = places.find(([name]) => name.startsWith("learner"));
    const force = learner ? `in force at step ${learner[1].step}` : places.length ? "in force at the generators" : isCurrent ? "asked for" : "never in force";
    const changes = revision.revision === 1 ? [] : revision.changes.map(changeLine);
    const rest = changes.splice(SHOWN_CHANGES);
    return element("li", { class: isCurrent ? "current" : "", "data-revision": revision.revision },
      element("div", { class: "entry-head" },
        element("b", {}, `r${revision.revision}`),
        element("span", { class: "badge" }, revision.config.algorithm.kind),
        isCurrent ? element("span", { class: "badge now" }, "current") : this.#rollBack(revision.revision)),
      element("p", { class: "quiet-text" }, `${clock(revision.at_s)} · ${revision.author} · ${force}`),
      revision.reason ? element("p", { class: "reason" }, revision.reason) : null,
      changes.length ? element("ul", { class: "diff" }, changes) : null,
      rest.length ? element("details", {}, element("summary", {}, `${rest.length} more`), element("ul", { class: "diff" }, rest)) : null);
  }

  #rollBack(number) {
    const button = element("button", { type: "button", class: "small", "aria-label": `Roll back to revision ${number}` }, "Roll back");
    const calm = () => {
      button.removeAttribute("data-armed");
      button.textContent = "Roll back";
    };
    button.addEventListener("click", async () => {
      if (!button.hasAttribute("data-armed")) {
        button.setAttribute("data-armed", "");
        button.textContent = "Really?";
        setTimeout(calm, DOUBT_MS);
        return;
      }
      calm();
      button.disabled = true;
      try {
        await send("POST", "/v1/config/rollback", { revision: number }, { "X-Tributary-Author": "dashboard" });
      } catch (problem) {
        button.disabled = false;
        button.after(element("p", { class: "error", role: "alert" }, problem.message));
        return;
      }
      this.onRolledBack();
    });
    return button;
  }
}
