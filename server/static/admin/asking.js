// What the server is asked: workers and queue all the time, keys now and then; draining and resuming.

import { call, Refused } from "../studio/api.js";
import { change, state } from "./store.js";

/** [name in the state, address, pause between two questions] */
const PARTS = [["workers", "/v1/admin/workers", 2000], ["queues", "/v1/admin/queue", 2000], ["owners", "/v1/admin/owners", 10000]];

let round = 0;
let settings = 0; // how many workers were drained or resumed: answers to earlier questions do not know of it

/** Ask for everything, again and again. */
export function start() {
  round += 1;
  change((now) => { now.keyNeeded = false; });
  for (const part of PARTS) keepAsking(...part, round);
}

async function keepAsking(name, path, pause, mine) {
  while (mine === round) {
    if (!document.hidden) await ask(name, path, mine);
    await new Promise((resolve) => { setTimeout(resolve, pause); });
  }
}

async function ask(name, path, mine) {
  const before = settings;
  try {
    const answer = await call(path);
    if (mine === round && before === settings) change((now) => { now[name] = answer; now.troubles[name] = null; });
  } catch (error) {
    if (mine === round && !lockedBy(error)) change((now) => { now.troubles[name] = error.message; });
  }
}

/** Whether a key, or another one, is needed to go on. Then the page asks for it. */
function lockedBy(error) {
  if (!(error instanceof Refused) || ![401, 403].includes(error.status)) return false;
  round += 1;
  change((now) => { now.keyNeeded = error.status === 403 ? "scope" : true; });
  return true;
}

export async function setDraining({ name }, draining) {
  if (state.setting.has(name)) return;
  change((now) => { now.setting.add(name); delete now.refused[name]; });
  try {
    const answer = await call(`/v1/admin/workers/${encodeURIComponent(name)}/${draining ? "drain" : "resume"}`, { method: "POST" });
    settings += 1;
    change((now) => {
      const known = now.workers.data.find((worker) => worker.name === name);
      if (known) known.draining = answer.draining;
      now.said = draining ? `${name} takes no more videos.` : `${name} takes videos again.`;
    });
  } catch (error) {
    if (!lockedBy(error)) change((now) => { now.refused[name] = error.message; });
  } finally {
    change((now) => { now.setting.delete(name); });
  }
}

addEventListener("visibilitychange", () => { if (!document.hidden && !state.keyNeeded) start(); });
addEventListener("online", () => { if (!state.keyNeeded) start(); });
