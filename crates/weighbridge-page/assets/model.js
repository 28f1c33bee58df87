// The checkpoint as the page knows it: the columns of its document, and the tree that the names make.

// As in the command: what follows so many dots is one name.
const DEEPEST = 64;

function modelOf({ columns, forms, ...model }) {
  model.hasFigures = Boolean(columns.figures);
  model.tensors = columns.name.map((name, place) => new Tensor(name, place, forms[columns.form[place]], columns, model.ranks));
  for (let rank = 0; rank < model.ranks; rank += 1) HUES[`rank ${rank}`] = 258 + (360 * rank) / model.ranks;
  model.kinds = kindsOf(model);
  model.root = treeOf(model.tensors);
  return model;
}

class Tensor {
  constructor(name, place, form, columns, ranks) {
    this.name = name;
    this.place = place;
    this.form = form;
    this.columns = columns;
    this.kind = ranks ? name.split(".", 1)[0] : form.dtype;
    this.shade = undefined;
    this.text = undefined;
    this.node = null;
  }

  get dtype() { return this.form.dtype; }
  get shape() { return this.form.shape; }
  get elements() { return this.form.elements; }
  get bytes() { return this.form.bytes; }
  get shard() { return this.columns.shard[this.place]; }
  // None of what is not stored as it is.
  get offset() { return this.columns.offset[this.place]; }
  get figures() { return this.columns.figures?.[this.place]; }

  // What a search looks at.
  get haystack() {
    this.text ??= `${this.name} ${this.dtype} ${shapeOf(this)} ${this.shape.slice(0, 8).join("x")}`.toLowerCase();
    return this.text;
  }
}

// What tiles are coloured by, with its totals: dtypes, or ranks.
function kindsOf(model) {
  if (!model.ranks) return model.dtypes.map((total) => ({ ...total, kind: total.dtype }));
  const kinds = new Map();
  for (const { kind, bytes: size, elements } of model.tensors) {
    const total = kinds.get(kind) ?? { kind, tensors: 0, elements: 0, bytes: 0 };
    kinds.set(kind, { kind, tensors: total.tensors + 1, elements: total.elements + elements, bytes: total.bytes + size });
  }
  return [...kinds.values()];
}

// Tensors of a module stand side by side, as they are sorted by path. A module of one tensor is no node of its own.
function treeOf(tensors) {
  const root = nodeOf("", null, null);
  // The modules that are open, and where in the name what is in them begins.
  const open = [root];
  const begins = [0];
  let before = 0;
  tensors.forEach((tensor, place) => {
    const { name } = tensor;
    const after = place + 1 < tensors.length ? shared(name, tensors[place + 1].name) : 0;
    open.length = before + 1;
    const depth = Math.max(before, after);
    while (open.length <= depth) {
      const parent = open[open.length - 1];
      const begin = begins[open.length - 1];
      const dot = name.indexOf(".", begin);
      begins[open.length] = dot + 1;
      open.push(nodeOf(name.slice(begin, dot), parent, null));
      parent.children.push(open[open.length - 1]);
    }
    const leaf = nodeOf(name.slice(begins[depth]), open[depth], tensor);
    tensor.node = leaf;
    open[depth].children.push(leaf);
    before = after;
  });
  finish(root);
  return root;
}

// In how many modules both names are.
function shared(a, b) {
  let modules = 0;
  for (let i = 0; i < a.length && a.charCodeAt(i) === b.charCodeAt(i); i += 1) {
    if (a.charCodeAt(i) === 46) modules += 1;
  }
  return Math.min(modules, DEEPEST - 1);
}

const NONE = Object.freeze([]);

const nodeOf = (name, parent, tensor) => ({
  name, parent, tensor, children: tensor ? NONE : [], blocks: null, bytes: tensor ? tensor.bytes : 0, count: tensor ? 1 : 0,
});

// Adds up. A module with one child shares its tile; children stand by size, as the map places them.
function finish(node) {
  const { children } = node;
  for (let i = 0; i < children.length; i += 1) {
    let only = children[i];
    let { name } = only;
    while (only.children.length === 1) {
      [only] = only.children;
      name += `.${only.name}`;
    }
    only.name = name;
    only.parent = node;
    children[i] = only;
    if (!only.tensor) finish(only);
    node.bytes += only.bytes;
    node.count += only.count;
  }
  children.sort((a, b) => b.bytes - a.bytes);
}

function pathOf(node) {
  const names = [];
  for (; node.parent; node = node.parent) names.push(node.name);
  return names.reverse().join(".");
}

function ancestors(node) {
  const path = [];
  for (; node; node = node.parent) path.push(node);
  return path.reverse();
}

// Tensors of one role, such as all `q_proj.weight`, have one shade of their dtype's or rank's colour.
function shadeOf(tensor) {
  if (tensor.shade === undefined) {
    const role = tensor.name.split(".").filter((part) => !/^\d+$/.test(part)).slice(-2).join(".");
    let hash = 2166136261;
    for (let i = 0; i < role.length && i < 200; i += 1) hash = Math.imul(hash ^ role.charCodeAt(i), 16777619);
    hash ^= hash >>> 15;
    tensor.shade = ((hash >>> 3) % 7) + 7 * ((hash >>> 9) % 5);
  }
  const { shade, kind } = tensor;
  const { shades } = theme;
  if (!shades.has(kind)) shades.set(kind, []);
  return shades.get(kind)[shade] ??= colorOf(kind, ((shade % 7) - 3) * 0.02, (Math.floor(shade / 7) - 2) * 9);
}
