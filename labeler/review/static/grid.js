// The grid: only the tiles near the window exist; what they show is asked for in pieces.
import { ask, data, element, sendKept, svg, tell, typing, withState, words } from "./common.js";

const grid = document.getElementById("grid");
const AHEAD = 1.5; // windows of tiles that are there before they are seen
const PIECE = 60;
const known = new Map(data.first.map((tile, index) => [index, tile])); // index -> tile
const asked = new Set([0]);
const cells = new Map(); // index -> element
const selected = new Map(); // image_id -> index
let total = data.total, active = 0, anchor = 0, columns = 1, width = 120, height = 268, lastChanged = [];

const remembered = sessionStorage.getItem("grid-at:" + (data.state ?? ""));

function lay() {
  const room = grid.clientWidth;
  columns = Math.max(3, Math.floor(room / 128));
  width = Math.floor(room / columns);
  height = Math.round(2 * (width - 6)) + 26;
  grid.style.height = `${Math.ceil(total / columns) * height}px`;
  for (const cell of cells.values()) cell.remove();
  cells.clear();
  draw();
}

function draw() {
  const top = -grid.getBoundingClientRect().top, ahead = AHEAD * innerHeight;
  const first = Math.max(0, Math.floor((top - ahead) / height)) * columns;
  const last = Math.min(total, Math.ceil((top + innerHeight + ahead) / height) * columns);
  for (const [index, cell] of cells) if ((index < first || index >= last) && index !== active) { cell.remove(); cells.delete(index); }
  const made = [];
  for (let index = first; index < last; index++) if (!cells.has(index)) made.push(make(index));
  grid.append(...made);
  // what is in the window first
  const seen = Math.max(0, Math.floor(top / height)) * columns;
  const pieces = new Set();
  for (const start of [seen, first]) for (let index = start; index < last; index += 1) pieces.add(Math.floor(index / PIECE));
  for (const piece of pieces) load(piece);
}

async function load(piece) {
  if (asked.has(piece) || piece * PIECE >= total) return;
  asked.add(piece);
  try {
    const state = data.state ? data.state + "&" : "";
    const found = await ask(`/api/tiles?${state}offset=${piece * PIECE}&count=${PIECE}`);
    found.tiles.forEach((tile, place) => {
      const index = piece * PIECE + place;
      known.set(index, tile);
      if (cells.has(index)) fill(cells.get(index), index);
    });
  } catch (problem) {
    setTimeout(() => { asked.delete(piece); draw(); }, 2000);
    tell(problem.status ? problem.message : "The server does not answer; trying again.", { bad: true });
  }
}

function make(index) {
  const cell = element("div", { className: "cell", id: `cell-${index}` });
  cell.setAttribute("role", "option");
  cell.setAttribute("aria-setsize", total);
  cell.setAttribute("aria-posinset", index + 1);
  cell.dataset.index = index;
  cell.style.width = `${width}px`;
  cell.style.height = `${height}px`;
  cell.style.transform = `translate(${(index % columns) * width}px, ${Math.floor(index / columns) * height}px)`;
  cells.set(index, cell);
  fill(cell, index);
  return cell;
}

// Apart from its content: an element that is replaced between press and release of a button gets no click.
function mark(cell, index) {
  const tile = known.get(index);
  cell.classList.toggle("active", index === active && document.activeElement === grid);
  cell.setAttribute("aria-selected", String(Boolean(tile && selected.has(tile.id))));
}

function fill(cell, index) {
  const tile = known.get(index);
  const w = tile?.width || 64, h = tile?.height || 128;
  const picture = svg("svg", { viewBox: `0 0 ${w} ${h}`, "aria-hidden": "true" });
  picture.style.height = `${2 * (width - 6)}px`;
  mark(cell, index);
  if (!tile) { cell.setAttribute("aria-label", `image ${index + 1}, loading`); cell.replaceChildren(picture); return; }
  if (tile.readable) {
    const image = svg("image", { href: `/thumb/${tile.id}.jpg`, width: w, height: h });
    image.onload = () => cell.classList.add("there");
    picture.append(image);
  } else cell.classList.add("there");
  for (const [part, box] of Object.entries(tile.boxes)) picture.append(svg("rect", { x: box[0] * w, y: box[1] * h,
    width: (box[2] - box[0]) * w, height: (box[3] - box[1]) * h, stroke: data.colours[part] ?? "#fff", "vector-effect": "non-scaling-stroke" }));
  const name = tile.path.split("/").pop(), problems = tile.problems.map(words).join(", ");
  const caption = element("span", { className: problems ? "cap bad" : "cap", title: `${tile.path}${problems ? "\n" + problems : ""}` });
  if (tile.review !== "open") caption.append(element("span", { className: "said", textContent: tile.review === "accepted" ? "✓ " : "✎ " }));
  caption.append(problems || name);
  cell.setAttribute("aria-label", [tile.path, problems, tile.review].filter(Boolean).join(", "));
  cell.replaceChildren(picture, caption);
}

function refill() { for (const [index, cell] of cells) fill(cell, index); }

function go(index) {
  const before = active;
  active = Math.max(0, Math.min(total - 1, index));
  const top = grid.getBoundingClientRect().top + scrollY + Math.floor(active / columns) * height;
  const covered = document.getElementById("bulk").hidden ? 10 : 60;
  if (top < scrollY + covered) scrollTo(0, top - covered);
  else if (top + height > scrollY + innerHeight) scrollTo(0, top + height - innerHeight + 10);
  draw();
  for (const place of [before, active]) if (cells.has(place)) mark(cells.get(place), place);
  grid.setAttribute("aria-activedescendant", `cell-${active}`);
}

function toggle(index, on = null) {
  const tile = known.get(index);
  if (!tile) return;
  if (on ?? !selected.has(tile.id)) selected.set(tile.id, index); else selected.delete(tile.id);
  if (cells.has(index)) mark(cells.get(index), index);
}

function range(index) {
  for (let at = Math.min(anchor, index); at <= Math.max(anchor, index); at++) toggle(at, true);
}

function open(index) {
  const tile = known.get(index);
  if (!tile) return;
  sessionStorage.setItem("grid-at:" + (data.state ?? ""), JSON.stringify([scrollY, index]));
  location.href = withState(`/image/${tile.id}`);
}

function bar() {
  document.getElementById("bulk").hidden = !selected.size && !lastChanged.length;
  document.getElementById("selected").textContent = `${selected.size.toLocaleString("en")} selected`;
}

async function many(body, what) {
  try {
    const answer = await ask("/api/many", { method: "POST", body });
    lastChanged = body.image_ids;
    tell(`${what}: ${answer.changed.toLocaleString("en")} images.` + (answer.left.length ? ` ${answer.left.length} have a part without an answer and stay as they are.` : ""));
    selected.clear();
    await renew();
  } catch (problem) { tell(problem.status ? problem.message : "Not saved: the server does not answer.", { bad: true }); }
}

async function renew() {
  known.clear(); asked.clear(); bar(); draw();
  refill();
}

const doing = {
  accept: () => many({ image_ids: [...selected.keys()] }, "Accepted"),
  absent: (button) => many({ image_ids: [...selected.keys()], absent: button.dataset.part }, `${words(button.dataset.part)} absent`),
  undo: async () => {
    if (!lastChanged.length) return;
    const answer = await ask("/api/many/undo", { method: "POST", body: { image_ids: lastChanged } });
    lastChanged = [];
    tell(`Undone: ${answer.undone} images.`);
    await renew();
  },
  clear: () => { selected.clear(); refill(); bar(); },
};

if (grid) {
  document.getElementById("bulk").addEventListener("click", (event) => { const button = event.target.closest("[data-do]"); if (button) doing[button.dataset.do](button); });
  const choose = document.getElementById("choose");
  choose.onclick = () => choose.setAttribute("aria-pressed", String(choose.getAttribute("aria-pressed") !== "true"));
  document.getElementById("all").onclick = async () => {
    (await ask(withState("/api/ids"))).forEach((id, index) => selected.set(id, index));
    refill(); bar();
  };
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const index = Number(cell.dataset.index);
    if (event.shiftKey) range(index);
    else if (event.ctrlKey || event.metaKey || choose.getAttribute("aria-pressed") === "true") { toggle(index); anchor = index; }
    else { open(index); return; }
    active = index;
    bar();
  });
  document.addEventListener("keydown", (event) => {
    if (typing(event)) return;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: columns * Math.max(1, Math.floor(innerHeight / height)),
      PageUp: -columns * Math.max(1, Math.floor(innerHeight / height)), Home: -total, End: total };
    if (document.activeElement === grid && event.key in steps) {
      go(active + steps[event.key]);
      if (event.shiftKey) range(active); else anchor = active;
    } else if (document.activeElement === grid && event.key === "Enter") open(active);
    else if (document.activeElement === grid && event.key === " ") { toggle(active); anchor = active; }
    else if (event.key === "Escape") doing.clear();
    else if (event.key === "a" && !event.ctrlKey && selected.size) doing.accept();
    else if (event.key === "z" && lastChanged.length) doing.undo();
    else return;
    event.preventDefault();
    bar();
  });
  grid.addEventListener("focus", () => go(active));
  grid.addEventListener("blur", () => cells.get(active)?.classList.remove("active"));
  let waiting = false;
  addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } }, { passive: true });
  new ResizeObserver(() => { if (Math.abs(grid.clientWidth - columns * width) > columns) lay(); }).observe(grid);
  lay();
  if (remembered) { const [at, index] = JSON.parse(remembered); active = Math.min(index, total - 1); scrollTo(0, at); sessionStorage.removeItem("grid-at:" + (data.state ?? "")); draw(); }
}
if (innerWidth <= 760) document.getElementById("side").open = false;
sendKept();
