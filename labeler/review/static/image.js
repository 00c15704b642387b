// One image: its boxes are corrected with pointer or keys, and saved as soon as a correction is made.
import { ask, data, decide, element, forget, sendKept, svg, tell, typing, unsaved, withState, words } from "./common.js";

const $ = (id) => document.getElementById(id);
const stage = $("stage"), frame = $("frame");
const CORNERS = { nw: [0, 1], ne: [2, 1], sw: [0, 3], se: [2, 3] }; // which of x_min, y_min, x_max, y_max a corner moves
let image = null, boxes = {}, chosen = null, zoom = null, moving = null, hidden = new Set(), waiting = null, later = null;
let chain = Promise.resolve();

// ---- showing

function show(found) {
  image = found;
  boxes = Object.fromEntries(Object.entries(found.parts).filter(([, one]) => one.status === "ok").map(([part, one]) => [part, [...one.box]]));
  if (!data.parts.includes(chosen)) chosen = null;
  $("path").textContent = found.path;
  $("place").textContent = found.at === null ? `${found.total.toLocaleString("en")} in the list` : `${(found.at + 1).toLocaleString("en")} of ${found.total.toLocaleString("en")}`;
  document.title = `${found.path} – label review`;
  $("previous").disabled = !found.previous;
  $("next").disabled = !found.next;
  $("undo").disabled = !found.undo;
  $("why").hidden = found.readable;
  $("why").textContent = found.readable ? "" : `The file cannot be read as an image: ${found.reason}`;
  const facts = { identity: found.identity ?? "none", camera: found.camera ?? "unknown", split: found.split, size: `${found.width} × ${found.height} px`, "image_id": found.id, "data set": found.dataset };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
  $("same").replaceChildren(...found.same.map((id) => element("a", { href: withState(`/image/${id}`) }, [element("img", { src: `/thumb/${id}.jpg`, alt: `other image of identity ${found.identity}`, loading: "lazy" })])));
  if (!found.same.length) $("same").textContent = "none";
  const names = Object.keys(found.runs);
  $("runs").replaceChildren(...names.map((run) => {
    const here = run === found.run, box = element("input", { type: "checkbox", checked: here ? !hidden.has(run) : hidden.has("+" + run) });
    box.onchange = () => { const key = here ? run : "+" + run; if (here === box.checked) hidden.delete(key); else hidden.add(key); draw(); };
    return element("label", {}, [box, ` ${run}${here ? "" : " (dashed)"}`]);
  }));
  $("raw").replaceChildren(...Object.entries(found.parts).flatMap(([part, one]) => [
    element("h3", { textContent: `${words(part)}: ${one.attempts} attempt${one.attempts === 1 ? "" : "s"}` }),
    element("pre", { textContent: [one.raw_text, one.raw_box?.length ? `box ${one.raw_box.map((v) => +v.toFixed(2)).join(", ")} (${one.space})` : null].filter(Boolean).join("\n") || "the answer was not kept" })]));
  $("history").replaceChildren(...found.history.map(([at, part, status, engine, model]) => element("div", { className: "under", textContent: `${at} UTC: ${words(part)} ${words(status)}, ${engine} ${model}` })));
  fit();
}

function panel() {
  $("parts").replaceChildren(...data.parts.map((part, place) => {
    const one = image.parts[part], status = boxes[part] ? "ok" : one ? one.status : "no label";
    const button = element("button", { type: "button", className: "part" }, [
      element("span", {}, [element("kbd", { textContent: place + 1 })]), element("b", { textContent: words(part) }),
      element("span", { className: `state ${status === "ok" ? "ok" : status === "absent" ? "" : "failed"}`, textContent: words(status) })]);
    const facts = one ? [one.flags.length ? one.flags.map(words).join(", ") : null, one.score !== null ? `score ${one.score.toFixed(2)}` : null,
      one.agreement !== null ? `agreement ${one.agreement.toFixed(2)}` : null, one.engine === "review" ? `${one.model}, ${one.at} UTC` : `${one.engine} ${one.model}`] : [];
    button.append(element("span", { className: "under", textContent: facts.filter(Boolean).join(" · ") }));
    button.setAttribute("aria-pressed", String(part === chosen));
    button.style.borderLeftColor = data.colours[part];
    button.onclick = () => choose(part);
    return button;
  }));
  $("absent").disabled = $("box").disabled = !chosen || !data.editable;
  $("accept").disabled = !data.editable;
}

function fit() {
  const room = Math.min(0.72 * innerHeight, 900), wide = frame.clientWidth - 4;
  zoom = Math.min(room / image.height, wide / image.width);
  draw();
}

function draw() {
  const px = 1 / zoom; // one pixel of the screen, in pixels of the image
  stage.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  stage.style.width = `${image.width * zoom}px`;
  stage.style.height = `${image.height * zoom}px`;
  $("size").textContent = `${Math.round(100 * zoom)} %`;
  const nodes = image.readable ? [svg("image", { href: `/full/${image.id}.jpg`, width: image.width, height: image.height, preserveAspectRatio: "none" })] : [];
  const rect = (box, attributes) => svg("rect", { x: box[0], y: box[1], width: Math.max(0, box[2] - box[0]), height: Math.max(0, box[3] - box[1]), ...attributes });
  for (const [run, parts] of Object.entries(image.runs)) if (run !== image.run && hidden.has("+" + run))
    for (const [part, box] of Object.entries(parts)) nodes.push(rect(box, { class: "other", stroke: data.colours[part] ?? "#fff" }));
  if (!hidden.has(image.run)) {
    const order = Object.keys(boxes).sort((a, b) => (a === chosen) - (b === chosen));
    for (const part of order) nodes.push(rect(boxes[part], { class: part === chosen ? "box chosen" : "box", stroke: data.colours[part] ?? "#fff", "data-part": part }));
    if (chosen && boxes[chosen]) for (const [name, [x, y]] of Object.entries(CORNERS)) {
      const at = [boxes[chosen][x], boxes[chosen][y]];
      nodes.push(svg("rect", { class: "handle", x: at[0] - 5 * px, y: at[1] - 5 * px, width: 10 * px, height: 10 * px }));
      nodes.push(svg("circle", { class: `grip ${name}`, cx: at[0], cy: at[1], r: 14 * px, "data-corner": name }));
    }
  }
  stage.replaceChildren(...nodes);
  panel();
}

function choose(part) { chosen = part; draw(); }

function scale(factor) { zoom = Math.max(0.1, Math.min(40, zoom * factor)); draw(); }

// ---- saving: one decision after the other, each on the version that the one before left

function save(parts, accept = false) {
  if (!data.editable) { tell("There is no label run to correct.", { bad: true }); return Promise.resolve(false); }
  clearTimeout(later);
  const id = image.id;
  chain = chain.then(async () => {
    try {
      const found = await decide(id, { version: image.version, parts, accept });
      clearTimeout(waiting);
      if (image.id === id) show(found);
      if (found.written) tell("");
      return true;
    } catch (problem) {
      if (problem.status === 409) conflict(id, unsaved(id));
      else if (problem.status === 422 || problem.status === 404) { forget(id); tell(problem.message, { bad: true }); show(image); }
      else {
        tell(problem.status ? problem.message : "Not saved: the server does not answer. The correction is kept in this browser; trying again.", { bad: true });
        clearTimeout(waiting);
        if (problem.status !== 403) waiting = setTimeout(() => { if (unsaved(id)) save({}, false); }, 2000);
      }
      return false;
    }
  });
  return chain;
}

async function conflict(id, mine) {
  forget(id);
  show(await ask(withState(`/api/images/${id}`)));
  tell("The labels of this image were changed in another window and are shown as they are now. Yours were not saved.", { bad: true,
    action: ["Save mine", () => save(mine.parts, mine.accept)] });
}

function changed() { draw(); save({ [chosen]: boxes[chosen] }); }
function changedByKey() { draw(); clearTimeout(later); const part = chosen, box = boxes[part]; later = setTimeout(() => save({ [part]: box }), 500); pending = () => save({ [part]: box }); }
let pending = null;
async function settle() { if (pending && later) { clearTimeout(later); const run = pending; pending = null; await run(); } await chain; }

async function load(id, push = true) {
  if (!id) return;
  await settle();
  const found = await ask(withState(`/api/images/${id}`)).catch((problem) => { tell(problem.status ? problem.message : "The server does not answer.", { bad: true }); });
  if (!found) return;
  if (push) history.pushState({ id }, "", withState(`/image/${id}`));
  chosen = null;
  tell("");
  show(found);
}

async function acceptAndNext() {
  const next = image.next, last = image.at !== null && !next;
  await settle();
  if (!(await save({}, true))) return;
  if (next) await load(next); else if (last) tell("Accepted. That was the last image of the list.");
}

async function absent() { if (chosen) { const part = chosen; delete boxes[part]; draw(); await save({ [part]: null }); } }

async function undo() {
  await settle();
  chain = chain.then(async () => {
    try { show(await ask(withState(`/api/images/${image.id}/undo`), { method: "POST" })); tell("Undone."); }
    catch (problem) { tell(problem.status ? problem.message : "Not undone: the server does not answer.", { bad: true }); }
  });
  await chain;
}

function newBox() {
  if (!chosen) return;
  const [w, h] = [image.width, image.height];
  const places = { head: [0.3, 0.03, 0.7, 0.2], upper_body: [0.15, 0.2, 0.85, 0.55], legs: [0.2, 0.5, 0.8, 0.97] };
  boxes[chosen] = (places[chosen] ?? [0.25, 0.25, 0.75, 0.75]).map((share, axis) => share * (axis % 2 ? h : w));
  changed();
}

// ---- pointer

function at(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
  return [Math.max(0, Math.min(image.width, point.x)), Math.max(0, Math.min(image.height, point.y))];
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !data.editable) return;
  const target = event.target, start = at(event);
  if (target.dataset.corner) moving = { corner: CORNERS[target.dataset.corner], start, box: [...boxes[chosen]] };
  else if (chosen && !boxes[chosen]) { boxes[chosen] = [...start, ...start]; moving = { corner: CORNERS.se, start, box: [...boxes[chosen]], drawn: true }; }
  else if (target.dataset.part) { choose(target.dataset.part); moving = { corner: null, start, box: [...boxes[chosen]] }; }
  else { choose(null); return; }
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
});
stage.addEventListener("pointermove", (event) => {
  if (!moving) return;
  const [x, y] = at(event), box = [...moving.box];
  if (moving.corner) { box[moving.corner[0]] += x - moving.start[0]; box[moving.corner[1]] += y - moving.start[1]; }
  else {
    const dx = Math.max(-box[0], Math.min(image.width - box[2], x - moving.start[0])), dy = Math.max(-box[1], Math.min(image.height - box[3], y - moving.start[1]));
    box[0] += dx; box[2] += dx; box[1] += dy; box[3] += dy;
  }
  boxes[chosen] = box;
  draw();
});
function released() {
  if (!moving) return;
  const [before, drawn] = [moving.box, moving.drawn];
  moving = null;
  const [a, b, c, d] = boxes[chosen];
  boxes[chosen] = [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
  if (drawn && Math.max(c - a, d - b) * zoom < 4) { delete boxes[chosen]; draw(); return; } // a click, not a box
  if (before.some((value, place) => Math.abs(value - boxes[chosen][place]) > 0.1)) changed(); else draw();
}
stage.addEventListener("pointerup", released);
stage.addEventListener("pointercancel", released);
frame.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); scale(event.deltaY < 0 ? 1.15 : 1 / 1.15); } }, { passive: false });

// ---- keys and buttons

function arrow(dx, dy, resize) {
  const box = [...boxes[chosen]];
  if (resize) { box[2] = Math.max(box[0] + 2, Math.min(image.width, box[2] + dx)); box[3] = Math.max(box[1] + 2, Math.min(image.height, box[3] + dy)); }
  else {
    dx = Math.max(-box[0], Math.min(image.width - box[2], dx)); dy = Math.max(-box[1], Math.min(image.height - box[3], dy));
    box[0] += dx; box[2] += dx; box[1] += dy; box[3] += dy;
  }
  boxes[chosen] = box;
  changedByKey();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", (event) => {
  if (typing(event) || !image) return;
  const key = event.key, onButton = event.target.closest?.("button, a, summary");
  if (key === "Enter" && !onButton) acceptAndNext();
  else if (key in ARROWS && chosen && boxes[chosen] && data.editable) arrow(...ARROWS[key], event.shiftKey);
  else if (key === "ArrowRight" || key === "n") load(image.next);
  else if (key === "ArrowLeft" || key === "p") load(image.previous);
  else if (/^[1-9]$/.test(key) && data.parts[key - 1]) choose(data.parts[key - 1]);
  else if (key === "x") absent();
  else if (key === "b") newBox();
  else if (key === "z") undo();
  else if (key === "+" || key === "=") scale(1.25);
  else if (key === "-") scale(0.8);
  else if (key === "0") fit();
  else if (key === "Escape") { if (chosen) choose(null); else location.href = $("back").href; }
  else return;
  event.preventDefault();
});
for (const [id, act] of Object.entries({ previous: () => load(image.previous), next: () => load(image.next), accept: acceptAndNext, absent, box: newBox, undo,
  in: () => scale(1.25), out: () => scale(0.8), fit })) $(id).onclick = act;
addEventListener("popstate", () => load(location.pathname.split("/").pop(), false));
addEventListener("resize", () => { if (image) fit(); });
addEventListener("focus", async () => { // another window may have corrected this image
  if (!image || moving || unsaved(image.id)) return;
  const found = await ask(withState(`/api/images/${image.id}`)).catch(() => null);
  if (found && found.id === image.id && found.version !== image.version) { show(found); tell("Corrected in another window; shown as it is now."); }
});
addEventListener("pagehide", () => { if (later && pending) pending(); });

await load(data.id, false);
if (unsaved(data.id)) { Object.assign(boxes, Object.fromEntries(Object.entries(unsaved(data.id).parts).filter(([, box]) => box))); await save({}); }
sendKept(data.id);
