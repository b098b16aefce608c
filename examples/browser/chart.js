// Lines over steps, as an SVG that follows the page's colours and the figure's width.

const HEIGHT = 280,
  LEFT = 56,
  RIGHT = 14,
  TOP = 12,
  BOTTOM = 34;

/**
 * Draw into a figure: lines [{label, kind, start, values}] and bands [{kind, start, low, high}] over steps; kind is the
 * class that gives the colour. ticks: step → label, for the axis. now: a step to mark, or null.
 */
export function draw(figure, { lines, bands = [], now = null, label = (step) => String(step), summary }) {
  const width = Math.max(280, Math.round(figure.clientWidth));
  const all = [...lines.map((line) => line.values), ...bands.flatMap(({ low, high }) => [low, high])]
    .flat()
    .filter(Number.isFinite);
  const [least, most] = padded(Math.min(...all), Math.max(...all));
  const first = Math.min(...lines.map(({ start }) => start));
  const last = Math.max(...lines.map(({ start, values }) => start + values.length - 1), first + 1);
  const x = (step) => LEFT + ((step - first) / (last - first)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + ((most - value) / (most - least)) * (HEIGHT - TOP - BOTTOM);
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": summary });
  for (const value of nice(least, most)) {
    svg.append(element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(element("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, compact(value)));
  }
  const marks = [[first, "start"], ...(now === null ? [] : [[now, "middle"]]), [last, "end"]];
  for (const [step, anchor] of marks)
    svg.append(element("text", { x: x(step), y: HEIGHT - 10, "text-anchor": anchor }, label(step)));
  if (now !== null) svg.append(element("line", { class: "now", x1: x(now), x2: x(now), y1: TOP, y2: HEIGHT - BOTTOM }));
  for (const { kind, start, low, high } of bands) {
    const there = high.map((value, i) => `${x(start + i)},${y(value)}`),
      back = low.map((value, i) => `${x(start + i)},${y(value)}`).reverse();
    svg.append(element("polygon", { class: `band ${kind}`, points: [...there, ...back].join(" ") }));
  }
  for (const { kind, start, values } of lines) {
    const points = values.map((value, i) => `${x(start + i).toFixed(1)},${y(value).toFixed(1)}`);
    svg.append(element("polyline", { class: `line ${kind}`, points: points.join(" ") }));
  }
  figure.replaceChildren(legend(lines), svg);
}

function legend(lines) {
  const list = document.createElement("ul");
  list.className = "legend";
  for (const { label, kind } of lines) {
    const item = list.appendChild(document.createElement("li"));
    item.append(Object.assign(document.createElement("span"), { className: `key ${kind}` }), label);
  }
  return list;
}

function padded(least, most) {
  if (!Number.isFinite(least)) return [0, 1];
  const by = (most - least || Math.abs(most) || 1) * 0.06;
  return [least - by, most + by];
}

function nice(least, most) {
  const raw = (most - least) / 4,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= raw);
  const found = [];
  for (let value = Math.ceil(least / step) * step; value <= most; value += step)
    found.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return found;
}

function compact(value) {
  return new Intl.NumberFormat("en", {
    maximumSignificantDigits: 4,
    notation: Math.abs(value) >= 1e5 ? "compact" : "standard",
  }).format(value);
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
