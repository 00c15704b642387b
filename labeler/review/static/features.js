// The map of features: points coloured by a group, and a line drawn around some of them opens their images.
import { ask, element, tell } from "./common.js";

const canvas = document.getElementById("map"), group = document.getElementById("group"), legend = document.getElementById("legend");
const pen = canvas.getContext("2d");
const COLOURS = ["#4c78d8", "#e4812e", "#3f9f4a", "#c94a53", "#8a63c9", "#8f6a56", "#d976b4", "#7f7f7f", "#b3a62a", "#2aa9b8"];
const LEGEND = 12, EDGE = 14;
let points = null, places = [], line = null;

function lay() {
  const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  canvas.width = w * ratio; canvas.height = h * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const ends = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const [x0, x1] = ends(points.x), [y0, y1] = ends(points.y);
  places = points.x.map((x, i) => [EDGE + (x - x0) / (x1 - x0 || 1) * (w - 2 * EDGE), EDGE + (points.y[i] - y0) / (y1 - y0 || 1) * (h - 2 * EDGE)]);
  draw();
}

function draw() {
  const values = points.groups[group.value], names = [...new Set(values)].sort();
  const colour = Object.fromEntries(names.map((name, i) => [name, COLOURS[i % COLOURS.length]]));
  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  places.forEach(([x, y], i) => { pen.fillStyle = colour[values[i]]; pen.beginPath(); pen.arc(x, y, places.length > 5000 ? 1.6 : 3, 0, 7); pen.fill(); });
  if (line) { pen.strokeStyle = getComputedStyle(document.body).color; pen.lineWidth = 1.5; pen.beginPath(); line.forEach(([x, y]) => pen.lineTo(x, y)); pen.closePath(); pen.stroke(); }
  legend.replaceChildren(...names.slice(0, LEGEND).map((name) => {
    const dot = element("b", { textContent: "● " });
    dot.style.color = colour[name];
    return element("li", {}, [dot, name]);
  }), ...(names.length > LEGEND ? [element("li", { textContent: `and ${names.length - LEGEND} more; colours repeat` })] : []));
}

function inside([x, y]) { // even-odd rule
  let within = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
    const [xi, yi] = line[i], [xj, yj] = line[j];
    if (yi > y !== yj > y && x < (xj - xi) * (y - yi) / (yj - yi) + xi) within = !within;
  }
  return within;
}

canvas.addEventListener("pointerdown", (event) => { line = [[event.offsetX, event.offsetY]]; canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointermove", (event) => { if (line) { line.push([event.offsetX, event.offsetY]); draw(); } });
canvas.addEventListener("pointerup", async () => {
  const chosen = points.image_ids.filter((_, i) => inside(places[i]));
  line = null;
  draw();
  if (!chosen.length) { tell("No image lies inside that line."); return; }
  const { picked } = await ask("/api/pick", { method: "POST", body: { image_ids: chosen } });
  location.href = `/?picked=${picked}`;
});

tell("The map is being made; the first time this takes a while.");
try {
  points = await ask("/api/features");
  tell("");
  group.onchange = draw;
  new ResizeObserver(lay).observe(canvas);
} catch (problem) { tell(problem.message, { bad: true }); }
