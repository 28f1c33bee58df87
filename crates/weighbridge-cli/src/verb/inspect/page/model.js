// The checkpoint as the page knows it: the document of `--format json`, and the tree that the names make.

// As in the command: what follows so many dots is one name.
const DEEPEST = 64;

function readModel() {
  const checkpoint = JSON.parse(byId("data").textContent).checkpoints[0];
  const model = { ...checkpoint, hasFigures: checkpoint.tensors.some((tensor) => tensor.figures) };
  model.tensors.forEach((tensor, place) => {
    tensor.place = place;
    tensor.kind = checkpoint.ranks ? tensor.name.split(".", 1)[0] : tensor.dtype;
    tensor.haystack = `${tensor.name} ${tensor.dtype} ${shapeOf(tensor)} ${tensor.shape.slice(0, 8).join("x")}`.toLowerCase();
  });
  model.kinds = kindsOf(model);
  for (let rank = 0; rank < (model.ranks ?? 0); rank += 1) HUES[`rank ${rank}`] = 258 + (360 * rank) / model.ranks;
  model.root = treeOf(model.tensors);
  return model;
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

function treeOf(tensors) {
  const root = nodeOf("", null);
  for (const tensor of tensors) {
    const parts = tensor.name.split(".");
    if (parts.length > DEEPEST) parts.splice(DEEPEST - 1, parts.length, parts.slice(DEEPEST - 1).join("."));
    let node = root;
    for (const part of parts.slice(0, -1)) {
      let child = node.modules.get(part);
      if (!child) {
        child = nodeOf(part, node);
        node.modules.set(part, child);
        node.children.push(child);
      }
      node = child;
    }
    const leaf = nodeOf(parts[parts.length - 1], node);
    leaf.tensor = tensor;
    leaf.bytes = tensor.bytes;
    leaf.count = 1;
    tensor.node = leaf;
    node.children.push(leaf);
    for (let up = node; up; up = up.parent) {
      up.bytes += tensor.bytes;
      up.count += 1;
    }
  }
  shorten(root);
  return root;
}

const nodeOf = (name, parent) => ({ name, parent, tensor: null, modules: new Map(), children: [], bytes: 0, count: 0 });

// A module with one child shares its tile; children stand by size, as the map places them.
function shorten(node) {
  node.modules = null;
  node.children = node.children.map((child) => {
    let only = child;
    while (only.children.length === 1) {
      const [next] = only.children;
      next.name = `${only.name}.${next.name}`;
      only = next;
    }
    only.parent = node;
    shorten(only);
    return only;
  });
  node.children.sort((a, b) => b.bytes - a.bytes);
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

// Each dtype has a hue; families are neighbours. So has each rank.
const HUES = {
  BF16: 258, F16: 215, F32: 300, F64: 330, C64: 350, F8_E4M3: 78, F8_E5M2: 58, F8_E4M3FNUZ: 92, F8_E5M2FNUZ: 46,
  F8_E8M0: 112, F6_E2M3: 34, F6_E3M2: 22, F4: 10, I8: 150, U8: 165, I16: 138, U16: 176, I32: 144, U32: 186, I64: 156, U64: 194,
};

let theme = null;

// The colours of the style sheet, read again when light and dark change.
function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  theme = {
    lightness: Number(value("--tile-l")), chroma: Number(value("--tile-c")), tileInk: value("--tile-ink"),
    frame: value("--frame"), module: value("--module"), ink: value("--ink"), soft: value("--soft"), accent: value("--accent"),
  };
}

function colorOf(kind, lighter = 0, turn = 0) {
  const chroma = kind in HUES ? theme.chroma : 0.012;
  return `oklch(${(theme.lightness + lighter).toFixed(3)} ${chroma} ${(HUES[kind] ?? 0) + turn})`;
}

// Tensors of one role, such as all `q_proj.weight`, have one shade of their dtype's or rank's colour.
function shadeOf(tensor) {
  if (tensor.shade === undefined) {
    const role = tensor.name.split(".").filter((part) => !/^\d+$/.test(part)).slice(-2).join(".");
    let hash = 2166136261;
    for (let i = 0; i < role.length && i < 200; i += 1) hash = Math.imul(hash ^ role.charCodeAt(i), 16777619);
    hash ^= hash >>> 15;
    tensor.shade = [((hash >>> 3) % 7) - 3, ((hash >>> 9) % 5) - 2];
  }
  return colorOf(tensor.kind, tensor.shade[0] * 0.02, tensor.shade[1] * 5);
}
