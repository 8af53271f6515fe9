/** What the stream of this browser does: what it was and when, and what came over the wire. */

import { connect } from "./client.js";

const MOST = 500;
const LONGEST = 16 * 1024;
const READS = Boolean(new Response("").body?.getReader);

const find = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const token = query.get("token");
if (token !== null) {
  // Whoever looks over a shoulder, or at a screenshot, is not to have it.
  query.delete("token");
  history.replaceState(null, "", `?${query}`);
}

let before = null;

const stream = connect({
  types: query.get("types")?.split(",").filter(Boolean) ?? [],
  token,
  onState: showState,
  onGap: ({ reason, position }) => add(find("gaps"), [now(), reason, before, position]),
  onWire: showWire,
});
stream.subscribe(showFacts);
stream.on("*", showFacts);
setInterval(showFacts, 1000);
showFacts();

find("drop").addEventListener("click", () => stream.reconnect());
find("clear").addEventListener("click", () => {
  for (const log of document.querySelectorAll("tbody, ol")) log.replaceChildren();
});

function showState({ name, reason, attempt }) {
  const state = find("state");
  state.dataset.state = name;
  state.textContent = reason ? `${name} (${reason})` : name;
  add(find("history"), [now(), name, reason, attempt, stream.snapshot().position]);
}

function showFacts() {
  const { position, delivered, gaps, heardAt, tabs, ...seen } = stream.snapshot();
  // A gap is told when the position has moved on.
  before = position;
  const facts = {
    Transport: transport(seen.name),
    "Held by": holder(seen),
    Tabs: tabs,
    Position: position,
    Events: delivered,
    Gaps: gaps,
    Heard: heardAt && `${Math.round((Date.now() - heardAt) / 1000)} s ago`,
    Types: query.get("types") || "all",
  };
  const rows = Object.entries(facts).flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]);
  find("facts").replaceChildren(...rows);
}

function transport(name) {
  if (name === "live") return READS ? "stream, read by fetch" : "stream, by EventSource";
  return name === "polling" ? "polling" : "none";
}

function holder({ way, leads }) {
  if (way === "worker") return "a shared worker";
  if (way === "locks") return leads ? "this tab, for all" : "another tab";
  return "this tab, for itself";
}

function showWire(text) {
  const rest = text.length - LONGEST;
  const shown = rest > 0 ? `${text.slice(0, LONGEST)}... ${rest} characters more` : text;
  const item = document.createElement("li");
  item.append(cell("time", now()), cell("pre", shown));
  prepend(find("frames"), item);
}

function add(table, values) {
  const row = document.createElement("tr");
  row.append(...values.map((value) => cell("td", value)));
  prepend(table.tBodies[0], row);
}

function prepend(log, item) {
  log.prepend(item);
  while (log.childElementCount > MOST) log.lastChild.remove();
}

function cell(tag, value) {
  const made = document.createElement(tag);
  made.textContent = value ?? "-";
  return made;
}

function now() {
  return new Date().toISOString().slice(11, 23);
}
