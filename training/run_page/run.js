// The charts of a run, and the page itself again while the run trains.

const EVERY = 3000; // milliseconds between two looks for a new version
const STALE = 120; // seconds after which a page that does not change is worth a word

class RunCharts {
  constructor(data) {
    this.data = data;
    this.axis = view.get("x") in data.axes ? view.get("x") : "steps";
    this.charts = new Map();
    for (const box of all("#charts .chart")) {
      const chart = new Chart(box, (readings, stop) => this.tell(box, readings, stop));
      this.charts.set(box.id.replace("chart-", ""), chart);
    }
  }

  draw() {
    const axis = { ...this.data.axes[this.axis], logarithmic: false };
    byId("charts").hidden = !this.data.panels.length;
    byId("waiting").hidden = this.data.panels.length > 0;
    for (const [name, chart] of this.charts) {
      const panel = this.data.panels.find((own) => own.name === name);
      chart.box.closest(".panel").hidden = !panel;
      if (!panel) continue;
      const { units, logarithmic, fromZero } = panel;
      chart.show({ curves: panel.curves.map((curve) => this.curve(curve)), x: axis, y: { units, logarithmic, fromZero } });
    }
  }

  curve({ name, hue, dash, marked, values, ...places }) {
    const points = values.map((value, i) => ({ x: places[this.axis][i], mean: value, low: value, high: value }));
    return { key: name, hue, dash, marker: marked ? MARKERS[0] : null, points };
  }

  /** What the curves of a chart are at the cursor, which all charts share. */
  tell(box, readings, stop) {
    const panel = this.data.panels.find((own) => `chart-${own.name}` === box.id);
    const axis = { ...this.data.axes[this.axis], units: this.data.axes[this.axis].tellUnits };
    const values = readings.map(({ curve, point }) =>
      html("span", { class: "reading" }, legendLine(curve), `${curve.key} `, html("b", {}, point ? valueText(point.mean, panel.units) : "–")),
    );
    const last = Math.max(...readings.map(({ point }) => point?.x ?? 0));
    box.previousElementSibling.replaceChildren(...values, html("span", { class: "why" }, told(stop ?? last, axis)));
    if (this.moving) return;
    this.moving = true;
    for (const chart of this.charts.values()) if (chart.box !== box && chart.content) chart.moveTo(stop);
    this.moving = false;
  }
}

/** A value as its panel's axis has it, with more digits. */
function valueText(value, units) {
  if (units?.length > 1) return scaled(value, units, 2).join("");
  return Math.abs(value) < 0.01 && value !== 0 ? value.toExponential(2) : value.toFixed(4);
}

// A running run

function tellAge() {
  const time = byId("updated").querySelector("time");
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time.dateTime)) / 1000));
  const age = seconds < 120 ? `${seconds} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
  const stale = seconds > STALE ? "; if that is longer than usual, the run may have been stopped" : "";
  time.textContent = `Updated ${age} ago${stale}.`;
}

/** Show what another version of the page says. */
function show(charts, text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const data = fresh.getElementById("run-data");
  if (!data) return;
  for (const old of all("[data-live]")) {
    const other = fresh.getElementById(old.id);
    old.replaceWith(document.adoptNode(other));
  }
  document.title = fresh.title;
  charts.data = JSON.parse(data.textContent);
  charts.draw();
  tellAge();
}

/** Look for a new version: a file cannot be read by its page, so it is opened again. */
async function look(charts) {
  if (document.hidden) return;
  if (location.protocol === "file:") {
    if (![...charts.charts.values()].some((chart) => chart.cursor !== null)) location.reload();
    return;
  }
  try {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    if (answer.ok) show(charts, await answer.text());
  } catch {
    // the server is gone; the page stays as it is
  }
}

function prepareRun() {
  const charts = new RunCharts(JSON.parse(byId("run-data").textContent));
  const axes = Object.entries(charts.data.axes).map(([name, { short }]) => [name, short]);
  choices(byId("axes"), "x", axes, charts.axis, (name) => {
    charts.axis = name;
    for (const chart of charts.charts.values()) chart.cursor = null;
    remember("x", name);
    charts.draw();
  });
  charts.draw();
  if (!charts.data.live) return;
  tellAge();
  const timers = [setInterval(tellAge, 1000), setInterval(() => charts.data.live && look(charts), EVERY)];
  addEventListener("pagehide", () => timers.forEach(clearInterval));
}

preparePage();
prepareRun();
