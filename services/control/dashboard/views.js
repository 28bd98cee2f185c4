// The views of the page and the way between them: each has an address of its own, "#groups/17-0", so that it can be sent.

import { byId } from "./format.js";

const TITLES = { run: "Run", groups: "Groups", prompts: "Prompts", processes: "Processes" };

export class Views {
  // parts: {view name: [objects with show(argument) and optionally hide()]}; a view that is not shown asks for nothing.
  constructor(parts) {
    this.parts = parts;
    this.current = null;
    this.title = "Tributary";
  }

  start() {
    addEventListener("hashchange", () => this.#go(true));
    this.#go(false);
  }

  name(run) {
    this.title = run;
    document.title = `${this.current === "run" ? "" : `${TITLES[this.current]} · `}${run} · Tributary`;
  }

  #go(moved) {
    const [wanted, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
    const view = wanted in TITLES ? wanted : "run";
    const changed = view !== this.current;
    if (changed) {
      for (const part of this.parts[this.current] || []) part.hide?.();
      this.current = view;
      for (const name of Object.keys(TITLES)) {
        byId(`view-${name}`).hidden = name !== view;
        const link = document.querySelector(`nav a[href="#${name}"]`);
        if (name === view) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
      }
      this.name(this.title);
    }
    for (const part of this.parts[view] || []) part.show(rest.join("/"));
    if (wanted && !(wanted in TITLES)) byId(wanted)?.focus();
    else if (moved && changed) {
      scrollTo(0, 0);
      byId(`view-${view}`).querySelector("h2").focus({ preventScroll: true });
    }
  }
}
