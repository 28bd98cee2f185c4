// Demonstrations that operators add: the dialog that asks for one, and the list of what became of each.

import { get, send } from "./api.js";
import { byId, element, moment, number } from "./format.js";
import { announce } from "./notice.js";
import { Table } from "./table.js";

const SHOWN = 30;
const MOODS = { "in use": "running", refused: "failed", waiting: "starting" };

export class Demonstrations {
  constructor(quietly) {
    this.quietly = quietly;
    this.dialog = byId("demonstrate");
    this.text = byId("demonstration-text");
    this.error = byId("demonstration-error");
    this.table = new Table(byId("demonstrations"), [
      { label: "Added", head: true, cell: (d) => moment(d.at_s) },
      { label: "Prompt", cell: (d) => d.prompt_id },
      { label: "Text", wide: true, cell: (d) => element("span", { class: "clamp", title: d.text }, d.text) },
      { label: "By", cell: (d) => d.by },
      { label: "State", long: true, cell: (d) => [element("span", { class: "state", "data-state": MOODS[d.state] }, d.state), d.reason ? element("small", { class: "quiet-text" }, ` ${d.reason}`) : ""] },
      { label: "Grade", number: true, cell: (d) => number(d.reward, 2) },
    ], "None so far. An expert's answer to a prompt that is never solved teaches what sampling cannot find.");
    this.dialog.querySelector("form").addEventListener("submit", (event) => this.#add(event));
    byId("demonstration-cancel").addEventListener("click", () => this.dialog.close());
  }

  ask({ prompt_id: id, text }) {
    this.prompt = id;
    byId("demonstrate-title").textContent = `A demonstration for ${id}`;
    byId("demonstration-prompt").textContent = text ?? "Its text is not known here.";
    this.error.textContent = "";
    this.text.value = "";
    this.dialog.showModal();
    this.text.focus();
  }

  take(event) {
    if (event.kind !== "addition" || byId("view-prompts").hidden) return;
    const { prompt_id: prompt, state, reason } = event.data;
    if (state === "in use") announce(`The demonstration for ${prompt} is right: it is used from its next request on.`);
    if (state === "refused") announce(`The demonstration for ${prompt} was refused: ${reason}`, "bad");
    this.quietly(this.refresh());
  }

  async refresh() {
    const { demonstrations } = await get(`/v1/demonstrations?limit=${SHOWN}`);
    this.table.show(demonstrations);
  }

  async #add(event) {
    event.preventDefault();
    this.error.textContent = "";
    event.submitter?.setAttribute("disabled", "");
    try {
      await send("POST", "/v1/demonstrations", { prompt_id: this.prompt, text: this.text.value });
      this.dialog.close();
      announce(`A demonstration for ${this.prompt} was added: it is graded now.`);
      this.quietly(this.refresh());
    } catch (problem) {
      this.error.textContent = [problem.message, ...(problem.errors || []).map((error) => error.message)].find(Boolean);
    } finally {
      event.submitter?.removeAttribute("disabled");
    }
  }
}
