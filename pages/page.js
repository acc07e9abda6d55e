// What every page does: its theme, links to a view, tables that can be sorted, downloads.

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const html = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

// Theme: that of the system until somebody asks for the other.

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

const isDark = () => (root.dataset.theme ?? (systemIsDark.matches ? "dark" : "light")) === "dark";

function prepareTheme() {
  const tell = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
  if (["light", "dark"].includes(view.get("theme"))) root.dataset.theme = view.get("theme");
  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", root.dataset.theme);
    tell();
  });
  systemIsDark.addEventListener("change", tell);
  tell();
}

// The address says which section and which view are shown: `#curves&axis=flops&arms=1,2`.

const view = new URLSearchParams(location.hash.slice(1).split("&").slice(1).join("&"));

/** Put a setting of the view into the address; null removes it. */
function remember(key, value) {
  if (value === null) view.delete(key);
  else view.set(key, value);
  const place = location.hash.slice(1).split("&")[0];
  const settings = view.size ? `&${view}` : "";
  if (place || settings) history.replaceState(null, "", `#${place}${settings}`);
}

function prepareAddress() {
  addEventListener("hashchange", () => remember("", null)); // a link to a section keeps the view
  const place = location.hash.slice(1).split("&")[0];
  if (view.size && place) byId(place)?.scrollIntoView();
}

// Tables

const plain = (cell) => cell.textContent.replace(/\s+/g, " ").trim();

/** What a cell is sorted by: its number, else its text; null where it has nothing. */
function sortKey(cell) {
  const number = cell.querySelector("data");
  if (number) return Number(number.value);
  return cell.querySelector(".none") || !plain(cell) ? null : plain(cell);
}

function compared(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

class SortedTable {
  constructor(table) {
    this.table = table;
    this.name = table.closest("section").id;
    this.heads = all("thead th", table);
    this.rows = all("tbody tr", table);
    if (this.rows.length < 2) return;
    this.select = html("select", { "aria-label": "Sort by" }, html("option", { value: "" }, "the order given"));
    this.heads.forEach((head, column) => this.prepare(head, column));
    this.select.addEventListener("change", () => this.sort(this.select.value, false));
    table.parentElement.before(html("label", { class: "sorter" }, "Sort by ", this.select));
    const [column, way] = (view.get(`sort-${this.name}`) ?? "").split(",");
    if (column in this.heads) this.sort(column, way === "down");
  }

  prepare(head, column) {
    if (head.matches(".plot")) return;
    const button = html("button", { type: "button", class: "sort" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      this.sort(now === "descending" ? "" : column, now === "ascending");
    });
    head.append(button);
    this.select.append(html("option", { value: column }, plain(button)));
  }

  /** Sort by a column, or as the table came; cells without a value stay last. */
  sort(column, down) {
    for (const head of this.heads) head.removeAttribute("aria-sort");
    const sorted = [...this.rows];
    if (column !== "") {
      const keys = new Map(this.rows.map((row) => [row, sortKey(row.children[column])]));
      sorted.sort((one, other) => {
        const [a, b] = [keys.get(one), keys.get(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        return down ? compared(b, a) : compared(a, b);
      });
      this.heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    }
    this.select.value = column;
    this.table.tBodies[0].append(...sorted);
    remember(`sort-${this.name}`, column === "" ? null : `${column},${down ? "down" : "up"}`);
  }
}

// Downloads

function save(name, type, text) {
  const link = html("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const fileName = (part, ending) => `${document.body.dataset.name}-${part}`.replace(/[^\w.=-]+/g, "_") + ending;

/** A cell of CSV; text that a spreadsheet would take for a formula is quoted for it. */
function csvCell(value) {
  const text = /^[=+@\t-]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** A table as CSV, its numbers unrounded; an interval has a column for each end. */
function csvOf(table) {
  const rows = all("tbody tr", table).map((row) => [...row.children]);
  const numbers = (cell) => all("data", cell).map((number) => number.value);
  const columns = all("thead th", table)
    .map((head, index) => ({ head, index, count: Math.max(1, ...rows.map((row) => numbers(row[index]).length)) }))
    .filter(({ head }) => !head.matches(".plot"));
  const heads = columns.flatMap(({ head, count }) =>
    [[""], [" low", " high"], ["", " low", " high"]][count - 1].map((end) => plain(head) + end),
  );
  const cells = (row) =>
    columns.flatMap(({ index, count }) => {
      const found = numbers(row[index]);
      if (!found.length && !row[index].querySelector(".none")) found.push(plain(row[index]));
      return [...found, ...Array(count - found.length).fill("")];
    });
  return [heads, ...rows.map(cells)].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}

const PAINT = "fill stroke stroke-width stroke-dasharray stroke-linejoin fill-opacity opacity font-family font-size font-weight text-anchor";

function painted(element) {
  const copy = element.cloneNode(false);
  const style = getComputedStyle(element);
  copy.removeAttribute("class");
  for (const key of PAINT.split(" ")) copy.setAttribute(key, style.getPropertyValue(key));
  copy.append(...[...element.childNodes].map((node) => (node.nodeType === 1 ? painted(node) : node.cloneNode())));
  return copy;
}

/** The lines of a text as they stand on the page. */
function linesOf(node) {
  const lines = [];
  for (const { 0: word, index } of node.data.matchAll(/\S+\s*/g)) {
    const range = document.createRange();
    range.setStart(node, index);
    range.setEnd(node, index + word.trimEnd().length);
    const box = range.getBoundingClientRect();
    const last = lines.at(-1);
    if (last && Math.abs(last.box.top - box.top) < 2) last.text += word;
    else lines.push({ box, text: word });
  }
  return lines;
}

/** An area of the page as one drawing: its drawings, its texts, its badges. */
function svgOf(area) {
  const frame = area.getBoundingClientRect();
  const [left, top] = [frame.left - 8, frame.top - 8];
  const size = { width: Math.ceil(frame.width + 16), height: Math.ceil(frame.height + 16) };
  const made = svg("svg", { ...size, viewBox: `0 0 ${size.width} ${size.height}` });
  made.append(svg("rect", { ...size, fill: getComputedStyle(document.body).backgroundColor }));
  for (const element of all("*", area).filter((own) => own.checkVisibility() && !own.closest(".tools, .controls"))) {
    const [style, box] = [getComputedStyle(element), element.getBoundingClientRect()];
    const place = { x: box.left - left, y: box.top - top };
    if (element instanceof SVGElement) {
      if (element.parentElement instanceof SVGElement) continue;
      const drawing = painted(element);
      filled(drawing, { ...place, width: box.width, height: box.height, overflow: "visible" }, []);
      made.append(drawing);
      continue;
    }
    if (element.matches(".badge"))
      made.append(svg("rect", { ...place, width: box.width, height: box.height, rx: 4, fill: style.backgroundColor }));
    for (const node of [...element.childNodes].filter((child) => child.nodeType === 3))
      for (const { box: line, text } of linesOf(node)) {
        const font = { "font-family": style.fontFamily, "font-size": style.fontSize, "font-weight": style.fontWeight };
        const at = { x: line.left - left, y: line.top - top + line.height * 0.78, fill: style.color };
        made.append(svg("text", { ...at, ...font }, text.trimEnd()));
      }
  }
  return new XMLSerializer().serializeToString(made);
}

function tool(label, title, act) {
  const button = html("button", { type: "button", class: "tool", title }, label);
  button.addEventListener("click", act);
  return button;
}

/** Buttons that save the tables as CSV and the drawings as SVG. */
function prepareDownloads() {
  for (const area of all("[data-save]")) {
    const tools = html("p", { class: "tools" });
    const table = area.querySelector("table");
    const name = area.dataset.save;
    if (table) tools.append(tool("CSV", "Save this table as CSV, unrounded", () => save(fileName(name, ".csv"), "text/csv", csvOf(table))));
    if (area.querySelector("svg:not(.sample)"))
      tools.append(tool("SVG", "Save this chart as SVG", () => save(fileName(name, ".svg"), "image/svg+xml", svgOf(area))));
    area.append(tools);
  }
}

function preparePage() {
  prepareTheme();
  for (const table of all("table.cards")) new SortedTable(table);
  prepareDownloads();
  prepareAddress();
}
