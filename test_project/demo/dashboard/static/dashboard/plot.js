// A curve of the last two minutes, as SVG. Its colours come from the style sheet, and so follow the light and the dark.

const WIDTH = 120; // seconds
const HEIGHT = 40;

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Rounds up to 1, 2, 5, 10, 20 … */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}

/**
 * Draws points `{ age, value, up }`, the oldest first; `age` is in seconds, `value` may be null, and where `up` is false
 * the server was stopped. Returns what the top of the plot stands for.
 */
export function plot(svg, points) {
  const top = roundUp(Math.max(1, ...points.map(({ value }) => value ?? 0)));
  const x = ({ age }) => Math.max(0, WIDTH - age);
  const y = ({ value }) => HEIGHT - (HEIGHT * (value ?? 0)) / top;
  const line = points.map((point, index) => `${index ? "L" : "M"}${x(point).toFixed(2)} ${y(point).toFixed(2)}`).join("");
  const down = points
    .filter(({ up }) => !up)
    .map((point) => shape("rect", { class: "down", x: x(point) - 1, y: 0, width: 1, height: HEIGHT }));
  const grid = [0, 0.5].map((part) =>
    shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: part * HEIGHT, y2: part * HEIGHT }),
  );
  svg.replaceChildren(...grid, ...down);
  if (points.length > 1) {
    const [first, last] = [x(points[0]), x(points.at(-1))];
    svg.append(
      shape("path", { class: "area", d: `${line}L${last} ${HEIGHT}L${first} ${HEIGHT}Z` }),
      shape("path", { class: "curve", d: line }),
    );
  }
  return top;
}
