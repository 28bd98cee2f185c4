// The dashboard: loads what is known, then follows the event feed. Everything here goes through the public API.

import { follow, get } from "./api.js";
import { Charts } from "./charts.js";
import { SwitchForm } from "./form.js";
import { History } from "./history.js";
import { RunRecord } from "./record.js";
import { showConnection, showStatus } from "./vitals.js";

const STATUS_MS = 2000;
const DRAW_MS = 1000;
const NEWEST = "/v1/series?newest=true&limit=4000&kind=step&kind=evaluation&kind=in_force";
const NEWEST_RATES = "/v1/series?newest=true&limit=2000&kind=generation";
const MOST_EVENTS = 20_000;
const PAGE_MS = 500;

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
    const [series, rates] = await persistently(() => Promise.all([get(NEWEST), get(NEWEST_RATES)]));
    this.remember([...series.events, ...rates.events.filter((event) => order(event, series.next) <= 0)]);
    await persistently(() => this.refreshHistory());
    this.charts.draw();
    this.keepFresh();
    quietly(this.lookBack(series.previous));
    await follow(series.next, (event) => this.take(event), (state) => this.connection(state));
  }

  // Older events come before those that are known.
  remember(older) {
    this.events = [...older.sort((a, b) => order(a, b.id)), ...(this.events || [])];
    this.record.restart(this.events);
    this.stale = true;
  }

  // A long run's beginning is fetched page by page, after what is newest is shown.
  async lookBack(previous) {
    while (previous !== null && this.events.length < MOST_EVENTS) {
      await new Promise((resolve) => setTimeout(resolve, PAGE_MS));
      const page = await get(`${NEWEST}&before=${previous}`);
      this.remember(page.events);
      previous = page.previous;
    }
  }

  take(event) {
    this.events.push(event);
    if (this.events.length > 2 * MOST_EVENTS) this.events.splice(0, MOST_EVENTS);
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

// Whether an event comes before (negative) or after (positive) the one with this id: ids are two numbers, "time-count".
function order(event, id) {
  const [time, count] = event.id.split("-").map(Number);
  const [otherTime, otherCount] = id.split("-").map(Number);
  return time - otherTime || count - (otherCount || 0);
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
