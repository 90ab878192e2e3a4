// A curve, as SVG. Its colours come from the style sheet, and so follow the light and the dark.

const WIDTH = 120;
const HEIGHT = 40;

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Rounds up to 1, 2, 5, 10, 20 … of any power. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * (1 - 1e-9));
}

/**
 * Draws points `{ age, value }`, the oldest first, over `span` seconds; a value may be null. Returns what the top of the
 * plot stands for: a round number of units, and at least `least`.
 */
export function plot(svg, points, span, { least = 1, unit = 1 } = {}) {
  const known = points.filter(({ value }) => value !== null);
  const highest = Math.max(least, ...known.map(({ value }) => value));
  const size = unit > 1 ? unit ** Math.floor(Math.log(highest) / Math.log(unit)) : 1; // bytes, KiB, MiB …
  const top = size * roundUp(highest / size);
  const x = ({ age }) => (Math.max(0, span - age) * WIDTH) / span;
  const y = ({ value }) => HEIGHT - (HEIGHT * value) / top;
  const line = known.map((point, index) => `${index ? "L" : "M"}${x(point).toFixed(2)} ${y(point).toFixed(2)}`).join("");
  svg.replaceChildren(
    ...[0, 0.5].map((part) => shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: part * HEIGHT, y2: part * HEIGHT })),
  );
  if (known.length > 1) {
    const [first, last] = [x(known[0]).toFixed(2), x(known.at(-1)).toFixed(2)];
    svg.append(
      shape("path", { class: "area", d: `${line}L${last} ${HEIGHT}L${first} ${HEIGHT}Z` }),
      shape("path", { class: "curve", d: line }),
    );
  }
  return top;
}
