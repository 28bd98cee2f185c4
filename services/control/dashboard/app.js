// The dashboard: loads what is known, then follows the event feed. Everything here goes through the public API.

import { Activity, KINDS } from "./activity.js";
import { follow, get, sleep } from "./api.js";
import { Charts } from "./charts.js";
import { Demonstrations } from "./demonstrations.js";
import { SwitchForm } from "./form.js";
import { byId } from "./format.js";
import { Groups } from "./groups.js";
import { History } from "./history.js";
import { Learner } from "./learner.js";
import { announce } from "./notice.js";
import { Processes } from "./processes.js";
import { Prompts } from "./prompts.js";
import { RunRecord } from "./record.js";
import { Stores } from "./stores.js";
import { Views } from "./views.js";
import { showConnection, showStatus } from "./vitals.js";

const STATUS_MS = 2000;
const DRAW_MS = 1000;
const STEPS = "kind=step&kind=evaluation&kind=in_force&kind=publication&kind=update";
const NEWEST = `/v1/series?newest=true&limit=6000&${STEPS}`;
const NEWEST_RATES = "/v1/series?newest=true&limit=2000&kind=generation";
const NEWEST_ACTIVITY = `/v1/series?newest=true&limit=60&${KINDS.map((kind) => `kind=${kind}`).join("&")}`;
const MOST_EVENTS = 30_000;
const PAGE_MS = 500;
const CHATTER = ["generation", "update", "publication"];

class Dashboard {
  constructor() {
    const reorder = () => { this.statusStale = true; };
    this.record = new RunRecord();
    this.activity = new Activity();
    this.learner = new Learner(reorder);
    this.processes = new Processes(reorder);
    this.groups = new Groups(quietly);
    this.demonstrations = new Demonstrations(quietly);
    const prompts = new Prompts(this.demonstrations, quietly);
    this.views = new Views({ groups: [this.groups], prompts: [prompts], processes: [new Stores(quietly)] });
  }

  async start() {
    this.views.start();
    const [algorithms, policies, schema] = await persistently(() =>
      Promise.all([get("/v1/algorithms"), get("/v1/hint-policies"), get("/v1/config/schema")]));
    const catalogue = { algorithms: algorithms.algorithms, policies: policies.hint_policies };
    this.titles = Object.fromEntries(catalogue.algorithms.map(({ kind, title }) => [kind, title]));
    this.charts = new Charts(byId("charts"), this.record);
    this.form = new SwitchForm(byId("form"), catalogue, schema, () => quietly(this.refreshHistory()));
    this.history = new History(byId("history"), () => quietly(this.refreshHistory()));
    this.chooseAxis();
    const [series, rates, told] = await persistently(() => Promise.all([get(NEWEST), get(NEWEST_RATES), get(NEWEST_ACTIVITY)]));
    const known = (event) => order(event, series.next) <= 0;
    this.remember([...series.events, ...rates.events.filter(known)]);
    this.activity.start(told.events.filter(known));
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
      await sleep(PAGE_MS);
      const page = await get(`${NEWEST}&before=${previous}`);
      this.remember(page.events);
      previous = page.previous;
    }
  }

  take(event) {
    this.events.push(event);
    if (this.events.length > 2 * MOST_EVENTS) this.events.splice(0, MOST_EVENTS);
    for (const part of [this.record, this.activity, this.groups, this.demonstrations]) part.take(event);
    this.stale = true;
    if (event.kind === "revision" || event.kind === "in_force") this.historyStale = true;
    if (!CHATTER.includes(event.kind)) this.statusStale = true;
  }

  connection(state) {
    showConnection(state);
    this.historyStale = this.statusStale = this.groups.fresh = true;
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
    const status = await get("/v1/status");
    showStatus(status, this.titles);
    this.views.name(status.run.name);
    this.learner.take(status);
    this.processes.take(status);
  }

  async refreshHistory() {
    this.historyStale = false;
    const history = await get(`/v1/config/revisions?limit=${this.history.limit}`);
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

// What fails while the control plane is away is asked again when it is back, and the connection mark says so meanwhile;
// what the control plane refuses is said once.
function quietly(promise) {
  promise.catch((problem) => {
    if (problem.status >= 400 && problem.status < 500) announce(problem.message, "bad");
    else showConnection("away");
  });
}

async function persistently(call) {
  for (;;) {
    try {
      return await call();
    } catch {
      showConnection("away");
      await sleep(1000);
    }
  }
}

new Dashboard().start();
