// A run's last steps as two small lines: the reward above, the drift below.

const [WIDTH, HEIGHT] = [92, 15];
const SVG = "http://www.w3.org/2000/svg";

function s(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** `label`: what is told of it in words; null where no step has a number. */
export function spark(values, label, colour) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return null;
  const [low, high] = [Math.min(0, ...known), Math.max(...known)];
  const x = (index) => 1 + ((WIDTH - 4) * index) / Math.max(1, values.length - 1);
  const y = (value) => HEIGHT - 2 - ((HEIGHT - 4) * (value - low)) / (high - low || 1);
  const parts = [];
  values.forEach((value, index) => { // where there is no number there is a gap
    if (value !== null) parts.push(`${index && values[index - 1] !== null ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`);
  });
  const last = values.findLastIndex((value) => value !== null);
  return s("svg", { class: "spark", role: "img", "aria-label": label, width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}` },
    s("path", { d: parts.join(""), stroke: `var(--${colour})` }), s("circle", { cx: x(last), cy: y(values[last]), r: 1.8, fill: `var(--${colour})` }));
}
