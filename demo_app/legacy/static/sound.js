// A tone for each new critical incident nobody is on. Browsers allow none before a click or a key.
"use strict";

noc.sound = {
  muted: localStorage.getItem("noc-muted") === "1",
  context: null,
  // The incidents it was played for.
  played: [],
  rang: 0,
};

noc.sound.show = () => {
  const { muted, context } = noc.sound;
  noc.get("sound").setAttribute("aria-pressed", String(!muted && context !== null));
  noc.get("sound").textContent =
    muted ? "Sound off" : context ? "Sound on" : "Sound: on with a click";
};

noc.sound.unlock = () => {
  noc.sound.context = new AudioContext();
  noc.sound.context.resume();
  noc.sound.show();
};

noc.sound.toggle = () => {
  const locked = noc.sound.context === null;
  if (locked) noc.sound.unlock();
  noc.sound.muted = !locked && !noc.sound.muted;
  localStorage.setItem("noc-muted", noc.sound.muted ? "1" : "0");
  noc.sound.show();
};

noc.sound.ring = () => {
  // A site that fails as a whole is one alarm.
  if (Date.now() - noc.sound.rang < 2000) return;
  noc.sound.rang = Date.now();
  const { context } = noc.sound;
  [880, 660].forEach((frequency, index) => {
    const from = context.currentTime + index * 0.22;
    const tone = new OscillatorNode(context, { frequency });
    const loudness = new GainNode(context, { gain: 0 });
    loudness.gain.setTargetAtTime(0.25, from, 0.01);
    loudness.gain.setTargetAtTime(0, from + 0.15, 0.03);
    tone.connect(loudness).connect(context.destination);
    tone.start(from);
    tone.stop(from + 0.4);
  });
};

document.addEventListener("incident", ({ detail: { incident, known } }) => {
  const { muted, context, played } = noc.sound;
  if (known || !noc.drawn || incident.severity !== "critical") return;
  if (incident.acknowledged_by || incident.status === "resolved") return;
  if (muted || !context) return;
  played.push(incident.id);
  noc.sound.ring();
});

for (const gesture of ["pointerdown", "keydown"]) {
  document.addEventListener(gesture, ({ target }) => {
    // Its own button does it by itself.
    if (!noc.sound.context && !target.closest?.("#sound")) noc.sound.unlock();
  });
}
noc.get("sound").addEventListener("click", noc.sound.toggle);
noc.sound.show();
