// The curves of a comparison, for a choice of arms, loss and unit of budget.

const FEWEST = { validation: 5, training: 20 }; // points from which only the second half is shown initially
const MANY = 12; // arms from which there is a search field

class Curves {
  constructor(data) {
    this.data = data;
    this.losses = ["validation", "training"].filter((loss) => data.arms.some((arm) => Object.keys(arm.bands[loss]).length));
    this.axis = view.get("axis") in data.axes ? view.get("axis") : Object.keys(data.axes)[0];
    this.logarithmic = view.get("log") === "1";
    const points = data.arms.flatMap((arm) => Object.values(arm.bands.validation).map(({ spent }) => spent.length));
    const drawn = Math.max(...points) > 1 ? this.losses[0] : this.losses.at(-1); // a single point is not a curve
    this.loss = this.losses.includes(view.get("loss")) ? view.get("loss") : drawn;
    this.half = view.has("half") ? view.get("half") === "1" : null; // null: not chosen by the reader
    const first = view.has("arms") ? view.get("arms").split(",").map(Number) : null;
    this.shown = new Set(data.arms.filter((arm) => first?.includes(arm.number) ?? arm.shown).map((arm) => arm.number));
    this.chart = new Chart(byId("chart"), (readings, stop) => this.tell(readings, stop));
  }

  /** Whether only the second half is shown. The differences at the end matter most, if there are enough points. */
  get secondHalf() {
    const points = this.data.arms.flatMap((arm) => Object.values(arm.bands[this.loss]).map(({ spent }) => spent.length));
    return this.half ?? (this.data.arms.length > 1 && Math.max(...points) >= FEWEST[this.loss]);
  }

  draw() {
    byId("second-half").checked = this.secondHalf;
    const { caution, ...axis } = this.data.axes[this.axis];
    byId("caution").textContent = caution;
    byId("thinned").hidden = this.loss !== "validation" || !this.data.thinned;
    byId("about-validation").hidden = this.loss !== "validation";
    byId("about-training").hidden = this.loss !== "training";
    const arms = this.data.arms.filter((arm) => this.shown.has(arm.number) && arm.bands[this.loss][this.axis]);
    this.chart.show({
      curves: arms.map((arm) => this.curve(arm)),
      x: { ...axis, logarithmic: this.logarithmic, secondHalf: this.secondHalf },
      y: { title: `${this.loss} loss (nats per token)`, logarithmic: false },
      empty: "No curve is shown.",
    });
    byId("cut").hidden = !this.chart.isCut;
  }

  curve(arm) {
    const { spent, mean, low = mean, high = mean } = arm.bands[this.loss][this.axis];
    const points = spent.map((x, i) => ({ x, mean: mean[i], low: low[i], high: high[i] }));
    const marker = this.loss === "validation" ? markerOf(arm) : null;
    const { hue, dash, number } = arm;
    return { key: number, hue, dash, marker, label: String(number), band: low !== mean, points, arm };
  }

  tell(readings, stop) {
    const axis = this.data.axes[this.axis];
    const ends = new Set(readings.map(({ point }) => point?.x));
    const at = stop ?? (ends.size === 1 ? [...ends][0] : undefined);
    const title = at === undefined ? "At the end of each curve" : `At ${told(at, axis)}${stop === null ? ", the end" : ""}`;
    byId("readout").replaceChildren(
      html("p", { class: "where" }, title),
      html("ul", {}, ...readings.map(({ curve, point }) => this.reading(curve.arm, point, at))),
    );
  }

  /** A list item with the values of a point, and its budget unless the title gives it. */
  reading(arm, point, at) {
    const item = html("li", { "data-key": arm.number }, html("span", { class: `badge ${arm.hue}` }, String(arm.number)), " ");
    if (!point) item.append(html("span", { class: "why" }, "not evaluated yet"));
    else {
      item.append(html("span", { class: "loss" }, point.mean.toFixed(4)));
      const range = point.low === point.high ? "" : ` ${point.low.toFixed(4)} to ${point.high.toFixed(4)}`;
      const when = point.x === at ? "" : ` at ${told(point.x, this.data.axes[this.axis])}`;
      item.append(html("span", { class: "why" }, range, when, ` ${arm.name}`));
    }
    return item;
  }
}

const markerOf = (arm) => MARKERS[(arm.number - 1) % MARKERS.length];

// The controls around it

function prepareChoices(curves) {
  const choose = (key) => (value) => {
    curves[key] = value;
    curves.chart.cursor = null;
    remember(key, value);
    curves.draw();
  };
  const axes = Object.entries(curves.data.axes).map(([name, { short }]) => [name, short]);
  choices(byId("axes"), "axis", axes, curves.axis, choose("axis"));
  choices(byId("losses"), "loss", curves.losses.map((loss) => [loss, loss]), curves.loss, choose("loss"));
  byId("losses").hidden = curves.losses.length < 2;
  for (const [id, setting, key] of [
    ["logarithmic", "logarithmic", "log"],
    ["second-half", "half", "half"],
  ]) {
    if (id === "logarithmic") byId(id).checked = curves[setting]; // a browser may remember another state
    byId(id).addEventListener("change", () => {
      curves[setting] = byId(id).checked;
      remember(key, curves[setting] ? "1" : "0");
      curves.draw();
    });
  }
}

function prepareArms(curves) {
  const { arms } = curves.data;
  const show = (wanted) => {
    curves.shown = new Set(arms.filter(wanted).map((arm) => arm.number));
    for (const box of boxes) box.checked = !box.disabled && curves.shown.has(Number(box.value));
    curves.draw();
  };
  const change = (wanted) => {
    show(wanted);
    const asAtFirst = arms.every((arm) => arm.shown === curves.shown.has(arm.number));
    remember("arms", asAtFirst ? null : [...curves.shown].join(","));
  };
  const boxes = arms.map((arm) => {
    const box = html("input", { type: "checkbox", value: arm.number });
    const drawn = Object.keys(arm.bands.validation).length > 0;
    box.disabled = !drawn;
    box.addEventListener("change", () => change(({ number }) => (number === arm.number ? box.checked : curves.shown.has(number))));
    const badge = html("span", { class: `badge ${arm.hue}` }, String(arm.number));
    const name = html("span", { class: "name" }, arm.name, drawn ? "" : " (no curve)");
    byId("arms").append(html("li", {}, html("label", {}, box, legendLine({ ...arm, marker: markerOf(arm) }), badge, name)));
    return box;
  });
  byId("show-all").addEventListener("click", () => change(() => true));
  byId("show-none").addEventListener("click", () => change(() => false));
  byId("show-first").addEventListener("click", () => change((arm) => arm.shown));
  show((arm) => curves.shown.has(arm.number));
}

function prepareFinder(curves) {
  byId("finder").hidden = curves.data.arms.length <= MANY;
  byId("find").addEventListener("input", () => {
    const wanted = byId("find").value.toLowerCase();
    curves.data.arms.forEach((arm, i) => {
      byId("arms").children[i].hidden = !`${arm.number} ${arm.name}`.toLowerCase().includes(wanted);
    });
  });
}

function prepareCurves() {
  if (!byId("plot")) return; // no run was evaluated
  const curves = new Curves(JSON.parse(byId("curves-data").textContent));
  byId("plot").hidden = false;
  prepareChoices(curves);
  prepareArms(curves);
  prepareFinder(curves);
}

function prepareKeys() {
  if (!byId("all-keys")) return;
  byId("all-keys").checked = view.get("keys") === "all";
  byId("all-keys").addEventListener("change", () => remember("keys", byId("all-keys").checked ? "all" : null));
}

prepareCurves();
prepareKeys();
preparePage();
