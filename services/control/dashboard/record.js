// The record of a run, as plots need it: points {step, at, value} per line, taken from events, and where revisions took force.

const MOST_POINTS = 20_000;
// Parts of a step's time, and what of its record each is made of.
const TIMES = {
  wait: ["wait_s"], pack: ["pack_s", "transfer_s"], forward: ["forward_s"], backward: ["backward_s"],
  optimiser: ["optimizer_s"], publish: ["publish_s"], checkpoint: ["checkpoint_s"],
};

export class RunRecord {
  constructor() {
    this.marks = new Map();
    this.guarded = new Set();
    this.restart([]);
  }

  // Begin again with these events; the marks of revisions stay.
  restart(events) {
    this.lines = new Map();
    this.rates = new Map();
    this.step = 0;
    for (const event of events) this.take(event);
  }

  // The points of one line of one chart; lines appear as soon as they have a point.
  add(chart, line, at, value, step = this.step) {
    if (value === null || value === undefined || !Number.isFinite(value)) return;
    if (!this.lines.has(chart)) this.lines.set(chart, new Map());
    const lines = this.lines.get(chart);
    if (!lines.has(line)) lines.set(line, []);
    const points = lines.get(line);
    points.push({ step, at, value });
    if (points.length > MOST_POINTS) points.splice(0, points.length - MOST_POINTS);
  }

  chart(name) {
    return this.lines.get(name) || new Map();
  }

  take(event) {
    if (event.kind === "step") this.#step(event.data, event.at_s);
    else if (event.kind === "evaluation") this.#evaluation(event.data, event.at_s);
    else if (event.kind === "generation") this.#generation(event.data, event.at_s);
    else if (event.kind === "publication") this.add("publication", event.data.kind, event.at_s, event.data.bytes, event.data.step);
    else if (event.kind === "update") this.add("pause", event.data.generator, event.at_s, event.data.pause_s);
    else if (event.kind === "in_force") this.#inForce(event.data, event.at_s);
  }

  #step(data, at) {
    this.step = data.step;
    this.add("reward", "reward", at, data.reward);
    this.add("entropy", "entropy", at, data.entropy);
    this.add("staleness", "mean", at, data.staleness);
    this.add("staleness", "largest", at, data.staleness_max);
    this.add("rates", "trained", at, data.tokens_per_s);
    this.add("gradient", "norm", at, data.grad_norm);
    this.add("hints", "hint length", at, data.hint_length);
    this.#times(data, at);
    this.add("rehearsal", "waiting", at, data.rehearsal?.waiting);
    this.add("rehearsal", "imitated", at, data.rehearsal?.entries);
    for (const [chart, figures] of [["ratio", data.ratio], ["sample-size", data.effective_sample_size], ["clip", data.clip_fraction]]) {
      for (const [source, value] of Object.entries(figures || {})) this.add(chart, source, at, value);
    }
  }

  // All parts in every step, so that they stack; a record that an earlier version wrote has no such parts.
  #times(data, at) {
    if (data.forward_s === undefined) return;
    let rest = data.step_s;
    for (const [name, keys] of Object.entries(TIMES)) {
      const seconds = keys.reduce((sum, key) => sum + (data[key] || 0), 0);
      this.add("timeline", name, at, seconds);
      rest -= seconds;
    }
    this.add("timeline", "other", at, Math.max(0, rest));
  }

  #evaluation(data, at) {
    const step = data.step ?? this.step;
    this.add("accuracy", data.dataset, at, data.accuracy, step);
    if (data.k) this.add("accuracy", `${data.dataset} pass@${data.k}`, at, data.pass_at_k, step);
    this.add("nll", data.dataset, at, data.nll, step);
  }

  // Generators report one by one, each every two seconds: a round is complete when one of them speaks again.
  #generation(data, at) {
    if (this.rates.has(data.generator)) {
      this.add("rates", "generated", at, [...this.rates.values()].reduce((sum, rate) => sum + rate, 0));
      this.rates.clear();
    }
    this.rates.set(data.generator, data.tokens_per_s);
  }

  // The learner's mark is what counts: there a revision begins to teach.
  #inForce(data, at) {
    if (data.role === "learner" && !this.marks.has(data.revision)) this.marks.set(data.revision, { step: data.step, at });
  }

  // A revision that a guard made is marked as such.
  takeHistory(revisions, learners) {
    for (const { revision, author, in_force: places } of revisions) {
      if (author.startsWith("guard:")) this.guarded.add(revision);
      for (const [name, mark] of Object.entries(places)) {
        if (learners.has(name) && !this.marks.has(revision)) this.marks.set(revision, { step: mark.step ?? 0, at: mark.at_s });
      }
    }
  }
}
