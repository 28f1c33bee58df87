// Puts the parts together: what is chosen in one of them shows in the others.

let model = null;
let measure = MEASURES.moved;
const table = new Table({
  columnsOf,
  onSelect: select,
  onFound: (found, all) => {
    byId("found").textContent = all ? count(found.length) : `${count(found.length)} of ${count(model.count)}`;
  },
});
const heat = new HeatMap(byId("heat"), { onChoose: (pairs, text) => (pairs.length === 1 ? select(pairs[0]) : search(text)), onHover: showTip });
followTheme(() => {
  if (!model) return;
  table.repaint();
  draw();
});
globalThis.weighbridge = { show, say };
showCarried(show);

function show(shown) {
  say("");
  model = modelOf(shown);
  byId("shown").hidden = false;
  byId("search").value = "";
  measure = MEASURES.moved;
  showSides();
  showLists();
  const measures = model.hasValues ? Object.values(MEASURES) : [];
  byId("measures").hidden = measures.length === 0;
  byId("measures").replaceChildren(...measures.map((one) => {
    const button = make("button", "measure", one.title);
    button.type = "button";
    button.addEventListener("click", () => { measure = one; draw(); });
    return button;
  }));
  heat.read(model);
  table.show(model);
  draw();
  select(null);
}

function draw() {
  byId("heat-title").textContent = model.hasValues ? "How far weights moved, by layer and module" : "What differs, by layer and module";
  for (const button of byId("measures").children) button.setAttribute("aria-pressed", String(button.textContent === measure.title));
  showLegend();
  byId("scale").replaceChildren(...heat.show(model.hasValues ? measure : null));
}

function showSides() {
  const { a, b } = model;
  document.title = `${visible(a.name)} → ${visible(b.name)}`;
  byId("title").replaceChildren(make("bdi", "", visible(a.name)), make("span", "arrow", " → "), make("bdi", "", visible(b.name)));
  const inBoth = model.tensors.filter((pair) => pair.a && pair.b);
  const compared = model.tensors.filter((pair) => pair.change);
  const changed = compared.filter((pair) => pair.change.differing > 0);
  const overall = measured(MEASURES.moved, compared);
  const said = [`${plural(inBoth.length, "tensor")} in both`];
  if (compared.length > 0) {
    said.push(changed.length === 0 ? "all values the same" : `${count(changed.length)} with other values`);
    if (changed.length > 0 && overall !== null) said.push(`moved by ${asPercent(overall)} in all`);
  }
  for (const fate of ["shape", "dtype", "removed", "added"]) {
    if (model.fates.get(fate) > 0) said.push(`${count(model.fates.get(fate))} ${FATES[fate].title}`);
  }
  byId("verdict").textContent = said.join(" · ");
  const side = (letter, shown, other) => {
    const fact = (name, value, its) => {
      const item = make("div", value === its ? "" : "other", make("dt", "", name), make("dd", "", value));
      return item;
    };
    const rows = [["Size", (of) => bytes(of.bytes)], ["Parameters", (of) => spoken(of.elements)], ["Tensors", (of) => count(of.tensors)],
      ["Shards", (of) => count(of.shards)], ["Dtypes", (of) => of.dtypes.slice(0, 4).join(", ") || "–"]];
    return make("section", "card checkpoint", make("h2", "", make("span", "letter", letter), make("bdi", "", visible(shown.name))),
      make("p", "path", visible(shown.path)),
      make("dl", "totals", ...rows.map(([name, value]) => fact(name, value(shown), value(other)))));
  };
  byId("sides").replaceChildren(side("A", a, b), side("B", b, a));
}

function showLegend() {
  const chosen = table.filter.kind;
  const chips = Object.entries(FATES).filter(([fate]) => model.fates.get(fate) > 0).map(([fate, { title }]) => {
    const text = fate === "same" && !model.hasValues ? "the same dtype and shape" : title;
    return [make("button", "chip", dot(title), make("b", "", text), make("span", "", count(model.fates.get(fate)))), title];
  });
  byId("legend").replaceChildren(...choice(chips, (kind) => table.only("kind", kind)));
  for (const [chip, title] of chips) if (title === chosen) chip.setAttribute("aria-pressed", "true");
}

function showLists() {
  const value = (text) => visible(text, 2000);
  byId("metadata-card").hidden = model.metadata.length === 0;
  byId("metadata").replaceChildren(...model.metadata.flatMap(({ name, a, b }) =>
    [make("dt", "", visible(name, 300)), ...(a === null ? [] : [make("dd", "was", value(a))]), ...(b === null ? [] : [make("dd", "is", value(b))])]));
  byId("renamed-card").hidden = model.renamed.length === 0;
  byId("renamed").replaceChildren(...model.renamed.flatMap(({ from, to }) => [make("dd", "was", visible(from)), make("dd", "is", visible(to))]));
}

function select(pair) {
  const panel = byId("details");
  if (!pair) {
    panel.replaceChildren(make("h2", "", "No tensor chosen"), make("p", "hint", "Press a cell of the map or a row of the table."));
    if (!model.hasValues) panel.append(make("p", "hint", "To compare values, make the page with ", make("code", "", "--data"), "."));
    return;
  }
  panel.replaceChildren(make("h2", "tensor-name", visible(pair.name)));
  panel.append(facts([["What became of it", pair.kind], ["Dtype", pair.dtypes], ["Shape", pair.shapes],
    ["Bytes", both(pair.a && count(pair.a.bytes), pair.b && count(pair.b.bytes))]]));
  const { change } = pair;
  if (change) {
    panel.append(facts([["Relative change", asPercent(pair.moved)], ["Largest |B − A|", real(pair.largest)],
      ["Cosine", change.cosine === null ? "–" : String(Number(change.cosine.toFixed(8)))],
      ["Norm of A", real(change.norm)], ["Norm of B − A", real(change.distance)],
      ["Values that differ", `${count(change.differing)} (${percent(change.differing, change.values)})`]]));
  } else if (model.hasValues) {
    panel.append(make("p", "hint", "There is nothing to compare its values with."));
  }
  table.select(pair);
}

function columnsOf({ hasValues }) {
  const longest = Math.max(...[...model.fates].filter(([, found]) => found > 0).map(([fate]) => FATES[fate].title.length), 5);
  const fate = {
    ...textColumn("kind", "What", 26 + 8 * longest, (pair) => pair.kind),
    show: (cell, pair) => cell.replaceChildren(dot(pair.kind), pair.kind),
  };
  const titled = (column) => ({ ...column, show: (cell, pair) => { column.show(cell, pair); cell.title = cell.textContent; } });
  const columns = [nameColumn(hasValues ? 230 : 300), fate,
    titled(textColumn("dtype", "Dtype", hasValues ? 60 : 110, (pair) => pair.dtypes)),
    titled({ ...textColumn("shape", "Shape", hasValues ? 110 : 190, (pair) => pair.shapes), compare: (x, y) => sizeOf(x) - sizeOf(y) })];
  if (hasValues) {
    const number = ({ title, of, write }, width, key) => numberColumn(key, title, width, of, write);
    columns.push({ ...number({ ...MEASURES.moved, title: "Change" }, 112, "moved"), first: true, show: bar },
      number({ ...MEASURES.largest, title: "Max |B − A|" }, 84, "largest"),
      { ...numberColumn("cosine", "Cosine", 76, (pair) => pair.change?.cosine ?? null, (value) => (value === null ? "–" : value.toFixed(6))) },
      number({ ...MEASURES.differing, title: "Differ" }, 60, "differing"));
  }
  return columns;
}

const sizeOf = (pair) => (pair.b ?? pair.a).elements;

// A number with a bar beside it, the longest of what moved most.
function bar(cell, pair) {
  const line = make("i", "");
  line.style.width = `${pair.moved > 0 ? Math.max(2, Math.min(100, (100 * pair.moved) / heat.most)) : 0}%`;
  line.style.background = heat.scales.get(MEASURES.moved).color(pair.moved);
  cell.replaceChildren(make("span", "", asPercent(pair.moved)), make("span", "track", line));
  cell.classList.add("barred");
}

function showTip(lines, event) {
  const tip = byId("tip");
  tip.hidden = !lines;
  if (!lines) return;
  const [first, ...more] = lines;
  tip.replaceChildren(make("b", "", first), ...more.flatMap((line) => [make("span", "", line), make("br", "")]).slice(0, -1));
  const card = tip.parentElement.getBoundingClientRect();
  const [x, y] = [event.clientX - card.left, event.clientY - card.top];
  tip.style.left = `${Math.max(0, Math.min(x + 14, card.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18}px`;
}
