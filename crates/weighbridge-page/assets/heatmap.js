// Layers by modules, a cell for the tensors of each; beside it what a module does in all layers, above it what a layer does.

const CELL = { least: 10, most: 64, tall: 22, label: 208, side: 132, top: 46, foot: 20 };
// Of more modules than any model has, the first ones.
const MOST_ROWS = 80;

class HeatMap {
  constructor(element, { onChoose, onHover }) {
    Object.assign(this, { element, onChoose, onHover });
    new ResizeObserver(() => this.resize()).observe(element);
  }

  // Finds the cells and the scale of each measure.
  read(model) {
    const { grids, rest } = gridsOf(model.tensors);
    this.grids = grids.slice(0, 6).map((grid) => ({ ...grid, rows: new Map([...grid.rows].slice(0, MOST_ROWS)), hidden: grid.rows.size - MOST_ROWS }));
    this.rest = rest;
    this.most = model.tensors.reduce((most, { moved }) => (Number.isFinite(moved) ? Math.max(most, moved) : most), 0);
    const cells = [...this.grids.flatMap((grid) => [...grid.rows.values()].flatMap((row) => [...row.values()])), ...rest.map((pair) => [pair])];
    const scale = (measure) => [measure, new Scale(cells.map((pairs) => measured(measure, pairs)))];
    this.scales = new Map(model.hasValues ? Object.values(MEASURES).map(scale) : []);
  }

  // By a measure, or by what became of the tensors if there is none. Gives what stands below the map.
  show(measure) {
    this.measure = measure;
    this.draw();
    return measure ? [scaleLegend(this.scales.get(measure), measure.unit[0].toUpperCase() + measure.unit.slice(1), measure.write)] : [];
  }

  resize() {
    const width = this.element.clientWidth;
    if (this.measure !== undefined && width > 0 && width !== this.width) this.draw();
  }

  draw() {
    this.width = this.element.clientWidth || 1200;
    const parts = this.grids.map((grid) => this.grid(grid));
    if (this.rest.length > 0) parts.push(this.outside());
    if (parts.length === 0) parts.push(make("p", "hint", "There is no tensor to compare."));
    this.element.replaceChildren(...parts);
  }

  // The colour of tensors as one, and the number behind it.
  look(pairs) {
    if (!this.measure) {
      const [worst] = Object.keys(FATES).filter((fate) => pairs.some((pair) => pair.fate === fate));
      return { fill: worst === "same" ? theme.module : colorOf(FATES[worst].title), pale: true, value: null };
    }
    const value = measured(this.measure, pairs);
    const scale = this.scales.get(this.measure);
    if (value === null) return { fill: "none", pale: theme.lightness > 0.6, value };
    if (value === 0) return { fill: theme.module, pale: theme.lightness > 0.6, value };
    return { fill: scale.color(value), pale: isPale(scale.place(value)), value };
  }

  grid(grid) {
    const { numbers, rows, layers, path } = grid;
    const side = this.measure ? CELL.side : 0;
    const [left, top] = [Math.min(CELL.label, Math.round(this.width * 0.4)), this.measure ? CELL.top : 8];
    const wide = Math.max(CELL.least, Math.min(CELL.most, Math.floor((this.width - left - side - 8) / numbers.length)));
    const [width, height] = [left + wide * numbers.length + side, top + rows.size * CELL.tall + CELL.foot];
    const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "cells", tabindex: 0, role: "application" });
    chart.setAttribute("aria-label", `${visible(path)}: ${numbers.length} layers by ${rows.size} modules. Arrow keys move, Enter chooses.`);
    const cells = [];
    [...rows].forEach(([module, row], r) => {
      const y = top + r * CELL.tall;
      const label = svg("text", { x: left - 10, y: y + 15, "text-anchor": "end", class: "module" }, cutStart(module, Math.floor((left - 10) / 6.6)));
      label.append(svg("title", {}, visible(module)));
      chart.append(label);
      numbers.forEach((number, c) => {
        const pairs = row.get(number);
        if (pairs) cells.push(this.cell(chart, pairs, { x: left + c * wide, y, w: wide, h: CELL.tall, r, c }, [`${visible(path)}.${number}`, visible(module)]));
      });
      if (this.measure) this.sideBar(chart, [...row.values()].flat(), left + wide * numbers.length + 8, y);
    });
    numbers.forEach((number, c) => {
      if (this.measure) this.topBar(chart, layers.get(number), left + c * wide, wide);
      if (c % Math.ceil(24 / wide) === 0) chart.append(svg("text", { x: left + (c + 0.5) * wide, y: height - 5, "text-anchor": "middle", class: "number" }, String(number)));
    });
    const mark = svg("rect", { class: "mark", rx: 3, width: wide, height: CELL.tall, visibility: "hidden" });
    chart.append(mark);
    this.steer(chart, cells, mark);
    const figure = make("div", "grid", make("h3", "", make("bdi", "", visible(path) === '""' ? "layers" : visible(path))), make("div", "scroll-map", chart));
    if (grid.hidden > 0) figure.append(make("p", "hint", `and ${plural(grid.hidden, "more module")}; the table has them all`));
    return figure;
  }

  cell(chart, pairs, { x, y, w, h, r, c }, [layer, module]) {
    const { fill, pale, value } = this.look(pairs);
    const box = svg("rect", { x: x + 0.75, y: y + 0.75, width: w - 1.5, height: h - 1.5, rx: Math.min(3, w / 4), fill, class: "cell" });
    if (fill === "none") box.setAttribute("class", "cell unknown");
    chart.append(box);
    const sign = [...new Set(pairs.map((pair) => FATES[pair.fate].sign))].find(Boolean);
    if (sign && w > 8) chart.append(svg("text", { x: x + w / 2, y: y + 15.5, "text-anchor": "middle", class: pale ? "sign pale" : "sign" }, sign));
    return { pairs, box, x, y, r, c, lines: [`${layer} ${module}`, ...this.said(pairs, value)], text: `${layer}. ${module.replaceAll("*", " ")}` };
  }

  said(pairs, value) {
    const fates = new Map();
    for (const { kind } of pairs) fates.set(kind, (fates.get(kind) ?? 0) + 1);
    const what = [...fates].map(([kind, found]) => (pairs.length > 1 ? `${count(found)} ${kind}` : kind)).join(", ");
    if (!this.measure) return [what];
    const number = value === null ? "no values to compare" : `${this.measure.write(value)} ${this.measure.unit}`;
    return pairs.length > 1 ? [number, `${plural(pairs.length, "tensor")}: ${what}`] : [number, what];
  }

  sideBar(chart, pairs, x, y) {
    const { fill, value } = this.look(pairs);
    if (value === null) return;
    const long = 50 * this.scales.get(this.measure).place(value);
    chart.append(svg("rect", { x, y: y + 6, width: Math.max(value > 0 ? 2 : 0, long), height: CELL.tall - 12, rx: 2, fill }));
    chart.append(svg("text", { x: x + 56, y: y + 15, class: "number" }, this.measure.write(value)));
  }

  topBar(chart, pairs, x, w) {
    const { fill, value } = this.look(pairs);
    if (value === null) return;
    const tall = (CELL.top - 14) * this.scales.get(this.measure).place(value);
    const high = Math.max(value > 0 ? 2 : 0, tall);
    chart.append(svg("rect", { x: x + 0.75, y: CELL.top - 6 - high, width: w - 1.5, height: high, rx: Math.min(2, w / 4), fill }));
  }

  // What is pointed at, by the mouse or by keys.
  steer(chart, cells, mark) {
    const places = new Map(cells.map((cell) => [cell.box, cell]));
    let cursor = null;
    const point = (cell) => {
      mark.setAttribute("visibility", cell ? "visible" : "hidden");
      if (!cell) return;
      mark.setAttribute("x", cell.x);
      mark.setAttribute("y", cell.y);
    };
    const under = (event) => {
      const box = chart.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      return places.get(event.target) ?? cells.find((cell) => x >= cell.x && y >= cell.y && y < cell.y + CELL.tall && x < cell.x + Number(mark.getAttribute("width")));
    };
    chart.addEventListener("pointermove", (event) => {
      const cell = under(event);
      point(cell);
      this.onHover(cell?.lines, event);
    });
    chart.addEventListener("pointerleave", () => { point(null); this.onHover(null); });
    chart.addEventListener("blur", () => point(null));
    chart.addEventListener("click", (event) => {
      cursor = under(event) ?? cursor;
      if (under(event)) this.onChoose(cursor.pairs, cursor.text);
    });
    chart.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
      if (event.key in moves) {
        const [dr, dc] = moves[event.key];
        const ahead = (cell) => (cell.r - cursor.r) * dr + (cell.c - cursor.c) * dc;
        const aside = (cell) => Math.abs((cell.r - cursor.r) * dc) + Math.abs((cell.c - cursor.c) * dr);
        const next = cursor ? cells.filter((cell) => ahead(cell) > 0).sort((a, b) => ahead(a) + 9 * aside(a) - ahead(b) - 9 * aside(b))[0] : cells[0];
        cursor = next ?? cursor;
        point(cursor);
        byId("heat-live").textContent = cursor.lines.join(", ");
      } else if (event.key === "Enter" && cursor) {
        this.onChoose(cursor.pairs, cursor.text);
      } else {
        return;
      }
      event.preventDefault();
    });
  }

  // Tensors of no layer, those that moved most first.
  outside() {
    const looks = this.rest.map((pair) => ({ pair, ...this.look([pair]) })).sort((a, b) => (b.value ?? -1) - (a.value ?? -1));
    const lines = looks.slice(0, 24).map(({ pair, fill, value }) => {
      const swatch = make("span", "swatch", FATES[pair.fate].sign);
      swatch.style.background = fill === "none" ? theme.module : fill;
      const text = this.measure ? this.measure.write(value) : pair.kind;
      const line = make("button", "outside", swatch, make("span", "name", make("bdi", "", visible(pair.name, 200))), make("span", "number", text));
      line.type = "button";
      line.addEventListener("click", () => this.onChoose([pair], pair.name));
      return line;
    });
    const figure = make("div", "grid", make("h3", "", this.grids.length > 0 ? "Outside of layers" : "Tensors"), make("div", "outsides", ...lines));
    if (looks.length > lines.length) figure.append(make("p", "hint", `and ${count(looks.length - lines.length)} more; the table has them all`));
    return figure;
  }
}

const cutStart = (text, most) => (text.length > most ? `…${visible(text.slice(1 - most))}` : visible(text));
