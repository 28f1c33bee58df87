// The map: nested tiles whose areas are bytes, squarified (Bruls, Huizing, van Wijk), drawn on a canvas.

const HEAD = 18;
const GAP = 1;
const SMALLEST = 3;
const GRAIN = 6;
const ZOOM_MS = 260;

class Treemap {
  constructor(canvas, { onZoom, onSelect, onHover }) {
    Object.assign(this, { canvas, onZoom, onSelect, onHover });
    this.tiles = [];
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.setHover(null));
    canvas.addEventListener("click", (event) => this.open(this.at(event)?.node));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cursor = null; this.draw(); });
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  show(model) {
    Object.assign(this, { model, root: model.root, hover: null, cursor: null, selected: null, matches: null, moving: false });
    this.resize();
  }

  resize() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const scale = window.devicePixelRatio || 1;
    if (width === 0 || !this.model) return;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    Object.assign(this, { width, height, scale });
    this.layout();
  }

  layout() {
    this.tiles = [];
    this.place(this.root, 0, 0, this.width, this.height, 0);
    this.picture = this.paint();
    this.draw();
  }

  // Places the children of a node in a rectangle, and theirs in them as far as there is room.
  place(node, x, y, width, height, depth) {
    for (const [child, left, top, w, h] of arranged(node, x, y, width, height)) {
      if (w < 0.4 || h < 0.4) continue;
      const tile = { node: child, x: left, y: top, w, h, depth, head: 0, open: false };
      this.tiles.push(tile);
      // What would be a grain of sand is not drawn.
      if (child.tensor || w < 2 * SMALLEST || h < 2 * SMALLEST || w * h < GRAIN * child.children.length) continue;
      const roomy = w > 48 && h > 3 * HEAD;
      const edge = roomy ? 3 : w > 14 && h > 14 ? 1 : 0;
      tile.head = roomy ? HEAD : 0;
      tile.open = true;
      const upper = tile.head || edge;
      this.place(child, left + edge, top + upper, w - 2 * edge, h - upper - edge, depth + 1);
    }
  }

  paint() {
    const picture = document.createElement("canvas");
    picture.width = this.canvas.width;
    picture.height = this.canvas.height;
    const g = picture.getContext("2d");
    g.scale(this.scale, this.scale);
    g.fillStyle = theme.frame;
    g.fillRect(0, 0, this.width, this.height);
    for (const tile of this.tiles) this.paintTile(g, tile);
    return picture;
  }

  paintTile(g, { node, x, y, w, h, head, open, depth }) {
    const gap = w > 4 && h > 4 ? GAP : w > 1.5 && h > 1.5 ? 0.3 : 0;
    const [left, top, width, height] = [x + gap / 2, y + gap / 2, w - gap, h - gap];
    const dim = this.matches && !open && !this.matched(node);
    g.globalAlpha = dim ? 0.16 : 1;
    g.fillStyle = node.tensor ? shadeOf(node.tensor) : open ? theme.module : shadeOf(largest(node));
    const round = Math.min(4, width / 4, height / 4);
    if (round > 1) {
      g.beginPath();
      g.roundRect(left, top, width, height, round);
      g.fill();
    } else {
      g.fillRect(left, top, width, height);
    }
    if (head) {
      label(g, visible(node.name, 200), x + 7, y + 13, w - 14, `600 11px ${FONT}`, theme.ink, bytes(node.bytes), theme.soft);
    } else if (!open && !node.tensor && w > 30 && h > 16) {
      label(g, visible(node.name, 200), x + 6, y + h / 2 + 4, w - 10, `600 11px ${FONT}`, theme.tileInk);
    } else if (node.tensor && w > 38 && h > 16) {
      const roomy = h > 34;
      label(g, visible(node.name, 200), x + 7, y + (roomy ? 16 : h / 2 + 4), w - 12, `500 11.5px ${FONT}`, theme.tileInk);
      if (roomy && w > 52) label(g, bytes(node.bytes), x + 7, y + 30, w - 12, `11px ${FONT}`, theme.tileInk, null, null, 0.72);
      if (h > 52 && w > 80) label(g, shapeOf(node.tensor), x + 7, y + 44, w - 12, `11px ${FONT}`, theme.tileInk, null, null, 0.72);
    }
    g.globalAlpha = 1;
    return depth;
  }

  matched(node) {
    return node.tensor ? this.matches.has(node.tensor.place) : node.children.some((child) => this.matched(child));
  }

  // The picture, and outlines of what is pointed at and selected.
  draw() {
    if (!this.picture || this.moving) return;
    const g = this.canvas.getContext("2d");
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.drawImage(this.picture, 0, 0);
    g.scale(this.scale, this.scale);
    const outline = (node, color, width) => {
      const tile = node && this.tiles.find((tile) => tile.node === node);
      if (!tile) return;
      g.strokeStyle = color;
      g.lineWidth = width;
      g.beginPath();
      g.roundRect(tile.x + width / 2, tile.y + width / 2, Math.max(tile.w - width, 1), Math.max(tile.h - width, 1), Math.min(4, tile.w / 4));
      g.stroke();
    };
    if (this.hover) {
      outline(this.step(this.hover), theme.soft, 1.5);
      outline(this.hover, theme.ink, 1.5);
    }
    outline(this.selected, theme.accent, 2.5);
    outline(this.cursor, theme.accent, 3);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const hit = ({ x: left, y: top, w, h }) => x >= left && x < left + w && y >= top && y < top + h;
    for (let i = this.tiles.length - 1; i >= 0; i -= 1) {
      if (hit(this.tiles[i])) return this.tiles[i];
    }
    return null;
  }

  point(event) {
    this.setHover(this.at(event)?.node ?? null, event);
  }

  setHover(node, event) {
    const changed = node !== this.hover;
    this.hover = node;
    if (changed) this.draw();
    this.onHover(node, event);
  }

  // The child of the shown module that holds a node.
  step(node) {
    while (node && node.parent !== this.root && node.parent) node = node.parent;
    return node;
  }

  // One step towards what was pressed: into its module, or to the tensor itself.
  open(node) {
    const next = node && this.step(node);
    if (!next) return;
    if (next.tensor) this.onSelect(next.tensor);
    else this.zoom(next);
  }

  key(event) {
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    if (event.key in moves) this.move(...moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.open(this.cursor ?? this.root.children[0]);
    else if ((event.key === "Escape" || event.key === "Backspace") && this.root.parent) this.zoom(this.root.parent);
    else if (event.key === "Home") this.zoom(this.model.root);
    else return;
    event.preventDefault();
  }

  // The nearest tile of the shown module's children in a direction.
  move(dx, dy) {
    const tiles = this.tiles.filter((tile) => tile.depth === 0);
    const from = tiles.find((tile) => tile.node === this.cursor);
    const middle = (tile) => [tile.x + tile.w / 2, tile.y + tile.h / 2];
    let best = from ? null : tiles[0];
    let least = Infinity;
    for (const tile of from ? tiles : []) {
      const [x, y] = middle(tile);
      const [fx, fy] = middle(from);
      const ahead = (x - fx) * dx + (y - fy) * dy;
      const aside = Math.abs((x - fx) * dy) + Math.abs((y - fy) * dx);
      if (ahead > 1 && ahead + 2 * aside < least) [least, best] = [ahead + 2 * aside, tile];
    }
    if (!best) return;
    this.cursor = best.node;
    byId("map-live").textContent = describe(best.node, this.model).join(", ");
    this.draw();
  }

  zoom(node) {
    if (node === this.root || !this.width) return;
    const inward = ancestors(node).includes(this.root);
    const before = this.picture;
    const place = (of) => this.tiles.find((tile) => tile.node === of);
    const old = this.root;
    const from = inward ? place(node) : null;
    this.root = node;
    this.cursor = null;
    this.hover = null;
    this.moving = true;
    this.layout();
    const to = inward ? null : place(old) ?? place(this.step(old));
    this.moving = false;
    this.onZoom(node);
    this.animate(before, from, to);
  }

  // Inward the new picture grows out of its tile; outward the old one shrinks into it.
  animate(before, from, to) {
    const tile = from ?? to;
    if (!tile || window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.draw();
      return;
    }
    const g = this.canvas.getContext("2d");
    const [small, below] = from ? [this.picture, before] : [before, this.picture];
    const start = performance.now();
    this.moving = true;
    const frame = (now) => {
      const time = Math.min(1, Math.max(0, (now - start) / ZOOM_MS));
      const eased = 1 - (1 - time) ** 3;
      const full = from ? eased : 1 - eased;
      const s = this.scale;
      const mix = (a, b) => (a + (b - a) * full) * s;
      g.setTransform(1, 0, 0, 1, 0, 0);
      g.globalAlpha = 1;
      g.drawImage(below, 0, 0);
      g.globalAlpha = from ? Math.min(1, 0.3 + time) : 1 - time * time;
      g.drawImage(small, mix(tile.x, 0), mix(tile.y, 0), mix(tile.w, this.width), mix(tile.h, this.height));
      g.globalAlpha = 1;
      if (time < 1) requestAnimationFrame(frame);
      else {
        this.moving = false;
        this.draw();
      }
    };
    requestAnimationFrame(frame);
  }

  // Shows a tensor: in its module, unless it can be seen already.
  select(tensor) {
    this.selected = tensor.node;
    const seen = this.tiles?.find((tile) => tile.node === tensor.node);
    if (tensor.bytes > 0 && !(seen && seen.w > 6 && seen.h > 6)) this.zoom(tensor.node.parent);
    this.draw();
  }

  setMatches(matches) {
    this.matches = matches;
    this.repaint();
  }

  repaint() {
    if (!this.width) return;
    this.picture = this.paint();
    this.draw();
  }
}

// The tensor whose colour a module has that is not open.
function largest(node) {
  while (!node.tensor) [node] = node.children;
  return node.tensor;
}

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

// A text cut to its room, and another at the right end if that fits as well.
function label(g, text, x, y, room, font, color, right = null, rightColor = null, alpha = 1) {
  g.font = font;
  const before = g.globalAlpha;
  g.globalAlpha = before * alpha;
  let width = g.measureText(text).width;
  if (width > room) {
    let keep = Math.floor((text.length * room) / width);
    while (keep > 1 && g.measureText(`${text.slice(0, keep)}…`).width > room) keep -= 1;
    text = keep > 1 ? `${text.slice(0, keep)}…` : "";
    width = room;
  }
  g.fillStyle = color;
  g.fillText(text, x, y);
  if (right) {
    g.font = font.replace("600", "400");
    const wide = g.measureText(right).width;
    g.fillStyle = rightColor;
    if (width + wide + 10 < room) g.fillText(right, x + room - wide, y);
  }
  g.globalAlpha = before;
}

// Places what is in a node. Layers, which have numbers for names, stand in reading order, the rest by size.
function* arranged(node, x, y, width, height) {
  if (!(node.bytes > 0)) return;
  node.blocks ??= blocksOf(node);
  for (const [block, left, top, w, h] of squarify(node.blocks, node.bytes, x, y, width, height)) {
    if (block.layers) yield* inOrder(block.layers, block.bytes, left, top, w, h);
    else yield [block, left, top, w, h];
  }
}

// Its children, with layers of like sizes as one.
function blocksOf(node) {
  if (node.tensor) return [node];
  const isLayer = (child) => /^\d+(\.|$)/.test(child.name) && child.bytes > 0;
  const layers = node.children.filter(isLayer);
  const bytes = layers.reduce((sum, layer) => sum + layer.bytes, 0);
  if (layers.length < 2 || layers[0].bytes * layers.length > 4 * bytes) return node.children;
  layers.sort((a, b) => parseInt(a.name, 10) - parseInt(b.name, 10));
  const others = node.children.filter((child) => !isLayer(child));
  return [...others, { layers, bytes }].sort((a, b) => b.bytes - a.bytes);
}

// Rows from left to right and from top to bottom, as many as make tiles the squarest.
function* inOrder(nodes, whole, x, y, width, height) {
  const ideal = Math.round(Math.sqrt((nodes.length * height) / width));
  let [best, least] = [null, Infinity];
  for (let count = Math.max(1, ideal - 2); count <= Math.min(nodes.length, ideal + 2) || !best; count += 1) {
    const rows = rowsOf(nodes, whole, Math.min(count, nodes.length));
    let worst = 0;
    for (const row of rows) {
      const tall = (height * row.bytes) / whole;
      for (const node of row.nodes) worst += ratio((width * node.bytes) / row.bytes, tall) / nodes.length;
    }
    if (worst < least) [best, least] = [rows, worst];
  }
  let top = y;
  for (const row of best) {
    const tall = (height * row.bytes) / whole;
    let left = x;
    for (const node of row.nodes) {
      const wide = (width * node.bytes) / row.bytes;
      yield [node, left, top, wide, tall];
      left += wide;
    }
    top += tall;
  }
}

const ratio = (a, b) => Math.max(a / b, b / a);

// So many rows of about as many bytes.
function rowsOf(nodes, whole, count) {
  const rows = [];
  let before = 0;
  for (const node of nodes) {
    // Of the middle of each tile.
    const number = Math.min(count - 1, Math.floor(((before + node.bytes / 2) / whole) * count));
    rows[number] ??= { nodes: [], bytes: 0 };
    rows[number].nodes.push(node);
    rows[number].bytes += node.bytes;
    before += node.bytes;
  }
  return rows.filter(Boolean);
}

// Rows along the shorter side, each taking tiles as long as that makes them squarer.
function* squarify(nodes, whole, x, y, width, height) {
  const unit = (width * height) / whole;
  let first = 0;
  while (first < nodes.length && nodes[first].bytes > 0 && width > 0 && height > 0) {
    const side = Math.min(width, height);
    let sum = 0;
    let worst = Infinity;
    let last = first;
    for (; last < nodes.length; last += 1) {
      const area = nodes[last].bytes * unit;
      const next = sum + area;
      const most = nodes[first].bytes * unit;
      const ratio = Math.max((side * side * most) / (next * next), (next * next) / (side * side * area));
      if (!(ratio <= worst)) break;
      [sum, worst] = [next, ratio];
    }
    if (last === first) break;
    const thick = Math.min(sum / side, Math.max(width, height));
    let along = 0;
    for (let i = first; i < last; i += 1) {
      const long = ((nodes[i].bytes * unit) / sum) * side;
      yield width >= height ? [nodes[i], x, y + along, thick, long] : [nodes[i], x + along, y, long, thick];
      along += long;
    }
    if (width >= height) [x, width] = [x + thick, width - thick];
    else [y, height] = [y + thick, height - thick];
    first = last;
  }
}

// What a node is, in texts: its path, and its size.
function describe(node, model) {
  const size = `${bytes(node.bytes)}, ${percent(node.bytes, model.bytes)} of the whole`;
  const path = visible(pathOf(node), 400);
  return node.tensor ? [path, `${node.tensor.dtype} ${shapeOf(node.tensor)}`, size] : [path, plural(node.count, "tensor"), size];
}
