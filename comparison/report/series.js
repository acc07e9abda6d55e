// The charts of a series of sweeps: results of the arms over compute.

class SeriesChart {
  constructor(name, data) {
    this.data = data;
    this.chart = new Chart(byId(`chart-${name}`), (readings, stop) => this.tell(readings, stop));
  }

  draw() {
    const { axis, title, logarithmic, curves } = this.data;
    this.chart.show({
      curves: curves.map((curve) => this.curve(curve)),
      x: { ...axis, logarithmic: true, secondHalf: false },
      y: { title, logarithmic },
      empty: "There is nothing to draw.",
    });
  }

  curve({ name, number, hue, dash, points, whiskers, trend }) {
    const shown = trend ? { dash: "2 4" } : { dash, marker: MARKERS[(number - 1) % MARKERS.length], label: String(number) };
    return { key: trend ? `${number}-trend` : number, hue, name, number, trend, points, whiskers, ...shown };
  }

  tell(readings, stop) {
    const { axis, decimals } = this.data;
    const arms = readings.filter(({ curve }) => !curve.trend);
    const items = arms.map(({ curve, point }) =>
      html("span", { class: "reading" }, html("span", { class: `badge ${curve.hue}` }, String(curve.number)), ` ${curve.name} `,
        html("b", {}, point ? point.mean.toFixed(decimals) : "–")),
    );
    const last = Math.max(0, ...arms.map(({ point }) => point?.x ?? 0));
    const where = arms.length ? told(stop ?? last, axis) : "";
    this.chart.box.previousElementSibling.replaceChildren(...items, html("span", { class: "why" }, where));
  }
}

function prepareSeries() {
  const charts = JSON.parse(byId("charts-data").textContent);
  for (const [name, data] of Object.entries(charts)) new SeriesChart(name, data).draw();
  if (byId("cut")) byId("cut").hidden = !Object.values(charts).some(({ cut }) => cut);
}

preparePage();
prepareSeries();
