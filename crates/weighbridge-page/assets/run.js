// The page of a run: the numbers that it kept, and its weights, over its checkpoints.

// So many lines can be told apart.
const MOST_LINES = 24;

const VIEWS = {
  norm: { title: "Norm", unit: "norm of the values, √Σw²", write: real, logarithmic: true },
  grown: { title: "Since the first", unit: "norm as a share of that in the first checkpoint", write: asShare, logarithmic: false },
  change: { title: "Change", unit: "moved since the checkpoint before, ‖w − before‖ / ‖before‖", write: asShare, logarithmic: true },
};
const GROUPS = { module: "By module", layer: "By layer" };

let run = null;
let view = VIEWS.norm;
let group = "module";
let chosen = null;

followTheme(() => run && draw());
globalThis.weighbridge = { show, say };
showCarried(show);

function asShare(value) {
  return value === null || !Number.isFinite(value) ? "–" : value === 0 ? "0 %" : `${Number((100 * value).toPrecision(3))} %`;
}

function show(shown) {
  say("");
  run = { ...shown, places: placesOf(shown.checkpoints) };
  run.lines = { module: groupsOf(run, moduleOf), layer: groupsOf(run, layerOf) };
  [view, chosen, group] = [VIEWS.norm, null, "module"];
  byId("shown").hidden = false;
  byId("title").textContent = document.title = visible(run.name);
  byId("path").textContent = visible(run.path);
  byId("path").hidden = !/[\\/]/.test(run.path);
  buttons("groups", Object.entries(GROUPS).filter(([key]) => run.lines[key].length > 0).map(([key, title]) => [title, () => { group = key; chosen = null; }, () => group === key]));
  buttons("measures", Object.values(VIEWS).map((one) => [one.title, () => { view = one; }, () => view === one]));
  showTotals();
  showCheckpoints();
  draw();
}

function buttons(id, list) {
  byId(id).hidden = list.length < 2;
  byId(id).replaceChildren(...list.map(([title, choose, isChosen]) => {
    const button = make("button", "measure", title);
    button.type = "button";
    button.isChosen = isChosen;
    button.addEventListener("click", () => { choose(); draw(); });
    return button;
  }));
}

// Where checkpoints stand: by step, by epoch, or one after the other where there are both.
function placesOf(checkpoints) {
  const bySteps = checkpoints.every(({ epoch, step }) => epoch === 0 && step !== null);
  const byEpochs = checkpoints.every(({ step }) => step === null);
  return checkpoints.map(({ epoch, step }, place) => ({
    x: bySteps ? step : byEpochs ? epoch : place,
    label: bySteps ? count(step) : byEpochs ? String(epoch) : step === null ? String(epoch) : `${epoch}+${count(step)}`,
    title: step === null ? `epoch ${epoch}` : epoch === 0 ? `step ${count(step)}` : `epoch ${epoch}, step ${count(step)}`,
  }));
}

// The module's name, with the same lines for all layers.
const moduleOf = (name) => name.split(".").map((part) => (/^\d+$/.test(part) ? "*" : part)).join(".").replace(/\.weight$/, "");
const layerOf = (name) => /^(.*?\.)??\d+(?=\.)/.exec(name)?.[0] ?? null;

// Norms of tensors as one: of all weights of a module, or of a layer.
function groupsOf({ tensors, checkpoints }, keyOf) {
  const groups = new Map();
  tensors.name.forEach((name, place) => {
    const key = keyOf(name);
    if (key === null) return;
    if (!groups.has(key)) groups.set(key, { name: key, squares: checkpoints.map(() => 0), changes: checkpoints.map(() => 0), known: checkpoints.map(() => true) });
    const sums = groups.get(key);
    checkpoints.forEach((_, at) => {
      const [norm, change] = [tensors.norm[place][at], tensors.distance[place][at]];
      if (norm === null) sums.known[at] = false;
      sums.squares[at] += (norm ?? 0) ** 2;
      sums.changes[at] = change === null || sums.changes[at] === null ? null : sums.changes[at] + change ** 2;
    });
  });
  return [...groups.values()].map(({ name, squares, changes, known }) => {
    const norm = squares.map((square, at) => (known[at] ? Math.sqrt(square) : null));
    const first = norm.find((value) => value > 0);
    return {
      name, norm,
      grown: norm.map((value) => (value === null || !first ? null : value / first)),
      change: changes.map((change, at) => (change === null || !(norm[at - 1] > 0) ? null : Math.sqrt(change) / norm[at - 1])),
    };
  });
}

function showTotals() {
  const { checkpoints, places, numbers } = run;
  const newest = checkpoints[checkpoints.length - 1];
  const totals = [["Checkpoints", count(checkpoints.length)], ["From", places[0]?.title ?? "–"], ["To", places[places.length - 1]?.title ?? "–"],
    ["Parameters", spoken(run.elements)], ["Newest", newest ? bytes(newest.bytes) : "–"]];
  // What never changes is a setting.
  for (const { name, values } of numbers.filter(isConstant).slice(0, 12)) totals.push([visible(name, 40), real(values[0])]);
  byId("totals").replaceChildren(...totals.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))));
}

const isConstant = ({ values }) => values.length > 1 && values.every((value) => value === values[0]);

// Losses in one chart, each other number in its own.
function showNumbers() {
  const changing = run.numbers.filter((number) => !isConstant(number));
  const isLoss = ({ name }) => /loss|perplexity/i.test(name);
  const losses = changing.filter(isLoss);
  const charts = [...(losses.length > 0 ? [["Loss", losses]] : []), ...changing.filter((number) => !isLoss(number)).map((number) => [number.name, [number]])];
  byId("numbers").replaceChildren(...charts.slice(0, 24).map(([title, numbers]) => {
    const lines = numbers.map(({ name, values }, i) => ({ name, values, color: numbers.length === 1 ? theme.accent : lineColor(i, numbers.length) }));
    const last = numbers.map(({ values }) => values[values.length - 1]).find((value) => value !== null);
    const head = make("div", "bar", make("h2", "", visible(title, 60)), make("span", "here", numbers.length === 1 ? `${real(last)} at last` : ""));
    const card = make("section", "card", head, lineChart({ title: visible(title, 60), lines, places: run.places, write: real, height: 200 }));
    if (lines.length > 1) card.append(make("div", "legend", ...lines.map((line) => make("span", "chip", swatch(line), make("b", "", visible(line.name, 60))))));
    return card;
  }));
}

const lineColor = (i, all) => `oklch(${theme.lightness > 0.6 ? 0.58 : 0.76} 0.15 ${(258 + (360 * i) / Math.max(all, 3)) % 360})`;

function swatch({ color }) {
  const mark = make("span", "dot");
  mark.style.background = color;
  return mark;
}

function draw() {
  for (const button of document.querySelectorAll(".measure")) button.setAttribute("aria-pressed", String(button.isChosen()));
  showNumbers();
  const all = run.lines[group];
  const key = Object.keys(VIEWS).find((one) => VIEWS[one] === view);
  // Of too many those with the greatest values.
  const greatest = (line) => line[key].reduce((most, value) => Math.max(most, value ?? 0), 0);
  const kept = all.length > MOST_LINES ? [...all].sort((a, b) => greatest(b) - greatest(a)).slice(0, MOST_LINES) : all;
  const lines = all.filter((line) => kept.includes(line)).map((line, i) => ({ name: line.name, values: line[key], color: lineColor(i, kept.length) }));
  byId("weights-unit").textContent = view.unit;
  byId("weights").replaceChildren(lineChart({
    title: view.title, lines, places: run.places, write: view.write, width: byId("weights").clientWidth || undefined, height: 380, logarithmic: view.logarithmic,
    faded: (line) => chosen !== null && line.name !== chosen,
  }));
  const chips = lines.map((line) => [make("button", "chip", swatch(line), make("b", "", visible(line.name, 60))), line.name]);
  byId("legend").replaceChildren(...choice(chips, (name) => { chosen = name; draw(); }));
  for (const [chip, name] of chips) if (name === chosen) chip.setAttribute("aria-pressed", "true");
  if (all.length > kept.length) byId("legend").append(make("span", "here", `and ${count(all.length - kept.length)} more in the table`));
  showModules(all, key);
}

function showCheckpoints() {
  const { checkpoints, numbers } = run;
  const heads = ["Checkpoint", "Size", "Parts", ...numbers.map(({ name }) => name), "Norm", "Change"];
  const [whole] = groupsOf(run, () => "all");
  const rows = run.places.map(({ title }, at) => [title, bytes(checkpoints[at].bytes), checkpoints[at].parts.join(", "),
    ...numbers.map(({ values }) => real(values[at])), real(whole?.norm[at]), asShare(whole?.change[at] ?? null)]);
  fill("checkpoints", heads, rows);
}

function showModules(lines, key) {
  byId("modules-title").textContent = `${view.title} ${GROUPS[group].toLowerCase()}`;
  // Of many checkpoints the last ones.
  const from = Math.max(0, run.places.length - 40);
  const heads = [group === "module" ? "Module" : "Layer", ...run.places.slice(from).map(({ label }) => label)];
  fill("modules", heads, lines.slice(0, 400).map((line) => [line.name, ...line[key].slice(from).map(view.write)]));
}

function fill(id, heads, rows) {
  const row = (tag, cells) => make("tr", "", ...cells.map((cell, i) => {
    const element = make(i === 0 ? "th" : tag, "", visible(String(cell), 120));
    if (i === 0 || tag === "th") element.scope = tag === "th" ? "col" : "row";
    return element;
  }));
  byId(id).replaceChildren(make("thead", "", row("th", heads)), make("tbody", "", ...rows.map((cells) => row("td", cells))));
}
