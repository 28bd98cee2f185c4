// The tokens of one trajectory: coloured text whose every token tells its numbers under the pointer and the keyboard.

import { byId, element, number } from "./format.js";

const FIRST = 1500;
let shown = null;

export class TokenText {
  // label: what a screen reader calls it. Tokens [from, to) of the trajectory.
  constructor(trajectory, label, from = 0, to = trajectory.tokens.id.length) {
    this.trajectory = trajectory;
    this.from = from;
    this.to = Math.min(to, from + FIRST);
    this.end = to;
    this.active = null;
    this.list = element("div", {
      class: "tokens", role: "listbox", tabindex: "0", "aria-label": `${label}. Arrow keys walk from token to token.`,
      onpointerover: (e) => this.#look(e.target), onpointerleave: () => this.#leave(), onclick: (e) => this.#look(e.target),
      onkeydown: (e) => this.#key(e), onfocus: () => this.#show(this.active ?? 0), onblur: () => this.#leave(),
    });
    this.root = element("div", {}, this.list);
    this.#fill();
  }

  paint(scale) {
    this.scale = scale;
    for (const [i, token] of [...this.list.children].entries()) paintOne(token, scale.paint(this.trajectory, this.from + i));
  }

  #fill() {
    const { text } = this.trajectory.tokens;
    const known = this.list.children.length;
    const fresh = [];
    for (let i = this.from + known; i < this.to; i += 1) fresh.push(element("span", { role: "option", "aria-selected": "false" }, legible(text[i])));
    this.list.append(...fresh);
    if (this.scale) this.paint(this.scale);
    this.more?.remove();
    if (this.to === this.end) return;
    this.more = element("button", { type: "button", class: "small", onclick: () => { this.to = this.end; this.#fill(); } }, `Show ${this.end - this.to} more tokens`);
    this.root.append(this.more);
  }

  #look(target) {
    if (target.parentElement === this.list) this.#show([...this.list.children].indexOf(target));
  }

  #key(event) {
    const last = this.list.children.length - 1;
    const at = this.active ?? 0;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last, ArrowDown: this.#vertical(at, 1), ArrowUp: this.#vertical(at, -1) }[event.key];
    if (event.key === "Escape") this.#leave();
    if (to === undefined) return;
    event.preventDefault();
    this.#show(Math.max(0, Math.min(last, to)));
    this.list.children[this.active].scrollIntoView({ block: "nearest" });
    this.#place();
  }

  // The token on the next line nearest to the one at hand.
  #vertical(at, direction) {
    const tokens = this.list.children;
    const here = tokens[at].getBoundingClientRect();
    let best = at;
    let nearest = Infinity;
    let line = null;
    for (let i = at + direction; i >= 0 && i < tokens.length; i += direction) {
      const box = tokens[i].getBoundingClientRect();
      if (Math.abs(box.bottom - here.bottom) < 4) continue;
      line ??= box.bottom;
      if (Math.abs(box.bottom - line) > 4) break;
      const distance = Math.abs(box.left - here.left);
      if (distance < nearest) [best, nearest] = [i, distance];
    }
    return best;
  }

  #show(i) {
    const token = this.list.children[i];
    if (!token) return;
    this.#unmark();
    this.active = i;
    token.id = "active-token";
    token.setAttribute("aria-selected", "true");
    const facts = factsOf(this.trajectory, this.from + i);
    token.setAttribute("aria-label", `${token.textContent}: ${facts.map(([name, value]) => `${name} ${value}`).join(", ")}`);
    this.list.setAttribute("aria-activedescendant", "active-token");
    shown = this;
    byId("token-card").replaceChildren(element("code", {}, JSON.stringify(this.trajectory.tokens.text[this.from + i])),
      element("dl", {}, facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
    this.#place();
  }

  #place() {
    const card = byId("token-card");
    card.hidden = false;
    const box = this.list.children[this.active].getBoundingClientRect();
    const { width, height } = card.getBoundingClientRect();
    const below = box.bottom + 8 + height < innerHeight;
    card.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, box.left))}px`;
    card.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
  }

  #unmark() {
    const token = byId("active-token");
    token?.removeAttribute("id");
    token?.removeAttribute("aria-label");
    token?.setAttribute("aria-selected", "false");
    token?.parentElement.removeAttribute("aria-activedescendant");
  }

  #leave() {
    if (document.activeElement === this.list && shown === this && !this.list.matches(":focus:not(:focus-visible)")) return;
    this.#unmark();
    hideToken();
  }

  // The page moved: the card goes with its token.
  follow() {
    if (!byId("token-card").hidden && this.list.isConnected) this.#place();
  }
}

export function hideToken() {
  byId("token-card").hidden = true;
}

export function followToken() {
  shown?.follow();
}

export function paintOne(node, { className, strength }) {
  node.className = className ? `tinted ${className}` : "";
  if (className) node.style.setProperty("--strength", `${strength.toFixed(0)}%`);
}

// What a token is, and how likely it was to whom; only what is known.
function factsOf({ tokens, advantage }, i) {
  const facts = [
    ["token", `${tokens.id[i]}, no. ${i + 1}`],
    ["source", tokens.source[i]],
    ["version", tokens.version[i]],
    ["log π old", tokens.behaviour_logprob[i]],
    ["log π θ", tokens.policy_logprob[i]],
    ["log π φ", tokens.expert_logprob[i]],
    ["ratio", tokens.ratio[i]],
    ["advantage", tokens.source[i] === "prompt" ? null : advantage],
  ];
  return facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => [name, typeof value === "number" ? number(value, 4) : value]);
}

// A token that adds no text of its own (a part of a character), and breaks of lines, can be seen.
function legible(text) {
  return text === "" ? "·" : text.replaceAll("\r", "␍").replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
}
