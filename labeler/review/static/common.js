// What every page does: read its data, talk to the server, and keep corrections in this browser until they are saved.

export const data = JSON.parse(document.getElementById("data")?.textContent ?? "{}");
const told = document.getElementById("told");
const KEPT = "dgreid-review-unsaved";

export function tell(text, { bad = false, action = null } = {}) {
  told.textContent = text;
  told.classList.toggle("bad", bad);
  if (action) {
    const button = document.createElement("button");
    button.textContent = action[0];
    button.onclick = () => { tell(""); action[1](); };
    told.append(button);
  }
}

export class Refused extends Error {
  constructor(status, problem) { super(`${problem.what}: ${problem.fix}`); this.status = status; }
}

export async function ask(address, { method = "GET", body = null } = {}) {
  const text = body && JSON.stringify(body);
  // keepalive: a correction arrives although its window is closed at the same moment
  const answer = await fetch(address, { method, body: text, keepalive: method === "PUT" && text.length < 60000,
    headers: body ? { "content-type": "application/json" } : {} });
  if (answer.status === 403) throw new Refused(403, { what: "the server was started again",
    fix: "open the address that it printed; unsaved corrections are kept in this browser" });
  const isJson = answer.headers.get("content-type")?.startsWith("application/json");
  const found = isJson ? await answer.json() : {};
  if (!answer.ok) throw new Refused(answer.status, found.what ? found : { what: `error ${answer.status}`, fix: "load the page again" });
  return found;
}

export const withState = (path, state = data.state) => (state ? `${path}?${state}` : path);

// ---- corrections that the server has not taken yet: image_id -> {version, parts, accept}

function kept() {
  try { return JSON.parse(localStorage.getItem(KEPT) ?? "{}"); } catch { return {}; }
}

function keep(change) {
  const all = kept();
  change(all);
  if (Object.keys(all).length) localStorage.setItem(KEPT, JSON.stringify(all));
  else localStorage.removeItem(KEPT);
}

export const unsaved = (id) => kept()[id];

// Later decisions on one image are added to earlier ones that could not be sent.
export async function decide(id, decision) {
  const before = kept()[id];
  const whole = before ? { version: before.version, parts: { ...before.parts, ...decision.parts }, accept: before.accept || decision.accept } : decision;
  keep((all) => { all[id] = whole; });
  const answer = await ask(withState(`/api/images/${id}`), { method: "PUT", body: whole });
  forget(id);
  return answer;
}

export function forget(id) { keep((all) => { delete all[id]; }); }

// What another session of this page left behind.
export async function sendKept(skip = null) {
  for (const [id, decision] of Object.entries(kept())) {
    if (id === skip) continue;
    try {
      await ask(withState(`/api/images/${id}`), { method: "PUT", body: decision });
      forget(id);
      tell("A correction that was kept in this browser has been saved.");
    } catch (problem) {
      if (problem.status === 409) tell("A correction kept in this browser is of labels that have changed since.", { bad: true,
        action: ["Look at it", () => { location.href = `/image/${id}`; }] });
      else if (problem.status === 422 || problem.status === 404) { forget(id); tell(`A kept correction was refused: ${problem.message}`, { bad: true }); }
      return;
    }
  }
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(name, attributes = {}, children = []) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function element(name, properties = {}, children = []) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export const words = (text) => String(text).replaceAll("_", " ");
export const typing = (event) => event.target.closest?.("input, select, textarea") || event.metaKey || event.altKey;
