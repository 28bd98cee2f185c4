// The charts: one small plot per quantity, every revision a labelled vertical line on each of them.

import { bytes, duration, element, number, percent } from "./format.js";

const CHARTS = [
  { name: "reward", title: "Reward", note: "mean of sampled responses", smooth: true, colors: ["--policy"] },
  { name: "accuracy", title: "Held-out accuracy", note: "greedy", format: percent, share: true, markers: true },
  { name: "entropy", title: "Entropy", note: "nats per sampled token", smooth: true, colors: ["--policy"] },
  { name: "staleness", title: "Staleness", note: "versions behind", named: { mean: "--policy", largest: "--faint" }, fromZero: true },
  { name: "rates", title: "Tokens per second", note: "", named: { generated: "--policy", trained: "--expert" }, fromZero: true },
  { name: "ratio", title: "Importance ratio", note: "mean by source, log scale", named: "source", log: true },
  { name: "sample-size", title: "Effective sample size", note: "share by source", named: "source", format: percent, share: true },
  { name: "clip", title: "Clipped tokens", note: "share by source", named: "source", format: percent, share: true, loose: true },
  { name: "gradient", title: "Gradient norm", note: "before clipping", smooth: true, colors: ["--policy"], fromZero: true },
  { name: "timeline", title: "Time of a step", note: "by what it went to", format: duration, unit: "s", fromZero: true, stacked: true, named: {
    wait: "--faint", pack: "--fourth", forward: "--policy", backward: "--expert", optimiser: "--third", publish: "--mark", checkpoint: "--low", other: "--line",
  } },
  { name: "nll", title: "Held-out NLL", note: "demonstrations, nats per token", markers: true, optional: true },
  { name: "publication", title: "Publication size", note: "by kind", format: bytes, unit: "B", fromZero: true },
  { name: "pause", title: "Pause for new weights", note: "by generator", format: duration, unit: "s", fromZero: true },
  { name: "hints", title: "Hint length", note: "mean tokens shown", optional: true, colors: ["--expert"], fromZero: true },
  { name: "rehearsal", title: "Rehearsal buffer", note: "demonstrations", optional: true, named: { waiting: "--expert", imitated: "--third" }, fromZero: true },
];
const SOURCES = { policy: "--policy", hint: "--expert", demonstration: "--third" };
const PALETTE = ["--policy", "--expert", "--third", "--fourth"];
const CLOCK = [
  { dtickrange: [null, 59_000], value: "%H:%M:%S" },
  { dtickrange: [59_000, 43_000_000], value: "%H:%M" },
  { dtickrange: [43_000_000, null], value: "%d %b" },
];
const MOST_DRAWN = 1200;
const SMOOTHING = 0.15;

export class Charts {
  constructor(root, record) {
    this.record = record;
    this.axis = "step";
    this.visible = new Set();
    this.observer = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "400px" });
    this.panels = CHARTS.map((chart) => this.#panel(root, chart));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  #panel(root, chart) {
    const legend = element("ul", { class: "legend" });
    const plot = element("div", { class: "plot", role: "img", "aria-label": `${chart.title}: no data yet` });
    const empty = element("p", { class: "empty" }, "no data yet");
    const panel = element("figure", { class: "card chart", id: `chart-${chart.name}`, hidden: Boolean(chart.optional) },
      element("figcaption", {}, element("h3", {}, chart.title), element("span", { class: "quiet-text" }, chart.note), legend),
      element("div", { class: "plot-frame" }, plot, empty));
    root.append(panel);
    this.observer.observe(panel);
    return { chart, panel, plot, legend, empty };
  }

  #seen(entries) {
    for (const entry of entries) {
      if (entry.isIntersecting) this.visible.add(entry.target);
      else this.visible.delete(entry.target);
    }
    this.draw();
  }

  // Draws what can be seen: a page in the background costs the training machine nothing.
  draw() {
    if (document.hidden || !window.Plotly) return;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    for (const panel of this.panels) {
      const lines = this.record.chart(panel.chart.name);
      if (panel.chart.optional) panel.panel.hidden = lines.size === 0;
      panel.empty.hidden = lines.size > 0;
      if (this.visible.has(panel.panel)) this.#drawOne(panel, lines, color);
    }
  }

  #drawOne({ chart, plot, legend }, lines, color) {
    const names = chart.stacked ? Object.keys(chart.named).filter((name) => lines.has(name)) : [...lines.keys()].sort();
    const traces = names.flatMap((name) => this.#traces(chart, name, lines.get(name), color(colorOf(chart, name, names))));
    window.Plotly.react(plot, traces, this.#layout(chart, lines, color), { displayModeBar: false, responsive: true });
    const format = chart.format || number;
    legend.replaceChildren(...names.map((name) => {
      const chip = element("span", { class: "chip" });
      chip.style.background = color(colorOf(chart, name, names));
      return element("li", {}, chip, names.length > 1 || chart.markers || chart.named || chart.unit ? `${name} ` : "",
        element("b", {}, format(lines.get(name).at(-1).value)));
    }));
    const told = names.map((name) => `${name} ${format(lines.get(name).at(-1).value)}`).join(", ");
    plot.setAttribute("aria-label", `${chart.title}: ${told || "no data yet"}`);
  }

  #traces(chart, name, points, color) {
    const thinned = thin(points);
    const x = thinned.map((p) => (this.axis === "step" ? p.step : local(p.at)));
    const y = thinned.map((p) => p.value);
    const line = { color, width: 2, dash: name.includes("pass@") ? "dot" : "solid" };
    const base = { name, x, type: "scatter", hovertemplate: hoverOf(chart) };
    if (chart.stacked) return [{ ...base, y, mode: "lines", line: { color, width: 1 }, fillcolor: color, stackgroup: "all" }];
    if (!chart.smooth || y.length < 8) return [{ ...base, y, mode: chart.markers ? "lines+markers" : "lines", marker: { size: 5, color }, line }];
    return [
      { ...base, y, mode: "lines", line: { color, width: 1 }, opacity: 0.3, hoverinfo: "skip", hovertemplate: null },
      { ...base, y: smoothed(y), customdata: y, mode: "lines", line, hovertemplate: "%{customdata:.4~g}" },
    ];
  }

  #layout(chart, lines, color) {
    const axis = { gridcolor: color("--grid"), linecolor: color("--grid"), zeroline: false, fixedrange: false };
    const [first, last] = this.#range(lines);
    const marks = this.#marks(first, last, color);
    return {
      height: 190,
      margin: { l: 46, r: 10, t: 16, b: 26 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 11, color: color("--quiet") },
      showlegend: false,
      hovermode: "x unified",
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--grid"), font: { color: color("--text") } },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      uirevision: this.axis,
      xaxis: { ...axis, type: this.axis === "step" ? "linear" : "date", hoverformat: this.axis === "step" ? "d" : "%H:%M:%S", nticks: 6,
        tickformatstops: this.axis === "step" ? [] : CLOCK,
        unifiedhovertitle: { text: this.axis === "step" ? "step %{x}" : "%{x}" } },
      yaxis: {
        ...axis,
        type: chart.log ? "log" : "linear",
        ...(chart.log ? { exponentformat: "power", ...(spansDecades(lines) ? { dtick: 1 } : { nticks: 5 }) } : { nticks: 5 }),
        ...(chart.share ? { ...(chart.loose ? { rangemode: "tozero", tickformat: "~%" } : { range: [-0.03, 1.05], tickformat: ".0%" }) } : {}),
        ...(chart.unit ? { tickformat: "~s", ticksuffix: chart.unit } : {}),
        ...(chart.fromZero ? { rangemode: "tozero" } : {}),
      },
      ...marks,
    };
  }

  #range(lines) {
    const places = [...lines.values()].flatMap((points) => [points[0], points.at(-1)]).map((p) => this.#place(p));
    return [Math.min(...places), Math.max(...places)];
  }

  #place(point) {
    return this.axis === "step" ? point.step : point.at;
  }

  #marks(first, last, color) {
    const shapes = [];
    const annotations = [];
    let labelled = -Infinity;
    for (const [revision, mark] of [...this.record.marks].sort((a, b) => a[0] - b[0])) {
      const place = this.#place(mark);
      if (!(place <= last)) continue;
      const x = this.axis === "step" ? Math.max(place, first) : local(Math.max(place, first));
      const shade = color(this.record.guarded.has(revision) ? "--warn" : "--mark");
      shapes.push({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: shade, width: 1, dash: "dot" } });
      if (place - labelled < (last - first) * 0.06) continue;
      labelled = place;
      annotations.push({
        x, y: 1, yref: "paper", yanchor: "bottom", xanchor: "center", text: `r${revision}`, showarrow: false,
        font: { size: 10, color: shade }, name: `revision-${revision}`,
      });
    }
    return { shapes, annotations };
  }
}

// Whether powers of ten alone are marks enough.
function spansDecades(lines) {
  const values = [...lines.values()].flatMap((points) => points.map((p) => p.value)).filter((value) => value > 0);
  return values.reduce((a, b) => Math.max(a, b), 0) > 30 * values.reduce((a, b) => Math.min(a, b), Infinity);
}

function hoverOf({ format, unit }) {
  return format === percent ? "%{y:.1%}" : unit ? `%{y:.3~s}${unit}` : "%{y:.4~g}";
}

// A data set keeps its color, and lends it to its pass@k.
function colorOf(chart, name, names) {
  const index = names.indexOf(name);
  const datasets = names.filter((other) => !other.includes(" pass@"));
  if (chart.named === "source") return SOURCES[name] || "--fourth";
  if (chart.markers) return PALETTE[datasets.indexOf(name.split(" pass@")[0]) % PALETTE.length];
  if (chart.named) return chart.named[name] || "--fourth";
  return (chart.colors || PALETTE)[index % (chart.colors || PALETTE).length];
}

// Unix time as the local time that the chart library takes: it knows no time zones.
function local(atSeconds) {
  return new Date((atSeconds - new Date(atSeconds * 1000).getTimezoneOffset() * 60) * 1000).toISOString().slice(0, -1);
}

// At most MOST_DRAWN points: the mean of each run of neighbours.
function thin(points) {
  const stride = Math.ceil(points.length / MOST_DRAWN);
  if (stride <= 1) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += stride) {
    const run = points.slice(i, i + stride);
    kept.push({ ...run.at(-1), value: run.reduce((sum, p) => sum + p.value, 0) / run.length });
  }
  return kept;
}

function smoothed(values) {
  let mean = values[0];
  return values.map((value) => (mean += SMOOTHING * (value - mean)));
}
