// Puts the parts together: what is chosen in one of them shows in the others.

let model = null;
const map = new Treemap(byId("map"), {
  onZoom: (node) => showCrumbs(node, model, (step) => map.zoom(step)),
  onSelect: select,
  onHover: showTip,
});
const table = new Table({
  columnsOf,
  onSelect: select,
  onFound: (found, all) => {
    byId("found").textContent = all ? count(found.length) : `${count(found.length)} of ${count(model.count)}`;
    map.setMatches(all ? null : new Set(found.map((tensor) => tensor.place)));
  },
});
followTheme(recolor);
globalThis.weighbridge = { show, say };
showCarried(show);

// Shows a document, in the place of the one that is shown.
function show(shown) {
  say("");
  model = modelOf(shown);
  byId("shown").hidden = false;
  byId("search").value = "";
  byId("tip").hidden = true;
  showTotals(model);
  showMetadata(model);
  map.show(model);
  table.show(model);
  showCrumbs(model.root, model, (step) => map.zoom(step));
  showLegend(model, (kind) => table.only("kind", kind));
  showShards(model, (shard) => table.only("shard", shard));
  showLayers(model, (path) => search(path));
  select(null);
}

function select(tensor) {
  showTensor(tensor, model);
  if (!tensor) return;
  table.select(tensor);
  map.select(tensor);
}

function showTip(node, event) {
  const tip = byId("tip");
  tip.hidden = !node || !event;
  if (tip.hidden) return;
  const [path, ...more] = describe(node, model);
  tip.replaceChildren(make("b", "", path), ...more.flatMap((line) => [make("span", "", line), make("br", "")]).slice(0, -1));
  const box = byId("map").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 12 : y + 18}px`;
}

function recolor() {
  if (!model) return;
  map.repaint();
  table.repaint();
  showTensor(table.selected, model);
  document.querySelectorAll(".meter i").forEach((part) => { part.style.background = colorOf(part.dataset.kind); });
  document.querySelectorAll(".chip").forEach((chip) => {
    chip.querySelector(".dot").style.background = colorOf(chip.querySelector("b").textContent);
  });
}
