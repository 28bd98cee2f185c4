// The learner: how far it is, whether it is paused and by whom, and the buttons that order it about.

import { send } from "./api.js";
import { actionButton, isBusy, rebuild } from "./buttons.js";
import { age, byId, element, moment, number } from "./format.js";

const WAIT_S = 20;

export class Learner {
  // onOrder: called after an order, so that what is shown is asked for again.
  constructor(onOrder) {
    this.onOrder = onOrder;
    this.banner = byId("banner");
    this.card = byId("learner");
    this.quick = byId("quick");
  }

  take(status) {
    const learner = status.processes.find((process) => process.role === "learner");
    this.#announce(status, learner);
    if (!isBusy(this.quick)) this.#build(this.quick, () => this.#buttons(status.learner.paused, true));
    if (!isBusy(this.card)) rebuild(this.card, ...this.#facts(status, learner), element("div", { class: "buttons" }, this.#buttons(status.learner.paused, false)));
  }

  // Buttons are built again only when they would be others: a sentence beside one stays.
  #build(root, make) {
    const buttons = make();
    const names = buttons.map((button) => button.dataset.key).join();
    if (root.dataset.shows === names) return;
    root.dataset.shows = names;
    rebuild(root, ...buttons);
  }

  #announce({ learner: { paused }, last_step: step }, learner) {
    const said = !learner?.alive && step ? ["No learner is alive: nothing is trained until one runs again.", "bad"]
      : paused ? [`The learner is paused by ${paused.by} since ${moment(paused.at_s)}. Generators go on until their credit is spent.`, "warn"]
        : learner?.trouble ? [`The learner is not well: ${learner.trouble}`, "bad"] : null;
    this.banner.hidden = !said;
    if (!said) return;
    this.banner.dataset.mood = said[1];
    if (this.banner.dataset.said === said[0]) return;
    this.banner.dataset.said = said[0];
    this.banner.replaceChildren(said[0]);
  }

  #buttons(paused, quick) {
    const pause = { label: "Pause", name: "Pause the learner", sure: "Really pause?", act: () => this.#order("pause") };
    const resume = { label: "Resume", name: "Resume the learner", className: "small primary", act: () => this.#order("resume") };
    const save = { label: "Checkpoint", name: "Write a checkpoint now", act: () => this.#checkpoint() };
    return [paused ? resume : pause, ...(quick ? [] : [save])].map(actionButton);
  }

  async #order(what) {
    await send("POST", `/v1/learner/${what}`);
    this.onOrder();
    return null;
  }

  async #checkpoint() {
    const answer = await send("POST", `/v1/learner/checkpoint?wait_s=${WAIT_S}`, undefined, { limitMs: 1000 * (WAIT_S + 10) });
    this.onOrder();
    return answer.done ? `Written at step ${number(answer.step)}.` : `Ordered; ${answer.notice}.`;
  }

  #facts(status, learner) {
    const { learner: state, revision, version } = status;
    const doing = !learner?.alive ? "not alive" : state.paused ? "paused" : state.waiting ? "waiting for groups" : "training";
    const facts = [
      ["State", element("span", { class: "state", "data-state": !learner?.alive ? "lost" : state.paused ? "paused" : "running" }, doing)],
      ["Step", state.max_steps ? `${state.step} of ${state.max_steps}` : String(state.step)],
      ["Checkpoint", state.checkpoint_step === null ? "–" : `step ${state.checkpoint_step}`],
      ["Revision in force", learner ? `${learner.revision}${learner.revision === revision.asked ? "" : ` of ${revision.asked}`}` : "–"],
      ["Weights published", String(version.published)],
      ["Trained", `${number(status.rates.trained_tokens_per_s)} tokens/s`],
      ["Heartbeat", learner ? `${age(learner.age_s)} ago` : "–"],
    ];
    return [element("dl", { class: "facts" }, facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))))];
  }
}
