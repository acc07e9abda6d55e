// The theme and the curves. Numbers come rounded and budgets told from Python; only the ticks of the
// axes are written here.

const byId = (id) => document.getElementById(id);

// Theme: that of the system until somebody asks for the other.

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

const isDark = () => (root.dataset.theme ?? (systemIsDark.matches ? "dark" : "light")) === "dark";

function tellTheme() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

function prepareTheme() {
  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tellTheme();
  });
  systemIsDark.addEventListener("change", tellTheme);
  tellTheme();
}

// Elements

function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(byId("chart").firstElementChild.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Scales and ticks

function scaleOf([low, high], [from, to], logarithmic) {
  const warp = logarithmic ? Math.log : (value) => value;
  const [start, span] = [warp(low), warp(high) - warp(low) || 1];
  return (value) => from + ((warp(value) - start) / span) * (to - from);
}

function linearTicks([low, high], most) {
  const least = (high - low || 1) / most;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= least * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
  return ticks;
}

function logarithmicTicks([low, high], most) {
  for (const factors of [[1, 2, 5], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of factors) ticks.push(factor * 10 ** power);
    const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length <= most && inside.length > 1) return inside;
  }
  return linearTicks([low, high], most).filter((tick) => tick > 0);
}

/** `2M`: a round number in the unit that keeps it under 1000. */
function tickText(value, units) {
  const power = value ? Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9) : 0;
  const index = Math.min(Math.max(power, 0), units.length - 1);
  return `${Number((value / 1000 ** index).toPrecision(6))}${units[index]}`;
}

function lossText(value, step) {
  return value.toFixed(Math.min(4, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9))));
}

// What tells curves apart besides their colour

const DASHES = ["none", "7 4", "2 3", "9 3 2 3", "12 4 2 4 2 4"];
const MARKERS = [
  "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
  "M-3 -3H3V3H-3Z",
  "M0 -4L4 3H-4Z",
  "M0 -4.5L4.5 0L0 4.5L-4.5 0Z",
  "M0 4L4 -3H-4Z",
  "M-4 -1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",
  "M0 -1.8L2.2 -4L4 -2.2L1.8 0L4 2.2L2.2 4L0 1.8L-2.2 4L-4 2.2L-1.8 0L-4 -2.2L-2.2 -4Z",
];
const dashOf = (arm) => DASHES[(arm.number - 1) % DASHES.length];
const markerOf = (arm) => MARKERS[(arm.number - 1) % MARKERS.length];

// The plot

const SPACE = { top: 10, right: 34, bottom: 44, left: 54 };
const MOST_MARKERS = 24;
const LABEL_HEIGHT = 13;

class Plot {
  constructor(data) {
    this.data = data;
    this.axis = Object.keys(data.axes)[0];
    this.logarithmic = false;
    this.secondHalf = data.arms.length > 1; // where they differ is the question
    this.shown = new Set(data.arms.filter((arm) => arm.shown).map((arm) => arm.number));
    this.cursor = null; // a budget; null: the end of each curve
    this.chart = byId("chart");
    this.drawing = this.chart.firstElementChild;
  }

  /** The points of an arm that there is room for: a logarithm has no zero. */
  points(arm) {
    const band = arm.bands[this.axis];
    if (!band) return [];
    const { spent, told, mean, low = mean, high = mean } = band;
    const points = spent.map((x, i) => ({ x, told: told[i], mean: mean[i], low: low[i], high: high[i] }));
    return this.logarithmic ? points.filter((point) => point.x > 0) : points;
  }

  get curves() {
    const shown = this.data.arms.filter((arm) => this.shown.has(arm.number));
    return shown.map((arm) => ({ arm, points: this.points(arm) })).filter(({ points }) => points.length);
  }

  /** The least and the greatest budget and loss in sight. */
  domains(curves) {
    const everything = curves.flatMap(({ points }) => points);
    const last = Math.max(...everything.map((point) => point.x));
    const first = this.secondHalf ? last / 2 : Math.min(...everything.map((point) => point.x));
    const inSight = everything.filter((point) => point.x >= first);
    const low = Math.min(...inSight.map((point) => point.low));
    const high = Math.max(...inSight.map((point) => point.high));
    const air = (high - low) * 0.04 || 0.05;
    return { x: [first, last > first ? last : first + 1], y: [low - air, high + air] };
  }

  draw() {
    const [width, height] = [this.chart.clientWidth, this.chart.clientHeight];
    if (!width) return;
    this.drawing.replaceChildren();
    byId("caution").textContent = this.data.axes[this.axis].caution;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const curves = this.curves;
    if (!curves.length) {
      this.stops = [];
      const where = { x: width / 2, y: height / 2, "text-anchor": "middle" };
      this.drawing.append(svg("text", where, "No curve is shown."));
    } else {
      const { x, y } = this.domains(curves);
      this.inner = { left: SPACE.left, right: width - SPACE.right, top: SPACE.top, bottom: height - SPACE.bottom };
      this.x = scaleOf(x, [this.inner.left, this.inner.right], this.logarithmic);
      this.y = scaleOf(y, [this.inner.bottom, this.inner.top], false);
      const all = curves.flatMap(({ points }) => points).filter((point) => point.x >= x[0]);
      const told = new Map(all.map((point) => [point.x, point.told]));
      this.stops = [...told].sort(([one], [other]) => one - other).map(([at, words]) => ({ at, words }));
      this.drawing.append(...this.grid(x, y), this.clip(), ...this.lines(curves), ...this.ends(curves));
      this.marks = svg("g", { class: "cursor" });
      this.drawing.append(this.marks);
    }
    this.read();
  }

  *grid(x, y) {
    const { left, right, top, bottom } = this.inner;
    const { title, units } = this.data.axes[this.axis];
    const across = Math.max(2, Math.floor((right - left) / 80));
    const ticks = this.logarithmic ? logarithmicTicks(x, across) : linearTicks(x, across);
    for (const tick of ticks) {
      const at = this.x(tick);
      yield svg("line", { class: "grid", x1: at, x2: at, y1: top, y2: bottom });
      const where = { class: "tick x", x: at, y: bottom + 17, "text-anchor": "middle" };
      yield svg("text", where, tickText(tick, units));
    }
    const levels = linearTicks(y, Math.max(2, Math.floor((bottom - top) / 50)));
    const step = levels.length > 1 ? levels[1] - levels[0] : 1;
    for (const level of levels) {
      const at = this.y(level);
      yield svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
      const where = { class: "tick y", x: left - 8, y: at + 4, "text-anchor": "end" };
      yield svg("text", where, lossText(level, step));
    }
    const middle = { class: "title", x: (left + right) / 2, y: bottom + 37, "text-anchor": "middle" };
    yield svg("text", middle, title);
  }

  clip() {
    const { left, right, top, bottom } = this.inner;
    const area = { x: left - 5, y: top - 5, width: right - left + 10, height: bottom - top + 5 };
    return svg("clipPath", { id: "inside" }, svg("rect", area));
  }

  *lines(curves) {
    const trace = (points, key) => points.map((point) => `${this.x(point.x).toFixed(1)} ${this.y(point[key]).toFixed(1)}`);
    for (const { arm, points } of curves) {
      const group = svg("g", { class: `curve ${arm.hue}`, "data-arm": arm.number, "clip-path": "url(#inside)" });
      const band = `M${trace(points, "high").join("L")}L${trace(points, "low").reverse().join("L")}Z`;
      if (arm.bands[this.axis].low) group.append(svg("path", { class: "band", d: band }));
      const line = { class: "line", d: `M${trace(points, "mean").join("L")}`, "stroke-dasharray": dashOf(arm) };
      group.append(svg("path", line));
      const every = Math.ceil(points.length / MOST_MARKERS);
      points.forEach((point, i) => {
        if ((points.length - 1 - i) % every === 0) group.append(this.marker(arm, point));
      });
      yield group;
    }
  }

  marker(arm, point) {
    const move = `translate(${this.x(point.x).toFixed(1)} ${this.y(point.mean).toFixed(1)})`;
    return svg("path", { class: "marker", d: markerOf(arm), transform: move });
  }

  /** The number of each arm at the end of its curve, moved apart where they would overlap. */
  *ends(curves) {
    const ends = curves.map(({ arm, points }) => ({ arm, point: points[points.length - 1] }));
    const labels = ends.map(({ arm, point }) => ({ arm, x: this.x(point.x), y: this.y(point.mean) }));
    labels.sort((one, other) => one.y - other.y);
    const room = Math.floor((this.inner.bottom - this.inner.top) / LABEL_HEIGHT);
    const placed = labels.slice(0, room);
    let floor = this.inner.bottom + 4;
    for (const label of placed) label.at = label.y + 4;
    for (let i = 1; i < placed.length; i++)
      placed[i].at = Math.max(placed[i].at, placed[i - 1].at + LABEL_HEIGHT);
    for (const label of placed.toReversed()) {
      label.at = Math.min(label.at, floor);
      floor = label.at - LABEL_HEIGHT;
    }
    for (const { arm, x, at } of placed)
      yield svg("text", { class: `end ${arm.hue}`, "data-end": arm.number, x: x + 8, y: at }, String(arm.number));
  }

  // The cursor and what it reads

  /** Of each curve the last evaluation up to the cursor. */
  readings() {
    const upTo = this.cursor ?? Infinity;
    return this.curves.map(({ arm, points }) => ({ arm, point: points.findLast((point) => point.x <= upTo) }));
  }

  read() {
    const stop = this.stops.find(({ at }) => at === this.cursor);
    if (!stop) this.cursor = null;
    const readings = this.readings();
    const ends = new Set(readings.map(({ point }) => point?.told));
    const where = stop?.words ?? (ends.size === 1 ? [...ends][0] : null);
    const title = where ? `At ${where}${stop ? "" : ", the end"}` : "At the end of each curve";
    byId("readout").replaceChildren(
      html("p", { class: "where" }, title),
      html("ul", {}, ...readings.map(({ arm, point }) => this.reading(arm, point, where))),
    );
    this.tellSlider(stop);
    this.markCursor(readings, stop);
  }

  /** An item that tells a point, and where it is if that is not told above. */
  reading(arm, point, where) {
    const item = html("li", { "data-arm": arm.number }, html("span", { class: `badge ${arm.hue}` }, String(arm.number)), " ");
    if (!point) item.append(html("span", { class: "why" }, "not evaluated yet"));
    else {
      item.append(html("span", { class: "loss" }, point.mean.toFixed(4)));
      const range = point.low === point.high ? "" : ` ${point.low.toFixed(4)} to ${point.high.toFixed(4)}`;
      const when = point.told === where ? "" : ` at ${point.told}`;
      item.append(html("span", { class: "why" }, range, when));
    }
    return item;
  }

  tellSlider(stop) {
    const last = Math.max(0, this.stops.length - 1);
    this.chart.setAttribute("aria-valuemax", last);
    this.chart.setAttribute("aria-valuenow", stop ? this.stops.indexOf(stop) : last);
    this.chart.setAttribute("aria-valuetext", stop ? stop.words : "the end");
  }

  markCursor(readings, stop) {
    if (!this.stops.length) return;
    this.marks.replaceChildren();
    if (!stop) return;
    const at = this.x(stop.at);
    this.marks.append(svg("line", { x1: at, x2: at, y1: this.inner.top, y2: this.inner.bottom }));
    for (const { arm, point } of readings) {
      if (!point || this.x(point.x) < this.inner.left) continue;
      const where = { class: arm.hue, cx: this.x(point.x), cy: this.y(point.mean), r: 5.5 };
      this.marks.append(svg("circle", where));
    }
  }

  pointAt(event) {
    if (!this.stops.length) return;
    const at = event.clientX - this.drawing.getBoundingClientRect().left;
    const distance = (stop) => Math.abs(this.x(stop.at) - at);
    this.moveTo(this.stops.reduce((best, stop) => (distance(stop) < distance(best) ? stop : best)));
  }

  moveTo(stop) {
    if (!stop || stop.at === this.cursor) return;
    this.cursor = stop.at;
    this.read();
  }

  clearCursor() {
    this.cursor = null;
    this.read();
  }

  press(event) {
    const last = this.stops.length - 1;
    const now = this.stops.findIndex(({ at }) => at === this.cursor);
    const index = now < 0 ? last : now;
    const page = Math.max(2, Math.round(last / 10));
    const moves = {
      ArrowLeft: index - 1,
      ArrowDown: index - 1,
      ArrowRight: index + 1,
      ArrowUp: index + 1,
      PageDown: index - page,
      PageUp: index + page,
      Home: 0,
      End: last,
    };
    if (event.key === "Escape") this.clearCursor();
    else if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this.moveTo(this.stops[Math.min(Math.max(moves[event.key], 0), last)]);
    }
  }
}

// The controls around it

const MANY = 12; // arms from which on one looks for them by name

function prepareAxes(plot) {
  for (const [name, { title }] of Object.entries(plot.data.axes)) {
    const button = html("input", { type: "radio", name: "axis", value: name });
    button.checked = name === plot.axis;
    button.addEventListener("change", () => {
      plot.axis = name;
      plot.cursor = null;
      plot.draw();
    });
    byId("axes").append(html("label", {}, button, html("span", {}, title.replace("training ", "").split(" ")[0])));
  }
}

function prepareSwitches(plot) {
  for (const [id, setting] of [["logarithmic", "logarithmic"], ["second-half", "secondHalf"]]) {
    byId(id).checked = plot[setting]; // a browser may remember another state
    byId(id).addEventListener("change", () => {
      plot[setting] = byId(id).checked;
      plot.draw();
    });
  }
}

function sample(arm) {
  const line = svg("path", { class: "line", d: "M1 7H33", "stroke-dasharray": dashOf(arm) });
  const marker = svg("path", { class: "marker", d: markerOf(arm), transform: "translate(17 7)" });
  return svg("svg", { class: `sample ${arm.hue}`, width: 34, height: 14, "aria-hidden": "true" }, line, marker);
}

function prepareArms(plot) {
  const boxes = plot.data.arms.map((arm) => {
    const box = html("input", { type: "checkbox", value: arm.number });
    const drawn = Object.keys(arm.bands).length > 0;
    box.disabled = !drawn;
    box.addEventListener("change", () => {
      plot.shown[box.checked ? "add" : "delete"](arm.number);
      plot.draw();
    });
    const badge = html("span", { class: `badge ${arm.hue}` }, String(arm.number));
    const name = html("span", { class: "name" }, arm.name, drawn ? "" : " (no curve)");
    byId("arms").append(html("li", {}, html("label", {}, box, sample(arm), badge, name)));
    return box;
  });
  const show = (wanted) => {
    plot.shown = new Set(plot.data.arms.filter(wanted).map((arm) => arm.number));
    for (const box of boxes) box.checked = !box.disabled && plot.shown.has(Number(box.value));
    plot.draw();
  };
  byId("show-all").addEventListener("click", () => show(() => true));
  byId("show-none").addEventListener("click", () => show(() => false));
  byId("show-first").addEventListener("click", () => show((arm) => arm.shown));
  show((arm) => arm.shown);
}

function prepareFinder(plot) {
  byId("finder").hidden = plot.data.arms.length <= MANY;
  byId("find").addEventListener("input", () => {
    const wanted = byId("find").value.toLowerCase();
    plot.data.arms.forEach((arm, i) => {
      byId("arms").children[i].hidden = !`${arm.number} ${arm.name}`.toLowerCase().includes(wanted);
    });
  });
}

function prepareChart(plot) {
  const { chart } = plot;
  chart.addEventListener("pointermove", (event) => plot.pointAt(event));
  chart.addEventListener("pointerdown", (event) => plot.pointAt(event));
  chart.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && document.activeElement !== chart) plot.clearCursor();
  });
  chart.addEventListener("keydown", (event) => plot.press(event));
  chart.addEventListener("blur", () => plot.clearCursor());
  new ResizeObserver(() => plot.draw()).observe(chart);
}

function preparePlot() {
  if (!byId("plot")) return; // no run was evaluated
  const plot = new Plot(JSON.parse(byId("curves-data").textContent));
  byId("plot").hidden = false;
  byId("thinned").hidden = !plot.data.thinned;
  prepareAxes(plot);
  prepareSwitches(plot);
  prepareArms(plot);
  prepareFinder(plot);
  prepareChart(plot);
}

prepareTheme();
preparePlot();
