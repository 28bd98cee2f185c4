// The groups view: what the learner trained on of late, and one group token by token.

import { get } from "./api.js";
import { byId, count, element, moment, number } from "./format.js";
import { LOOKS, scaleOf } from "./palette.js";
import { followToken, hideToken, paintOne, TokenText } from "./tokens.js";

const SHOWN = 25;
const REFRESH_MS = 3000;

export class Groups {
  constructor(quietly) {
    this.quietly = quietly;
    this.list = byId("group-list");
    this.detail = byId("group");
    this.look = "source";
    this.prompt = "";
    this.fresh = false;
    byId("group-filter").addEventListener("submit", (event) => {
      event.preventDefault();
      location.hash = this.#address("", byId("group-prompt").value.trim());
    });
    addEventListener("scroll", followToken, { passive: true });
    this.older = byId("groups-older");
    this.older.addEventListener("click", () => this.quietly(this.#load(this.previous)));
  }

  // argument: "ID", "of/PROMPT" or "ID/of/PROMPT".
  show(argument) {
    const [, id, prompt] = /^(?:(?!of\/)([^/]+))?\/?(?:of\/(.*))?$/.exec(argument) || [];
    if ((prompt || "") !== this.prompt || !this.list.children.length) {
      this.prompt = prompt || "";
      byId("group-prompt").value = this.prompt;
      this.quietly(this.#load());
    }
    this.hide();
    this.timer = setInterval(() => {
      if (this.fresh && !document.hidden && this.follows) this.quietly(this.#load());
    }, REFRESH_MS);
    if (id) this.quietly(this.#open(id));
    else this.#close();
    this.#mark();
  }

  hide() {
    clearInterval(this.timer);
    hideToken();
  }

  // A step was made, so there may be new groups.
  take(event) {
    if (event.kind === "step") this.fresh = true;
  }

  #address(id, prompt = this.prompt) {
    return ["#groups", id, prompt ? `of/${prompt}` : ""].filter(Boolean).join("/");
  }

  // The newest groups, or those before an entry, which are put below; while older ones are shown the list stands still.
  async #load(before = null) {
    this.fresh = false;
    this.follows = before === null;
    const query = new URLSearchParams({ limit: SHOWN, ...(before ? { before } : {}), ...(this.prompt ? { prompt_id: this.prompt } : {}) });
    const { groups, previous } = await get(`/v1/groups?${query}`);
    this.previous = previous;
    this.older.hidden = !previous;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const items = groups.map((group) => this.#item(group));
    if (before) this.list.append(...items);
    else if (items.length) this.list.replaceChildren(...items);
    else this.list.replaceChildren(element("li", { class: "quiet-text none" }, this.prompt ? `No group of ${this.prompt} is kept.` : "No group has been kept yet: they appear as the learner makes steps."));
    if (focused) this.list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    this.#mark();
  }

  #item(group) {
    return element("li", {}, element("a", { href: this.#address(group.id), "data-id": group.id },
      element("span", { class: "item-head" }, element("b", {}, `step ${group.step}`), element("span", { class: "quiet-text" }, group.prompt_id),
        ...group.kinds.filter((kind) => kind !== "rollout").map(kindBadge)),
      element("span", { class: "item-text" }, group.prompt || "–"),
      element("span", { class: "item-foot" }, rewardPips(group.rewards), element("span", { class: "quiet-text" }, `${count(group.tokens, "token")} · ${moment(group.at_s)}`))));
  }

  #mark() {
    const id = this.opened;
    for (const link of this.list.querySelectorAll("a")) {
      if (link.dataset.id === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  #close() {
    this.opened = null;
    byId("view-groups").classList.remove("opened");
    this.detail.replaceChildren(element("p", { class: "quiet-text none" }, "Choose a group to see its tokens: where each came from, which weights sampled it, and what it taught."));
  }

  async #open(id) {
    if (this.opened === id) return;
    this.opened = id;
    byId("view-groups").classList.add("opened");
    this.#mark();
    hideToken();
    this.detail.replaceChildren(element("p", { class: "quiet-text none" }, "Loading the group …"));
    try {
      const group = await get(`/v1/groups/${encodeURIComponent(id)}`);
      if (this.opened === id) this.#draw(group);
    } catch (problem) {
      this.detail.replaceChildren(this.#back(), element("p", { class: "error none" }, problem.message));
      if (!problem.status) throw problem;
    }
  }

  #back() {
    return element("a", { class: "back", href: this.#address("") }, "← All groups");
  }

  #draw(group) {
    const { trajectories } = group;
    this.texts = [];
    this.legend = element("ul", { class: "legend", "aria-label": "Colours" });
    const prompt = trajectories.length ? trajectories[0].tokens.source.findIndex((source) => source !== "prompt") : 0;
    const asked = trajectories.length ? this.#text(trajectories[0], "The prompt", 0, prompt < 0 ? undefined : prompt) : null;
    this.detail.replaceChildren(
      this.#back(),
      element("div", { class: "group-head" },
        element("h3", {}, `${group.prompt_id}, step ${group.step}`),
        element("p", { class: "quiet-text" }, `${group.algorithm} · revision ${group.revision} · learner at version ${group.version} · by ${group.generator} · ${moment(group.at_s)}`)),
      element("div", { class: "look" }, this.#looks(), this.legend),
      group.notice ? element("p", { class: "note" }, group.notice) : "",
      element("section", { class: "trajectory prompt" }, element("h4", {}, "Prompt"), asked),
      ...trajectories.map((trajectory, i) => this.#trajectory(trajectory, i, prompt)));
    this.#paint(trajectories);
  }

  #looks() {
    return element("fieldset", { class: "segments" }, element("legend", { class: "quiet" }, "Colour by"),
      LOOKS.map(({ name, title }) => element("label", {},
        element("input", { type: "radio", name: "look", value: name, checked: name === this.look, onchange: () => { this.look = name; this.#paint(); } }),
        element("span", {}, title))));
  }

  #paint(trajectories = this.trajectories) {
    this.trajectories = trajectories;
    const scale = scaleOf(this.look, trajectories);
    for (const text of this.texts) text.paint(scale);
    this.legend.replaceChildren(...scale.legend.map(({ text, ...paint }) => {
      const chip = element("span", { "aria-hidden": "true" });
      paintOne(chip, paint);
      return element("li", {}, chip, text);
    }));
  }

  #text(...parts) {
    const text = new TokenText(...parts);
    this.texts.push(text);
    return text.root;
  }

  #trajectory(trajectory, i, prompt) {
    const parts = Object.entries(trajectory.reward_parts || {}).map(([name, value]) => `${name} ${number(value)}`);
    const sampled = trajectory.versions.length ? `version ${trajectory.versions.length > 1 ? `${Math.min(...trajectory.versions)}–${Math.max(...trajectory.versions)}` : trajectory.versions[0]}` : "not sampled";
    const from = trajectory.tokens.source.findIndex((source) => source !== "prompt");
    const response = trajectory.tokens.id.length - (from < 0 ? prompt : from);
    return element("section", { class: "trajectory" },
      element("h4", {}, `${i + 1}`, kindBadge(trajectory.kind),
        element("span", { class: "reward", "data-good": String(trajectory.reward > 0) }, `reward ${number(trajectory.reward)}`),
        element("span", { class: "quiet-text" }, [trajectory.advantage === null ? "not admitted" : `advantage ${signed(trajectory.advantage)}`,
          sampled, count(response, "token"), ...(parts.length > 1 ? parts : [])].join(" · "))),
      this.#text(trajectory, `Trajectory ${i + 1}, ${trajectory.kind}`, Math.max(0, from)));
  }
}

function kindBadge(kind) {
  return element("span", { class: `badge kind-${kind}` }, kind);
}

function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}

// One mark for each trajectory: full is right, empty is wrong.
function rewardPips(rewards) {
  const pips = rewards.map((reward) => {
    const pip = element("i");
    pip.style.setProperty("--full", `${100 * Math.max(0, Math.min(1, reward))}%`);
    return pip;
  });
  return element("span", { class: "pips", role: "img", "aria-label": `rewards ${rewards.map((reward) => number(reward, 2)).join(", ")}` }, pips);
}
