// The dashboard of a legacy app: it draws what the JSON endpoints say, and asks every 5 s.
"use strict";

const SEVERITIES = {
  critical: "▲", major: "◆", minor: "■", warning: "●",
};
const LEVELS = { error: "critical", warning: "minor", info: "good" };
const RUNS = { running: ["warning", "▶ running"], succeeded: ["good", "✓ succeeded"], failed: ["critical", "✕ failed"] };
const MARKS = { up: "", degraded: "!", down: "✕" };
const KEPT = 60;

const noc = { incidents: new Map(), servers: new Map(), polling: 0 };

noc.element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

noc.time = (text) => new Date(text).toLocaleTimeString("en-GB");

noc.incident = (incident) => {
  noc.incidents.set(incident.id, incident);
  const row = noc.element("tr", { id: `incident-${incident.id}`, "data-status": incident.status });
  const owner = noc.element("td");
  if (incident.acknowledged_by) {
    owner.append(incident.acknowledged_by);
  } else if (incident.status !== "resolved") {
    const button = noc.element("button", { type: "button" }, "Acknowledge");
    button.addEventListener("click", () => noc.acknowledge(incident.id));
    owner.append(button);
  }
  row.append(
    noc.element("td", { class: "severity", "data-tone": incident.severity },
      `${SEVERITIES[incident.severity]} ${incident.severity}`),
    noc.element("td", { class: "title" }, incident.title),
    noc.element("td", {}, incident.status),
    noc.element("td", {}, noc.time(incident.opened_at)),
    owner,
  );
  noc.put(document.getElementById("incidents"), row, incident.id);
  noc.count();
};

noc.server = (server) => {
  noc.servers.set(server.name, server);
  const cell = noc.element("span", {
    id: `server-${server.name}`, "data-status": server.status,
    role: "img", "aria-label": `${server.name} is ${server.status}`, title: `${server.name}: ${server.status}`,
  }, MARKS[server.status]);
  const old = document.getElementById(cell.id);
  if (old) old.replaceWith(cell); else document.getElementById("servers").append(cell);
  const all = [...noc.servers.values()];
  const down = all.filter((one) => one.status === "down").length;
  const degraded = all.filter((one) => one.status === "degraded").length;
  document.getElementById("network-summary").textContent =
    `${all.length - down - degraded} up · ${degraded} degraded · ${down} down`;
};

noc.line = (line) => {
  noc.put(document.getElementById("log"), noc.element("li", { id: `line-${line.id}` },
    noc.element("time", {}, noc.time(line.at)),
    noc.element("span", { "data-tone": LEVELS[line.level] || "good" }, line.level),
    noc.element("span", { class: "source" }, line.source),
    noc.element("span", {}, line.text)), line.id);
};

noc.run = (run) => {
  const [tone, text] = RUNS[run.status];
  noc.put(document.getElementById("automations"), noc.element("li", { id: `run-${run.id}` },
    noc.element("span", { class: "state", "data-tone": tone }, text),
    noc.element("span", {}, run.name),
    noc.element("span", { class: "where" }, run.server)), run.id);
};

// Newest first, one element for each id, and no more than are worth looking at.
noc.put = (list, element, id) => {
  const old = document.getElementById(element.id);
  element.dataset.number = id;
  if (old) {
    old.replaceWith(element);
  } else {
    const next = [...list.children].find((other) => Number(other.dataset.number) < id);
    list.insertBefore(element, next || null);
  }
  if (noc.drawn) element.classList.add("new");
  while (list.children.length > KEPT) list.lastElementChild.remove();
};

noc.count = () => {
  const open = [...noc.incidents.values()].filter((one) => one.status !== "resolved");
  document.getElementById("counts").replaceChildren(...Object.entries(SEVERITIES).map(([name, mark]) => {
    const count = open.filter((one) => one.severity === name).length;
    const item = noc.element("li", { "data-tone": name }, noc.element("b", {}, `${mark} ${count}`), name);
    if (count) item.dataset.any = "";
    return item;
  }));
};

noc.state = (state, text = state) => {
  const shown = document.getElementById("state");
  shown.dataset.state = state;
  shown.textContent = text;
};

noc.load = async () => {
  const names = ["servers", "incidents", "logs", "automations"];
  const answers = await Promise.all(names.map((name) => fetch(`/api/${name}`).then((r) => r.json())));
  const draw = [noc.server, noc.incident, noc.line, noc.run];
  answers.forEach((rows, index) => rows.forEach(draw[index]));
  noc.count();
  noc.drawn = true;
};

noc.acknowledge = (id) => fetch(`/api/incidents/${id}/acknowledge`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ who: "you", comment: "" }),
});

noc.poll = () => {
  noc.state("polling", "polling every 5 s");
  noc.polling = setInterval(() => noc.load().catch(() => noc.state("reconnecting", "no answer")), 5000);
};

setInterval(() => { document.getElementById("clock").textContent = noc.time(Date.now()); }, 1000);
noc.poll();
noc.loaded = noc.load();
