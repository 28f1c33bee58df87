// How numbers and names are written, and elements made. Texts out of the checkpoint only ever become text nodes.

const byId = (id) => document.getElementById(id);

const counts = new Intl.NumberFormat("en-US");
const count = (number) => counts.format(number);
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (number >= 999.5 && unit + 1 < units.length) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)} ${units[unit]}`;
}

function percent(part, whole) {
  const share = whole > 0 ? (100 * part) / whole : 0;
  return share === 0 ? "0%" : share < 0.05 ? "<0.1%" : `${share.toFixed(1)}%`;
}

// Four digits, with an exponent where there would be many zeros.
function real(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e5) return value.toExponential(2).replace("e+", "e").replace("-", "−").replace("e-", "e−");
  return (Number.isInteger(value) ? String(value) : value.toFixed(size < 10 ? 4 : 1)).replace("-", "−");
}

// Large numbers of parameters as people say them: 1.24 B.
function spoken(number) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"]]) {
    if (number >= size) return `${(number / size).toPrecision(3)} ${unit}`;
  }
  return count(number);
}

const shapeOf = (tensor) =>
  tensor.shape.length > 8
    ? `[${tensor.shape.slice(0, 8).join(", ")}, … ${count(tensor.shape.length)} dimensions]`
    : `[${tensor.shape.join(", ")}]`;

// Characters that cannot be seen, or that change the direction of writing, are escaped; long names are cut.
function visible(text, most = 2000) {
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  const shown = cut.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
  return shown === "" ? '""' : shown;
}

// An element with a class, properties, and children that are elements or texts.
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
