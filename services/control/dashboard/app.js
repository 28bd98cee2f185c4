// The dashboard: loads what is known, then follows the event feed. Everything here goes through the public API.

import { follow, get } from "./api.js";
import { Charts } from "./charts.js";
import { SwitchForm } from "./form.js";
import { History } from "./history.js";
import { RunRecord } from "./record.js";
import { showConnection, showStatus } from "./vitals.js";

const STATUS_MS = 2000;
const DRAW_MS = 1000;
const KINDS = ["step", "evaluation", "generation", "in_force"];
const NEWEST = 8000;

class Dashboard {
  async start() {
    const [algorithms, policies, schema] = await persistently(() =>
      Promise.all([get("/v1/algorithms"), get("/v1/hint-policies"), get("/v1/config/schema")]));
    const catalogue = { algorithms: algorithms.algorithms, policies: policies.hint_policies };
    this.titles = Object.fromEntries(catalogue.algorithms.map(({ kind, title }) => [kind, title]));
    this.record = new RunRecord();
    this.charts = new Charts(document.getElementById("charts"), this.record);
    this.form = new SwitchForm(document.getElementById("form"), catalogue, schema, () => this.refreshHistory());
    this.history = new History(document.getElementById("history"), () => this.refreshHistory());
    this.chooseAxis();
    const series = await persistently(() => get(`/v1/series?newest=true&limit=${NEWEST}&${KINDS.map((kind) => `kind=${kind}`).join("&")}`));
    for (const event of series.events) this.record.take(event);
    await persistently(() => this.refreshHistory());
    this.charts.draw();
    this.keepFresh();
    await follow(series.next, (event) => this.take(event), (state) => this.connection(state));
  }

  take(event) {
    this.record.take(event);
    this.stale = true;
    if (event.kind === "revision" || event.kind === "in_force") this.historyStale = true;
    if (event.kind !== "generation") this.statusStale = true;
  }

  connection(state) {
    showConnection(state);
    this.historyStale = this.statusStale = true;
  }

  keepFresh() {
    let shown = 0;
    setInterval(() => {
      if (this.stale) this.charts.draw();
      this.stale = false;
      if (this.historyStale) quietly(this.refreshHistory());
      if (!document.hidden && (this.statusStale || performance.now() - shown > STATUS_MS)) {
        shown = performance.now();
        this.statusStale = false;
        quietly(this.refreshStatus());
      }
    }, DRAW_MS);
    document.addEventListener("visibilitychange", () => this.charts.draw());
  }

  async refreshStatus() {
    showStatus(await get("/v1/status"), this.titles);
  }

  async refreshHistory() {
    this.historyStale = false;
    const history = await get("/v1/config/revisions?limit=50");
    const newest = history.revisions[0];
    if (!newest) return;
    this.record.takeHistory(history.revisions, new Set(["learner"]));
    this.history.show(history);
    this.form.rebase(newest.revision, newest.config);
    await this.refreshStatus();
    this.stale = true;
  }

  chooseAxis() {
    for (const choice of document.querySelectorAll("input[name=axis]")) {
      choice.addEventListener("change", () => {
        this.charts.axis = choice.value;
        this.charts.draw();
      });
    }
  }
}

// What fails while the control plane is away is asked again when it is back; the connection mark says so meanwhile.
function quietly(promise) {
  promise.catch(() => showConnection("away"));
}

async function persistently(call) {
  for (;;) {
    try {
      return await call();
    } catch {
      showConnection("away");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

new Dashboard().start();
