// The columns of the table of a checkpoint.

function columnsOf(model) {
  const figure = (key, title) => numberColumn(key, title, 66, (tensor) => tensor.figures?.[key], real);
  const longest = Math.max(5, ...model.dtypes.map((total) => total.dtype.length));
  const dtype = {
    ...textColumn("kind", "Dtype", 20 + 8 * longest, (tensor) => tensor.dtype),
    show: (cell, tensor) => cell.replaceChildren(dot(tensor.kind), tensor.dtype),
  };
  const shape = {
    ...textColumn("shape", "Shape", 116, shapeOf),
    compare: (a, b) => a.elements - b.elements,
    show: (cell, tensor) => { cell.textContent = cell.title = shapeOf(tensor); },
  };
  const columns = [nameColumn(250), dtype, shape, numberColumn("bytes", "Bytes", 68, (tensor) => tensor.bytes, bytes)];
  if (!model.hasFigures) columns.push(numberColumn("share", "Share", 56, (tensor) => tensor.bytes, (value) => percent(value, model.bytes)));
  if (model.shards.length > 1) columns.push(numberColumn("shard", "Shard", 46, (tensor) => tensor.shard, (value) => value + 1));
  if (model.hasFigures) {
    const nans = (tensor) => tensor.figures && tensor.figures.nans;
    columns.push({ ...numberColumn("std", "Values", 80, (tensor) => tensor.figures?.std, real), right: false, show: spark },
      figure("min", "Min"), figure("mean", "Mean"), figure("max", "Max"), {
        ...numberColumn("nans", "NaN", 40, nans, count),
        show: (cell, tensor) => {
          cell.textContent = tensor.figures ? count(nans(tensor)) : "–";
          cell.classList.toggle("bad", nans(tensor) > 0);
        },
      });
  }
  return columns;
}

// A histogram as small as a word.
function spark(cell, tensor) {
  const counts = tensor.figures?.histogram?.counts;
  if (!counts) {
    cell.textContent = "";
    return;
  }
  const most = Math.max(...counts);
  const points = counts.map((value, i) => `${(80 * (i + 0.5)) / counts.length},${20 - (18 * value) / most}`);
  const area = svg("polygon", { points: `0,20 ${points.join(" ")} 80,20`, fill: colorOf(tensor.kind) });
  cell.replaceChildren(svg("svg", { viewBox: "0 0 80 20", class: "spark", "aria-hidden": "true" }, area));
}
