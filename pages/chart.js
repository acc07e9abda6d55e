// Curves on axes, with a cursor that reads them. Numbers come from Python; ticks and what the cursor
// stands at are written here.

// Numbers

/** A number and the unit that leaves it under 1000, as training/log_text.py has them: 75.00, K. */
function scaled(value, units, decimals) {
  let [size, power] = [value, 0];
  while (Math.abs(size) >= 999.95 && power < units.length - 1) [size, power] = [size / 1000, power + 1];
  const places = power === 0 && Number.isInteger(size) ? 0 : Math.abs(size) < 99.995 ? decimals : 1;
  return [size.toFixed(places), units[power]];
}

/** What was spent, in words: `75.00K tokens`, `1.5 GFLOPs`, `12.0 seconds`, `step 1,200`. */
function told(value, { units, decimals, words }) {
  const [number, unit] = units.length > 1 ? scaled(value, units, decimals) : [grouped(value, decimals), ""];
  return words.replace("{number}", number).replace("{unit}", unit);
}

const grouped = (value, decimals) =>
  value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

/** `2M`: a round number in the unit that keeps it under 1000. */
function tickText(value, units) {
  const power = value ? Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9) : 0;
  const index = Math.min(Math.max(power, 0), units.length - 1);
  return `${Number((value / 1000 ** index).toPrecision(6))}${units[index]}`;
}

/** A number with the decimals that a step between ticks asks for. */
function stepText(value, step, most = 4) {
  return value.toFixed(Math.min(most, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9))));
}

// Scales and ticks

const AT_ZERO = 34; // pixels that a logarithmic axis keeps for zero, which it has no place for

/** From values to pixels; a logarithmic scale has zero, where there is one, before its start. */
function scaleOf([low, high], [from, to], logarithmic, zero = false) {
  const warp = logarithmic ? Math.log : (value) => value;
  const begin = zero ? from + AT_ZERO : from;
  const [start, span] = [warp(low), warp(high) - warp(low) || 1];
  return (value) => (zero && value <= 0 ? from : begin + ((warp(value) - start) / span) * (to - begin));
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
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of factors) ticks.push(factor * 10 ** power);
    const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length <= most && inside.length > 1) return inside;
    if (factors.length === 1 && inside.length > most) return inside.filter((_, i) => i % Math.ceil(inside.length / most) === 0);
  }
  return linearTicks([low, high], most).filter((tick) => tick > 0);
}

// The chart

const SPACE = { top: 10, right: 34, bottom: 44, left: 54 };
const TITLE_HEIGHT = 16;
const MOST_MARKERS = 24;
const LABEL_HEIGHT = 15;
const FARTHEST = 4; // what reaches so many times farther up than the lines do is cut off

/**
 * Draws curves in a box and reads them.
 *
 * A curve has `key`, `hue` (a class), `dash`, `points` of `{ x, mean, low, high }` in order, and as
 * wanted a `marker` (a path), a `label` at its end, a `band`, or `whiskers` at its points. `onRead(readings, stop)` gets of
 * each curve the last point up to the cursor; `stop` is null at the end.
 */
class Chart {
  constructor(box, onRead) {
    this.box = box;
    this.onRead = onRead;
    this.drawing = box.firstElementChild;
    this.cursor = null;
    this.content = null;
    box.addEventListener("pointermove", (event) => this.pointAt(event));
    box.addEventListener("pointerdown", (event) => this.pointAt(event));
    box.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && document.activeElement !== box) this.moveTo(null);
    });
    box.addEventListener("keydown", (event) => this.press(event));
    box.addEventListener("blur", () => this.moveTo(null));
    new ResizeObserver(() => this.draw()).observe(box);
  }

  /** Draw other content: `curves`, `x` and `y`, what an axis says and whether it is logarithmic. */
  show(content) {
    const from = content.x.logarithmic ? (point) => point.x >= 0 : () => true;
    const up = content.y.logarithmic ? (point) => point.low > 0 : () => true;
    const curves = content.curves.map((curve) => ({ ...curve, points: curve.points.filter((own) => from(own) && up(own)) }));
    this.content = { ...content, curves: curves.filter(({ points }) => points.length) };
    this.draw();
  }

  /** The least and the greatest of what is in sight, across and up. */
  domains() {
    const { curves, x, y } = this.content;
    const everything = curves.flatMap(({ points }) => points);
    const last = Math.max(...everything.map((point) => point.x));
    const begins = x.logarithmic ? everything.filter((point) => point.x > 0) : everything;
    const first = x.secondHalf ? last / 2 : Math.min(last, ...begins.map((point) => point.x));
    this.zero = x.logarithmic && !x.secondHalf && begins.length < everything.length;
    const inSight = everything.filter((point) => this.zero || point.x >= first);
    const means = inSight.map((point) => point.mean);
    const low = Math.min(...inSight.map((point) => point.low));
    const reach = y.logarithmic ? Infinity : low + FARTHEST * (Math.max(...means) - low || Infinity);
    const top = Math.max(...inSight.map((point) => point.high));
    const high = Math.min(top, reach);
    this.isCut = top > high;
    if (y.logarithmic) return { x: [first, last > first ? last : first * 2 || 1], y: [low / 1.1, high * 1.1] };
    const air = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.05;
    const floor = y.fromZero ? 0 : low - air;
    // of a single place, from 0 to it
    return { x: last > first ? [first, last] : [Math.min(first, 0), first || 1], y: [floor, high + air] };
  }

  draw() {
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    if (!width || !this.content) return;
    this.drawing.replaceChildren();
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const { curves, x: across, y: up } = this.content;
    this.stops = [];
    if (!curves.length) {
      this.isCut = false;
      const where = { x: width / 2, y: height / 2, "text-anchor": "middle" };
      this.drawing.append(svg("text", where, this.content.empty));
    } else {
      const { x, y } = this.domains();
      const right = width - (curves.some((curve) => curve.label) ? SPACE.right : 14);
      this.inner = { left: SPACE.left, right, top: SPACE.top + (up.title ? TITLE_HEIGHT : 0), bottom: height - SPACE.bottom };
      this.x = scaleOf(x, [this.inner.left, this.inner.right], across.logarithmic, this.zero);
      this.y = scaleOf(y, [this.inner.bottom, this.inner.top], up.logarithmic);
      const places = curves.flatMap(({ points }) => points.map((point) => point.x));
      this.stops = [...new Set(places)].filter((at) => this.zero || at >= x[0]).sort((one, other) => one - other);
      this.drawing.append(...this.grid(x, y), this.clip(), ...this.lines(), ...this.ends());
      this.marks = svg("g", { class: "cursor" });
      this.drawing.append(this.marks);
    }
    this.read();
  }

  *grid(x, y) {
    const { left, right, top, bottom } = this.inner;
    const { x: across, y: up } = this.content;
    const room = Math.max(2, Math.floor((right - left) / 80));
    const ticks = across.logarithmic ? logarithmicTicks(x, room) : linearTicks(x, room);
    for (const tick of this.zero ? [0, ...ticks] : ticks) {
      const at = this.x(tick);
      yield svg("line", { class: "grid", x1: at, x2: at, y1: top, y2: bottom });
      const where = { class: "tick x", x: at, y: bottom + 17, "text-anchor": "middle" };
      yield svg("text", where, tickText(tick, across.units));
    }
    const floors = Math.max(2, Math.floor((bottom - top) / 38));
    const levels = up.logarithmic ? logarithmicTicks(y, floors) : linearTicks(y, floors);
    const step = levels.length > 1 ? levels[1] - levels[0] : 1;
    for (const level of levels) {
      const at = this.y(level);
      yield svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
      const where = { class: "tick y", x: left - 8, y: at + 4, "text-anchor": "end" };
      yield svg("text", where, up.units ? tickText(level, up.units) : stepText(level, Math.min(step, level || step)));
    }
    const middle = { class: "title", x: (left + right) / 2, y: bottom + 37, "text-anchor": "middle" };
    yield svg("text", middle, across.title);
    if (up.title) yield svg("text", { class: "title y", x: 0, y: 12 }, up.title);
  }

  clip() {
    const { left, right, top, bottom } = this.inner;
    const area = { x: left - 5, y: top - 5, width: right - left + 10, height: bottom - top + 5 };
    return svg("clipPath", { id: `inside-${this.box.id}` }, svg("rect", area));
  }

  *lines() {
    const trace = (points, key) => points.map((point) => `${this.x(point.x).toFixed(1)} ${this.y(point[key]).toFixed(1)}`);
    for (const { key, hue, dash, points, band, whiskers, marker } of this.content.curves) {
      const group = svg("g", { class: `curve ${hue}`, "data-key": key, "clip-path": `url(#inside-${this.box.id})` });
      const outline = `M${trace(points, "high").join("L")}L${trace(points, "low").reverse().join("L")}Z`;
      if (band) group.append(svg("path", { class: "band", d: outline }));
      group.append(svg("path", { class: "line", d: `M${trace(points, "mean").join("L")}`, "stroke-dasharray": dash }));
      for (const { x, low, high } of whiskers ? points : [])
        group.append(svg("path", { class: "whisker", d: `M${this.x(x).toFixed(1)} ${this.y(low).toFixed(1)}V${this.y(high).toFixed(1)}` }));
      const every = Math.ceil(points.length / MOST_MARKERS);
      const marked = points.length === 1 ? (marker ?? MARKERS[0]) : marker;
      points.forEach((point, i) => {
        if (!marked || (points.length - 1 - i) % every) return;
        const move = `translate(${this.x(point.x).toFixed(1)} ${this.y(point.mean).toFixed(1)})`;
        group.append(svg("path", { class: "marker", d: marked, transform: move }));
      });
      yield group;
    }
  }

  /** The label of each curve beside its end, moved apart where they would overlap. */
  *ends() {
    const labels = this.content.curves
      .filter((curve) => curve.label)
      .map(({ key, hue, label, points }) => ({ key, hue, label, x: this.x(points.at(-1).x), y: this.y(points.at(-1).mean) }))
      .filter(({ y }) => y >= this.inner.top - 5)
      .sort((one, other) => one.y - other.y);
    const placed = labels.slice(0, Math.floor((this.inner.bottom - this.inner.top) / LABEL_HEIGHT));
    let floor = this.inner.bottom + 4;
    for (const label of placed) label.at = label.y;
    for (let i = 1; i < placed.length; i++) placed[i].at = Math.max(placed[i].at, placed[i - 1].at + LABEL_HEIGHT);
    for (const label of placed.toReversed()) {
      label.at = Math.min(label.at, floor);
      floor = label.at - LABEL_HEIGHT;
    }
    for (const { key, hue, label, x, at } of placed) {
      const width = 8 + 7 * label.length;
      const back = svg("rect", { x: x + 8, y: at - 6.5, width, height: 13, rx: 3 });
      const text = svg("text", { x: x + 8 + width / 2, y: at + 4, "text-anchor": "middle" }, label);
      yield svg("g", { class: `end ${hue}`, "data-end": key }, back, text);
    }
  }

  // The cursor and what it reads

  readings() {
    const upTo = this.cursor ?? Infinity;
    return this.content.curves.map((curve) => ({ curve, point: curve.points.findLast((point) => point.x <= upTo) }));
  }

  read() {
    if (this.cursor !== null && this.stops.length && !(this.cursor >= this.stops[0])) this.cursor = null;
    const last = Math.max(0, this.stops.length - 1);
    const now = this.cursor === null ? last : this.stops.findLastIndex((at) => at <= this.cursor);
    const words = this.cursor === null ? "the end" : told(this.cursor, this.content.x);
    this.box.setAttribute("aria-valuemax", last);
    this.box.setAttribute("aria-valuenow", now);
    this.box.setAttribute("aria-valuetext", words);
    this.mark();
    this.onRead(this.readings(), this.cursor);
  }

  mark() {
    if (!this.stops.length) return;
    this.marks.replaceChildren();
    if (this.cursor === null) return;
    const at = this.x(this.cursor);
    this.marks.append(svg("line", { x1: at, x2: at, y1: this.inner.top, y2: this.inner.bottom }));
    for (const { curve, point } of this.readings()) {
      if (!point || this.x(point.x) < this.inner.left || this.y(point.mean) < 0) continue;
      this.marks.append(svg("circle", { class: curve.hue, cx: this.x(point.x), cy: this.y(point.mean), r: 5 }));
    }
  }

  pointAt(event) {
    if (!this.stops?.length) return;
    const at = event.clientX - this.drawing.getBoundingClientRect().left;
    const distance = (stop) => Math.abs(this.x(stop) - at);
    this.moveTo(this.stops.reduce((best, stop) => (distance(stop) < distance(best) ? stop : best)));
  }

  moveTo(stop) {
    if (stop === this.cursor || !this.stops) return;
    this.cursor = stop;
    this.read();
  }

  press(event) {
    const last = this.stops.length - 1;
    const now = this.cursor === null ? last : this.stops.findLastIndex((at) => at <= this.cursor);
    const page = Math.max(2, Math.round(last / 10));
    const moves = {
      ArrowLeft: now - 1,
      ArrowDown: now - 1,
      ArrowRight: now + 1,
      ArrowUp: now + 1,
      PageDown: now - page,
      PageUp: now + page,
      Home: 0,
      End: last,
    };
    if (event.key === "Escape") this.moveTo(null);
    else if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey && last >= 0) {
      event.preventDefault();
      this.moveTo(this.stops[Math.min(Math.max(moves[event.key], 0), last)]);
    }
  }
}

// What tells curves apart besides colour and dashes

const MARKERS = [
  "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
  "M-3 -3H3V3H-3Z",
  "M0 -4L4 3H-4Z",
  "M0 -4.5L4.5 0L0 4.5L-4.5 0Z",
  "M0 4L4 -3H-4Z",
  "M-4 -1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",
  "M0 -1.8L2.2 -4L4 -2.2L1.8 0L4 2.2L2.2 4L0 1.8L-2.2 4L-4 2.2L-1.8 0L-4 -2.2L-2.2 -4Z",
];

/** A piece of a curve, for a legend. */
function legendLine({ hue, dash, marker }) {
  const parts = [svg("path", { class: "line", d: "M1 7H33", "stroke-dasharray": dash })];
  if (marker) parts.push(svg("path", { class: "marker", d: marker, transform: "translate(17 7)" }));
  return svg("svg", { class: `sample ${hue}`, width: 34, height: 14, "aria-hidden": "true" }, ...parts);
}

/** Radio buttons in a fieldset, each with a value and a label. */
function choices(fieldset, name, values, chosen, onChoice) {
  for (const [value, label] of values) {
    const button = html("input", { type: "radio", name, value });
    button.checked = value === chosen;
    button.addEventListener("change", () => onChoice(value));
    fieldset.append(html("label", {}, button, html("span", {}, label)));
  }
}
