// The header: how the server is, the note of a toy checkpoint (once), the API key.

import { apiKey, forgetKey, keyIsRemembered } from "./api.js";
import { model } from "./draft.js";
import { openJob } from "./jobs.js";
import { html } from "../vendor/htm-preact.js";
import { state } from "./store.js";
import { limitsOf, many } from "./words.js";

function health() {
  const { ready, online } = state;
  if (!online) return ["bad", "No connection"];
  if (!ready) return ["", "Connecting…"];
  if (ready.ready) return ["good", `${many(ready.workers, "worker")} ready`];
  if (!ready.storage) return ["bad", "The disk is full or away"];
  if (ready.problems.length) return ["wait", ready.problems[0]];
  return ["wait", ready.failing_workers ? "A worker cannot work" : "Waiting for a worker"];
}

function Note() {
  const name = openJob()?.model;
  const shown = state.models.find((one) => one.id === name) ?? model();
  if (!shown?.note && shown?.trained !== false) return null;
  return html`<details class="menu"><summary class="badge">Demo model</summary>
    <div class="card"><p>${shown.note || "An untrained network, for trying the service out. Its videos are noise."}</p></div></details>`;
}

function KeyMenu() {
  const key = state.limits?.key;
  if (!key || !apiKey()) return null;
  const limits = limitsOf(key.limits);
  return html`<details class="menu"><summary>Key</summary><div class="card">
    <p>May: ${key.scopes.join(", ")}</p><p>${limits.length ? `At most ${limits.join(", ")}` : "Without limits of its own"}</p>
    <p class="soft">${keyIsRemembered() ? "Remembered by this browser" : "Kept in this tab only"}</p>
    <button type="button" onClick=${() => { forgetKey(); location.reload(); }}>Forget the key</button></div></details>`;
}

/** So may everybody on a server without keys. */
const mayAdminister = () => state.limits && (state.limits.key?.scopes.includes("admin") ?? true);

export const Header = () => {
  const [look, text] = health();
  return html`<header tabindex="-1"><a class="brand" href="#"><img src="/static/icon.svg" alt="" width="28" height="28" /><h1>CoInteract <span>Studio</span></h1></a>
    <p class="health" title=${text}><span class=${`dot ${look}`}></span><span class="health-text">${text}</span></p>
    <${Note} /><nav><${KeyMenu} />${mayAdminister() && html`<a href="/admin">Admin</a>`}<a href="/docs">API</a></nav></header>`;
};
