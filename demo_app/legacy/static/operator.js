// What an operator does: take incidents, read what runs say, and all of it by key.
"use strict";

// Acknowledging.

noc.shown = (id) => JSON.parse(noc.get(`incident-${id}`)?.row ?? "null");

noc.ask = (id) => {
  const incident = noc.shown(id);
  const dialog = noc.get("acknowledgement");
  if (!incident || dialog.open) return;
  dialog.incident = id;
  noc.get("comment").value = "";
  noc.get("acknowledgement-incident").replaceChildren(
    noc.element("b", { "data-tone": incident.severity },
      `${SEVERITIES[incident.severity]} ${incident.severity}`),
    ` ${incident.server}: ${incident.title}`);
  noc.offer(incident, incident.acknowledged_by);
  dialog.showModal();
  noc.get("comment").focus();
};

// Say who is on the incident, and offer what can still be done about it.
noc.offer = (incident, by) => {
  const dialog = noc.get("acknowledgement");
  const send = noc.get("acknowledgement-send");
  dialog.by = by;
  const words = by && incident.comment ? `: “${incident.comment}”` : ".";
  const said = by ? `${by} is on it since ${noc.time(incident.acknowledged_at)}${words}` : "";
  if (noc.get("acknowledgement-problem").textContent !== said) {
    noc.get("acknowledgement-problem").textContent = said;
  }
  noc.get("acknowledgement-title").textContent = send.textContent = by ? "Take over" : "Acknowledge";
  send.disabled = Boolean(by) && !noc.permissions.has("incidents.take_over");
};

noc.send = async () => {
  const dialog = noc.get("acknowledgement");
  const { incident: id, by } = dialog;
  const send = noc.get("acknowledgement-send");
  send.disabled = true;
  try {
    const incident = await noc.fetch(`/api/incidents/${id}/acknowledge`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ comment: noc.get("comment").value, instead_of: by }),
    });
    dialog.close();
    noc.incident(incident);
    noc.get(`incident-${id}`)?.focus();
  } catch (error) {
    send.disabled = false;
    if (error.status === 409) {
      noc.incident(error.said.incident);
      noc.offer(error.said.incident, error.said.incident.acknowledged_by);
    } else {
      noc.get("acknowledgement-problem").textContent =
        `Not sent: ${error.status ? error.message : "the server does not answer"}. Try again.`;
    }
  }
};

noc.get("acknowledgement").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  noc.send();
});

// Somebody else may be quicker while one writes a comment.
document.addEventListener("incident", ({ detail: { incident } }) => {
  const dialog = noc.get("acknowledgement");
  if (!dialog.open || dialog.incident !== incident.id) return;
  const by = incident.acknowledged_by;
  if (by !== dialog.by && by !== noc.me) noc.offer(incident, by);
});

// What a run says.

noc.open = async (id) => {
  const drawer = noc.get("run");
  drawer.run = id;
  drawer.from = document.activeElement;
  noc.get("run-log").replaceChildren();
  noc.describe(JSON.parse(noc.get(`run-${id}`).row));
  if (!drawer.open) drawer.show();
  drawer.querySelector("[data-close]").focus();
  try {
    const lines = await noc.fetch(`/api/logs?run=${id}`);
    if (drawer.run === id) lines.reverse().forEach(noc.append);
  } catch (error) {
    noc.get("run-state").textContent = `Its log cannot be had: ${error.message}.`;
  }
};

noc.describe = (run) => {
  const [tone, mark] = RUNS[run.status];
  noc.get("run-title").textContent = `${run.name} on ${run.server}`;
  const until = run.finished_at ? `until ${noc.time(run.finished_at)}` : "and goes on";
  noc.get("run-state").replaceChildren(
    noc.element("b", { "data-tone": tone }, `${mark} ${run.status}`),
    ` · from ${noc.time(run.started_at)} ${until}`);
};

// In the order of its numbers, and each once: the answer and the events may bring the same.
noc.append = (line) => {
  const log = noc.get("run-log");
  const lines = [...log.children];
  if (lines.some((other) => other.number === line.id)) return;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const made = Object.assign(noc.logged(line), { number: line.id });
  log.insertBefore(made, lines.find((other) => other.number > line.id) ?? null);
  if (atEnd) log.scrollTop = log.scrollHeight;
};

document.addEventListener("line", ({ detail: line }) => {
  if (noc.get("run").open && line.run_id === noc.get("run").run) noc.append(line);
});
document.addEventListener("run", ({ detail: run }) => {
  if (noc.get("run").open && run.id === noc.get("run").run) noc.describe(run);
});

// Keys.

noc.select = (step) => {
  const rows = [...noc.get("incidents").children];
  const at = rows.indexOf(document.activeElement?.closest("#incidents tr"));
  const next = rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + step))];
  next?.focus();
};

noc.acknowledgeSelected = () => {
  const row = document.activeElement?.closest("#incidents tr")
    ?? document.querySelector("#incidents tr[data-waiting]");
  const incident = row && JSON.parse(row.row);
  const by = incident?.acknowledged_by;
  if (!incident || incident.status === "resolved" || by === noc.me) return;
  if (!noc.permissions.has(by ? "incidents.take_over" : "incidents.acknowledge")) return;
  row.focus();
  noc.ask(incident.id);
};

noc.KEYS = {
  j: () => noc.select(1),
  k: () => noc.select(-1),
  a: noc.acknowledgeSelected,
  m: () => noc.sound.toggle(),
  "?": () => noc.get("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select") || document.querySelector("dialog:modal")) return;
  if (event.key === "Escape" && noc.get("run").open) noc.get("run").close();
  const act = noc.KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

noc.get("keys").addEventListener("click", noc.KEYS["?"]);
for (const close of document.querySelectorAll("dialog [data-close]")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}
noc.get("run").addEventListener("close", () => noc.get("run").from?.focus());
