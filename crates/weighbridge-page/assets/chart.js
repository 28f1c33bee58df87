// A chart of lines over the checkpoints of a run, in SVG. What is pointed at, or chosen by the arrow keys, is read out.

const EDGE = { left: 62, right: 18, top: 12, bottom: 26 };

// `lines` have a name, a color, and a value or null for each of the `places`, which have an x and a label.
// It is drawn as wide as its room, of which `width` is what is known beforehand.
function lineChart({ title, lines, places, write, width = 560, height = 240, logarithmic = false, faded = () => false }) {
  const holder = make("div", "chart");
  const draw = (width) => holder.replaceChildren(drawn({ title, lines, places, write, height, width: Math.max(260, width), logarithmic, faded }));
  let before = width;
  draw(width);
  new ResizeObserver(() => {
    if (holder.clientWidth === before || holder.clientWidth === 0) return;
    before = holder.clientWidth;
    draw(before);
  }).observe(holder);
  return holder;
}

function drawn({ title, lines, places, write, height, width, logarithmic, faded }) {
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "lines", tabindex: 0, role: "application" });
  chart.setAttribute("aria-label", `${title}: ${plural(lines.length, "line")} over ${plural(places.length, "checkpoint")}. Arrow keys read them.`);
  const values = lines.flatMap((line) => line.values).filter((value) => Number.isFinite(value) && (!logarithmic || value > 0));
  const [least, most] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (values.length === 0) {
    chart.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "There are no numbers."));
    return chart;
  }
  const ticks = logarithmic ? decades(least, most) : roundTicks(least, most);
  const [low, high] = [Math.min(least, ticks[0]), Math.max(most, ticks[ticks.length - 1])];
  const scaled = logarithmic ? Math.log : (value) => value;
  const y = (value) => {
    const share = high > low ? (scaled(value) - scaled(low)) / (scaled(high) - scaled(low)) : 0.5;
    return height - EDGE.bottom - share * (height - EDGE.top - EDGE.bottom);
  };
  const [first, last] = [places[0].x, places[places.length - 1].x];
  const x = (place) => EDGE.left + (last > first ? (places[place].x - first) / (last - first) : 0.5) * (width - EDGE.left - EDGE.right);
  for (const tick of ticks) {
    chart.append(svg("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick), class: "rule" }));
    chart.append(svg("text", { x: EDGE.left - 8, y: y(tick) + 4, "text-anchor": "end" }, short(write, tick)));
  }
  // Every so many checkpoints have room for their labels, counted from the last.
  const longest = 7 * Math.max(...places.map(({ label }) => label.length)) + 14;
  const fit = Math.max(1, Math.floor((width - EDGE.left - EDGE.right) / longest));
  const every = Math.ceil((places.length - 1) / fit) || 1;
  let free = Infinity;
  for (let place = places.length - 1; place >= 0; place -= every) {
    const at = Math.min(x(place), width - longest / 2 + 7);
    if (at + longest / 2 <= free) {
      chart.append(svg("text", { x: at, y: height - 7, "text-anchor": "middle" }, places[place].label));
      free = at - longest / 2;
    }
  }
  for (const line of lines) {
    const known = line.values.map((value, place) => [place, value]).filter(([, value]) => Number.isFinite(value) && (!logarithmic || value > 0));
    const opacity = faded(line) ? 0.12 : 1;
    const points = known.map(([place, value]) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`);
    chart.append(svg("polyline", { points: points.join(" "), fill: "none", stroke: line.color, "stroke-width": 2, "stroke-linejoin": "round", opacity }));
    if (known.length <= 40) {
      for (const [place, value] of known) chart.append(svg("circle", { cx: x(place), cy: y(value), r: 2.6, fill: line.color, opacity }));
    }
  }
  readOut(chart, { lines: lines.filter((line) => !faded(line)), places, write, x, y, width, height, logarithmic });
  return chart;
}

// A rule at the checkpoint that is pointed at, and the values there.
function readOut(chart, { lines, places, write, x, y, width, height, logarithmic }) {
  const rule = svg("line", { y1: EDGE.top, y2: height - EDGE.bottom, class: "cursor", visibility: "hidden" });
  chart.append(rule);
  const tip = byId("tip");
  let at = null;
  const point = (place, atX, atY) => {
    at = place;
    tip.hidden = place === null;
    rule.setAttribute("visibility", place === null ? "hidden" : "visible");
    if (place === null) return;
    rule.setAttribute("x1", x(place));
    rule.setAttribute("x2", x(place));
    const known = lines.filter(({ values }) => Number.isFinite(values[place]));
    // Those nearest to the pointer, in the order in which they lie.
    const far = (line) => Math.abs((logarithmic && !(line.values[place] > 0) ? height : y(line.values[place])) - (atY ?? 0));
    const near = known.sort((a, b) => far(a) - far(b)).slice(0, 8).sort((a, b) => b.values[place] - a.values[place]);
    const rows = near.map((line) => {
      const mark = make("i", "");
      mark.style.background = line.color;
      return make("div", "read", mark, make("span", "", visible(line.name, 80)), make("b", "", write(line.values[place])));
    });
    tip.replaceChildren(make("b", "", places[place].title), ...rows);
    const box = chart.getBoundingClientRect();
    const left = atX ?? x(place);
    tip.style.left = `${Math.max(8, Math.min(box.left + left + 16, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, Math.min(box.top + (atY ?? 20) + 16, window.innerHeight - tip.offsetHeight - 8))}px`;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const nearest = places.reduce((best, _, place) => (Math.abs(x(place) - px) < Math.abs(x(best) - px) ? place : best), 0);
    point(nearest, px, py);
  });
  chart.addEventListener("pointerleave", () => point(null));
  chart.addEventListener("blur", () => point(null));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") point(null);
    if (!step) return;
    point(at === null ? (step > 0 ? 0 : places.length - 1) : Math.max(0, Math.min(places.length - 1, at + step)));
    event.preventDefault();
  });
}

// A round number without the zeros at its end.
function short(write, tick) {
  const size = Math.abs(tick);
  return write === real && (size === 0 || (size >= 1e-4 && size < 1e5)) ? String(Number(tick.toPrecision(6))).replace("-", "−") : write(tick).replace(/\.00e/, "e");
}

// About five round numbers that hold all values.
function roundTicks(least, most) {
  const span = most - least || Math.abs(most) || 1;
  const raw = span / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw) ?? 10);
  const ticks = [];
  for (let n = Math.floor(least / step + 1e-9); n <= Math.ceil(most / step - 1e-9) || ticks.length < 2; n += 1) ticks.push(Number((n * step).toPrecision(12)));
  return ticks;
}

function decades(least, most) {
  const steps = most / least < 30 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power += 1) {
    for (const step of steps) ticks.push(step * 10 ** power);
  }
  const from = Math.max(0, ticks.findIndex((tick) => tick > least * 1.001) - 1);
  const to = ticks.findIndex((tick) => tick >= most * 0.999);
  return ticks.slice(from, to < 0 ? undefined : Math.max(to, from + 1) + 1);
}
