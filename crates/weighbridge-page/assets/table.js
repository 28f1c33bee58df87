// The table of tensors. Only the rows that can be seen exist, so that their number does not matter.

const ROW = 32;
// Browsers cannot scroll further than some 30 million pixels; beyond this, scrolling is scaled.
const TALLEST = 8_000_000;

class Table {
  constructor({ columnsOf, onSelect, onFound }) {
    Object.assign(this, { columnsOf, onSelect, onFound });
    this.rows = byId("rows");
    this.space = byId("space");
    this.found = [];
    this.pool = [];
    this.rows.addEventListener("scroll", () => this.later());
    this.rows.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.rows);
  }

  show(model) {
    this.model = model;
    this.columns = this.columnsOf(model);
    const first = this.columns.find((column) => column.first) ?? this.columns[0];
    this.sorted = { column: first, descending: Boolean(first.right) };
    this.filter = { words: [], kind: null, shard: null };
    this.selected = null;
    for (const row of this.pool) row.element.remove();
    this.pool = [];
    const width = this.columns.reduce((sum, column) => sum + column.width + 12, 20);
    byId("table").style.setProperty("--least", `${width}px`);
    const widths = this.columns.map((column, i) => (i === 0 ? `minmax(${column.width}px, 1fr)` : `${column.width}px`));
    byId("table").style.setProperty("--columns", widths.join(" "));
    byId("table").setAttribute("aria-colcount", this.columns.length);
    this.heads = this.columns.map((column) => this.head(column));
    byId("heads").replaceChildren(...this.heads);
    this.update();
  }

  // Heads stand above their columns whatever room the scroll bar takes.
  resize() {
    byId("heads").style.paddingRight = `${16 + this.rows.offsetWidth - this.rows.clientWidth}px`;
    this.draw();
  }

  head(column) {
    const button = make("button", column.right ? "right" : "", column.title);
    button.type = "button";
    button.addEventListener("click", () => this.sort(column));
    const head = make("div", "", button);
    head.setAttribute("role", "columnheader");
    head.setAttribute("aria-sort", "none");
    return head;
  }

  // By a column, and the other way round the second time. Of numbers the greatest come first.
  sort(column) {
    const again = this.sorted.column === column;
    this.sorted = { column, descending: again ? !this.sorted.descending : Boolean(column.right) };
    this.update();
  }

  search(text) {
    this.filter.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.update();
  }

  // Only tensors of a dtype or rank, or of a shard; all of them if it is null.
  only(what, value) {
    this.filter[what] = value;
    this.update();
  }

  update() {
    const { words, kind, shard } = this.filter;
    const all = words.length === 0 && kind === null && shard === null;
    this.found = all ? this.model.tensors.slice() : this.model.tensors.filter((tensor) =>
      (kind === null || tensor.kind === kind) && (shard === null || tensor.shard === shard)
      && words.every((word) => tensor.haystack.includes(word)));
    const { column, descending } = this.sorted;
    const sign = descending ? -1 : 1;
    if (column.key !== "name") this.found.sort((a, b) => sign * column.compare(a, b) || a.place - b.place);
    else if (descending) this.found.reverse();
    this.heads.forEach((head, i) => head.setAttribute("aria-sort",
      this.columns[i] !== column ? "none" : descending ? "descending" : "ascending"));
    byId("table").setAttribute("aria-rowcount", this.found.length + 1);
    this.space.style.height = `${Math.min(this.found.length * ROW, TALLEST)}px`;
    this.rows.scrollTop = 0;
    this.draw();
    this.onFound(this.found, all);
  }

  later() {
    if (!this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    if (!this.model) return;
    const room = this.rows.clientHeight;
    const height = this.found.length * ROW;
    const scrollable = Math.min(height, TALLEST) - room;
    const scroll = Math.max(0, Math.min(this.rows.scrollTop, scrollable));
    // Where the list would be scrolled to if it were as high as its rows.
    const top = height > TALLEST ? (scroll / scrollable) * (height - room) : scroll;
    const first = Math.max(0, Math.floor(top / ROW) - 2);
    const shown = Math.min(this.found.length - first, Math.ceil(room / ROW) + 4);
    while (this.pool.length < shown) this.pool.push(this.row());
    this.pool.forEach((row, i) => {
      const tensor = i < shown ? this.found[first + i] : null;
      row.element.hidden = !tensor;
      row.element.style.display = tensor ? "" : "none";
      if (!tensor) return;
      row.element.style.transform = `translateY(${(first + i) * ROW - top + scroll}px)`;
      row.element.setAttribute("aria-rowindex", first + i + 2);
      row.element.setAttribute("aria-selected", tensor === this.selected);
      if (row.tensor !== tensor) {
        row.tensor = tensor;
        this.columns.forEach((column, c) => column.show(row.cells[c], tensor));
      }
    });
  }

  row() {
    const cells = this.columns.map((column) => {
      const cell = make("div", column.right ? "right" : column.key);
      cell.setAttribute("role", "cell");
      return cell;
    });
    const row = { element: make("div", "row", ...cells), cells, tensor: null };
    row.element.setAttribute("role", "row");
    row.element.addEventListener("click", () => this.onSelect(row.tensor));
    this.rows.append(row.element);
    return row;
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || this.found.length === 0) return;
    const from = this.found.indexOf(this.selected);
    const to = Math.max(0, Math.min(this.found.length - 1, from + steps[event.key]));
    this.onSelect(this.found[to]);
    event.preventDefault();
  }

  // Marks a tensor and brings it into sight.
  select(tensor) {
    this.selected = tensor;
    const place = this.found.indexOf(tensor);
    const [room, height] = [this.rows.clientHeight, this.found.length * ROW];
    const ratio = height > TALLEST ? (TALLEST - room) / (height - room) : 1;
    const top = this.rows.scrollTop / ratio;
    if (place >= 0 && (place * ROW < top || (place + 1) * ROW > top + room)) {
      this.rows.scrollTop = (place * ROW - room / 2) * ratio;
    }
    this.draw();
  }

  repaint() {
    for (const row of this.pool) row.tensor = null;
    this.draw();
  }
}

// A column of texts, and one of numbers.
const textColumn = (key, title, width, value) => ({
  key, title, width, compare: (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0),
  show: (cell, tensor) => { cell.textContent = value(tensor); },
});
const numberColumn = (key, title, width, value, write) => ({
  key, title, width, right: true,
  // What has no number stands behind all that do.
  compare: (a, b) => (value(a) ?? -Infinity) - (value(b) ?? -Infinity) || 0,
  show: (cell, tensor) => { cell.textContent = write(value(tensor), tensor); },
});

// The end of a long name is what differs.
const nameColumn = (width) => ({
  ...textColumn("name", "Name", width, (tensor) => tensor.name),
  show: (cell, tensor) => {
    cell.replaceChildren(make("bdi", "", visible(tensor.name)));
    cell.title = visible(tensor.name);
  },
});

function dot(kind) {
  const mark = make("span", "dot");
  mark.style.background = colorOf(kind);
  return mark;
}
