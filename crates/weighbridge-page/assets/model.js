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

// Tensors of a module stand side by side, as they are sorted by path.
function treeOf(tensors) {
  const root = nodeOf("", null, null);
  const open = [root];
  for (const tensor of tensors) {
    const parts = tensor.name.split(".");
    if (parts.length > DEEPEST) parts.splice(DEEPEST - 1, parts.length, parts.slice(DEEPEST - 1).join("."));
    const last = parts.length - 1;
    let depth = 0;
    while (depth < last && depth + 1 < open.length && open[depth + 1].name === parts[depth]) depth += 1;
    open.length = depth + 1;
    for (; depth < last; depth += 1) {
      const module = nodeOf(parts[depth], open[depth], null);
      open[depth].children.push(module);
      open.push(module);
    }
    const leaf = nodeOf(parts[last], open[last], tensor);
    tensor.node = leaf;
    open[last].children.push(leaf);
  }
  finish(root);
  return root;
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
