// Light and dark, and the colours of dtypes and ranks.

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
    shades: new Map(),
  };
}

// The blocks of GGML (Q4_K, IQ2_XS) are among the 8-bit floats, those of more bits further on.
function hueOf(kind) {
  const bits = /^(?:Q|IQ|TQ|MXFP|NVFP)(\d)/.exec(kind);
  return HUES[kind] ?? (bits ? 8 + 12 * Number(bits[1]) : undefined);
}

function colorOf(kind, lighter = 0, turn = 0) {
  const hue = hueOf(kind);
  const chroma = hue === undefined ? 0.012 : theme.chroma;
  return `oklch(${(theme.lightness + lighter).toFixed(3)} ${chroma} ${(hue ?? 0) + turn})`;
}

// Light or dark as the system is, until somebody chooses; `recolor` draws anew what CSS does not colour.
function followTheme(recolor) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const change = () => { readTheme(); recolor(); };
  readTheme();
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    change();
  });
  dark.addEventListener("change", change);
}
