// What stands beside the table: one tensor, layers, shards, metadata; and the legend.

function showTotals(model) {
  const chosen = model.count === model.tensors_in_all ? count(model.count) : `${count(model.count)} of ${count(model.tensors_in_all)}`;
  const totals = [["Size", bytes(model.bytes)], ["Parameters", spoken(model.elements)], ["Tensors", chosen],
    ["Shards", count(model.shards.length)], ["Dtypes", model.dtypes.map((total) => total.dtype).slice(0, 4).join(", ") || "–"]];
  byId("totals").replaceChildren(...totals.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))));
  byId("title").textContent = document.title = visible(model.name);
  byId("path").textContent = visible(model.path);
  byId("path").hidden = !/[\\/]/.test(model.path);
}

function showTensor(tensor, model) {
  const panel = byId("details");
  if (!tensor) {
    panel.replaceChildren(make("h2", "", "No tensor chosen"),
      make("p", "hint", "Press a tile or a row. In the map, a press zooms in; the path above it leads back."));
    return;
  }
  const { figures } = tensor;
  panel.replaceChildren(make("h2", "tensor-name", visible(tensor.name)));
  panel.append(facts([["Dtype", tensor.dtype], ["Shape", shapeOf(tensor)], ["Elements", count(tensor.elements)],
    ["Bytes", `${count(tensor.bytes)} (${percent(tensor.bytes, model.bytes)})`],
    ["Shard", visible(model.shards[tensor.shard].file)],
    ...(model.ranks ? [] : [["At byte", tensor.offset === null ? "made of codes" : count(tensor.offset)]])]));
  if (!model.hasFigures) {
    const hint = make("p", "hint", "For a histogram of the values, make the page with ", make("code", "", "--stats"), ".");
    panel.append(hint);
    return;
  }
  if (!figures) {
    panel.append(make("p", "hint", "Values of this dtype cannot be read: it has no agreed packing."));
    return;
  }
  const infinities = figures.positive_infinities + figures.negative_infinities;
  if (figures.histogram) panel.append(histogram(tensor));
  panel.append(facts([["Min", real(figures.min)], ["Mean", real(figures.mean)], ["Max", real(figures.max)],
    ["Deviation", real(figures.std)], ["Zeros", `${count(figures.zeros)} (${percent(figures.zeros, figures.values)})`],
    ["NaN", count(figures.nans), figures.nans > 0], ["Infinities", count(infinities), infinities > 0]]));
}

function histogram(tensor) {
  const { low, high, counts } = tensor.figures.histogram;
  const [width, height] = [340, 130];
  const most = Math.max(...counts, 1);
  const step = width / counts.length;
  const at = (value) => (high > low ? ((value - low) / (high - low)) * width : width / 2);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height + 20}`, class: "histogram", role: "img" });
  chart.setAttribute("aria-label", `Histogram of ${count(tensor.figures.values)} values from ${real(low)} to ${real(high)}`);
  counts.forEach((value, i) => {
    if (value === 0) return;
    const tall = Math.max(1, (value / most) * (height - 6));
    const bar = svg("rect", { x: i * step + 0.3, y: height - tall, width: step - 0.6, height: tall, rx: 1, fill: colorOf(tensor.kind) });
    const edge = (n) => real(low + ((high - low) * n) / counts.length);
    bar.append(svg("title", {}, `${count(value)} from ${edge(i)} to ${edge(i + 1)}`));
    chart.append(bar);
  });
  chart.append(svg("line", { x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5, class: "axis" }));
  const mean = at(tensor.figures.mean);
  chart.append(svg("line", { x1: mean, x2: mean, y1: 0, y2: height, class: "mean" }));
  const mark = (x, text, anchor) => chart.append(svg("text", { x, y: height + 15, "text-anchor": anchor }, text));
  mark(0, real(low), "start");
  mark(width, real(high), "end");
  if (low < 0 && high > 0 && at(0) > 60 && at(0) < width - 60) mark(at(0), "0", "middle");
  return chart;
}

function showLegend(model, onChoose) {
  const chips = model.kinds.map((total) => {
    const size = make("span", "", `${bytes(total.bytes)}, ${percent(total.bytes, model.bytes)}`);
    const chip = make("button", "chip", dot(total.kind), make("b", "", total.kind), size);
    chip.title = `${plural(total.tensors, "tensor")}, ${plural(total.elements, "parameter")}`;
    return [chip, total.kind];
  });
  byId("legend").replaceChildren(...choice(chips, onChoose));
}

function showShards(model, onChoose) {
  const parts = model.shards.map(() => new Map());
  for (const { shard, kind, bytes: size } of model.tensors) parts[shard].set(kind, (parts[shard].get(kind) ?? 0) + size);
  const most = Math.max(...model.shards.map((shard) => shard.bytes), 1);
  const bars = model.shards.map((shard, number) => {
    const meter = make("span", "meter");
    for (const [kind, size] of [...parts[number]].sort((a, b) => b[1] - a[1])) {
      const part = make("i", "");
      part.style.width = `${(100 * size) / most}%`;
      part.style.background = colorOf(kind);
      part.dataset.kind = kind;
      meter.append(part);
    }
    const name = make("span", "", make("bdi", "", visible(shard.file)));
    const line = make("span", "line", name, make("span", "", bytes(shard.bytes)));
    const button = make("button", "shard", line, meter);
    button.title = `${visible(shard.file)}: ${bytes(shard.bytes)}, ${plural(shard.tensors, "tensor")}`;
    return [button, number];
  });
  byId("shards").replaceChildren(...choice(bars, onChoose));
  byId("shards-sum").textContent = bars.length > 1 ? count(bars.length) : "";
}

// A column a layer. Of thousands, as of no model, the first ones.
function showLayers(model, onChoose) {
  byId("layers-card").hidden = model.stacks.length === 0;
  byId("layers").replaceChildren();
  for (const stack of model.stacks.slice(0, 12)) {
    const most = Math.max(...stack.layers.map((layer) => layer.bytes), 1);
    const sum = stack.layers.reduce((total, layer) => total + layer.bytes, 0);
    const chart = make("div", "columns-chart");
    for (const layer of stack.layers.slice(0, 400)) {
      const path = stack.module ? `${stack.module}.${layer.number}` : String(layer.number);
      const column = make("button", "");
      column.type = "button";
      column.style.height = `${Math.max(2, (100 * layer.bytes) / most)}%`;
      column.title = `${visible(path)}: ${bytes(layer.bytes)}, ${plural(layer.tensors, "tensor")}`;
      column.setAttribute("aria-label", column.title);
      column.addEventListener("click", () => onChoose(`${path}.`));
      chart.append(column);
    }
    const name = make("span", "", make("bdi", "", visible(stack.module)));
    const size = `${plural(stack.layers.length, "layer")}, ${bytes(sum)}`;
    byId("layers").append(make("div", "stack", make("div", "line", name, make("span", "", size)), chart));
  }
}

function showMetadata(model) {
  const entries = Object.entries(model.metadata);
  byId("metadata-card").hidden = entries.length === 0;
  byId("metadata").replaceChildren();
  for (const [key, values] of entries) {
    byId("metadata").append(make("dt", "", visible(key, 300)));
    for (const value of values) byId("metadata").append(make("dd", "", indented(value)));
  }
}

// JSON within metadata, as trainers write it, on several lines.
function indented(value) {
  if (/^[[{]/.test(value) && value.length < 100_000) {
    try {
      return JSON.stringify(JSON.parse(value), null, 1).split("\n").map((line) => line && visible(line, 20_000)).join("\n");
    } catch {
      // It only looked like JSON.
    }
  }
  return visible(value, 20_000);
}

function showCrumbs(node, model, onChoose) {
  const crumbs = ancestors(node).map((step) => {
    const crumb = make("button", "", step.parent ? visible(step.name, 80) : "all");
    crumb.type = "button";
    if (step === node) crumb.setAttribute("aria-current", "true");
    crumb.addEventListener("click", () => onChoose(step));
    return crumb;
  });
  byId("crumbs").replaceChildren(...crumbs);
  byId("here").textContent = `${bytes(node.bytes)}, ${percent(node.bytes, model.bytes)}, ${plural(node.count, "tensor")}`;
}
