// Two checkpoints as the page knows them: the tensors of both by name, what became of each, and how far it moved.

// What became of a tensor, in the order of the legend: a name, a hue, a sign in the map.
const FATES = {
  moved: { title: "moved", hue: 40, sign: "" },
  shape: { title: "other shape", hue: 310, sign: "≠" },
  dtype: { title: "other dtype", hue: 250, sign: "~" },
  removed: { title: "only in A", hue: 22, sign: "−" },
  added: { title: "only in B", hue: 150, sign: "+" },
  same: { title: "the same", sign: "" },
};
for (const { title, hue } of Object.values(FATES)) if (hue !== undefined) HUES[title] = hue;

function modelOf({ columns, forms, ...model }) {
  const form = (place) => (place === null ? null : forms[place]);
  model.tensors = columns.name.map((name, place) => {
    const [a, b] = [form(columns.a[place]), form(columns.b[place])];
    return new Pair(name, place, a, b, columns.changes?.[place] ?? null);
  });
  model.count = model.tensors.length;
  model.hasValues = Boolean(columns.changes);
  model.fates = new Map(Object.keys(FATES).map((fate) => [fate, 0]));
  for (const { fate } of model.tensors) model.fates.set(fate, model.fates.get(fate) + 1);
  return model;
}

class Pair {
  constructor(name, place, a, b, change) {
    Object.assign(this, { name, place, a, b, change, text: undefined });
    this.fate = !b ? "removed" : !a ? "added" : String(a.shape) !== String(b.shape) ? "shape"
      : a.dtype !== b.dtype ? "dtype" : change?.differing > 0 ? "moved" : "same";
    // What the legend chooses by.
    this.kind = FATES[this.fate].title;
  }

  get dtypes() { return both(this.a?.dtype, this.b?.dtype); }
  get shapes() { return both(this.a && shapeOf(this.a), this.b && shapeOf(this.b)); }
  // The norm of the difference as a share of the norm of the first.
  get moved() { return this.change && relative(this.change.distance, this.change.norm); }
  get largest() { return this.change && this.change.max_absolute; }
  get turned() { return this.change && this.change.cosine !== null ? Math.max(0, 1 - this.change.cosine) : null; }
  get differing() { return this.change && this.change.values > 0 ? this.change.differing / this.change.values : null; }

  get haystack() {
    this.text ??= `${this.name} ${this.dtypes} ${this.shapes} ${this.kind}`.toLowerCase();
    return this.text;
  }
}

const both = (a, b) => (a && b && a !== b ? `${a} → ${b}` : a || b);

function relative(distance, norm) {
  if (distance === null || norm === null || distance === undefined) return null;
  return distance === 0 ? 0 : norm > 0 ? distance / norm : Infinity;
}

// Of tensors as one.
const length = (pairs, what) => Math.sqrt(pairs.reduce((sum, { change }) => sum + change[what] ** 2, 0));

// What the colours can show: of a tensor, and of several as one.
const MEASURES = {
  moved: {
    title: "Relative change", unit: "relative change, ‖B − A‖ / ‖A‖", write: asPercent, of: (pair) => pair.moved,
    join: (pairs) => relative(length(pairs, "distance"), length(pairs, "norm")),
  },
  largest: {
    title: "Largest difference", unit: "largest |B − A| of a value", write: real, of: (pair) => pair.largest,
    join: (pairs) => pairs.reduce((most, pair) => Math.max(most, pair.largest), 0),
  },
  turned: {
    title: "Turned", unit: "turned, 1 − cosine of A and B (of a cell the most)", write: real, of: (pair) => pair.turned,
    join: (pairs) => pairs.reduce((most, pair) => Math.max(most, pair.turned), 0),
  },
  differing: {
    title: "Values changed", unit: "share of the values that differ", write: asPercent, of: (pair) => pair.differing,
    join: (pairs) => pairs.reduce((sum, pair) => sum + pair.change.differing, 0) / pairs.reduce((sum, pair) => sum + pair.change.values, 0),
  },
};

// Of tensors as one, those that have a number; none if none has.
function measured(measure, pairs) {
  const known = pairs.filter((pair) => measure.of(pair) !== null && (measure !== MEASURES.moved || pair.change.norm !== null));
  return known.length === 0 ? null : known.length === 1 ? measure.of(known[0]) : measure.join(known);
}

// 0.25 %; small ones with an exponent.
function asPercent(value) {
  if (value === null || value === undefined) return "–";
  if (value === Infinity) return "∞";
  const share = 100 * value;
  if (share === 0) return "0";
  return share >= 0.01 ? `${Number(share.toPrecision(3))} %` : `${share.toExponential(share < 1e-4 ? 0 : 1).replace("e-", "e−")} %`;
}

// The stacks of layers, each as a grid of cells by the module within the layer and the layer's number; and the rest.
function gridsOf(tensors) {
  const stacks = new Map();
  const rest = [];
  for (const pair of tensors) {
    const parts = pair.name.split(".");
    const at = parts.findIndex((part) => /^\d{1,6}$/.test(part));
    if (at < 0 || at === parts.length - 1) {
      rest.push(pair);
      continue;
    }
    const path = parts.slice(0, at).join(".");
    if (!stacks.has(path)) stacks.set(path, { path, layers: new Map(), rows: new Map() });
    const stack = stacks.get(path);
    const module = parts.slice(at + 1).map((part) => (/^\d+$/.test(part) ? "*" : part)).join(".").replace(/\.weight$/, "");
    const layer = Number(parts[at]);
    if (!stack.rows.has(module)) stack.rows.set(module, new Map());
    const row = stack.rows.get(module);
    for (const [map, key] of [[row, layer], [stack.layers, layer]]) {
      if (!map.has(key)) map.set(key, []);
      map.get(key).push(pair);
    }
  }
  const grids = [];
  for (const stack of stacks.values()) {
    if (stack.layers.size < 2) rest.push(...[...stack.layers.values()].flat());
    else grids.push({ ...stack, numbers: [...stack.layers.keys()].sort((a, b) => a - b) });
  }
  grids.sort((a, b) => b.layers.size * b.rows.size - a.layers.size * a.rows.size);
  return { grids, rest };
}
