// A scale of colours for numbers that are not negative, and its legend.

// Lightness, chroma and hue from the least to the most.
const HEAT = {
  light: [[0.955, 0.04, 98], [0.88, 0.12, 82], [0.76, 0.17, 55], [0.62, 0.21, 28], [0.46, 0.19, 0], [0.3, 0.13, -40]],
  dark: [[0.27, 0.06, -62], [0.38, 0.14, -42], [0.52, 0.2, -8], [0.66, 0.2, 28], [0.8, 0.16, 65], [0.94, 0.11, 100]],
};

// The colour of a place between 0 and 1.
function heatAt(place) {
  const stops = HEAT[theme.lightness > 0.6 ? "light" : "dark"];
  const at = Math.max(0, Math.min(1, place)) * (stops.length - 1);
  const [from, to] = [stops[Math.floor(at)], stops[Math.min(stops.length - 1, Math.floor(at) + 1)]];
  const mix = (i) => from[i] + (to[i] - from[i]) * (at % 1);
  return `oklch(${mix(0).toFixed(4)} ${mix(1).toFixed(4)} ${mix(2).toFixed(2)})`;
}

// Whether a text on that colour is dark.
const isPale = (place) => (theme.lightness > 0.6 ? place < 0.5 : place > 0.68);

// Where values stand on the scale: by their logarithm, as they differ by orders of magnitude.
class Scale {
  constructor(values) {
    const found = values.filter((value) => value > 0 && Number.isFinite(value));
    this.empty = found.length === 0;
    const [least, most] = found.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, 0]);
    // At least one order of magnitude, so that noise does not look like a finding.
    this.high = this.empty ? 1 : most;
    this.low = this.empty ? 0.1 : Math.max(Math.min(least, most / 10), most / 1e6);
  }

  // Between 0 and 1.
  place(value) {
    if (!(value > 0)) return 0;
    return Math.max(0, Math.min(1, Math.log(value / this.low) / Math.log(this.high / this.low)));
  }

  color(value) {
    return heatAt(this.place(value));
  }

  // Round numbers on the scale.
  ticks() {
    const ticks = [];
    const decades = Math.log10(this.high / this.low);
    const steps = decades <= 1.3 ? [1, 2, 5] : decades <= 2.5 ? [1, 3] : [1];
    for (let power = Math.floor(Math.log10(this.low)); power <= Math.ceil(Math.log10(this.high)); power += 1) {
      for (const step of steps) {
        const value = step * 10 ** power;
        if (value >= this.low * 0.999 && value <= this.high * 1.001) ticks.push(value);
      }
    }
    return ticks;
  }
}

// The scale as a strip with ticks, and what its numbers are.
function scaleLegend(scale, title, write) {
  if (scale.empty) return make("p", "hint", `${title}: nothing moved.`);
  const [width, height] = [340, 12];
  const strip = svg("svg", { viewBox: `0 0 ${width} ${height + 20}`, class: "scale", role: "img" });
  strip.setAttribute("aria-label", `${title}, from ${write(scale.low)} to ${write(scale.high)}, logarithmic`);
  const parts = 68;
  for (let i = 0; i < parts; i += 1) {
    const part = svg("rect", { x: (i * width) / parts, y: 0, width: width / parts + 0.5, height, fill: heatAt((i + 0.5) / parts) });
    strip.append(part);
  }
  for (const tick of scale.ticks()) {
    const x = scale.place(tick) * width;
    strip.append(svg("line", { x1: x, x2: x, y1: height, y2: height + 4, class: "axis" }));
    const anchor = x < 16 ? "start" : x > width - 16 ? "end" : "middle";
    strip.append(svg("text", { x, y: height + 17, "text-anchor": anchor }, write(tick)));
  }
  return make("div", "scale-row", make("span", "scale-title", title), strip);
}
